"""Scenes -> lessons, and lessons whose grids are alike -> one batch: what training shows the model.

A lesson is made by the pipeline's own parts (sampling, resizing, prompt, positions), so what is learned is what is
asked later. Beside the answer it carries hints: what lies in each cell of the picture. They are for training only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.builtin import invoices
from pipeline.builtin.drawing import COLORS, SHAPES, Scene, Split
from pipeline.builtin.scenes import create_scene
from pipeline.media.resize import resize
from pipeline.model.families.base import Family
from pipeline.types import Clip, MediaOptions, Turn

CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-."
LABELS_PER_CELL = 4  # characters of a cell, at most
SPAN_VALUES_PER_CELL = (
    10  # where a thing's sides are, seen from a cell, in its first and its last frame; and how much is there
)
VIDEO_OPTIONS = {
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 12 * 28 * 28,
}  # of a frame; jobs/demo/video.yaml says the same
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class TrainingExample:
    task: str
    token_ids: NDArray[np.int64]  # prompt and answer
    positions: NDArray[np.int64]  # [3, tokens]
    prompt_tokens: int  # tokens of it
    clip: Clip
    near: NDArray[np.int64]  # [cells, SLOTS] what is in a cell: characters, or color and shape
    spans: NDArray[np.float32]  # [cells, SPANS]; not a number where nothing is
    far: NDArray[np.int64]  # [cells, 3] where the cell is in the whole: column and row, or field, index and row
    sought: NDArray[np.int64]  # [tokens, 3] the same of what comes next, where that is read off the page


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    token_ids: Tensor  # [rows, tokens], padded at the end
    positions: Tensor  # [3, rows, tokens]
    prompt_tokens: int
    lengths: Sequence[int]
    clips: Sequence[Clip]
    near: Tensor
    spans: Tensor
    far: Tensor
    sought: Tensor  # [rows, tokens, 3]

    @property
    def answer_mask(self) -> Tensor:
        """[rows, tokens] of the mask: where the next token is one of the answer."""
        at = torch.arange(self.token_ids.shape[1] - 1)
        return (at >= self.prompt_tokens - 1) & (at < torch.tensor(self.lengths)[:, None] - 1)


def stream_examples(
    split: Split, task: str, family: Family, question: str, *, first_scene: int = 0
) -> Iterator[TrainingExample]:
    number = first_scene
    while True:
        yield build_example(create_scene(split, task, number), family, question)
        number += 1


def group_batches(examples: Iterator[TrainingExample], cells_per_batch: int) -> Iterator[TrainingBatch]:
    """Lessons of one grid and one prompt together, as soon as there are enough for so many cells."""
    waiting: dict[Any, list[TrainingExample]] = {}
    for each in examples:
        rows = waiting.setdefault((each.task, each.clip.pixels.shape, each.prompt_tokens), [])
        rows.append(each)
        if len(rows) * len(each.near) >= cells_per_batch:
            del waiting[each.task, each.clip.pixels.shape, each.prompt_tokens]
            yield collate_examples(rows)


def collate_examples(examples: Sequence[TrainingExample]) -> TrainingBatch:
    most = max(len(row.token_ids) for row in examples)
    ids = np.zeros((len(examples), most), np.int64)
    positions = np.zeros((3, len(examples), most), np.int64)
    sought = np.full((len(examples), most, 3), IGNORED_LABEL)
    for index, row in enumerate(examples):
        length = len(row.token_ids)
        ids[index, :length], positions[:, index, :length], sought[index, :length] = (
            row.token_ids,
            row.positions,
            row.sought,
        )
    near, spans, far = (
        torch.from_numpy(np.stack(parts))
        for parts in zip(*((row.near, row.spans, row.far) for row in examples), strict=True)
    )
    return TrainingBatch(
        token_ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        prompt_tokens=examples[0].prompt_tokens,
        lengths=[len(row.token_ids) for row in examples],
        clips=[row.clip for row in examples],
        near=near,
        spans=spans,
        far=far,
        sought=torch.from_numpy(sought),
    )


def build_example(scene: Scene, family: Family, question: str) -> TrainingExample:
    clip, frames = render_clip(scene, family)
    encoded = family.encode_turns((Turn("user", (clip, question)),))
    text = json.dumps(to_model_coordinates(scene.answer, clip, family), separators=(",", ":"))
    said = family.tokenizer.encode(text, add_special_tokens=False)
    answer = [*said.ids, family.tokenizer.token_to_id("<|im_end|>")]
    sought = np.full((len(encoded.input_ids) + len(answer), 3), IGNORED_LABEL)
    if scene.task == "invoice":
        sought[len(encoded.input_ids) - 1 : -2, :2] = label_next_characters(
            scene.answer, text, [start for start, _ in said.offsets]
        )
    after = encoded.positions.max() + 1 + np.arange(len(answer))
    return TrainingExample(
        task=scene.task,
        token_ids=np.concatenate([encoded.input_ids, answer]).astype(np.int64),
        positions=np.concatenate([encoded.positions, np.broadcast_to(after, (3, len(answer)))], 1).astype(np.int64),
        prompt_tokens=len(encoded.input_ids),
        clip=clip,
        sought=sought,
        **build_hints(scene, clip, frames, family.patch_size * family.merge_size),
    )


def render_clip(scene: Scene, family: Family) -> tuple[Clip, list[int]]:
    """The scene as the pipeline would show it, and which of its frames those are."""
    if not scene.fps:
        size, frames = family.fit_image_size(scene.size, MediaOptions()), [0]
    else:
        ask = MediaOptions(**VIDEO_OPTIONS)
        frames = family.select_frames(range(scene.frame_count), scene.fps, ask)
        size = family.fit_video_size(scene.size, len(frames), ask)
    pixels = resize(np.stack([np.asarray(scene.draw_frame(frame)) for frame in frames]), size)
    if not scene.fps:
        return Clip("image", pixels, scene.size), frames
    times = tuple(frame / scene.fps for frame in frames)
    return Clip("video", pixels, scene.size, times=times, fps=len(frames) / scene.frame_count * scene.fps), frames


def to_model_coordinates(answer: dict[str, Any], clip: Clip, family: Family) -> dict[str, Any]:
    """The answer with its boxes in the numbers that the family speaks."""
    if "boxes" not in answer:
        return answer
    scale = clip.size if family.coordinates == "pixels" else (1000, 1000)
    ratios = [scale[axis] / clip.source_size[axis] for axis in (0, 1, 0, 1)]
    boxes = [
        box | {"bbox_2d": [round(side * ratio) for side, ratio in zip(box["bbox_2d"], ratios, strict=True)]}
        for box in answer["boxes"]
    ]
    return {"boxes": boxes}


def build_hints(scene: Scene, clip: Clip, frames: Sequence[int], cell_size: int) -> dict[str, Any]:
    """What is in each cell of each layer, row by row."""
    columns, rows = (side // cell_size for side in clip.size)
    scale = np.array([clip.size[0] / clip.source_size[0], clip.size[1] / clip.source_size[1]])
    where = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    if scene.characters:
        near, far = label_characters(scene, scale / cell_size, columns, rows)
        return {"near": near, "spans": np.full((len(where), SPAN_VALUES_PER_CELL), np.nan, np.float32), "far": far}
    layers = [(frames[at], frames[min(at + 1, len(frames) - 1)]) for at in range(0, len(frames), 2)]
    parts = [label_shapes(scene, layer, where, np.tile(scale, 2) / cell_size) for layer in layers]
    near, spans = (np.concatenate(part) for part in zip(*parts, strict=True))
    far = np.tile(np.concatenate([where, np.full((len(where), 1), IGNORED_LABEL)], 1), (len(layers), 1))
    return {"near": near, "spans": spans, "far": far}


def label_characters(scene: Scene, scale: Any, columns: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    near, far = np.zeros((columns * rows, LABELS_PER_CELL), np.int64), np.zeros((columns * rows, 3), np.int64)
    used = np.zeros(columns * rows, np.int64)
    for letter in scene.characters:
        column, row = min(int(letter.x * scale[0]), columns - 1), min(int(letter.y * scale[1]), rows - 1)
        cell = row * columns + column
        if used[cell] == 0:
            far[cell] = letter.field, letter.index + 1, 0
        if used[cell] < LABELS_PER_CELL:
            near[cell, used[cell]] = CHARACTERS.index(letter.text)
        used[cell] += 1
    far[:, 2] = np.repeat(np.arange(rows), columns)
    return near, far


def label_next_characters(answer: dict[str, Any], text: str, token_starts: Sequence[int]) -> NDArray[np.int64]:
    """[tokens, 2] the field and the index of the character with which each token begins."""
    found, at = np.full((len(token_starts), 2), IGNORED_LABEL), 0
    for field, value in invoices.list_printed_fields(answer):
        at = text.index(f'"{value}"', at) + 1
        for token, start in enumerate(token_starts):
            if at <= start < at + len(value):
                found[token] = field, start - at + 1
        at += len(value) + 1
    return found


def label_shapes(
    scene: Scene, frame_pair: tuple[int, int], cell_positions: NDArray[np.int64], scale: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The thing that covers most of each cell, if any does: its color, its shape, its sides as seen from there."""
    near = np.zeros((len(cell_positions), LABELS_PER_CELL), np.int64)
    near[:, 2:] = IGNORED_LABEL
    spans, most = (
        np.full((len(cell_positions), SPAN_VALUES_PER_CELL), np.nan, np.float32),
        np.full(len(cell_positions), 0.02),
    )
    middle = np.tile(cell_positions + 0.5, 2)
    for thing in scene.shapes:
        ends = [np.array(thing.boxes[frame]) * scale for frame in frame_pair]
        alphas = [thing.alphas[frame] for frame in frame_pair]
        mean = (ends[0] + ends[1]) / 2
        overlap = np.minimum(cell_positions + 1, mean[2:]) - np.maximum(cell_positions, mean[:2])
        cover = np.prod(np.maximum(overlap, 0), 1) * (max(alphas) > 0.04)
        chosen = cover > most
        most[chosen] = cover[chosen]
        color, _, shape = thing.name.partition(" ")
        near[chosen, 0], near[chosen, 1] = 1 + list(COLORS).index(color), 1 + SHAPES.index(shape)
        seen_from = [end - middle[chosen] for end in ends]
        spans[chosen] = np.concatenate([*seen_from, np.tile(alphas, (chosen.sum(), 1))], 1)
    return near, spans
