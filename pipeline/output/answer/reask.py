"""Requests, an engine -> rows, asking again where an answer is not good enough.

Every round asks all that is still open at once. A better attempt replaces a worse one: a valid answer an invalid one,
fewer violations more. The temperature rises with the attempt, because a greedy model would say the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.errors import AnswerError
from pipeline.types import Failure, Item, Reply, Request, Row

LADDER = (0.0, 0.3, 0.6, 0.8, 1.0)  # at least so warm, by attempt

Answer = Callable[[Sequence[Request]], Sequence[Reply | Failure]]
Finish = Callable[[Item, Request, Reply, int], Row | Failure]


def settle(
    asked: Sequence[tuple[Item, Request]], *, answer: Answer, finish: Finish, retries: int
) -> list[Row | Failure]:
    """One row or failure for each, in order; `answer` replies to requests in order."""
    best: dict[int, Row | Failure] = {}
    still = list(range(len(asked)))
    for attempt in range(1, retries + 2):
        requests = [again(request, item.past.answers + attempt) for item, request in (asked[index] for index in still)]
        for index, request, reply in zip(still, requests, answer(requests), strict=True):
            outcome = _outcome(asked[index][0], request, reply, finish, attempt)
            if index not in best or _faults(outcome) < _faults(best[index]):
                best[index] = outcome
            best[index] = replace(best[index], attempts=attempt)
        still = [index for index in still if _worth_asking(best[index])]
        if not still:
            break
    return [best[index] for index in range(len(asked))]


def again(request: Request, attempt: int) -> Request:
    """The request of a later attempt: warmer, and with another seed. The first is the request itself."""
    if attempt == 1:
        return request
    sampling = request.sampling
    warmth = max(sampling.temperature, LADDER[min(attempt, len(LADDER)) - 1])
    return replace(
        request, sampling=replace(sampling, temperature=warmth, seed=sampling.seed + (attempt - 1) * 1_000_003)
    )


def _outcome(item: Item, request: Request, reply: Reply | Failure, finish: Finish, attempt: int) -> Row | Failure:
    if isinstance(reply, Failure):
        return reply
    try:
        return finish(item, request, reply, attempt)
    except AnswerError as error:
        return error.failure(item.id, attempt)


def _faults(outcome: Row | Failure) -> float:
    return float("inf") if isinstance(outcome, Failure) else len(outcome.violations)


def _worth_asking(outcome: Row | Failure) -> bool:
    """Another try may help an answer; it does not help a row that the engine cannot answer."""
    return outcome.stage == "answer" if isinstance(outcome, Failure) else bool(outcome.violations)
