"""What an endpoint asks for before it sends: room for the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["Room"]

Room = Callable[[], Awaitable[bool]]
"""Waits until there is room for answers again. False when nothing is to be sent any more."""
