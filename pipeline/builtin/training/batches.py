"""Turn scenes into training examples, and examples of equal grids into batches.

An example uses the pipeline's own sampling, resizing, prompt and positions, so training and inference see the same
input. Besides the answer it has auxiliary targets, which tell what is in each cell of the picture.
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
from pipeline.builtin.drawing import COLORS, SHAPES, Scene
from pipeline.builtin.scenes import Split, create_scene
from pipeline.media.resize import resize
from pipeline.model.families.base import Family
from pipeline.types import Clip, MediaOptions, Turn

CHARACTERS = " ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-."
LABELS_PER_CELL = 4  # at most four characters
SPAN_VALUES_PER_CELL = 10  # four sides and an opacity, in the first and in the last frame of a cell
VIDEO_OPTIONS = {"min_pixels": 4 * 28 * 28, "max_pixels": 12 * 28 * 28}  # equal to jobs/demo/video.yaml
IGNORED_LABEL = -100


@dataclass(frozen=True, slots=True)
class TrainingExample:
    task: str
    token_ids: NDArray[np.int64]  # prompt and answer
    positions: NDArray[np.int64]  # [3, tokens]
    prompt_tokens: int
    clip: Clip
    near: NDArray[np.int64]  # [cells, LABELS_PER_CELL] content of a cell: characters, or color and shape
    spans: NDArray[np.float32]  # [cells, SPAN_VALUES_PER_CELL] NaN in empty cells
    far: NDArray[np.int64]  # [cells, 3] place of a cell: column and row, or field, index and row
    sought: NDArray[np.int64]  # [tokens, 3] the place of the next character, if it is read off the page


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
        """[rows, tokens - 1] True where the next token belongs to the answer."""
        index = torch.arange(self.token_ids.shape[1] - 1)
        return (index >= self.prompt_tokens - 1) & (index < torch.tensor(self.lengths)[:, None] - 1)


def stream_examples(
    split: Split, task: str, family: Family, question: str, *, first_scene: int = 0
) -> Iterator[TrainingExample]:
    number = first_scene
    while True:
        yield build_example(create_scene(split, task, number), family, question)
        number += 1


def group_batches(examples: Iterator[TrainingExample], cells_per_batch: int) -> Iterator[TrainingBatch]:
    """Batch examples of equal grid and prompt as soon as they fill `cells_per_batch`."""
    waiting: dict[Any, list[TrainingExample]] = {}
    for example in examples:
        key = example.task, example.clip.pixels.shape, example.prompt_tokens
        rows = waiting.setdefault(key, [])
        rows.append(example)
        if len(rows) * len(example.near) >= cells_per_batch:
            yield collate_examples(waiting.pop(key))


def collate_examples(examples: Sequence[TrainingExample]) -> TrainingBatch:
    longest = max(len(row.token_ids) for row in examples)
    token_ids = np.zeros((len(examples), longest), np.int64)
    positions = np.zeros((3, len(examples), longest), np.int64)
    sought = np.full((len(examples), longest, 3), IGNORED_LABEL)
    for index, row in enumerate(examples):
        length = len(row.token_ids)
        token_ids[index, :length] = row.token_ids
        positions[:, index, :length] = row.positions
        sought[index, :length] = row.sought
    near, spans, far = (
        torch.from_numpy(np.stack(parts))
        for parts in zip(*((row.near, row.spans, row.far) for row in examples), strict=True)
    )
    return TrainingBatch(
        token_ids=torch.from_numpy(token_ids),
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
    tokens = family.tokenizer.encode(text, add_special_tokens=False)
    answer = [*tokens.ids, family.tokenizer.token_to_id("<|im_end|>")]
    sought = np.full((len(encoded.input_ids) + len(answer), 3), IGNORED_LABEL)
    if scene.task == "invoice":
        sought[len(encoded.input_ids) - 1 : -2, :2] = label_next_characters(
            scene.answer, text, [start for start, _ in tokens.offsets]
        )
    next_positions = encoded.positions.max() + 1 + np.arange(len(answer))
    answer_positions = np.broadcast_to(next_positions, (3, len(answer)))
    return TrainingExample(
        task=scene.task,
        token_ids=np.concatenate([encoded.input_ids, answer]).astype(np.int64),
        positions=np.concatenate([encoded.positions, answer_positions], 1).astype(np.int64),
        prompt_tokens=len(encoded.input_ids),
        clip=clip,
        sought=sought,
        **build_hints(scene, clip, frames, family.patch_size * family.merge_size),
    )


def render_clip(scene: Scene, family: Family) -> tuple[Clip, list[int]]:
    """The scene as the pipeline shows it to the model, and the indices of the chosen frames."""
    if not scene.fps:
        size, frames = family.fit_image_size(scene.size, MediaOptions()), [0]
    else:
        options = MediaOptions(**VIDEO_OPTIONS)
        frames = family.select_frames(range(scene.frame_count), scene.fps, options)
        size = family.fit_video_size(scene.size, len(frames), options)
    pixels = resize(np.stack([np.asarray(scene.draw_frame(frame)) for frame in frames]), size)
    if not scene.fps:
        return Clip("image", pixels, scene.size), frames
    times = tuple(frame / scene.fps for frame in frames)
    return Clip("video", pixels, scene.size, times=times, fps=len(frames) / scene.frame_count * scene.fps), frames


def to_model_coordinates(answer: dict[str, Any], clip: Clip, family: Family) -> dict[str, Any]:
    """The answer with its boxes in the coordinates that the family writes."""
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
    """The auxiliary targets of every cell, row by row; a video has one layer of cells for two frames."""
    columns, rows = (side // cell_size for side in clip.size)
    scale = np.array([clip.size[0] / clip.source_size[0], clip.size[1] / clip.source_size[1]])
    cells = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).reshape(-1, 2)
    if scene.characters:
        near, far = label_characters(scene, scale / cell_size, columns, rows)
        return {"near": near, "spans": np.full((len(cells), SPAN_VALUES_PER_CELL), np.nan, np.float32), "far": far}
    layers = [(frames[first], frames[min(first + 1, len(frames) - 1)]) for first in range(0, len(frames), 2)]
    parts = [label_shapes(scene, layer, cells, np.tile(scale, 2) / cell_size) for layer in layers]
    near, spans = (np.concatenate(part) for part in zip(*parts, strict=True))
    far = np.tile(np.concatenate([cells, np.full((len(cells), 1), IGNORED_LABEL)], 1), (len(layers), 1))
    return {"near": near, "spans": spans, "far": far}


def label_characters(scene: Scene, scale: Any, columns: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    near, far = np.zeros((columns * rows, LABELS_PER_CELL), np.int64), np.zeros((columns * rows, 3), np.int64)
    used = np.zeros(columns * rows, np.int64)
    for character in scene.characters:
        column, row = min(int(character.x * scale[0]), columns - 1), min(int(character.y * scale[1]), rows - 1)
        cell = row * columns + column
        if used[cell] == 0:
            far[cell] = character.field, character.index + 1, 0
        if used[cell] < LABELS_PER_CELL:
            near[cell, used[cell]] = CHARACTERS.index(character.text)
        used[cell] += 1
    far[:, 2] = np.repeat(np.arange(rows), columns)
    return near, far


def label_next_characters(answer: dict[str, Any], text: str, token_starts: Sequence[int]) -> NDArray[np.int64]:
    """[tokens, 2] the field and index of the first character of each token."""
    labels, position = np.full((len(token_starts), 2), IGNORED_LABEL), 0
    for field, value in invoices.list_printed_fields(answer):
        position = text.index(f'"{value}"', position) + 1
        for token, start in enumerate(token_starts):
            if position <= start < position + len(value):
                labels[token] = field, start - position + 1
        position += len(value) + 1
    return labels


def label_shapes(
    scene: Scene, frame_pair: tuple[int, int], cell_positions: NDArray[np.int64], scale: Any
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Color, shape and sides (relative to the cell) of the shape that covers most of each cell."""
    near = np.zeros((len(cell_positions), LABELS_PER_CELL), np.int64)
    near[:, 2:] = IGNORED_LABEL
    spans = np.full((len(cell_positions), SPAN_VALUES_PER_CELL), np.nan, np.float32)
    largest_cover = np.full(len(cell_positions), 0.02)
    center = np.tile(cell_positions + 0.5, 2)
    for drawn_shape in scene.shapes:
        boxes = [np.array(drawn_shape.boxes[frame]) * scale for frame in frame_pair]
        alphas = [drawn_shape.alphas[frame] for frame in frame_pair]
        mean = (boxes[0] + boxes[1]) / 2
        overlap = np.minimum(cell_positions + 1, mean[2:]) - np.maximum(cell_positions, mean[:2])
        cover = np.prod(np.maximum(overlap, 0), 1) * (max(alphas) > 0.04)
        chosen = cover > largest_cover
        largest_cover[chosen] = cover[chosen]
        color, _, shape = drawn_shape.name.partition(" ")
        near[chosen, 0], near[chosen, 1] = 1 + list(COLORS).index(color), 1 + SHAPES.index(shape)
        relative_boxes = [box - center[chosen] for box in boxes]
        spans[chosen] = np.concatenate([*relative_boxes, np.tile(alphas, (chosen.sum(), 1))], 1)
    return near, spans
