import json
from pathlib import Path

import orjson
import pytest
from hypothesis import given, strategies as st

from batchkit.formats.completions import RETRY_AFTER_CAP_S, read_answer
from batchkit.records import Failure, FailureKind as Kind, Reply, Usage

DATA = Path(__file__).parents[3] / "shared" / "data"
NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT

COMPLETION = {
    "model": "m-1",
    "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}


def read(status: int, document: object = None, **headers: str) -> Reply | Failure:
    body = document if isinstance(document, bytes) else b"" if document is None else orjson.dumps(document)
    return read_answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, body, NOW)


def failure(status: int, document: object = None, **headers: str) -> Failure:
    answer = read(status, document, **headers)
    assert isinstance(answer, Failure)
    return answer


def reply(document: object, status: int = 200) -> Reply:
    answer = read(status, document)
    assert isinstance(answer, Reply)
    return answer


def completion(**changes: object) -> dict[str, object]:
    return {**COMPLETION, **changes}


def choice(**changes: object) -> dict[str, object]:
    return {"message": {"content": "Hi"}, "finish_reason": "stop", **changes}


# --- completions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 246])
def test_a_completion_is_a_reply_that_keeps_its_status_and_bytes(status):
    body = json.dumps(COMPLETION).encode()  # spaces and all
    assert read(status, body, x_request_id="r") == Reply(status, "r", body, "m-1", Usage(3, 2, 5), "stop")


@pytest.mark.parametrize(
    ("document", "finish_reason"),
    [
        (completion(), "stop"),
        (completion(choices=[choice(finish_reason="length")]), "length"),
        (completion(choices=[choice(finish_reason="tool_calls", message={"tool_calls": []})]), "tool_calls"),
        (completion(choices=[choice(finish_reason=None)]), None),
        (completion(choices=[choice(finish_reason=["odd"])]), None),
        (completion(choices=[choice(finish_reason="content_filter"), choice()]), "stop"),
        (completion(error=None), "stop"),
        (completion(error={}), "stop"),
    ],
)
def test_why_a_completion_ended(document, finish_reason):
    answer = reply(document)
    assert answer.finish_reason == finish_reason
    assert answer.truncated == (finish_reason == "length")


def test_a_filtered_completion_is_a_failure_that_keeps_what_it_cost():
    answer = failure(200, completion(choices=[choice(finish_reason="content_filter")]))
    assert (answer.kind, answer.code, answer.usage) == (Kind.CONTENT_FILTER, "content_filter", Usage(3, 2, 5))
    assert answer.model == "m-1"


@pytest.mark.parametrize(
    "choices", [None, [], {}, "x", [None], [{}], [{"message": None}], [choice(), 3][::-1]]
)
def test_without_a_completion_in_choices_there_is_none(choices):
    answer = failure(200, completion(choices=choices))
    assert (answer.kind, answer.code) == (Kind.INVALID_RESPONSE, "invalid_response")
    assert answer.body == orjson.dumps(completion(choices=choices))


@pytest.mark.parametrize("body", [b"", b"<html>hello</html>", b"ok", b"[]", b'"x"', b"null", b"7"])
def test_a_200_that_is_no_json_object_comes_from_no_api(body):
    answer = failure(200, body)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.NOT_AN_API, "not_an_api", False)


@pytest.mark.parametrize("body", [orjson.dumps(COMPLETION)[:-1], b'{"a": NaN}', b"{" * 100_000])
def test_json_that_broke_may_have_been_billed(body):
    answer = failure(200, body)
    assert (answer.kind, answer.code, answer.maybe_billed) == (Kind.NOT_AN_API, "broken_json", True)


def test_a_pretty_printed_body_is_put_on_one_line():
    body = json.dumps(completion(note="a\nb"), indent=2).replace("\n", "\r\n").encode()
    answer = reply(body)
    assert b"\n" not in answer.body
    assert b"\r" not in answer.body
    assert orjson.loads(answer.body) == completion(note="a\nb")


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\\ud83d\ud83d", "\\ud83d\ufffd"),
        (rb"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
        (b"a\xf0\x9f\x98", "a\ufffd"),
    ],
)
def test_half_a_character_does_not_cost_the_answer(content, kept):
    body = orjson.dumps(completion(choices=[choice(message={"content": "HERE"})])).replace(b"HERE", content)
    assert orjson.loads(reply(body).body)["choices"][0]["message"]["content"] == kept


