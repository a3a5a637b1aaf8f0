"""The answer of a job with `answer.rerank`: the probability of yes, among yes and no."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import AnswerError


def build_rerank_answer(logprobs: Sequence[float]) -> Mapping[str, Any]:
    """The fields of a Row.

    >>> build_rerank_answer([math.log(0.3), math.log(0.1)])["text"]
    '0.7500'
    """
    yes, no = logprobs
    if not math.isfinite(max(yes, no)):
        raise AnswerError("no_choice", "the model gives neither yes nor no a probability")
    probability = 1 / (1 + math.exp(min(no - yes, 700.0)))
    return {"answer": probability, "text": f"{probability:.4f}", "confidence": max(probability, 1 - probability)}
