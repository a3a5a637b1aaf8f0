"""The seam for a step of preparation: a callable `(state, tools) -> state`, registered in STEPS.

A step is a function, or a dataclass or pydantic model whose fields are the step's arguments in the job. Most steps
change the Clips of a row. A step with `runs_before_loading = True` changes the MediaRefs instead, before they are
fetched: it can choose what is decoded. Where a Clip shows only a part of the original, its `region` says which;
answers are mapped by it. Planning runs the same steps on Clips whose pixels are all zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from pipeline.media.base import FrameRules, MediaFetcher
from pipeline.media.decode import ClipDecoder
from pipeline.step_timer import StepTimer
from pipeline.types import Clip, Item, MediaRef, Request, Turn

PartT = TypeVar("PartT", MediaRef, Clip)


@dataclass(frozen=True, slots=True)
class PreparationState:
    """One row on its way from Item to Request."""

    item: Item
    turns: tuple[Turn, ...]  # hold MediaRefs before loading, Clips after it
    deadline: float  # of `time.monotonic`
    request: Request | None = None  # built by the last step

    def map_parts(self, part_type: type[PartT], function: Callable[[PartT], Iterable[PartT]]) -> PreparationState:
        """Replaces each MediaRef, or each Clip, by what the function makes of it: one, several or none."""
        turns = []
        for turn in self.turns:
            parts = [function(part) if isinstance(part, part_type) else (part,) for part in turn.parts]
            turns.append(Turn(turn.role, tuple(part for group in parts for part in group)))
        return replace(self, turns=tuple(turns))


@dataclass(frozen=True, slots=True)
class PreparationTools:
    """What a prepare worker keeps open for its steps."""

    fetcher: MediaFetcher
    clip_decoder: ClipDecoder
    frame_rules: FrameRules
    timer: StepTimer


class Step(Protocol):
    def __call__(self, state: PreparationState, tools: PreparationTools, /) -> PreparationState: ...


def runs_before_loading(step: Step) -> bool:
    return bool(getattr(step, "runs_before_loading", False))
