"""Asks the engine again if an answer is invalid or doubtful.

Each round asks all open rows at once. A valid answer replaces an invalid one, and fewer violations replace more. The
temperature rises with each attempt, because a greedy model would repeat its answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.errors import AnswerError
from pipeline.types import NO_TOKENS, Failure, Item, Reply, Request, Row, TokenCounts, add_counts

RETRY_TEMPERATURES = (0.0, 0.3, 0.6, 0.8, 1.0)  # the minimum, by attempt

AnswerRequests = Callable[[Sequence[Request]], Sequence[Reply | Failure]]
BuildRow = Callable[[Item, Request, Reply, int], Row | Failure]


def answer_with_retries(
    item_requests: Sequence[tuple[Item, Request]],
    *,
    answer_requests: AnswerRequests,
    build_row: BuildRow,
    max_retries: int,
) -> list[Row | Failure]:
    """The outcomes in the order of the items. `answer_requests` returns replies in the order of the requests."""
    best_outcomes: dict[int, Row | Failure] = {}
    spent_tokens: dict[int, TokenCounts] = defaultdict(lambda: NO_TOKENS)  # of all replies
    open_indices = list(range(len(item_requests)))
    for attempt in range(1, max_retries + 2):
        requests = [
            build_retry_request(request, item.history.rejected_answers + attempt)
            for item, request in (item_requests[index] for index in open_indices)
        ]
        for index, request, reply in zip(open_indices, requests, answer_requests(requests), strict=True):
            outcome = _build_outcome(item_requests[index][0], request, reply, build_row, attempt)
            best = best_outcomes.get(index, outcome)
            best = outcome if _count_faults(outcome) < _count_faults(best) else best
            best_outcomes[index] = replace(best, attempts=attempt)
            spent_tokens[index] = add_counts(spent_tokens[index], count_tokens(request, reply))
        open_indices = [index for index in open_indices if _is_worth_retrying(best_outcomes[index])]
        if not open_indices:
            break
    return [_set_discarded(best_outcomes[index], spent_tokens[index]) for index in range(len(item_requests))]


def build_retry_request(request: Request, attempt: int) -> Request:
    """The request with a higher temperature and another seed; the first attempt sends it unchanged."""
    if attempt == 1:
        return request
    sampling = request.sampling
    minimum = RETRY_TEMPERATURES[min(attempt, len(RETRY_TEMPERATURES)) - 1]
    temperature, seed = max(sampling.temperature, minimum), sampling.seed + (attempt - 1) * 1_000_003
    return replace(request, sampling=replace(sampling, temperature=temperature, seed=seed))


def count_tokens(request: Request, reply: Reply | Failure) -> TokenCounts:
    return NO_TOKENS if isinstance(reply, Failure) else request.count_tokens(reply)


def _set_discarded(outcome: Row | Failure, spent: TokenCounts) -> Row | Failure:
    kept = outcome.tokens if isinstance(outcome, Row) else NO_TOKENS
    discarded = TokenCounts(*(total - own for total, own in zip(spent, kept, strict=True)))
    return replace(outcome, discarded_tokens=discarded)


def _build_outcome(
    item: Item, request: Request, reply: Reply | Failure, build_row: BuildRow, attempt: int
) -> Row | Failure:
    if isinstance(reply, Failure):
        return reply
    try:
        return build_row(item, request, reply, attempt)
    except AnswerError as error:
        return error.to_failure(item.id, attempt)


def _count_faults(outcome: Row | Failure) -> float:
    return float("inf") if isinstance(outcome, Failure) else len(outcome.violations)


def _is_worth_retrying(outcome: Row | Failure) -> bool:
    """A retry may improve an answer. It does not help a row that the engine cannot answer."""
    return outcome.stage == "answer" if isinstance(outcome, Failure) else bool(outcome.violations)
