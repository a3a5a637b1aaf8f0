"""Create scenes from seeds: what is drawn, and its true answer in pixels and seconds of the original.

Training and evaluation use different random streams; a test checks that they have no scene in common.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal

from PIL import Image

from pipeline.builtin.clip_scenes import create_clip_scene
from pipeline.builtin.drawing import Box, DrawnShape, Scene, create_painter, create_shape, place_box
from pipeline.builtin.invoices import create_invoice_scene
from pipeline.types import Size

Split = Literal["train", "evaluate"]


def create_scene(split: Split, task: str, number: int) -> Scene:
    """The same arguments give the same scene on any machine."""
    return SCENE_CREATORS[task](create_rng(split, task, number))


def create_rng(split: Split, task: str, number: int) -> random.Random:
    return random.Random(f"{split}/{task}/{number}")


def create_caption_scene(rng: random.Random) -> Scene:
    size, draw_frame, shapes = create_still(rng)
    names = [shape.name for shape in shapes]
    answer = {"caption": format_caption(names), "tags": names, "language": "en"}
    return Scene("caption", answer, size, draw_frame, shapes=shapes)


def create_classify_scene(rng: random.Random) -> Scene:
    """The answer names the shape that is furthest to the left."""
    size, draw_frame, shapes = create_still(rng)
    return Scene("classify", shapes[0].name, size, draw_frame, shapes=shapes)


def create_detect_scene(rng: random.Random) -> Scene:
    size, draw_frame, shapes = create_still(rng)
    boxes = [{"bbox_2d": [round(side) for side in shape.boxes[0]], "label": shape.name} for shape in shapes]
    return Scene("detect", {"boxes": boxes}, size, draw_frame, shapes=shapes)


def format_caption(names: Sequence[str]) -> str:
    """
    >>> format_caption(["red cross", "blue ellipse", "black cross"])
    'A red cross, a blue ellipse and a black cross.'
    """
    listed = ", ".join(f"a {name}" for name in names[:-1])
    text = f"{listed} and a {names[-1]}" if listed else f"a {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def create_still(rng: random.Random) -> tuple[Size, Callable[[int], Image.Image], list[DrawnShape]]:
    """A picture of one to three shapes that do not touch, ordered from left to right."""
    size = rng.randrange(140, 480), rng.randrange(140, 480)
    boxes: list[Box] = []
    for _ in range(rng.choice((1, 2, 2, 3, 3))):
        if (box := place_box(rng, size, boxes)) is not None:
            boxes.append(box)
    shapes = [create_shape(rng, [box]) for box in sorted(boxes)]
    return size, create_painter(rng, size, shapes), shapes


SCENE_CREATORS: dict[str, Callable[[random.Random], Scene]] = {
    "caption": create_caption_scene,
    "classify": create_classify_scene,
    "detect": create_detect_scene,
    "invoice": create_invoice_scene,
    "video": create_clip_scene,
}
