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
from pipeline.model.families.base import Encoded, Files
from pipeline.model.prompt import Mark, Style, pieces, read_style
from pipeline.types import Ask, Clip, Size, Turn

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

ASPECT_RATIO = 200
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Grid:
    """Vision tokens in their places; `times` are the positions of its layers, from zero."""

    token: int
    times: Sequence[int] | NDArray[np.int64]
    height: int
    width: int


class Qwen:
    """What the families of this line are derived from; they say what differs."""

    mean: Colour = (0.48145466, 0.4578275, 0.40821073)
    std: Colour = (0.26862954, 0.26130258, 0.27577711)
    coordinates: Literal["pixels", "thousandths"] = "thousandths"
    times: Literal["clip", "source"] = "clip"
    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    style: Style = Style("You are a helpful assistant.")
    trained_context: ClassVar[int | None] = None  # what YaRN stretches, where config.json does not say

    def __init__(self, files: Files, tokenizer: Tokenizer, *, add_vision_id: bool = False):
        vision = files.config.get("vision_config", {})
        self.patch = vision.get("patch_size", self.patch)
        self.merge = vision.get("spatial_merge_size", self.merge)
        self.temporal_patch = vision.get("temporal_patch_size", self.temporal_patch)
        self.factor = self.patch * self.merge
        self.mean = colour(files.image.get("image_mean"), self.mean)
        self.std = colour(files.image.get("image_std"), self.std)
        self.min_pixels, self.max_pixels = budget(files.image, (self.min_pixels, self.max_pixels))
        self.style = self.style if files.template is None else read_style(files.template)
        self.context = context(files.config)
        self.add_vision_id = add_vision_id
        self.tokenizer = tokenizer
        self.tokenizer.encode_special_tokens = True  # text is text; markers come as ids
        self.marks = {mark: self.token(mark.value) for mark in Mark}
        self.image_token, self.video_token = self.token("<|image_pad|>"), self.token("<|video_pad|>")
        self.vision_start, self.vision_end = self.token("<|vision_start|>"), self.token("<|vision_end|>")

    @property
    def thinking(self) -> bool:
        return self.style.thinking

    def token(self, text: str) -> int:
        number = self.tokenizer.token_to_id(text)
        if number is None:
            raise JobError(f"the checkpoint's tokenizer.json has no token {text!r}: it is not one of a Qwen-VL model")
        return number

    def image_size(self, source: Size, ask: Ask) -> Size:
        if fixed := wanted(ask):
            return fit(fixed, factor=self.factor, least=4 * self.factor**2, most=16384 * self.factor**2)
        least, most = bounds(ask, self.min_pixels, self.max_pixels)
        return fit(source, factor=self.factor, least=least, most=most)

    def vision_tokens(self, size: Size, frames: int = 1) -> int:
        return math.ceil(frames / self.temporal_patch) * size[0] * size[1] // self.factor**2

    def medium_tokens(self, size: Size, times: Sequence[float] = ()) -> int:
        return self.vision_tokens(size, max(1, len(times))) + 2

    def encode(self, turns: Sequence[Turn]) -> Encoded:
        return assemble(self.pieces(turns), self.tokenizer)

    def check(self, encoded: Encoded, max_new_tokens: int) -> None:
        prompt, total = len(encoded.input_ids), len(encoded.input_ids) + max_new_tokens
        if total > self.context:
            raise PromptError(
                "context",
                f"the row needs {total:,} tokens, {total - self.context:,} more than the context of {self.context:,}: "
                f"{prompt:,} of prompt ({encoded.vision_tokens:,} of media) and {max_new_tokens:,} for the answer; "
                "lower max_pixels, fps or max_new_tokens, or set model.context",
            )

    def pieces(self, turns: Sequence[Turn]) -> Iterator[str | int | Grid]:
        for piece in pieces(turns, self.style, label=self.add_vision_id):
            if isinstance(piece, Clip):
                yield from self.see(piece)
            else:
                yield piece if isinstance(piece, str) else self.marks[piece]

    def see(self, clip: Clip) -> Iterator[str | int | Grid]:
        """A medium between its markers."""
        width, height = (side // self.factor for side in clip.size)
        layers = math.ceil(len(clip.pixels) / self.temporal_patch)
        yield self.vision_start
        if clip.kind == "image":
            yield Grid(self.image_token, [0], height, width)
        else:
            yield Grid(self.video_token, self.layer_times(layers, clip), height, width)
        yield self.vision_end

    def layer_times(self, layers: int, clip: Clip) -> Sequence[int] | NDArray[np.int64]:
        return range(layers)


def assemble(pieces: Iterable[str | int | Grid], tokenizer: Tokenizer) -> Encoded:
    """Pieces of a prompt -> ids and positions."""
    ids: list[NDArray[np.int32]] = []
    positions: list[NDArray[np.int32]] = []
    place = vision = 0
    for run in runs(pieces, tokenizer):
        if isinstance(run, Grid):
            where = grid_positions(run) + np.int32(place)
            ids.append(np.full(where.shape[1], run.token, np.int32))
            place += max(int(run.times[-1]), run.height - 1, run.width - 1) + 1
            vision += where.shape[1]
        else:
            ids.append(np.array(run, np.int32))
            where = np.broadcast_to(np.arange(place, place + len(run), dtype=np.int32), (3, len(run)))
            place += len(run)
        positions.append(where)
    return Encoded(np.concatenate(ids), np.concatenate(positions, axis=1), vision)


def runs(pieces: Iterable[str | int | Grid], tokenizer: Tokenizer) -> Iterator[list[int] | Grid]:
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


def grid_positions(grid: Grid) -> NDArray[np.int32]:
    """[3, tokens]: time, height, width, from zero, width running fastest."""
    where = np.empty((3, len(grid.times), grid.height, grid.width), np.int32)
    where[0] = np.asarray(grid.times, np.int32)[:, None, None]
    where[1] = np.arange(grid.height, dtype=np.int32)[:, None]
    where[2] = np.arange(grid.width, dtype=np.int32)
    return where.reshape(3, -1)


def fit(source: Size, *, factor: int, least: int, most: int) -> Size:
    """The size in whole tokens, nearly of the same shape, whose area is within the budget.

    A side under half a token rounds to nothing and is then enlarged with the other, as the reference does.

    >>> fit((1900, 10), factor=28, least=56 * 56, most=12845056)
    (784, 28)
    """
    width, height = shaped(source)
    wide, high = round(width / factor) * factor, round(height / factor) * factor
    if wide * high > most:
        shrink = math.sqrt(width * height / most)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
        high = max(factor, math.floor(height / shrink / factor) * factor)
    elif wide * high < max(least, 1):
        grow = math.sqrt(max(least, 1) / (width * height))
        wide, high = math.ceil(width * grow / factor) * factor, math.ceil(height * grow / factor) * factor
    return wide, high


def shaped(source: Size) -> Size:
    """The size itself, if a model can see such a shape at all."""
    if min(source) < 1 or max(source) / min(source) > ASPECT_RATIO:
        raise PromptError("size", f"{source[0]}x{source[1]}: one side is over {ASPECT_RATIO} times the other; crop it")
    return source


def wanted(ask: Ask) -> Size | None:
    """The size that was asked for as such."""
    if (ask.resized_width is None) != (ask.resized_height is None):
        raise PromptError("size", "resized_width and resized_height only mean something together: give both or none")
    return None if ask.resized_width is None or ask.resized_height is None else (ask.resized_width, ask.resized_height)


def bounds(ask: Ask, least: int, most: int) -> tuple[int, int]:
    """Smallest and largest area. What was asked moves the default at the other end out of its way."""
    if ask.min_pixels is not None and ask.max_pixels is not None and ask.min_pixels > ask.max_pixels:
        raise PromptError("size", f"min_pixels ({ask.min_pixels:,}) is above max_pixels ({ask.max_pixels:,})")
    low, high = ask.min_pixels or least, ask.max_pixels or most
    return (min(low, high), high) if ask.min_pixels is None else (low, max(low, high))


def budget(said: Mapping[str, Any], default: tuple[int, int]) -> tuple[int, int]:
    """Smallest and largest area that a preprocessor file names, in any of its spellings."""
    size = said.get("size") or {}
    least = said.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or default[0]
    most = said.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or default[1]
    return int(least), int(most)


def colour(said: Sequence[float] | None, default: Colour) -> Colour:
    return (said[0], said[1], said[2]) if said else default


def context(config: Mapping[str, Any]) -> int:
    """The longest row in tokens: older checkpoints say it at the top, newer ones under text_config."""
    text = config.get("text_config") or {}
    return int(text.get("max_position_embeddings") or config.get("max_position_embeddings") or 32768)
