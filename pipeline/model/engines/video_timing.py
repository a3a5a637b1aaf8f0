"""When the frames of a clip were shown, for engines that would otherwise make up a clock of their own."""

from __future__ import annotations

from pipeline.types import Clip


def compute_frame_times(clip: Clip) -> list[float]:
    """Seconds, one per frame; frames without times follow each other at the clip's rate."""
    return list(clip.times) or [index / clip.fps for index in range(len(clip.pixels))]


def compute_duration(clip: Clip) -> float:
    """Seconds that the frames last at the clip's rate, wherever they were taken from."""
    return len(clip.pixels) / clip.fps
