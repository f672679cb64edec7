"""Answers that repeat the keys they were sent."""

import json

COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


def http(status, body, *headers, reason="Said"):
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    lines = [f"HTTP/1.1 {status} {reason}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def keys_of(received):
    """What stands in the headers that hold keys, the scheme left out."""
    names = ("x-portkey-api-key", "x-portkey-virtual-key", "authorization")
    return [received.headers[name].removeprefix("Bearer ") for name in names if name in received.headers]


def error(received, status, *, code="bad", padding=0):
    message = "x" * padding + " ".join(keys_of(received)) + received.head
    return http(status, {"error": {"message": message, "code": code, "type": keys_of(received)[0]}})
