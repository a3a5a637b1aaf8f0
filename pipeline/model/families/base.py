"""What a model was trained on, and nothing about how its weights are run.

A family is arithmetic and text: pixel budgets, which frames, the chat format, positions, how boxes
are written. It is built from a checkpoint's small files and tokenizer, and works without weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pipeline.types import CoordinateSystem, MediaOptions, Size, TimeOrigin, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """What a checkpoint's small files say. A missing file says nothing."""

    config: Mapping[str, Any]  # config.json, with the job's overrides
    image_processor: Mapping[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    video_processor: Mapping[str, Any] = field(default_factory=dict)  # video_preprocessor_config.json
    chat_template: str | None = None  # the chat template


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A conversation as the model reads it."""

    input_ids: NDArray[np.int32]  # [tokens]
    positions: NDArray[np.int32]  # [3, tokens]
    vision_tokens: int


class Family(Protocol):
    trained_context: ClassVar[int | None]  # what YaRN stretches, where config.json does not say
    patch_size: int  # side of a patch in pixels
    merge_size: int  # patches of a side that become one token
    temporal_patch_size: int  # frames that become one
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
    coordinates: CoordinateSystem
    time_origin: TimeOrigin
    tokenizer: Tokenizer
    thinking: bool  # an answer begins inside <think>
    context_length: int  # the longest row in tokens, answer included
    image_token: int  # the pad token that stands for a piece of a picture
    video_token: int

    def __init__(self, files: CheckpointFiles, tokenizer: Tokenizer, *, add_vision_id: bool = False): ...

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        """The size to resize to; PromptError of kind `size` where no size fits."""
        ...

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        """Which frames of a part of a video to look at, in order."""
        ...

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size: ...

    def count_vision_tokens(self, size: Size, frame_count: int = 1) -> int:
        """Pad tokens of a picture, or of so many sampled frames, at the size it is resized to."""
        ...

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        """All tokens of a picture, or of a video with its frames' times: pads, markers, timestamps."""
        ...

    def encode_turns(self, turns: Sequence[Turn]) -> EncodedPrompt:
        """Prompt ids and positions of turns whose media are Clips. Text is text: `<|im_end|>` in it too."""
        ...

    def check_length(self, encoded: EncodedPrompt, max_new_tokens: int) -> None:
        """PromptError of kind `context` where prompt and answer do not fit together."""
        ...
