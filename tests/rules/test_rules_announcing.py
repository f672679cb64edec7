"""What is believed of announced limits: the window that several answers agree on, and nothing where they do not."""

import pytest

from batchkit.records import Announced, AnnouncedLimit as Limit
from batchkit.rules.announcing import Announcements, Told


def heard(*said: Limit):
    """What is believed of requests when the last of them was said."""
    announcements, believed = Announcements(), False
    for each in said:
        believed = announcements.hear(Announced(requests=each))
    return announcements.requests if believed else None


def bucket(limit, window_s, missing, digits=3):
    """As a provider tells of a bucket that fills evenly and lacks so much; with 0 digits, in whole seconds."""
    reset_s = round(missing * window_s / limit, digits)
    return Limit(limit, int(limit - missing), reset_s, rounded=not digits)


@pytest.mark.parametrize(
    ("limit", "missing"),
    [(5000, (1, 3, 2)), (160_000, (24, 900, 12_345)), (500, (499, 500, 490)), (3, (1, 2, 3))],
)
def test_a_bucket_that_is_full_again_at_a_minutes_rate_is_a_minutes(limit, missing):
    """As OpenAI's are, and Groq's of tokens."""
    told = heard(*(bucket(limit, 60.0, each) for each in missing))
    assert told == Told(limit, limit - missing[-1])


def test_the_headers_that_were_seen_of_openai_are_by_the_minute():
    assert heard(*[Limit(5000, 4999, 0.012)] * 3) == Told(5000, 4999)
    assert heard(*[Limit(3500, 3499, 0.017)] * 3) == Told(3500, 3499)


def test_a_moment_rounded_to_seconds_is_enough_where_it_is_far_enough_away():
    """As Anthropic's are."""
    assert heard(*(bucket(4000, 60.0, missing, digits=0) for missing in (400, 1210, 2020))) == Told(
        4000, 1980
    )
    assert heard(*(bucket(4000, 60.0, missing, digits=0) for missing in (20, 60, 130))) is None


@pytest.mark.parametrize(
    "said",
    [
        [Limit(14_400, 14_370, 179.56)] * 5,  # Groq's requests
        [bucket(200, 86_400.0, missing) for missing in (1, 2, 3, 4)],  # OpenAI's free tier
        [bucket(14_400, 86_400.0, missing, digits=0) for missing in (1, 2, 3, 4, 5, 6, 7, 8)],
        [bucket(1000, 3600.0, missing) for missing in (10, 20, 30)],
        [Limit(14_400, 14_390, 33_011.4, 86_400.0)] * 5,  # Cerebras
    ],
)
def test_a_days_limit_says_nothing_of_a_minute(said):
    assert heard(*said) is None


@pytest.mark.parametrize("limit", [60, 500, 3000, 60_000])
def test_a_minutes_limit_that_is_kept_by_the_second_is_known_too(limit):
    """The bucket holds a second's worth."""
    worth = max(1.0, limit / 60)
    said = [Limit(limit, int(level), (worth - level) * 60 / limit) for level in (0.2, 0.0, 0.1)]
    assert heard(*said) == Told(limit, 0)


def test_a_limit_that_is_a_seconds_own_is_not_taken_for_a_minutes():
    said = [Limit(600, left, (600 - left) / 600) for left in (590, 580, 120, 3, 0, 0, 0, 0)]
    assert heard(*said) is None


@pytest.mark.parametrize(("window_s", "a_minute"), [(60.0, 720), (1.0, 43_200), (5.0, 8640)])
def test_a_window_that_is_named_is_taken_at_its_word(window_s, a_minute):
    said = Limit(720, 700, window_s=window_s)
    assert heard(said, said) is None
    assert heard(said, said, said) == Told(a_minute, 700)


def test_resets_that_follow_from_nothing_and_never_pass_a_minute_are_of_a_fixed_minute():
    """As Azure's are."""
    said = [Limit(50_000, 47_000 - 400 * n, 55.0 - 5 * n, rounded=True) for n in range(6)]
    assert heard(*said) == Told(50_000, 45_000)


@pytest.mark.parametrize(
    "resets", [(9, 8, 7, 6, 5, 4), (55, 50, 70, 45, 40, 35, 30), (3000, 2990, 2980, 2970, 2960)]
)
def test_resets_of_ten_seconds_or_over_a_minute_are_of_another_window(resets):
    assert (
        heard(*(Limit(50_000, 49_000 - n, float(reset), rounded=True) for n, reset in enumerate(resets)))
        is None
    )


@pytest.mark.parametrize(
    "said",
    [
        Limit(5000),
        Limit(5000, 4999),
        Limit(5000, None, 0.012),
        Limit(5000, 5000, 0.0),
        Limit(5000, 5000, 0.012),
        Limit(60, 59, 360.0),
        Limit(150_000, 149_984, 360.0),  # OpenAI's own documentation
        Limit(18_000, 17_997, 7.66),  # Groq's
    ],
)
def test_what_says_too_little_or_makes_no_sense_is_not_believed(said):
    assert heard(*[said] * 20) is None


def test_one_answer_proves_nothing_and_a_stray_one_disproves_nothing():
    minute, day = bucket(500, 60.0, 100), bucket(500, 86_400.0, 100)
    assert heard(minute, minute) is None
    assert heard(minute, minute, day, minute, minute) is not None


def test_answers_that_contradict_one_another_are_not_believed():
    minute, day = bucket(500, 60.0, 100), bucket(500, 86_400.0, 100)
    assert heard(*[minute, day] * 20) is None


def test_a_limit_that_changes_is_believed_anew():
    first, second = bucket(500, 60.0, 100), bucket(1000, 60.0, 100)
    assert heard(first, first, first, second, second) is None
    assert heard(first, first, first, second, second, second) == Told(1000, 900)


def test_limits_that_change_to_and_fro_are_those_of_several_keys():
    first, second = [bucket(500, 60.0, 100)] * 5, [bucket(1000, 60.0, 100)] * 5
    assert heard(*first, *second, *first, *second, *first) is None


def test_requests_and_tokens_are_believed_by_themselves():
    announcements = Announcements()
    for _ in range(3):
        announcements.hear(Announced(Limit(14_400, 14_370, 179.56), bucket(18_000, 60.0, 900)))
    assert (announcements.requests, announcements.tokens) == (None, Told(18_000, 17_100))
