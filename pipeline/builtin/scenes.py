"""A seed -> a scene: what is drawn, and the exact truth about it, in pixels and seconds of the original.

Training and evaluation draw from different streams of the same generator, so no scene of the one is one
of the other's by its seed; a test holds them to having none in common by chance either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image

from pipeline.builtin.drawing import Box, Scene, Split, Thing, chance, painter, place, thing
from pipeline.types import Size


def scene(split: Split, task: str, number: int) -> Scene:
    """The same words give the same scene, on any machine."""
    from pipeline.builtin.clip_scenes import clip
    from pipeline.builtin.invoices import invoice

    draw: dict[str, Callable[[random.Random], Scene]]
    draw = {"caption": caption, "detect": detect, "invoice": invoice, "video": clip}
    return draw[task](chance(split, task, number))


def caption(chance: random.Random) -> Scene:
    size, draw, things = still(chance)
    names = [thing.name for thing in things]
    answer = {"caption": sentence(names), "tags": names, "language": "en"}
    return Scene("caption", answer, size, draw, things=things)


def detect(chance: random.Random) -> Scene:
    size, draw, things = still(chance)
    boxes = [{"bbox_2d": [round(side) for side in thing.boxes[0]], "label": thing.name} for thing in things]
    return Scene("detect", {"boxes": boxes}, size, draw, things=things)


def sentence(names: Sequence[str]) -> str:
    """
    >>> sentence(["red cross", "blue ellipse", "black cross"])
    'A red cross, a blue ellipse and a black cross.'
    """
    listed = ", ".join(f"a {name}" for name in names[:-1])
    text = f"{listed} and a {names[-1]}" if listed else f"a {names[-1]}"
    return f"{text[0].upper()}{text[1:]}."


def still(chance: random.Random) -> tuple[Size, Callable[[int], Image.Image], list[Thing]]:
    """One to three shapes that do not touch, from left to right."""
    size = chance.randrange(140, 480), chance.randrange(140, 480)
    placed: list[Box] = []
    for _ in range(chance.choice((1, 2, 2, 3, 3))):
        if (box := place(chance, size, placed)) is not None:
            placed.append(box)
    things = [thing(chance, [box]) for box in sorted(placed)]
    return size, painter(chance, size, things), things
