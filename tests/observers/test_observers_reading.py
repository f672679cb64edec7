"""Who waits for a large input to be read is told how far it is; who does not wait long, nothing."""

import io

import pytest

from batchkit.observers.reading import Reading


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Gone(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def told(mode, stream, size=1000):
    now = 0.0
    reading = Reading(mode, stream, size, clock=lambda: now)
    for step in range(1, 31):
        now = step / 1.0
        reading.tell(step * 20, step * 10, step * 1000)
    reading.close()
    return stream.getvalue()


def test_elsewhere_there_is_a_line_every_ten_seconds():
    assert told("auto", io.StringIO()).splitlines() == [
        "100 requests read, 10,000 prompt tokens, 1,000 tokens/s, 20.0 %, 40 s left",
        "200 requests read, 20,000 prompt tokens, 1,000 tokens/s, 40.0 %, 30 s left",
        "300 requests read, 30,000 prompt tokens, 1,000 tokens/s, 60.0 %, 20 s left",
    ]


@pytest.mark.parametrize("size", [None, 0, 5])
def test_how_much_is_left_is_not_told_where_it_is_not_known(size):
    assert told("log", io.StringIO(), size).splitlines()[0] == (
        "100 requests read, 10,000 prompt tokens, 1,000 tokens/s"
    )


@pytest.mark.parametrize(("mode", "stream"), [("auto", Terminal()), ("bar", io.StringIO())])
def test_on_a_terminal_one_line_is_drawn_over_itself_and_wiped(mode, stream):
    text = told(mode, stream)
    assert "\n" not in text
    assert text.startswith("\r\x1b[K10 requests read")
    assert text.endswith("\r\x1b[K")


def test_off_is_silent_and_so_is_a_short_wait():
    assert told("off", Terminal()) == ""
    stream = Terminal()
    reading = Reading("auto", stream, 10, clock=lambda: 7.0)
    reading.tell(5, 1, 1)
    reading.close()
    assert stream.getvalue() == ""


def test_that_nobody_reads_it_is_no_error():
    reading = Reading("log", Gone(), None, clock=iter(range(0, 1000, 20)).__next__)
    reading.tell(1, 1, 1)
    reading.tell(2, 2, 2)
    reading.close()
