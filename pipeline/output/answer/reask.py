"""Requests, an engine -> rows, asking again where an answer is not good enough.

Every round asks all that is still open at once. A better attempt replaces a worse one: a valid answer an invalid one,
fewer violations more. The temperature rises with the attempt, because a greedy model would say the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.errors import AnswerError
from pipeline.types import Failure, Item, Reply, Request, Row

RETRY_TEMPERATURES = (0.0, 0.3, 0.6, 0.8, 1.0)  # at least so warm, by attempt

AnswerRequests = Callable[[Sequence[Request]], Sequence[Reply | Failure]]
BuildRow = Callable[[Item, Request, Reply, int], Row | Failure]


def answer_with_retries(
    item_requests: Sequence[tuple[Item, Request]],
    *,
    answer_requests: AnswerRequests,
    build_row: BuildRow,
    max_retries: int,
) -> list[Row | Failure]:
    """One row or failure for each, in order; `answer` replies to requests in order."""
    best: dict[int, Row | Failure] = {}
    still = list(range(len(item_requests)))
    for attempt in range(1, max_retries + 2):
        requests = [
            build_retry_request(request, item.history.rejected_answers + attempt)
            for item, request in (item_requests[index] for index in still)
        ]
        for index, request, reply in zip(still, requests, answer_requests(requests), strict=True):
            outcome = _build_outcome(item_requests[index][0], request, reply, build_row, attempt)
            if index not in best or _count_faults(outcome) < _count_faults(best[index]):
                best[index] = outcome
            best[index] = replace(best[index], attempts=attempt)
        still = [index for index in still if _is_worth_retrying(best[index])]
        if not still:
            break
    return [best[index] for index in range(len(item_requests))]


def build_retry_request(request: Request, attempt: int) -> Request:
    """The request of a later attempt: warmer, and with another seed. The first is the request itself."""
    if attempt == 1:
        return request
    sampling = request.sampling
    warmth = max(sampling.temperature, RETRY_TEMPERATURES[min(attempt, len(RETRY_TEMPERATURES)) - 1])
    return replace(
        request, sampling=replace(sampling, temperature=warmth, seed=sampling.seed + (attempt - 1) * 1_000_003)
    )


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
    """Another try may help an answer; it does not help a row that the engine cannot answer."""
    return outcome.stage == "answer" if isinstance(outcome, Failure) else bool(outcome.violations)
