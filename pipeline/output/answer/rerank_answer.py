"""The answer of a job with `answer.rerank`: the probability of yes, among yes and no."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.errors import AnswerError
from pipeline.output.answer.base import AnswerFields


def read_rerank_answer(logprobs: Sequence[float]) -> AnswerFields:
    """
    >>> read_rerank_answer([math.log(0.3), math.log(0.1)]).text
    '0.7500'
    """
    yes, no = logprobs
    if not math.isfinite(max(yes, no)):
        raise AnswerError("no_choice", "the model gives neither yes nor no a probability")
    probability = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return AnswerFields(f"{probability:.4f}", probability, max(probability, 1 - probability))
