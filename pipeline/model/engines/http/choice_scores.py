"""Reads the probabilities of choices from the likeliest first tokens of an answer, which is all that servers tell.

A choice counts by its first token, and a choice that is not among the tokens told has no probability. So choices that
begin alike cannot be told apart: jobs with such choices are refused, and a row in which it happens by chance fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, groupby
from typing import Any

from pipeline.errors import GenerateError, JobError
from pipeline.job.spec import Job
from pipeline.model.row_encoders.choice_encoder import append_question
from pipeline.types import Continuation, Request, Sampling

TOP_LOGPROBS = 20  # the most that servers of this protocol tell
CHOICE_FIELDS = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
MAX_AMBIGUOUS_SHARE = 0.01  # of the probability of all choices
APPROXIMATION = (
    f"answer.choices: a server tells the probabilities of the {TOP_LOGPROBS} likeliest first tokens alone, so a choice "
    "counts by its first token, and less likely choices have the probability 0"
)
NO_LOGPROBS = (
    "engine.kind: the server gives no log-probabilities (choices[0].logprobs.content[0].top_logprobs), which "
    "answer.choices needs; serve the model with them, or use engine torch"
)


def find_choice_problems(job: Job) -> Iterator[str]:
    answer = job.answer
    if answer.choices is None or answer.multi:
        return
    if answer.choice_format is not None:
        yield "answer.choice_format: a server begins the answer itself; leave it out with engine http"
    for one, other in combinations(answer.choices, 2):
        if one.split()[0] == other.split()[0] or one.startswith(other) or other.startswith(one):
            yield (
                f"answer.choices: {one!r} and {other!r} begin alike, and a server tells the first token alone; give "
                "the choices other labels, such as A, B and C with descriptions, or use engine torch"
            )
            return


def split_questions(request: Request) -> list[tuple[Request, tuple[Continuation, ...]]]:
    """A request for one token for each question, with the continuations that it tells about."""
    groups = [tuple(parts) for _, parts in groupby(request.continuations, lambda part: part.question)]
    return [
        (
            replace(
                request,
                turns=tuple(append_question(request.turns, parts[0].question)),
                sampling=Sampling(max_new_tokens=1),
                continuations=(),
            ),
            parts,
        )
        for parts in groups
    ]


def read_choice_logprobs(response: Mapping[str, Any], continuations: Sequence[Continuation]) -> list[float]:
    """JobError where the server tells no log-probabilities at all."""
    try:
        listed = response["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        told = [(str(entry["token"]).strip(), math.exp(float(entry["logprob"]))) for entry in listed]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise JobError(NO_LOGPROBS) from error
    shares, ambiguous = [0.0] * len(continuations), 0.0
    for token, probability in told:
        begun = [number for number, part in enumerate(continuations) if token and part.text.startswith(token)]
        if len(begun) == 1:
            shares[begun[0]] += probability
        elif begun:
            ambiguous += probability
    if ambiguous > MAX_AMBIGUOUS_SHARE * (sum(shares) + ambiguous):
        raise GenerateError("choices", "the answer begins as several choices do; give them labels that differ earlier")
    return [math.log(share) if share > 0 else -math.inf for share in shares]
