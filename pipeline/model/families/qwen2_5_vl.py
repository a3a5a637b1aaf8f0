"""Qwen2.5-VL: as Qwen2-VL, but boxes in pixels of the resized picture, and time in positions is time.

A layer of a video lies `tokens_per_second` positions for each second after the one before, so that the
same motion looks the same at any sampling rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.model.families.base import CheckpointFiles
from pipeline.model.families.qwen2_vl import Qwen2VL
from pipeline.types import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


class Qwen25VL(Qwen2VL):
    coordinates: Literal["pixels", "thousandths"] = "pixels"

    def __init__(self, files: CheckpointFiles, tokenizer: Tokenizer, *, add_vision_id: bool = False):
        super().__init__(files, tokenizer, add_vision_id=add_vision_id)
        self.tokens_per_second = files.config.get("vision_config", {}).get("tokens_per_second", 4)

    def compute_layer_positions(self, layers: int, clip: Clip) -> Sequence[int] | NDArray[np.int64]:
        seconds = np.float32(self.temporal_patch_size / clip.fps)  # of a layer, truncated as single precision
        return (np.arange(layers, dtype=np.float32) * seconds * np.float32(self.tokens_per_second)).astype(np.int64)
