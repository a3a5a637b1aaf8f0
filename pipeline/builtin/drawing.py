"""Draw shapes on paper: the records of a scene, and the painter that turns them into frames."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from pipeline.types import Size

COLORS = {
    "red": (214, 32, 32),
    "green": (22, 150, 48),
    "blue": (30, 64, 220),
    "yellow": (240, 205, 20),
    "purple": (140, 40, 170),
    "black": (20, 20, 20),
}
SHAPES = ("rectangle", "ellipse", "triangle", "cross")
PAPER_COLORS = ((255, 255, 255), (236, 238, 242), (250, 244, 228), (228, 242, 232), (238, 230, 244))

Box = tuple[float, float, float, float]
Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DrawnShape:
    """A colored shape: its box and its opacity (0 to 1) in each frame. A picture has one frame."""

    name: str
    color: Color
    boxes: Sequence[Box]
    alphas: Sequence[float] = (1.0,)


@dataclass(frozen=True, slots=True)
class PrintedCharacter:
    """A character on a page: its center, the field that it belongs to (0: none), and its index in the field."""

    x: float
    y: float
    text: str
    field: int
    index: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A task with its true answer, in pixels and seconds of the original. Frames are drawn on demand."""

    task: str
    answer: Any
    size: Size
    draw_frame: Callable[[int], Image.Image]
    frame_count: int = 1
    fps: float = 0.0
    shapes: Sequence[DrawnShape] = ()
    characters: Sequence[PrintedCharacter] = ()


def create_painter(rng: random.Random, size: Size, shapes: Sequence[DrawnShape]) -> Callable[[int], Image.Image]:
    """Choose a paper color and return a function that draws the frame of a number."""
    paper = rng.choice(PAPER_COLORS)

    def draw(frame: int) -> Image.Image:
        picture = Image.new("RGB", size, paper)
        for shape in shapes:
            paint_shape(picture, shape, frame, paper)
        return picture

    return draw


def create_shape(rng: random.Random, boxes: Sequence[Box], alphas: Sequence[float] = (1.0,)) -> DrawnShape:
    """A random shape whose color deviates a little from the named color."""
    color = rng.choice(list(COLORS))
    red, green, blue = (min(max(part + rng.randrange(-14, 15), 0), 255) for part in COLORS[color])
    return DrawnShape(f"{color} {rng.choice(SHAPES)}", (red, green, blue), boxes, alphas)


def place_box(rng: random.Random, size: Size, placed_boxes: Sequence[Box]) -> Box | None:
    """A random box that keeps clear of the others. Left sides differ, because answers are ordered by them."""
    for _ in range(30):
        width, height = (round(side * rng.uniform(0.2, 0.5)) for side in size)
        left, top = rng.randrange(0, size[0] - width), rng.randrange(0, size[1] - height)
        gap = 0.04 * min(size)
        is_clear = all(
            (left + width + gap < box[0] or box[2] + gap < left or top + height + gap < box[1] or box[3] + gap < top)
            and abs(left - box[0]) > 0.06 * size[0]
            for box in placed_boxes
        )
        if is_clear:
            return float(left), float(top), float(left + width), float(top + height)
    return None


def paint_shape(picture: Image.Image, drawn_shape: DrawnShape, frame: int, paper: Color) -> None:
    """Paint one shape; its opacity mixes its color with the paper."""
    alpha = drawn_shape.alphas[frame]
    if alpha <= 0:
        return
    left, top, right, bottom = (round(side) for side in drawn_shape.boxes[frame])
    fill = tuple(round(alpha * ink + (1 - alpha) * white) for ink, white in zip(drawn_shape.color, paper, strict=True))
    pen, box = ImageDraw.Draw(picture), (left, top, right - 1, bottom - 1)
    shape = drawn_shape.name.partition(" ")[2]
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
