"""Shows the model a part of each picture or frame. The part is cut at the original's resolution, then resized."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pipeline.job.key_types import Fraction
from pipeline.media.region import WHOLE, compose_regions
from pipeline.media.steps.base import PreparationState, PreparationTools
from pipeline.types import MediaRef


@dataclass(frozen=True, slots=True)
class Crop:
    """The part between these fractions of width and height."""

    runs_before_loading: ClassVar[bool] = True
    left: Fraction = 0.0
    top: Fraction = 0.0
    right: Fraction = 1.0
    bottom: Fraction = 1.0

    def __post_init__(self) -> None:
        if self.left >= self.right or self.top >= self.bottom:
            raise ValueError("left must be less than right, and top less than bottom")

    def __call__(self, state: PreparationState, tools: PreparationTools) -> PreparationState:
        return state.map_parts(MediaRef, lambda media_ref: [self.crop_media(media_ref)])

    def crop_media(self, media_ref: MediaRef) -> MediaRef:
        region = compose_regions(media_ref.region or WHOLE, (self.left, self.top, self.right, self.bottom))
        return replace(media_ref, region=region)
