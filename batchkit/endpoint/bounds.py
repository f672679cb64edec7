"""How much is read, and how long is waited, whichever way an attempt goes out. Read from here at the time of use."""

from __future__ import annotations

__all__ = ["BODY_BYTES", "CONNECT_S", "HEADER_FIELD_BYTES", "HEAD_BYTES", "KEEPALIVE_S"]

BODY_BYTES = 32 * 1024 * 1024
"""Longest answer that is read, after decompression."""

HEADER_FIELD_BYTES = 64 * 1024
"""Longest header of an answer; gateways do send tens of kilobytes."""

HEAD_BYTES = 4 * HEADER_FIELD_BYTES
"""Most that all headers of an answer may take together, interim answers (1xx) included."""

KEEPALIVE_S = 4.0
"""Idle connections are dropped this early because common gateways drop them at 5 or 6 s."""

CONNECT_S = 30.0
"""A host that drops every packet says nothing for minutes; one that is there answers in a second."""
