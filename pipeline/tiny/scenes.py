"""A seed -> a scene: what is drawn, and the exact truth about it, in pixels and seconds of the original.

Training and evaluation draw from different streams of the same generator, so no scene of the one is one
of the other's by its seed; a test holds them to having none in common by chance either.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, ImageDraw

from pipeline.types import Size

Split = Literal["train", "evaluate"]
COLORS = {
    "red": (214, 32, 32),
    "green": (22, 150, 48),
    "blue": (30, 64, 220),
    "yellow": (240, 205, 20),
    "purple": (140, 40, 170),
    "black": (20, 20, 20),
}
SHAPES = ("rectangle", "ellipse", "triangle", "cross")
PAPERS = ((255, 255, 255), (236, 238, 242), (250, 244, 228), (228, 242, 232), (238, 230, 244))
Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape, its place in each frame (one frame of a picture) and how much of it is there, 0 to 1."""

    name: str
    color: Color
    boxes: Sequence[Box]
    alphas: Sequence[float] = (1.0,)


@dataclass(frozen=True, slots=True)
class Letter:
    """A character on a page: its centre, and whose it is. Field 0 is what the answer leaves out."""

    x: float
    y: float
    text: str
    field: int
    index: int


@dataclass(frozen=True, slots=True)
class Scene:
    """`answer` is what a perfect model says, in the original's numbers. Frames are drawn when asked for."""

    task: str
    answer: dict[str, Any]
    size: Size
    draw: Callable[[int], Image.Image]
    count: int = 1
    fps: float = 0.0
    things: Sequence[Thing] = ()
    letters: Sequence[Letter] = ()


def chance(split: Split, task: str, number: int) -> random.Random:
    return random.Random(f"{split}/{task}/{number}")


def scene(split: Split, task: str, number: int) -> Scene:
    """The same words give the same scene, on any machine."""
    from pipeline.tiny.clips import clip
    from pipeline.tiny.invoices import invoice

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


def painter(chance: random.Random, size: Size, things: Sequence[Thing]) -> Callable[[int], Image.Image]:
    """Draws a frame by its number."""
    paper = chance.choice(PAPERS)

    def draw(frame: int) -> Image.Image:
        picture = Image.new("RGB", size, paper)
        for each in things:
            paint(picture, each, frame, paper)
        return picture

    return draw


def thing(chance: random.Random, boxes: Sequence[Box], alphas: Sequence[float] = (1.0,)) -> Thing:
    """Something of a color that is a little off, as inks are."""
    color = chance.choice(list(COLORS))
    red, green, blue = (min(max(part + chance.randrange(-14, 15), 0), 255) for part in COLORS[color])
    return Thing(f"{color} {chance.choice(SHAPES)}", (red, green, blue), boxes, alphas)


def place(chance: random.Random, size: Size, placed: Sequence[Box]) -> Box | None:
    """Somewhere clear of the others, and not level with their left sides, which give the order."""
    wide, high = size
    for _ in range(30):
        width, height = (round(side * chance.uniform(0.2, 0.5)) for side in size)
        left, top = chance.randrange(0, wide - width), chance.randrange(0, high - height)
        gap = 0.04 * min(size)
        apart = all(
            (left + width + gap < box[0] or box[2] + gap < left or top + height + gap < box[1] or box[3] + gap < top)
            and abs(left - box[0]) > 0.06 * wide
            for box in placed
        )
        if apart:
            return float(left), float(top), float(left + width), float(top + height)
    return None


def paint(picture: Image.Image, each: Thing, frame: int, paper: Color) -> None:
    """The shape in its place; one that is half there is mixed with the paper."""
    alpha = each.alphas[frame]
    if alpha <= 0:
        return
    left, top, right, bottom = (round(side) for side in each.boxes[frame])
    fill = tuple(round(alpha * one + (1 - alpha) * other) for one, other in zip(each.color, paper, strict=True))
    pen, box = ImageDraw.Draw(picture), (left, top, right - 1, bottom - 1)
    shape = each.name.partition(" ")[2]
    if shape == "rectangle":
        pen.rectangle(box, fill=fill)
    elif shape == "ellipse":
        pen.ellipse(box, fill=fill)
    elif shape == "triangle":
        pen.polygon([((left + right - 1) / 2, top), (right - 1, bottom - 1), (left, bottom - 1)], fill=fill)
    else:
        wide, high = (right - left) / 3, (bottom - top) / 3
        pen.rectangle((left, top + high, right - 1, bottom - 1 - high), fill=fill)
        pen.rectangle((left + wide, top, right - 1 - wide, bottom - 1), fill=fill)
