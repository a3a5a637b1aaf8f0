"""A seed -> a scene: what is drawn, and the exact truth about it, in pixels and seconds of the original.

Training and evaluation draw from different streams of the same generator, so no scene of the one is one
of the other's by its seed; a test holds them to having none in common by chance either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image

from pipeline.builtin.drawing import Box, DrawnShape, Scene, Split, create_painter, create_rng, create_shape, place_box
from pipeline.types import Size


def create_scene(split: Split, task: str, number: int) -> Scene:
    """The same words give the same scene, on any machine."""
    from pipeline.builtin.clip_scenes import create_clip_scene
    from pipeline.builtin.invoices import create_invoice_scene

    draw: dict[str, Callable[[random.Random], Scene]]
    draw = {
        "caption": create_caption_scene,
        "detect": create_detect_scene,
        "invoice": create_invoice_scene,
        "video": create_clip_scene,
    }
    return draw[task](create_rng(split, task, number))


def create_caption_scene(rng: random.Random) -> Scene:
    size, draw, things = create_still(rng)
    names = [thing.name for thing in things]
    answer = {"caption": format_caption(names), "tags": names, "language": "en"}
    return Scene("caption", answer, size, draw, shapes=things)


def create_detect_scene(rng: random.Random) -> Scene:
    size, draw, things = create_still(rng)
    boxes = [{"bbox_2d": [round(side) for side in thing.boxes[0]], "label": thing.name} for thing in things]
    return Scene("detect", {"boxes": boxes}, size, draw, shapes=things)


def format_caption(names: Sequence[str]) -> str:
    """
    >>> sentence(["red cross", "blue ellipse", "black cross"])
    'A red cross, a blue ellipse and a black cross.'
    """
    listed = ", ".join(f"a {name}" for name in names[:-1])
    text = f"{listed} and a {names[-1]}" if listed else f"a {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def create_still(rng: random.Random) -> tuple[Size, Callable[[int], Image.Image], list[DrawnShape]]:
    """One to three shapes that do not touch, from left to right."""
    size = rng.randrange(140, 480), rng.randrange(140, 480)
    placed: list[Box] = []
    for _ in range(rng.choice((1, 2, 2, 3, 3))):
        if (box := place_box(rng, size, placed)) is not None:
            placed.append(box)
    things = [create_shape(rng, [box]) for box in sorted(placed)]
    return size, create_painter(rng, size, things), things
