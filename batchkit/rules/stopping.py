"""When an answer speaks for the whole run: a refused key is refused for every line.

Peers retry a wrong key ten times for each row. Here the first refusal ends the run, with its request unanswered, so that
the next run asks it again. Once an answer has succeeded, key and address are known to be good, and a single refusal is
taken for a hiccup of the gateway's until it repeats.
"""

from __future__ import annotations

from collections import deque

from batchkit.records import Answer, Failure, FailureKind, Reply, Request
from batchkit.rules.progress import DoneIndexes
from batchkit.rules.retry import Remedy, StopRun, never_reached, never_sent, remedy_of

__all__ = ["StopRule"]

_ALIKE = 20
_UNREACHED = 6
"""So many connections in vain, each after a longer wait, and nobody is there."""
_UNREACHED_FOR_S = 3600.0
"""An endpoint that was there before is waited for so long: networks come back, but a run must not wait for ever."""
_REFUSED_FOR_S = 3600.0
"""A limit a minute, or an hour, is over by then; one a day is not worth waiting for with a process that does nothing."""
_REFUSALS = 3
_REFUSALS_WITHIN_S = 60.0


class StopRule:
    """Watches a run's answers. `run_model` is the model filled in where a record names none, `url` what is POSTed to.

    `asked_again` are the indexes of requests that have failed before in a job that has results: that they fail alike is no news,
    and does not speak for the others.
    """

    def __init__(
        self,
        run_model: str | None = None,
        *,
        url: str = "the endpoint",
        asked_again: DoneIndexes | None = None,
    ) -> None:
        self._run_model = run_model
        self._url = url
        self.proven = False
        """Whether the endpoint has given a usable completion in this run."""
        self.well = False
        """Whether the last answer was one, so that another changes nothing."""
        self._answered = False
        self._asked_again = DoneIndexes() if asked_again is None else asked_again
        self._alike: tuple[str, int] | None = "", 0
        self._not_api_in_a_row = 0
        self._unreached = 0
        self._unreached_since: float | None = None
        self._refused_since: float | None = None
        self._refusals: deque[float] = deque(maxlen=_REFUSALS)
        self._unknown_models: set[str | None] = set()

    def before(self, request: Request) -> StopRun | None:
        """Whether `request` need not be sent because its model is known to be missing and nothing has succeeded yet."""
        if not self.proven and request.model in self._unknown_models:
            return StopRun(
                "model_not_found",
                f"the endpoint does not know the model {request.model!r} that the requests name; correct the input or the endpoint",
            )
        return None

    def judge(self, request: Request, answer: Answer, now: float) -> StopRun | None:
        """Whether the run ends with this answer. `now` is in seconds of any steady clock."""
        if isinstance(answer, Reply):
            if not self.well:
                self.well = self._answered = self.proven = True
                self._alike = None
                self._not_api_in_a_row = 0
                self._unreached_since = None
                self._refused_since = None
            return None
        self.well = False
        is_first, self._answered = not self._answered, True
        if answer.kind is not FailureKind.NOT_AN_API:
            self._not_api_in_a_row = 0
        if never_reached(answer):
            self._unreached += 1
            if self._unreached_since is None:
                self._unreached_since = now
            gone_for_s = now - self._unreached_since
            if gone_for_s >= _UNREACHED_FOR_S if self.proven else self._unreached >= _UNREACHED:
                return StopRun("unreachable", f"the endpoint cannot be reached: {answer.message}")
        elif not never_sent(answer):
            self._unreached, self._unreached_since = 0, None
        if remedy_of(answer) is Remedy.RATE:
            if self._refused_since is None:
                self._refused_since = now
            if now - self._refused_since >= _REFUSED_FOR_S:
                return StopRun(
                    "rate_limited", f"nothing but refusals for their rate for an hour: {answer.message}"
                )
        elif not never_reached(answer):
            self._refused_since = None
        match answer.kind:
            case FailureKind.QUOTA_EXHAUSTED:
                return StopRun(answer.code, f"the quota is used up: {answer.message}")
            case FailureKind.KEY_REFUSED:
                self._refusals.append(now)
                repeated = len(self._refusals) == _REFUSALS and now - self._refusals[0] <= _REFUSALS_WITHIN_S
                if not self.proven or repeated:
                    return StopRun(answer.code, f"the endpoint refuses the key: {answer.message}")
            case FailureKind.MISDIRECTED:
                if not self.proven or answer.code != "host_unknown":
                    return StopRun(answer.code, answer.message)
            case FailureKind.NOT_FOUND:
                return self._not_found(request, answer)
            case FailureKind.NOT_AN_API:
                self._not_api_in_a_row += 1
                if is_first or self._not_api_in_a_row >= _ALIKE:
                    return StopRun("not_an_api", f"this is not a completions API: {answer.message}")
            case _:
                pass
        return self._all_alike(request, answer)

    def _not_found(self, request: Request, failure: Failure) -> StopRun | None:
        if self.proven:
            return None
        own_model = request.model is not None and request.model != self._run_model
        if own_model and "model" in f"{failure.code} {failure.message}".lower():
            # One record may name a model that is not there. The next that names it ends the run before it is sent.
            self._unknown_models.add(request.model)
            return None
        return StopRun(failure.code, f"{self._url} does not know this model or path: {failure.message}")

    def _all_alike(self, request: Request, failure: Failure) -> StopRun | None:
        """The same refusal for each of the first requests is about what they share, not about any of them."""
        if self._alike is None or remedy_of(failure) is not Remedy.FAIL or request.index in self._asked_again:
            return None
        code, count = self._alike
        if count and code != failure.code:
            self._alike = None
            return None
        self._alike = (failure.code, count + 1)
        if count + 1 < _ALIKE:
            return None
        self._alike = None
        return StopRun(failure.code, f"each of the first {_ALIKE} requests failed alike: {failure.message}")