def test_a_byte_order_mark_does_not_cost_the_answer():
    assert reply(b"\xef\xbb\xbf" + orjson.dumps(COMPLETION)).body == orjson.dumps(COMPLETION)


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 9}, Usage(3, 2, 9)),
        ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": -1}, Usage(3, 2, 5)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
            Usage(3, 2, 5, 1, 2),
        ),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 2,
                "prompt_tokens_details": None,
                "completion_tokens_details": {"reasoning_tokens": None},
            },
            Usage(3, 2, 5),
        ),
        (
            {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
            Usage(3, 2, 5, 3),
        ),
        (None, None),
        ([], None),
        ({}, None),
        ({"prompt_tokens": 3}, None),
        ({"prompt_tokens": None, "completion_tokens": 2}, None),
        ({"prompt_tokens": -3, "completion_tokens": 2}, None),
        ({"prompt_tokens": 3.5, "completion_tokens": 2}, None),
        ({"prompt_tokens": True, "completion_tokens": 2}, None),
        ({"prompt_tokens": "3", "completion_tokens": 2}, None),
        ({"prompt_tokens": 10**13, "completion_tokens": 2}, None),
    ],
)
def test_fault_39_usage_that_is_null_negative_fractional_huge_or_missing_is_unknown_and_not_zero(
    usage, expected
):
    assert reply(completion(usage=usage)).usage == expected


def test_usage_may_be_missing():
    document = {name: value for name, value in COMPLETION.items() if name != "usage"}
    assert reply(document).usage is None


@pytest.mark.parametrize("model", [None, 3, ["m"]])
def test_a_model_that_is_no_string_is_unnamed(model):
    assert reply(completion(model=model)).model == ""


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
@pytest.mark.parametrize("name", ["kmmlu_output.jsonl", "go_batch_output.jsonl"])
def test_what_a_real_provider_answered_is_read(name):
    for line in (DATA / name).read_bytes().splitlines():
        response = orjson.loads(line)["response"]
        usage = response["body"]["usage"]
        answer = reply(response["body"], response["status_code"])
        assert answer.model == response["body"]["model"]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (
            usage["prompt_tokens"],
            usage["total_tokens"],
        )


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not beside this checkout")
def test_the_answer_in_portkeys_own_documentation_is_read():
    text = (DATA / "portkey_chat_completions.txt").read_text()
    start = text.index('{\n  "id"')
    document, _ = json.JSONDecoder().raw_decode(text, start)
    answer = reply(document)
    assert (answer.model, answer.usage, answer.finish_reason) == ("<string>", Usage(123, 123, 123), "stop")


# --- failures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Kind.MISDIRECTED) for status in (300, 301, 302, 303, 304, 307, 308)),
        *((status, Kind.INVALID_REQUEST) for status in (400, 413, 418, 422, 446, 501, 505)),
        *((status, Kind.KEY_REFUSED) for status in (401, 403)),
        *((status, Kind.QUOTA_EXHAUSTED) for status in (402, 412)),
        (404, Kind.NOT_FOUND),
        (408, Kind.TIMEOUT),
        (429, Kind.RATE_LIMITED),
        (529, Kind.OVERLOADED),
        *((status, Kind.SERVER_ERROR) for status in (409, 425, 500, 502, 503, 504, 520, 522, 524, 527, 599)),
        (999, Kind.SERVER_ERROR),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>no</html>", b'{"error": {"type": "invalid_request_error"}}'])
def test_a_status_speaks_where_no_word_says_more(status, kind, body):
    assert failure(status, body).kind is kind


def error(**fields: object) -> dict[str, object]:
    return {"error": fields}


QUOTA_CODES = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
    "enforced_spend_limit_reached",
]
TOO_LARGE = "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 50000."


