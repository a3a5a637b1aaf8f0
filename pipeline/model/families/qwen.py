"""The base of all Qwen-VL families: sizes in whole tokens, the chat format, M-RoPE positions in three axes.

    turns -> pieces (text, markers, grids of vision tokens) -> token ids and positions

Text counts on by one in all axes together. A grid counts in time, height and width from where the text stopped, and
what follows it begins one after the largest position so far. Neighbouring text is joined before it is encoded, because
a tokenizer merges across the seams.

A new model of this line derives from `QwenFamily` and states what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from pipeline.errors import JobError, PromptError
from pipeline.model.families.base import CheckpointFiles, EncodedPrompt
from pipeline.model.families.model_architecture import ModelArchitecture
from pipeline.model.prompt import ChatFormat, SpecialToken, build_prompt_pieces, parse_chat_template
from pipeline.types import Clip, MediaOptions, Size, Turn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

MAX_ASPECT_RATIO = 200
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class VisionGrid:
    """The vision tokens of a clip or a layer of it, all the same pad token."""

    pad_token: int
    time_positions: Sequence[int] | NDArray[np.int64]  # of its layers, from zero
    height: int  # in tokens
    width: int


PromptPiece = str | int | VisionGrid  # text, a token, or vision tokens


class QwenFamily:
    architecture: ClassVar[ModelArchitecture]
    knows_model: ClassVar[bool] = True
    mean: Colour = (0.48145466, 0.4578275, 0.40821073)
    std: Colour = (0.26862954, 0.26130258, 0.27577711)
    coordinates: Literal["pixels", "thousandths"] = "thousandths"
    time_origin: Literal["clip", "source"] = "clip"
    reasoning_parser: str = "qwen3"
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    chat_format: ChatFormat = ChatFormat("You are a helpful assistant.")
    trained_context: ClassVar[int | None] = None

    def __init__(
        self,
        files: CheckpointFiles,
        tokenizer: Tokenizer,
        *,
        add_vision_id: bool = False,
        thinking: bool | None = None,
        closes_thinking: bool = False,
    ):
        vision_config = files.config.get("vision_config", {})
        self.patch_size = vision_config.get("patch_size", self.patch_size)
        self.merge_size = vision_config.get("spatial_merge_size", self.merge_size)
        self.temporal_patch_size = vision_config.get("temporal_patch_size", self.temporal_patch_size)
        self.factor = self.patch_size * self.merge_size  # side of a token in pixels
        self.mean = parse_colour(files.image_processor.get("image_mean"), self.mean)
        self.std = parse_colour(files.image_processor.get("image_std"), self.std)
        self.min_pixels, self.max_pixels = parse_area_bounds(files.image_processor, (self.min_pixels, self.max_pixels))
        self.template_options: dict[str, bool] = {}
        if (template := files.chat_template) is not None:
            if thinking is not None and "enable_thinking" in template:
                self.template_options = {"enable_thinking": thinking}
            self.chat_format = parse_chat_template(template, thinking=thinking, closes_thinking=closes_thinking)
        self.context_length = parse_context_length(files.config)
        self.vector_widths = parse_vector_widths(files.config)
        self.add_vision_id = add_vision_id
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # special tokens in text stay text; markers are added as ids
        self.special_tokens = {token: self.find_token_id(token.value) for token in SpecialToken}
        self.image_token, self.video_token = self.find_token_id("<|image_pad|>"), self.find_token_id("<|video_pad|>")
        self.vision_start = self.find_token_id("<|vision_start|>")
        self.vision_end = self.find_token_id("<|vision_end|>")

    @property
    def thinking(self) -> bool:
        return self.chat_format.thinking

    def find_token_id(self, text: str) -> int:
        token_id = self.tokenizer.token_to_id(text)
        if token_id is None:
            raise JobError(f"the checkpoint's tokenizer.json has no token {text!r}: it is not one of a Qwen-VL model")
        return token_id

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        if requested := get_requested_size(options):
            return self.fit_requested_size(requested)
        min_area, max_area = compute_area_bounds(options, self.min_pixels, self.max_pixels)
        return fit_size(source, factor=self.factor, min_area=min_area, max_area=max_area)

    def fit_requested_size(self, requested: Size) -> Size:
        area = self.factor**2
        return fit_size(requested, factor=self.factor, min_area=4 * area, max_area=16384 * area)

    def count_vision_tokens(self, size: Size, frame_count: int = 1) -> int:
        return math.ceil(frame_count / self.temporal_patch_size) * size[0] * size[1] // self.factor**2

    def count_media_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        return self.count_vision_tokens(size, max(1, len(times))) + 2

    def check_length(self, encoded: EncodedPrompt, max_new_tokens: int) -> None:
        prompt, total = len(encoded.input_ids), len(encoded.input_ids) + max_new_tokens
        excess = total - self.context_length
        if excess > 0:
            raise PromptError(
                "context",
                f"the row needs {total:,} tokens, {excess:,} more than the context of {self.context_length:,}: "
                f"{prompt:,} of prompt ({encoded.vision_tokens:,} of media) and {max_new_tokens:,} for the answer; "
                "lower max_pixels, fps or max_new_tokens, or set model.context",
            )

    def encode_turns(self, turns: Sequence[Turn]) -> EncodedPrompt:
        return encode_pieces(self.build_pieces(turns, self.build_clip_pieces), self.tokenizer)

    def encode_placeholders(self, turns: Sequence[Turn]) -> list[int]:
        (token_ids,) = tokenize_pieces(self.build_pieces(turns, self.build_placeholder), self.tokenizer)
        assert isinstance(token_ids, list)
        return token_ids

    def build_pieces(
        self, turns: Sequence[Turn], build_clip: Callable[[Clip], Iterable[PromptPiece]]
    ) -> Iterator[PromptPiece]:
        for piece in build_prompt_pieces(turns, self.chat_format, add_vision_id=self.add_vision_id):
            if isinstance(piece, Clip):
                yield from build_clip(piece)
            else:
                yield self.special_tokens[piece] if isinstance(piece, SpecialToken) else piece

    def build_clip_pieces(self, clip: Clip) -> Iterator[PromptPiece]:
        """The clip's vision tokens between markers."""
        width, height = (side // self.factor for side in clip.size)
        layers = math.ceil(len(clip.pixels) / self.temporal_patch_size)
        yield self.vision_start
        if clip.kind == "image":
            yield VisionGrid(self.image_token, [0], height, width)
        else:
            yield VisionGrid(self.video_token, self.compute_layer_positions(layers, clip), height, width)
        yield self.vision_end

    def build_placeholder(self, clip: Clip) -> Iterator[int]:
        """The clip's tokens in a prompt whose media another program spells out."""
        yield self.vision_start
        yield self.image_token if clip.kind == "image" else self.video_token
        yield self.vision_end

    def compute_layer_positions(self, layers: int, clip: Clip) -> Sequence[int] | NDArray[np.int64]:
        return range(layers)


def encode_pieces(pieces: Iterable[PromptPiece], tokenizer: Tokenizer) -> EncodedPrompt:
    token_ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int32]] = []
    next_position = vision_tokens = 0
    for run in tokenize_pieces(pieces, tokenizer):
        if isinstance(run, VisionGrid):
            grid_positions = compute_grid_positions(run)
            count = grid_positions.shape[1]
            token_ids.append(np.full(count, run.pad_token, np.int32))
            positions.append(grid_positions + np.int32(next_position))
            next_position += max(int(run.time_positions[-1]), run.height - 1, run.width - 1) + 1
            vision_tokens += count
        else:
            count = len(run)
            token_ids.append(np.array(run, np.int32))
            text_positions = np.arange(next_position, next_position + count, dtype=np.int32)
            positions.append(np.broadcast_to(text_positions, (3, count)))
            next_position += count
    return EncodedPrompt(np.concatenate(token_ids), np.concatenate(positions, axis=1), vision_tokens)


