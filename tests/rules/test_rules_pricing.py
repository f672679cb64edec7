import json
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, TieredPrices

from batchkit.records import Failure, FailureKind, Outcome, Reply, Usage
from batchkit.rules.bill import BAND_EDGES, band_of
from batchkit.rules.pricing import RELEASED, Price, PriceList, Rate, cost_of
from batchkit.rules.tally import Tally

AT = 1_763_820_000.0
LATER = 1_794_800_000.0
ROOT = Path(__file__).parents[2]
KMMLU = ROOT.parent / "shared" / "data" / "kmmlu_output.jsonl"
PRICES = PriceList(at=AT)


def tally_of(*answers):
    tally = Tally()
    for index, (model, usage) in enumerate(answers):
        reply = Reply(200, "r", b"{}", model=model, usage=usage)
        tally.add(Outcome(index, f"line-{index}", reply, "t", 1, 1.0, AT))
    return tally


def test_every_tier_of_the_price_list_begins_at_one_of_our_edges():
    starts = set()
    for provider in get_snapshot().providers:
        for model in provider.models:
            prices = model.prices if isinstance(model.prices, list) else [model]
            for price in prices:
                tiered = [value for value in vars(price.prices).values() if isinstance(value, TieredPrices)]
                starts |= {tier.start for value in tiered for tier in value.tiers}
    assert starts
    assert starts <= set(BAND_EDGES)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt-4o", "gpt-4o"),
        ("GPT-4o", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("openai/gpt-4o", "gpt-4o"),
        ("@openai-prod/gpt-4o", "gpt-4o"),
        ("@openai/gpt-4o-mini", "gpt-4o-mini"),
        ("@groq/llama-3.1-8b-instant", "llama-3.1-8b-instant"),
        ("@a/openai/gpt-4o", "gpt-4o"),
        ("claude-3-5-sonnet-20241022", "claude-3-5-sonnet"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4-0"),
        ("gemini-2.0-flash-001", "gemini-2.0-flash"),
        ("gpt-5-nano-2025-08-07", "gpt-5-nano"),
    ],
)
def test_a_model_is_found_however_it_is_spelled(name, model):
    found = PRICES.find(name)
    assert found is not None
    assert found.model == model


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "@",
        "@/",
        "unknown",
        "other",
        "gpt-4o-mini-my-finetune",
        "gpt-4o-",
        "gpt-4o-audio-preview-of-mine",
        "my-claude-3-5-sonnet",
        "claude-3-5-sonnet-clone",
        "claude-opus-4-10",
        "gemini-1.5-flash-8b",
        "ft:gpt-4.1:acme::1",
        "text-moderation",
        "meta-llama/llama-3.1-8b",
        "llama-3.1-8b-instant",
        "acme/gpt-4o",
    ],
)
def test_what_only_looks_like_a_model_of_the_list_has_no_price(name):
    assert PRICES.find(name) is None


@pytest.mark.parametrize(
    ("base_url", "name", "provider"),
    [
        ("https://api.openai.com/v1", "gpt-4o", "openai"),
        ("https://openrouter.ai/api/v1", "openai/gpt-4o", "openrouter"),
        ("https://api.groq.com/openai/v1", "llama-3.1-8b-instant", "groq"),
        ("https://api.portkey.ai/v1", "gpt-4o", "openai"),
        ("http://127.0.0.1:8000/v1", "gpt-4o-mini", "openai"),
        ("https://api.openai.com/v1", "ft:gpt-4o-mini-2024-07-18:acme::1", "openai"),
        ("https://aiplatform.googleapis.com/v1", "claude-sonnet-4-5@20250929", "google"),
        ("https://aiplatform.googleapis.com/v1", "publishers/google/gemini-2.0-flash", "google"),
        ("https://api.anthropic.com/v1", "claude-fable-5-20260101", "anthropic"),
    ],
)
def test_the_address_tells_the_provider_where_the_list_knows_it(base_url, name, provider):
    found = PriceList(at=AT, base_url=base_url).find(name)
    assert found is not None
    assert found.provider == provider


def test_only_a_namespace_may_stand_before_a_name_and_a_version_behind_it():
    google = PriceList(at=AT, base_url="https://aiplatform.googleapis.com/v1")
    assert google.find("anthropic.claude-sonnet-4-5@20250929") is not None
    assert google.find("not-claude-sonnet-4-5") is None
    assert google.find("my-gemini-2.0-flash") is None


def test_a_provider_is_not_charged_for_what_another_sells():
    assert PriceList(at=AT, base_url="https://api.openai.com/v1").find("claude-3-haiku") is None


