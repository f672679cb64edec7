"""What a job's totals come to: its prices applied to them, in the shape of the summary."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from batchkit.formats import summary as summary_format
from batchkit.formats.breakdown import GroupFigures, build_breakdown
from batchkit.rules.bill import OutcomeTotal
from batchkit.rules.groups import Group, Groups
from batchkit.rules.money import sum_of
from batchkit.rules.pricing import PriceList, cost_of
from batchkit.state import JobState

__all__ = ["build_groups", "build_summary"]


def build_summary(state: JobState, prices: PriceList) -> dict[str, Any]:
    """The job's summary, in the shape of the summary file."""
    tally = state.tally
    cost = cost_of(tally, prices)
    latency = tally.latency
    bin_s, bins = tally.timeline()
    totals = summary_format.Totals(
        succeeded=tally.succeeded,
        failed=tally.failed,
        attempts=tally.attempts,
        by_reason=tally.by_reason,
        truncated=tally.truncated,
        models={
            name: summary_format.ModelFigures(
                model.requests,
                model.usage,
                cost.by_model[name],
                model.unknown,
                _by_outcome(
                    model.outcomes,
                    {
                        outcome: (by_model[name], by_model[name] or Decimal(0))
                        for outcome, each in cost.by_outcome.items()
                        for by_model in (each.by_model,)
                    },
                ),
            )
            for name, model in tally.models.items()
        },
        outcomes=_by_outcome(
            tally.outcomes,
            {outcome: (each.total, each.known_total) for outcome, each in cost.by_outcome.items()},
        ),
        unknown_usage=tally.unknown,
        known_cost=cost.known_total,
        dearest=cost.dearest,
        maybe_cost=sum_of((tally.maybe_cost, tally.unseen_cost)),
        max_cost=None if state.run is None else state.run.max_cost,
        batch_cost=cost.batch_total,
        unpriced_models=cost.unpriced_models,
        price_list=prices.name if tally.models else None,
        price_list_date=prices.date if tally.models else None,
        latency_s=None if latency is None else (latency.p50, latency.p90, latency.p99, latency.max),
        errors={code: (error.count, error.example) for code, error in tally.errors.items()},
        started_at=tally.started_at,
        finished_at=tally.finished_at,
        active_s=tally.active_s,
        simulated=tally.simulated,
        in_flight_at_kills=tally.in_flight_at_kills,
        maybe_billed=tally.maybe_billed,
        gateway_retries=tally.gateway_retries,
        from_cache=tally.from_cache,
        bin_s=bin_s,
        bins=bins,
    )
    return summary_format.build(
        totals,
        job_id=state.job_id or "",
        status=state.status,
        stop_reason=state.stop_reason,
        requests=state.to_do,
    )


def build_groups(by: str, groups: Groups, prices: PriceList) -> dict[str, Any]:
    """The totals of each group, in the shape of the summary's `by`."""
    return build_breakdown(by, {value: _group(group, prices) for value, group in groups.by_value.items()})


def _group(group: Group, prices: PriceList) -> GroupFigures:
    cost, total = cost_of(group.bill, prices), group.bill.total
    return GroupFigures(
        group.succeeded, group.failed, group.attempts, _figures(total, cost.total, cost.known_total)
    )


def _by_outcome(
    totals: Mapping[str, OutcomeTotal], costs: Mapping[str, tuple[Decimal | None, Decimal]]
) -> summary_format.OutcomeFigures:
    return summary_format.OutcomeFigures(
        **{outcome: _figures(total, *costs[outcome]) for outcome, total in totals.items()}
    )


def _figures(total: OutcomeTotal, cost: Decimal | None, known_cost: Decimal) -> summary_format.Figures:
    return summary_format.Figures(total.answers, total.usage, total.unknown, cost, known_cost)