def tokenize_pieces(pieces: Iterable[PromptPiece], tokenizer: Tokenizer) -> Iterator[list[int] | VisionGrid]:
    """Grids, and between them the tokens of all neighbouring pieces in one list."""
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
    """[3, tokens]: time, height and width from zero; width runs fastest."""
    positions = np.empty((3, len(grid.time_positions), grid.height, grid.width), np.int32)
    positions[0] = np.asarray(grid.time_positions, np.int32)[:, None, None]
    positions[1] = np.arange(grid.height, dtype=np.int32)[:, None]
    positions[2] = np.arange(grid.width, dtype=np.int32)
    return positions.reshape(3, -1)


def fit_size(source: Size, *, factor: int, min_area: int, max_area: int) -> Size:
    """The size in whole tokens, nearly of the same shape, whose area is within the bounds.

    A side under half a token rounds to zero and is then enlarged with the other side, as the reference does.

    >>> fit_size((1900, 10), factor=28, min_area=56 * 56, max_area=12845056)
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
    """Returns the size, or raises where no model takes such a shape."""
    if min(source) < 1 or max(source) / min(source) > MAX_ASPECT_RATIO:
        raise PromptError(
            "size", f"{source[0]}x{source[1]}: one side is over {MAX_ASPECT_RATIO} times the other; crop it"
        )
    return source


def select_evenly(frame_range: range, fps: float, options: MediaOptions) -> list[int]:
    """Frames of a video by index, from the first to the last, by default two for each second."""
    least, most = options.min_frames or 4, options.max_frames or 768
    count = options.frames or min(max(int(len(frame_range) / fps * (options.fps or 2.0)), least), most)
    places = np.linspace(frame_range[0], frame_range[-1], min(count, len(frame_range)))
    indices: list[int] = places.round().astype(int).tolist()
    return indices


def get_requested_size(options: MediaOptions) -> Size | None:
    """The size that the row or the job asks for, if it does."""
    if (options.resized_width is None) != (options.resized_height is None):
        raise PromptError("size", "resized_width and resized_height only mean something together: give both or none")
    if options.resized_width is None or options.resized_height is None:
        return None
    return options.resized_width, options.resized_height


def compute_area_bounds(options: MediaOptions, default_min: int, default_max: int) -> tuple[int, int]:
    """Smallest and largest area. A requested bound moves the default of the other bound, where they cross."""
    if options.min_pixels is not None and options.max_pixels is not None and options.min_pixels > options.max_pixels:
        raise PromptError("size", f"min_pixels ({options.min_pixels:,}) is above max_pixels ({options.max_pixels:,})")
    low, high = options.min_pixels or default_min, options.max_pixels or default_max
    return (min(low, high), high) if options.min_pixels is None else (low, max(low, high))


def parse_area_bounds(processor_config: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """Smallest and largest area of a preprocessor file, in any of its spellings."""
    size = processor_config.get("size") or {}
    low = processor_config.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or default[0]
    high = processor_config.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or default[1]
    return int(low), int(high)


def parse_colour(values: Sequence[float] | None, default: Colour) -> Colour:
    return (values[0], values[1], values[2]) if values else default


def parse_vector_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Of hidden states and of vision features. Qwen2-VL's tower has one width and calls it `hidden_size`."""
    text, vision = config.get("text_config") or config, config.get("vision_config") or {}
    widths = {"language": text.get("hidden_size"), "vision": vision.get("out_hidden_size", vision.get("hidden_size"))}
    return {source: int(width) for source, width in widths.items() if width}


def parse_context_length(config: Mapping[str, Any]) -> int:
    """The longest sequence in tokens. Older checkpoints state it at the top, newer ones in text_config."""
    text_config = config.get("text_config") or {}
    return int(text_config.get("max_position_embeddings") or config.get("max_position_embeddings") or 32768)