def test_prices_are_those_of_the_time():
    now, then = PriceList(at=1_790_000_000.0), PriceList(at=1_700_000_000.0)
    assert now.find("o3").prompt.base == 2
    assert then.find("o3").prompt.base == 10


@pytest.mark.parametrize("sides", [{}, {"input_mtok": Decimal(1)}, {"output_mtok": Decimal(1)}])
def test_a_price_without_both_sides_is_none(monkeypatch, sides):
    prices = PriceList(at=AT)
    assert prices.find("gpt-4o") is not None
    provider = next(each for each in get_snapshot().providers if each.id == "openai")
    monkeypatch.setattr(provider.find_model("gpt-4o"), "prices", ModelPrice(**sides))
    assert PriceList(at=AT).find("gpt-4o") is None


def test_what_the_list_gives_away_costs_nothing(monkeypatch):
    provider = next(each for each in get_snapshot().providers if each.id == "openai")
    free = ModelPrice(input_mtok=Decimal(0), output_mtok=Decimal(0))
    monkeypatch.setattr(provider.find_model("gpt-4o"), "prices", free)
    cost = cost_of(tally_of(("gpt-4o", Usage(1000, 1000, 2000))), PriceList(at=AT))
    assert (cost.total, cost.unpriced_models) == (0, ())


def test_cached_and_reasoning_tokens_are_parts_that_may_have_their_own_price():
    price = Price("m", "p", Rate(Decimal("2.5")), Rate(Decimal(10)), cached=Rate(Decimal("1.25")))
    assert price.cost(Usage(1000, 100, 1100, 400, 60)) == Decimal("0.003")
    apart = Price("m", "p", Rate(Decimal("2.5")), Rate(Decimal(10)), reasoning=Rate(Decimal(3)))
    assert apart.cost(Usage(1000, 100, 1100, 400, 60)) == Decimal("0.00308")
    each = Price("m", "p", Rate(Decimal(0)), Rate(Decimal(0)), per_request=Decimal("0.012"))
    assert each.cost(Usage(5, 5, 10), requests=3) == Decimal("0.036")


def test_a_long_prompt_costs_its_tier_for_all_of_it():
    rate = Rate(Decimal("1.25"), ((200_000, Decimal("2.5")),))
    price = Price("m", "p", rate, Rate(Decimal(10), ((200_000, Decimal(15)),)))
    assert price.cost(Usage(200_000), band_of(200_000)) == Decimal("0.25")
    assert price.cost(Usage(200_001), band_of(200_001)) == Decimal("0.5000025")
    assert price.cost(Usage(900_000, 10), band_of(900_000)) == Decimal("2.25015")


