"""What was started and refused in the last one or two seconds."""

import pytest

from batchkit.rules.lately import Lately


def test_one_to_two_seconds_are_looked_back_upon():
    lately = Lately()
    for now in range(10, 20):
        assert now >= lately.look_at
        lately.look(float(now), 5 * now, now)
    assert lately.since(19.5, 100, 20) == (pytest.approx(1.5), 10, 2)


def test_what_came_before_a_long_silence_does_not_count():
    lately = Lately()
    lately.look(10.0, 50, 50)
    lately.look(60.0, 60, 60)
    assert lately.since(60.5, 63, 61) == (0.5, 3, 1)


@pytest.mark.parametrize(
    ("started", "refused", "shut"), [(0, 0, False), (0, 5, False), (10, 8, False), (10, 9, True)]
)
def test_a_server_that_refuses_nine_of_ten_is_shut(started, refused, shut):
    assert Lately().is_shut(0.5, started, refused) is shut