@pytest.mark.parametrize(
    ("status", "document", "kind", "code"),
    [
        *((429, error(code=code, type="requests"), Kind.QUOTA_EXHAUSTED, code) for code in QUOTA_CODES),
        (429, error(code=None, type="insufficient_quota"), Kind.QUOTA_EXHAUSTED, "insufficient_quota"),
        (
            400,
            error(type="invalid_request_error", message="Your credit balance is too low to access the API."),
            Kind.QUOTA_EXHAUSTED,
            "credit_balance_too_low",
        ),
        (429, error(code="rate_limit_exceeded", type="tokens"), Kind.RATE_LIMITED, "rate_limit_exceeded"),
        (
            429,
            error(code="rate_limit_exceeded", message=TOO_LARGE),
            Kind.INVALID_REQUEST,
            "request_too_large",
        ),
        (
            413,
            error(code="rate_limit_exceeded", message="please reduce your message size and try again"),
            Kind.INVALID_REQUEST,
            "request_too_large",
        ),
        (413, error(code="rate_limit_exceeded"), Kind.INVALID_REQUEST, "request_too_large"),
        (413, error(type="request_too_large"), Kind.INVALID_REQUEST, "request_too_large"),
        (400, error(code="context_length_exceeded"), Kind.INVALID_REQUEST, "context_length_exceeded"),
        (400, error(type="invalid_request_error"), Kind.INVALID_REQUEST, "invalid_request_error"),
        (401, error(type="invalid_request_error"), Kind.KEY_REFUSED, "invalid_request_error"),
        (400, error(code="content_filter"), Kind.CONTENT_FILTER, "content_filter"),
        (400, error(code="content_policy_violation"), Kind.CONTENT_FILTER, "content_policy_violation"),
        (403, error(code="model_not_found"), Kind.NOT_FOUND, "model_not_found"),
        (404, error(code="DeploymentNotFound"), Kind.NOT_FOUND, "DeploymentNotFound"),
        (503, error(code="slow_down"), Kind.OVERLOADED, "slow_down"),
        (
            503,
            error(message="The model is overloaded. Please try again later."),
            Kind.OVERLOADED,
            "overloaded",
        ),
        (503, b"upstream overloaded", Kind.OVERLOADED, "overloaded"),
        (503, error(message="no upstream"), Kind.SERVER_ERROR, "server_error"),
        (529, error(type="overloaded_error"), Kind.OVERLOADED, "overloaded_error"),
        (408, error(type="timeout_error"), Kind.TIMEOUT, "timeout_error"),
        (
            446,
            {"error": {"type": "hooks_failed"}, "hook_results": {}},
            Kind.INVALID_REQUEST,
            "guardrail_denied",
        ),
        (446, None, Kind.INVALID_REQUEST, "guardrail_denied"),
        (429, [error(code=429, status="RESOURCE_EXHAUSTED")], Kind.RATE_LIMITED, "RESOURCE_EXHAUSTED"),
        (302, None, Kind.MISDIRECTED, "redirected"),
        # A success's status says nothing: the error inside does.
        (200, error(code="rate_limit_exceeded"), Kind.RATE_LIMITED, "rate_limit_exceeded"),
        (200, error(code="invalid_api_key"), Kind.KEY_REFUSED, "invalid_api_key"),
        (200, error(type="invalid_request_error"), Kind.INVALID_REQUEST, "invalid_request_error"),
        (200, error(code=429), Kind.RATE_LIMITED, "rate_limited"),
        (200, error(code="502"), Kind.SERVER_ERROR, "server_error"),
        (200, error(message="?"), Kind.SERVER_ERROR, "server_error"),
        (200, {"status": "failure", "message": "no"}, Kind.SERVER_ERROR, "server_error"),
        (200, completion(error={"code": 429}), Kind.RATE_LIMITED, "rate_limited"),
        (200, {"html-message": "<html>"}, Kind.NOT_AN_API, "not_an_api"),
        (200, {"object": "error", "message": "no", "code": 400}, Kind.INVALID_REQUEST, "invalid_request"),
    ],
)
def test_a_word_outranks_the_status_and_the_status_the_message(status, document, kind, code):
    answer = failure(status, document)
    assert (answer.kind, answer.code, answer.status) == (kind, code, status)