def test_a_sum_over_bands_is_the_sum_over_requests():
    lengths = [1, 199_999, 200_000, 200_001, 272_000, 272_001, 1_000_000]
    usages = [Usage(length, 100, length + 100, length // 2, 50) for length in lengths]
    for model in ("gemini-2.5-pro", "claude-sonnet-4-5", "gpt-5.4", "gpt-4o"):
        price = PRICES.find(model)
        each = sum(price.cost(usage, band_of(usage.prompt_tokens)) for usage in usages)
        assert cost_of(tally_of(*((model, usage) for usage in usages)), PRICES).total == each


def test_a_tier_that_begins_within_a_band_counts_for_all_of_it():
    rate = Rate(Decimal(1), ((150_000, Decimal(2)),))
    assert [rate.at(band_of(length)) for length in (128_000, 128_001, 10**7)] == [1, 2, 2]


def test_costs_are_exact_however_many_tokens():
    price = Price("m", "p", Rate(Decimal("0.123456789")), Rate(Decimal("0.6")))
    assert price.cost(Usage(10**24 + 1)) == Decimal("123456789000000000.000000123456789")


def test_a_model_without_a_price_is_named_and_the_rest_is_known():
    cost = cost_of(tally_of(("gpt-4o", Usage(1000, 0, 1000)), ("mine", Usage(5, 5, 10))), PRICES)
    assert cost.total is None
    assert cost.known_total == Decimal("0.0025")
    assert cost.unpriced_models == ("mine",)
    assert cost.by_model == {"gpt-4o": Decimal("0.0025"), "mine": None}


def test_a_model_that_never_told_its_usage_is_not_free():
    assert cost_of(tally_of(("gpt-4o", None)), PRICES).total is None
    some = cost_of(tally_of(("gpt-4o", None), ("gpt-4o", Usage(1000, 0, 1000))), PRICES)
    assert some.total == Decimal("0.0025")


def test_answers_from_a_gateways_cache_cost_nothing_whatever_their_model():
    tally = tally_of(("gpt-4o", Usage(1_000_000, 0, 1_000_000)))
    alone = cost_of(tally, PRICES)
    for index, model in enumerate(("gpt-4o", "a-model-nobody-prices"), start=1):
        reply = Reply(200, "r", b"{}", model=model, usage=Usage(5_000_000, 7, 5_000_007), from_cache=True)
        tally.add(Outcome(index, f"line-{index}", reply, "t", 1, 1.0, AT))
    cost = cost_of(tally, PRICES)
    assert (cost.total, cost.dearest, cost.unpriced_models) == (alone.total, alone.dearest, ())
    assert tally.from_cache == 2
    assert tally.usage.prompt_tokens == 11_000_000


def test_a_cache_hit_does_not_make_answers_of_unknown_usage_free():
    tally = tally_of(("gpt-4o", None), ("gpt-4o", None))
    reply = Reply(200, "r", b"{}", model="gpt-4o", usage=Usage(5, 7, 12), from_cache=True)
    tally.add(Outcome(9, "line-9", reply, "t", 1, 1.0, AT))
    assert cost_of(tally, PRICES).total is None


def test_failures_without_usage_cost_nothing():
    tally = Tally()
    tally.add(Outcome(0, "a", Failure(FailureKind.TIMEOUT, "timeout", "late"), "t", 1, 1.0, AT))
    assert cost_of(tally, PRICES).total == 0


def test_the_list_is_named_with_its_version_and_the_day_it_was_published():
    assert PRICES.name.startswith("genai-prices 0.")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", PRICES.date)


def test_the_day_is_that_of_the_version_which_is_locked():
    locked = re.search(r"^genai-prices==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert RELEASED[0] == locked[1], "name the day on which the new version was published, too"


def test_of_another_version_no_day_is_told(monkeypatch):
    monkeypatch.setattr("genai_prices.__version__", "0.2.99")
    prices = PriceList(at=AT)
    assert (prices.name, prices.date) == ("genai-prices 0.2.99", None)


def test_the_list_is_not_read_before_a_price_is_asked_for():
    code = "import sys, batchkit.rules.pricing as p; p.PriceList(at=0.0); assert 'genai_prices' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not KMMLU.exists(), reason="the real batch files are not here")
def test_a_real_batch_costs_what_its_tokens_come_to():
    bodies = [json.loads(line)["response"]["body"] for line in KMMLU.read_bytes().splitlines()]
    usages = [
        (
            body["model"],
            Usage(*(body["usage"][key] for key in ("prompt_tokens", "completion_tokens", "total_tokens"))),
        )
        for body in bodies
    ]
    completion = sum(usage.completion_tokens for _, usage in usages)
    cost = cost_of(tally_of(*usages), PRICES)
    assert cost.total == (629_360 * Decimal("0.15") + completion * Decimal("0.6")) / 1_000_000
    assert list(cost.by_model) == ["gpt-4o-mini-2024-07-18"]


def test_the_worst_of_a_request_is_its_dearest_tokens_in_its_dearest_band():
    prompt = Rate(Decimal(1), ((200_000, Decimal(3)),))
    price = Price(
        "m",
        "p",
        prompt,
        Rate(Decimal(2)),
        cached=Rate(Decimal("0.1")),
        cache_write=Rate(Decimal("1.25"), ((200_000, Decimal("3.75")),)),
        reasoning=Rate(Decimal(5)),
        per_request=Decimal("0.5"),
    )
    assert price.worst(1000, 100) == Decimal("0.50175")
    assert price.worst(200_001, 0) == Decimal("0.5") + 200_001 * Decimal("0.00000375")
    assert price.worst(0, 0) == Decimal("0.5")


def test_a_tier_that_makes_long_prompts_cheaper_does_not_lower_the_worst():
    price = Price("m", "p", Rate(Decimal(4), ((128_000, Decimal(1)),)), Rate(Decimal(0)))
    assert price.worst(150_000, 0) == Decimal("0.6")


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5.4", "claude-sonnet-4-5", "gemini-2.5-pro"])
def test_nothing_a_request_can_use_costs_more_than_its_worst(model):
    price = PRICES.find(model)
    for prompt, completion in ((0, 0), (1, 1), (50_000, 9), (200_001, 70_000), (900_000, 100_000)):
        worst = price.worst(prompt, completion)
        for cached in (0, prompt):
            for reasoning in (0, completion):
                usage = Usage(prompt, completion, prompt + completion, cached, reasoning)
                assert price.cost(usage, band_of(prompt)) <= worst


def test_writing_to_the_providers_cache_counts_in_the_worst():
    price = PRICES.find("claude-sonnet-4-5")
    assert price.worst(1000, 0) == 2 * price.cost(Usage(1000))


def test_the_providers_batch_price_is_known_where_the_list_has_it():
    now = PriceList(at=LATER)
    assert now.find("gpt-4o-mini").batch.prompt == Rate(Decimal("0.075"))
    assert now.find("gpt-4o-mini").batch.completion == Rate(Decimal("0.3"))
    assert now.find("gpt-3.5-turbo-1106").batch.prompt == now.find("gpt-3.5-turbo-1106").prompt
    assert now.find("claude-sonnet-4-5").batch is not None
    assert now.find("deepseek-chat").batch is None


def test_batch_prices_are_of_those_who_have_a_batch_api():
    elsewhere = PriceList(at=LATER, base_url="https://my.openai.azure.com/openai/v1").find("gpt-4o")
    assert elsewhere.provider == "azure"
    assert elsewhere.batch is None


def test_the_batch_total_is_of_all_that_cost_something_or_not_known():
    now = PriceList(at=LATER)
    usage = Usage(1_000_000, 0, 1_000_000)
    assert cost_of(tally_of(("gpt-4o", usage)), now).batch_total == Decimal("1.25")
    assert cost_of(tally_of(("gpt-4o", usage), ("gpt-4o-mini", usage)), now).batch_total == Decimal("1.325")
    assert cost_of(tally_of(("gpt-4o", usage), ("deepseek-chat", usage)), now).batch_total is None
    assert cost_of(tally_of(("gpt-4o", usage), ("deepseek-chat", Usage())), now).batch_total == Decimal(
        "1.25"
    )
    assert cost_of(tally_of(("gpt-4o", usage), ("mine", usage)), now).batch_total is None
    assert cost_of(Tally(), now).batch_total == 0


GIVEN = {
    "gpt-4o-mini": {"prompt": Decimal(1), "completion": Decimal(2)},
    "Mine/M-1": {
        "prompt": Decimal("0.15"),
        "completion": Decimal("0.6"),
        "cached": Decimal("0.075"),
        "reasoning": Decimal(3),
        "per_request": Decimal("0.01"),
        "batch": Decimal("0.5"),
        "max_output_tokens": Decimal(777),
    },
    "m": {"prompt": Decimal(7), "completion": Decimal(7)},
    "m-2": {"prompt": Decimal(8), "completion": Decimal(8)},
}


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("GPT-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("@openai-prod/gpt-4o-mini", "gpt-4o-mini"),
        ("mine/m-1", "mine/m-1"),
        ("m", "m"),
        ("m-2", "m-2"),
        ("m-2-2024-01-01", "m-2"),
        ("m-2024-01-01", "m"),
    ],
)
@pytest.mark.parametrize("base_url", ["", "https://api.openai.com/v1", "http://127.0.0.1:8000/v1"])
def test_given_prices_come_before_the_lists_by_the_same_rule(name, model, base_url):
    found = PriceList(at=AT, base_url=base_url, given=GIVEN).find(name)
    assert (found.model, found.provider) == (model, "given")


@pytest.mark.parametrize("name", ["gpt-4o", "gpt-4o-mini-audio-preview", "gpt-4o-mini-of-mine", "m-1", "mm"])
def test_given_prices_are_of_no_other_model(name):
    given, plain = PriceList(at=AT, given=GIVEN).find(name), PRICES.find(name)
    assert given == plain


def test_a_given_price_is_all_of_what_was_given():
    price = PriceList(at=AT, given=GIVEN).find("mine/M-1")
    assert price.cost(Usage(1000, 100, 1100, 400, 60)) == Decimal("0.010324")
    assert price.batch.cost(Usage(1000, 100, 1100, 400, 60)) == Decimal("0.005162")
    assert price.batch.batch is None
    assert PriceList(at=AT, given=GIVEN).find("m").batch is None


def test_the_largest_output_is_given_or_the_providers_or_the_context_window():
    prices = PriceList(at=AT, given=GIVEN)
    assert prices.largest_output("mine/m-1") == 777
    assert prices.largest_output("gpt-4o-mini") == 16_384
    assert prices.largest_output("claude-opus-4-1") == 32_000
    assert prices.largest_output("ministral-8b-2512") == 262_144
    assert prices.largest_output("acme/gpt-4o") == 16_384
    assert prices.largest_output("m") is None
    assert prices.largest_output("nobody-knows") is None
