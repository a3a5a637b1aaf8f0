"""What all Qwen-VL models share: sizes in whole tokens, the chat format, positions in three axes.

    Turns -> pieces (text, markers, grids of vision tokens) -> ids and positions

Text counts on by one in all axes together; a grid counts in time, height and width from where the
text stopped; what follows begins one after the largest position so far. Neighbouring text is joined
before it is encoded, because a tokenizer merges across the seams.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.errors import JobError, PromptError
from pipeline.model.families.base import CheckpointFiles, EncodedPrompt
from pipeline.model.prompt import ChatFormat, SpecialToken, build_prompt_pieces, parse_chat_template
from pipeline.types import Clip, MediaOptions, Size, Turn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

MAX_ASPECT_RATIO = 200
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class VisionGrid:
    """Vision tokens in their places; `times` are the positions of its layers, from zero."""

    pad_token: int
    time_positions: Sequence[int] | NDArray[np.int64]
    height: int
    width: int


class QwenFamily:
    """What the families of this line are derived from; they say what differs."""

    mean: Colour = (0.48145466, 0.4578275, 0.40821073)
    std: Colour = (0.26862954, 0.26130258, 0.27577711)
    coordinates: Literal["pixels", "thousandths"] = "thousandths"
    time_origin: Literal["clip", "source"] = "clip"
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    chat_format: ChatFormat = ChatFormat("You are a helpful assistant.")
    trained_context: ClassVar[int | None] = None  # what YaRN stretches, where config.json does not say

    def __init__(self, files: CheckpointFiles, tokenizer: Tokenizer, *, add_vision_id: bool = False):
        vision = files.config.get("vision_config", {})
        self.patch_size = vision.get("patch_size", self.patch_size)
        self.merge_size = vision.get("spatial_merge_size", self.merge_size)
        self.temporal_patch_size = vision.get("temporal_patch_size", self.temporal_patch_size)
        self.factor = self.patch_size * self.merge_size
        self.mean = parse_colour(files.image_processor.get("image_mean"), self.mean)
        self.std = parse_colour(files.image_processor.get("image_std"), self.std)
        self.min_pixels, self.max_pixels = parse_area_bounds(files.image_processor, (self.min_pixels, self.max_pixels))
        self.chat_format = self.chat_format if files.chat_template is None else parse_chat_template(files.chat_template)
        self.context_length = parse_context_length(files.config)
        self.add_vision_id = add_vision_id
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # text is text; markers come as ids
        self.special_tokens = {mark: self.find_token_id(mark.value) for mark in SpecialToken}
        self.image_token, self.video_token = self.find_token_id("<|image_pad|>"), self.find_token_id("<|video_pad|>")
        self.vision_start, self.vision_end = (
            self.find_token_id("<|vision_start|>"),
            self.find_token_id("<|vision_end|>"),
        )

    @property
    def thinking(self) -> bool:
        return self.chat_format.thinking

    def find_token_id(self, text: str) -> int:
        number = self.tokenizer.token_to_id(text)
        if number is None:
            raise JobError(f"the checkpoint's tokenizer.json has no token {text!r}: it is not one of a Qwen-VL model")
        return number

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        if fixed := get_requested_size(options):
            return fit_size(fixed, factor=self.factor, min_area=4 * self.factor**2, max_area=16384 * self.factor**2)
        least, most = compute_area_bounds(options, self.min_pixels, self.max_pixels)
        return fit_size(source, factor=self.factor, min_area=least, max_area=most)

    def count_vision_tokens(self, size: Size, frame_count: int = 1) -> int:
        return math.ceil(frame_count / self.temporal_patch_size) * size[0] * size[1] // self.factor**2

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        return self.count_vision_tokens(size, max(1, len(times))) + 2

    def encode_turns(self, turns: Sequence[Turn]) -> EncodedPrompt:
        return encode_pieces(self.build_pieces(turns), self.tokenizer)

    def check_length(self, encoded: EncodedPrompt, max_new_tokens: int) -> None:
        prompt, total = len(encoded.input_ids), len(encoded.input_ids) + max_new_tokens
        if total > self.context_length:
            raise PromptError(
                "context",
                f"the row needs {total:,} tokens, {total - self.context_length:,} more than the context of {self.context_length:,}: "
                f"{prompt:,} of prompt ({encoded.vision_tokens:,} of media) and {max_new_tokens:,} for the answer; "
                "lower max_pixels, fps or max_new_tokens, or set model.context",
            )

    def build_pieces(self, turns: Sequence[Turn]) -> Iterator[str | int | VisionGrid]:
        for piece in build_prompt_pieces(turns, self.chat_format, add_vision_id=self.add_vision_id):
            if isinstance(piece, Clip):
                yield from self.build_clip_pieces(piece)
            else:
                yield piece if isinstance(piece, str) else self.special_tokens[piece]

    def build_clip_pieces(self, clip: Clip) -> Iterator[str | int | VisionGrid]:
        """A medium between its markers."""
        width, height = (side // self.factor for side in clip.size)
        layers = math.ceil(len(clip.pixels) / self.temporal_patch_size)
        yield self.vision_start
        if clip.kind == "image":
            yield VisionGrid(self.image_token, [0], height, width)
        else:
            yield VisionGrid(self.video_token, self.compute_layer_positions(layers, clip), height, width)
        yield self.vision_end

    def compute_layer_positions(self, layers: int, clip: Clip) -> Sequence[int] | NDArray[np.int64]:
        return range(layers)


def encode_pieces(pieces: Iterable[str | int | VisionGrid], tokenizer: Tokenizer) -> EncodedPrompt:
    """Pieces of a prompt -> ids and positions."""
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int32]] = []
    place = vision = 0
    for run in tokenize_pieces(pieces, tokenizer):
        if isinstance(run, VisionGrid):
            where = compute_grid_positions(run) + np.int32(place)
            ids.append(np.full(where.shape[1], run.pad_token, np.int32))
            place += max(int(run.time_positions[-1]), run.height - 1, run.width - 1) + 1
            vision += where.shape[1]
        else:
            ids.append(np.array(run, np.int32))
            where = np.broadcast_to(np.arange(place, place + len(run), dtype=np.int32), (3, len(run)))
            place += len(run)
        positions.append(where)
    return EncodedPrompt(np.concatenate(ids), np.concatenate(positions, axis=1), vision)


def tokenize_pieces(pieces: Iterable[str | int | VisionGrid], tokenizer: Tokenizer) -> Iterator[list[int] | VisionGrid]:
    """Grids, and between them all neighbouring tokens together."""
    text: list[str] = []
    tokens: list[int] = []
    for piece in chain(pieces, [None]):
        if isinstance(piece, str):
            text.append(piece)
            continue
        if text:
            tokens += tokenizer.encode("".join(text), add_special_tokens=False).ids
            text = []
        if isinstance(piece, int):
            tokens.append(piece)
            continue
        if tokens:
            yield tokens
            tokens = []
        if piece is not None:
            yield piece


def compute_grid_positions(grid: VisionGrid) -> NDArray[np.int32]:
    """[3, tokens]: time, height, width, from zero, width running fastest."""
    where = np.empty((3, len(grid.time_positions), grid.height, grid.width), np.int32)
    where[0] = np.asarray(grid.time_positions, np.int32)[:, None, None]
    where[1] = np.arange(grid.height, dtype=np.int32)[:, None]
    where[2] = np.arange(grid.width, dtype=np.int32)
    return where.reshape(3, -1)


def fit_size(source: Size, *, factor: int, min_area: int, max_area: int) -> Size:
    """The size in whole tokens, nearly of the same shape, whose area is within the budget.

    A side under half a token rounds to nothing and is then enlarged with the other, as the reference does.

    >>> fit((1900, 10), factor=28, least=56 * 56, most=12845056)
    (784, 28)
    """
    width, height = check_aspect_ratio(source)
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > max_area:
        shrink = math.sqrt(width * height / max_area)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif wide * high < max(min_area, 1):
        grow = math.sqrt(max(min_area, 1) / (width * height))
        wide, high = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return wide, high


def check_aspect_ratio(source: Size) -> Size:
    """The size itself, if a model can see such a shape at all."""
    if min(source) < 1 or max(source) / min(source) > MAX_ASPECT_RATIO:
        raise PromptError(
            "size", f"{source[0]}x{source[1]}: one side is over {MAX_ASPECT_RATIO} times the other; crop it"
        )
    return source


def get_requested_size(options: MediaOptions) -> Size | None:
    """The size that was asked for as such."""
    if (options.resized_width is None) != (options.resized_height is None):
        raise PromptError("size", "resized_width and resized_height only mean something together: give both or none")
    return (
        None
        if options.resized_width is None or options.resized_height is None
        else (options.resized_width, options.resized_height)
    )


def compute_area_bounds(options: MediaOptions, default_min: int, default_max: int) -> tuple[int, int]:
    """Smallest and largest area. What was asked moves the default at the other end out of its way."""
    if options.min_pixels is not None and options.max_pixels is not None and options.min_pixels > options.max_pixels:
        raise PromptError("size", f"min_pixels ({options.min_pixels:,}) is above max_pixels ({options.max_pixels:,})")
    low, high = options.min_pixels or default_min, options.max_pixels or default_max
    return (min(low, high), high) if options.min_pixels is None else (low, max(low, high))


def parse_area_bounds(processor_config: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """Smallest and largest area that a preprocessor file names, in any of its spellings."""
    size = processor_config.get("size") or {}
    least = processor_config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or default[0]
    most = processor_config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or default[1]
    return int(least), int(most)


def parse_colour(values: Sequence[float] | None, default: Colour) -> Colour:
    return (values[0], values[1], values[2]) if values else default


def parse_context_length(config: Mapping[str, Any]) -> int:
    """The longest row in tokens: older checkpoints say it at the top, newer ones under text_config."""
    text = config.get("text_config") or {}
    return int(text.get("max_position_embeddings") or config.get("max_position_embeddings") or 32768)
