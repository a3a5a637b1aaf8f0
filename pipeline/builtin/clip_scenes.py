"""Create clips with one or two events, one after the other, and the times of each.

A shape moves, appears (it fills with color) or vanishes (it fades). The frames are small, because the model is to
learn when something happens.
"""

from __future__ import annotations

import random
from typing import Any

from pipeline.builtin.drawing import Box, DrawnShape, Scene, create_painter, create_shape
from pipeline.types import Size

DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
EVENT_KINDS = (*DIRECTIONS, *DIRECTIONS, "appears", "appears", "vanishes", "vanishes")
FPS = 8


def create_clip_scene(rng: random.Random) -> Scene:
    size = rng.randrange(96, 200, 2), rng.randrange(96, 200, 2)
    frame_count = FPS * rng.choice((3, 4, 5))
    events: list[dict[str, Any]] = []
    shapes: list[DrawnShape] = []
    previous_end = 0
    for _ in range(rng.choice((1, 2))):
        first = previous_end + rng.randrange(0, FPS)
        last = first + rng.randrange(FPS, 2 * FPS + 1)
        if last >= frame_count:
            break
        kind = rng.choice(EVENT_KINDS)
        shape = create_animated_shape(rng, size, kind, (first, last), frame_count, row=len(shapes))
        shapes.append(shape)
        events.append({"what": f"A {shape.name} {kind}.", "start": round(first / FPS, 1), "end": round(last / FPS, 1)})
        previous_end = last
    return Scene("video", {"events": events}, size, create_painter(rng, size, shapes), frame_count, FPS, shapes)


def create_animated_shape(
    rng: random.Random, size: Size, event_kind: str, frame_span: tuple[int, int], frame_count: int, *, row: int
) -> DrawnShape:
    """The shape of one event. Row 0 is the upper half of the frame, row 1 the lower half."""
    wide, high = size[0], size[1] / 2
    width, height = wide * rng.uniform(0.25, 0.4), high * rng.uniform(0.45, 0.6)
    free_x, free_y = wide - width, high - height
    x, y = rng.uniform(0, free_x), rng.uniform(0, free_y)
    dx, dy = DIRECTIONS.get(event_kind, (0, 0))
    path_x = (0.1 * free_x, 0.9 * free_x) if dx > 0 else (0.9 * free_x, 0.1 * free_x) if dx < 0 else (x, x)
    path_y = (0.05 * free_y, 0.95 * free_y) if dy > 0 else (0.95 * free_y, 0.05 * free_y) if dy < 0 else (y, y)
    boxes: list[Box] = []
    alphas: list[float] = []
    for frame in range(frame_count):
        progress = min(max((frame - frame_span[0]) / (frame_span[1] - frame_span[0]), 0.0), 1.0)
        left = path_x[0] + progress * (path_x[1] - path_x[0])
        top = path_y[0] + progress * (path_y[1] - path_y[0]) + row * high
        boxes.append((left, top, left + width, top + height))
        alphas.append(progress if event_kind == "appears" else 1 - progress if event_kind == "vanishes" else 1.0)
    return create_shape(rng, boxes, alphas)
