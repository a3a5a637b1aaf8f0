"""Qwen2.5-VL: as Qwen2-VL, but boxes are in pixels of the resized image, and positions count time in seconds.

Each layer of a video lies `tokens_per_second` positions after the layer one second before it, so that the same motion
looks the same at any sampling rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.model.families.base import CheckpointFiles
from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.model.families.qwen2_vl import Qwen2VL
from pipeline.types import Clip

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


class Qwen25VL(Qwen2VL):
    architecture = ModelArchitecture("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig")
    coordinates: Literal["pixels", "thousandths"] = "pixels"

    def __init__(self, files: CheckpointFiles, tokenizer: Tokenizer, **options: Any):
        super().__init__(files, tokenizer, **options)
        self.tokens_per_second = files.config.get("vision_config", {}).get("tokens_per_second", 4)

    def compute_layer_positions(self, layers: int, clip: Clip) -> Sequence[int] | NDArray[np.int64]:
        layer_seconds = np.float32(
            self.temporal_patch_size / clip.fps
        )  # single precision, as the reference truncates it
        seconds = np.arange(layers, dtype=np.float32) * layer_seconds
        return (seconds * np.float32(self.tokens_per_second)).astype(np.int64)
