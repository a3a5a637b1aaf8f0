"""The seam `Family`: what a series of models was trained on, and where transformers keeps the parts of its model.

A family is arithmetic and text: pixel budgets, frames, the chat format, positions, how boxes are written. It is built
from a checkpoint's small files and tokenizer and works without weights; `architecture` is for code that has them. To
add a family, write one file here and one line in `registry.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.types import CoordinateSystem, MediaOptions, Size, TimeOrigin, Turn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The content of a checkpoint's small files; empty for a missing file."""

    config: Mapping[str, Any]  # config.json, with the job's overrides
    image_processor: Mapping[str, Any] = field(default_factory=dict)  # preprocessor_config.json
    video_processor: Mapping[str, Any] = field(default_factory=dict)  # video_preprocessor_config.json
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A conversation as the model reads it."""

    input_ids: NDArray[np.int32]  # [tokens]
    positions: NDArray[np.int32]  # [position axes, tokens]
    vision_tokens: int
    estimated_tokens: int = 0  # of a prompt that another program encodes; `input_ids` are then empty


class Family(Protocol):
    knows_model: ClassVar[bool]  # False: the program that runs the model decides on prompt, sizes and tokens
    architecture: ClassVar[ModelArchitecture]  # of a family that knows its model
    trained_context: ClassVar[int | None]  # the length that YaRN stretches, where config.json does not state it
    patch_size: int  # side of a patch in pixels
    merge_size: int  # patches of a side that become one token
    temporal_patch_size: int  # frames that become one layer
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]
    coordinates: CoordinateSystem | None  # None: the job says it
    time_origin: TimeOrigin
    reasoning_parser: str  # vLLM's name for how this family writes its thinking
    tokenizer: Tokenizer
    thinking: bool  # whether an answer begins inside <think>
    add_vision_id: bool  # number the media: 'Picture 1: '
    template_options: Mapping[str, bool]  # of the chat template, for servers that render it themselves
    vector_widths: Mapping[str, int]  # numbers of an embedding, by its source; empty where nothing tells
    context_length: int  # the longest sequence in tokens, answer included
    image_token: int  # the pad token that each vision token of an image takes in the prompt
    video_token: int

    def __init__(
        self,
        files: CheckpointFiles,
        tokenizer: Tokenizer,
        *,
        add_vision_id: bool = False,
        thinking: bool | None = None,  # whether to think, for checkpoints that leave the choice; None: their default
        closes_thinking: bool = False,  # an answer that always begins with a thought begins behind an empty one
    ): ...

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        """The size to resize to. Raises a PromptError of kind `size` where no size fits."""
        ...

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        """The frames of a part of a video to show, in order."""
        ...

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size: ...

    def count_vision_tokens(self, size: Size, frame_count: int = 1) -> int:
        """Pad tokens of an image, or of a video with so many selected frames, at its resized size."""
        ...

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        """All tokens of an image, or of a video with its frames' times: pads, markers, timestamps."""
        ...

    def encode_turns(self, turns: Sequence[Turn]) -> EncodedPrompt:
        """Token ids and positions of turns whose media are Clips. Special tokens in text stay text."""
        ...

    def encode_placeholders(self, turns: Sequence[Turn]) -> list[int]:
        """Token ids with a placeholder for each Clip, for engines that spell media out themselves."""
        ...

    def check_length(self, encoded: EncodedPrompt, max_new_tokens: int) -> None:
        """Raises a PromptError of kind `context` where prompt and answer do not fit together."""
        ...