@pytest.mark.parametrize(
    ("document", "code", "message"),
    [
        (
            {"error": {"message": "m", "type": "t", "param": None, "code": "c"}, "provider": "openai"},
            "c",
            "m",
        ),
        ({"error": {"message": "m", "type": "t", "code": None}}, "t", "m"),
        ({"error": {"message": "m", "type": "t", "code": 400}}, "t", "m"),
        ({"status": "failure", "message": "m"}, "invalid_request", "m"),
        ({"status": "failure", "error": {"code": "c", "message": "m", "field": "f"}}, "c", "m"),
        ({"html-message": "m"}, "invalid_request", "m"),
        ({"success": False, "data": {"message": "m", "errorCode": "c"}}, "c", "m"),
        ({"type": "error", "error": {"type": "t", "message": "m"}}, "t", "m"),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, "BadRequestError", "m"),
        ({"error": "m"}, "invalid_request", "m"),
        ({"error": "m", "error_type": "t"}, "t", "m"),
        ({"errors": [{"code": 7003, "message": "m"}]}, "invalid_request", "m"),
        ({"detail": "m"}, "invalid_request", "m"),
        ({"detail": [{"loc": ["body"]}]}, "invalid_request", '[{"loc":["body"]}]'),
        ([{"error": {"message": "m", "status": "T"}}], "T", "m"),
        ("m", "invalid_request", "m"),
        ({"error": {"message": "", "code": {"odd": 1}, "type": ["odd"]}}, "invalid_request", "HTTP 400"),
        ({"errors": []}, "invalid_request", "HTTP 400"),
        ([], "invalid_request", "HTTP 400"),
        (None, "invalid_request", "HTTP 400: an empty body"),
        (b"plain words", "invalid_request", "plain words"),
        (b"<h1>a  page</h1>", "invalid_request", "HTTP 400: <h1>a page</h1>"),
    ],
)
def test_the_providers_words_are_found_wherever_it_keeps_them(document, code, message):
    answer = failure(400, document)
    assert (answer.kind, answer.code, answer.message) == (Kind.INVALID_REQUEST, code, message)


def test_a_redirect_names_the_host_and_nothing_else():
    answer = failure(302, location="https://user:secret@other.example/path?key=secret")
    assert answer.message == "HTTP 302: a redirect to other.example, and redirects are not followed"


@pytest.mark.parametrize("location", ["https://[broken", "", "/elsewhere", "http://\udcff/"])
def test_a_redirect_to_nowhere_is_told_all_the_same(location):
    failure(302, location=location).message.encode()


@pytest.mark.parametrize(
    ("status", "billed"), [(408, True), (504, True), (524, True), (500, False), (429, False), (400, False)]
)
def test_behind_a_gateways_timeout_the_provider_may_have_worked(status, billed):
    assert failure(status).maybe_billed is billed


@pytest.mark.parametrize(("hook", "billed"), [("before_request_hooks", False), ("after_request_hooks", True)])
def test_what_a_guardrail_denied_was_billed_where_the_provider_had_answered(hook, billed):
    results = {
        "before_request_hooks": [],
        "after_request_hooks": [],
        hook: [{"verdict": False, "deny": True}],
    }
    body = {"error": {"type": "hooks_failed"}, "hook_results": results}
    assert failure(446, body).maybe_billed is billed


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"error":\n {"code": "x"}}\n', b'{"error": {"code": "x"}}'),
        (b"", b'""'),
        (b'no "json"\n\xff', '"no \\"json\\"\\n\ufffd"'.encode()),
        (b"x" * 65536, b'"' + b"x" * 65536 + b'"'),
        (b"x" * 65537, '"' + "x" * 65536 + '… [cut here; 65537 bytes in all]"'),
        (b"x" * 1_000_000, '"' + "x" * 65536 + '… [cut here; 1000000 bytes in all]"'),
    ],
)
def test_a_failures_body_is_json_on_one_line(body, kept):
    assert failure(500, body).body == (kept.encode() if isinstance(kept, str) else kept)


@pytest.mark.parametrize(("said", "meant"), [("true", True), ("False", False), ("maybe", None), ("", None)])
def test_the_servers_word_on_trying_again_is_passed_on(said, meant):
    assert failure(500, x_should_retry=said).should_retry is meant


