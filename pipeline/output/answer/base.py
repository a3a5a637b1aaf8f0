"""What a kind of answer fills in a Row, and how it is read from a reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.types import Reply, Request


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """Fields of a Row with the same names."""

    text: str
    answer: Any = None
    confidence: Any = None
    probabilities: dict[str, float] | None = None
    embedding: NDArray[np.floating[Any]] | None = None
    raw: str | None = None
    flags: tuple[str, ...] = ()
    violations: tuple[str, ...] = ()


AnswerReader = Callable[[Request, Reply], AnswerFields]  # raises AnswerError where the reply holds no answer
