"""Turns the log-probabilities of continuations into the answer of a job with `answer.choices`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.errors import AnswerError
from pipeline.job.answer_section import AnswerSection
from pipeline.model.row_encoders.choice_encoder import NO_WORDS, YES_WORDS
from pipeline.output.answer.base import AnswerFields


def build_probabilities_field(name: str, answer: AnswerSection) -> pa.Field:
    """One number for each choice. With `multi` each is by itself, otherwise they add up to 1."""
    return pa.field(name, pa.struct([pa.field(label, pa.float32()) for label in answer.choices or ()]))


def read_choice_answer(logprobs: Sequence[float], answer: AnswerSection) -> AnswerFields:
    """The log-probabilities are in the order in which ChoiceEncoder lists the continuations."""
    labels = list(answer.choices or ())
    groups = np.asarray(logprobs, np.float64).reshape(len(labels), -1) if answer.multi else np.asarray([logprobs])
    if not np.isfinite(groups.max(1)).all():
        raise AnswerError("no_choice", "the model gives none of the choices a probability")
    shares = np.exp(groups - groups.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    if not answer.multi:
        probabilities = dict(zip(labels, shares[0].tolist(), strict=True))
        best = max(labels, key=probabilities.__getitem__)
        return AnswerFields(best, best, probabilities[best], probabilities)
    assert shares.shape[1] == len(YES_WORDS) + len(NO_WORDS)
    probabilities = dict(zip(labels, shares[:, : len(YES_WORDS)].sum(1).tolist(), strict=True))
    applies = {label: probability >= 0.5 for label, probability in probabilities.items()}
    text = ", ".join(label for label, is_true in applies.items() if is_true)
    confidence = {label: max(value, 1 - value) for label, value in probabilities.items()}
    return AnswerFields(text, applies, confidence, probabilities)