@pytest.mark.parametrize(
    ("headers", "request_id"),
    [
        ({}, ""),
        ({"x_request_id": "a", "cf_ray": "b"}, "a"),
        ({"apim_request_id": "a", "cf_ray": "b"}, "a"),
        ({"request_id": "a"}, "a"),
        ({"cf_ray": "b"}, "b"),
        ({"x_request_id": "\udcff!"}, "?!"),
        ({"x_request_id": "a" * 1000}, "a" * 200),
    ],
)
def test_the_request_id_is_found_under_its_names(headers, request_id):
    assert read(200, COMPLETION, **headers).request_id == request_id
    assert read(500, None, **headers).request_id == request_id


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, 7),
        ({"retry_after": " 0.5 "}, 0.5),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after_ms": "soon", "retry_after": "9"}, 9),
        ({"retry_after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60),
        ({"retry_after": "Tue, 14 Nov 2023 22:14:20 -0000"}, 60),
        ({"retry_after": "Tue, 14 Nov 2023 22:12:20 GMT"}, 0),
        ({"retry_after": "Tue, 14 Nov 9999 22:12:20 GMT"}, RETRY_AFTER_CAP_S),
        ({"retry_after": "Tue, 99 Nov 2023 99:99:99 GMT"}, None),
        ({"retry_after": "301"}, RETRY_AFTER_CAP_S),
        ({"retry_after": "inf"}, RETRY_AFTER_CAP_S),
        ({"retry_after": "1e999"}, RETRY_AFTER_CAP_S),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "-5"}, 0),
        ({"retry_after": "-inf"}, 0),
        ({"retry_after": "5, 5"}, 5),
        ({"retry_after": "6m0s"}, None),
        ({"retry_after": "soon"}, None),
        ({"retry_after": ""}, None),
        ({}, None),
    ],
)
def test_the_wait_asked_for_is_read_and_bounded(headers, seconds):
    assert failure(429, **headers).retry_after == seconds


def test_a_wait_that_is_cut_is_said():
    assert "asks for a wait of 86400 s, and gets 300 s" in failure(429, **{"retry-after": "86400"}).message
    assert "wait" not in failure(429, **{"retry-after": "300"}).message


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_retry_after_can_break_the_reading(milliseconds, text):
    wait = failure(429, retry_after_ms=milliseconds, retry_after=text).retry_after
    assert wait is None or 0 <= wait <= RETRY_AFTER_CAP_S


_NAMES = [
    "error",
    "errors",
    "code",
    "type",
    "status",
    "success",
    "data",
    "message",
    "detail",
    "choices",
    "object",
    "usage",
    "model",
    "finish_reason",
    "prompt_tokens",
    "prompt_tokens_details",
]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(_NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.sampled_from([200, 246, 302, 400, 429, 446, 500]), json_values)
def test_no_json_can_break_the_judgement(status, document):
    answer = read(status, document)
    assert answer.body is not None
    orjson.loads(answer.body)
    if isinstance(answer, Failure):
        assert answer.code


@given(st.sampled_from([200, 302, 400, 500]), st.binary(max_size=200))
def test_no_bytes_can_break_the_judgement(status, body):
    answer = read(status, body)
    assert answer.body is not None
    assert b"\n" not in answer.body
    orjson.loads(answer.body)


# --- what a gateway adds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "retries"), [("0", 0), ("2", 2), ("-1", -1), ("1, 1", 1), ("", 0), ("x", 0), ("9" * 50, 0)]
)
def test_how_often_a_gateway_asked_again_is_read_from_its_header(said, retries):
    headers = {"x-portkey-retry-attempt-count": said}
    completion = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    for status, body in ((200, completion), (500, b"{}")):
        assert read_answer(status, headers, body, 0.0).gateway_retries == retries


@pytest.mark.parametrize(
    ("said", "hit"),
    [
        ("HIT", True),
        ("SEMANTIC HIT", True),
        ("HIT, HIT", True),
        ("MISS", False),
        ("REFRESH", False),
        ("", False),
    ],
)
def test_an_answer_from_a_gateways_cache_is_marked(said, hit):
    completion = b'{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}'
    answer = read_answer(200, {"x-portkey-cache-status": said}, completion, 0.0)
    assert isinstance(answer, Reply)
    assert answer.from_cache is hit


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-portkey-gateway-exception": "true"}, b'{"status":"failure","message":"Something went wrong"}'),
        ({}, b'{"html-message":"fetch failed: ECONNRESET"}'),
    ],
)
def test_an_answer_that_a_gateway_lost_may_have_been_billed(headers, body):
    answer = read_answer(500, headers, body, 0.0)
    assert isinstance(answer, Failure)
    assert answer.maybe_billed
