"""Chance -> a clip of drawn frames in which one or two things happen, one after the other, from when to when.

A thing moves, appears (it fills with colour) or vanishes (it fades). The paper is light and the frame is small:
what is to be learned is when.
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
    count = FPS * rng.choice((3, 4, 5))
    events: list[dict[str, Any]] = []
    things: list[DrawnShape] = []
    at = 0
    for _ in range(rng.choice((1, 2))):
        first = at + rng.randrange(0, FPS)
        last = first + rng.randrange(FPS, 2 * FPS + 1)
        if last >= count:
            break
        kind = rng.choice(EVENT_KINDS)
        each = create_animated_shape(rng, size, kind, (first, last), count, half=len(things))
        things.append(each)
        events.append({"what": f"A {each.name} {kind}.", "start": round(first / FPS, 1), "end": round(last / FPS, 1)})
        at = last
    return Scene("video", {"events": events}, size, create_painter(rng, size, things), count, FPS, things)


def create_animated_shape(
    rng: random.Random, size: Size, event_kind: str, frame_span: tuple[int, int], frame_count: int, *, half: int
) -> DrawnShape:
    """The thing to which it happens. The first has the upper half to itself, the second the lower."""
    wide, high = size[0], size[1] / 2
    width, height = wide * rng.uniform(0.25, 0.4), high * rng.uniform(0.45, 0.6)
    along, across = wide - width, high - height
    x, y = rng.uniform(0, along), rng.uniform(0, across)
    dx, dy = DIRECTIONS.get(event_kind, (0, 0))
    path_x = (0.1 * along, 0.9 * along) if dx > 0 else (0.9 * along, 0.1 * along) if dx < 0 else (x, x)
    path_y = (0.05 * across, 0.95 * across) if dy > 0 else (0.95 * across, 0.05 * across) if dy < 0 else (y, y)
    boxes: list[Box] = []
    alphas: list[float] = []
    for frame in range(frame_count):
        done = min(max((frame - frame_span[0]) / (frame_span[1] - frame_span[0]), 0.0), 1.0)
        left = path_x[0] + done * (path_x[1] - path_x[0])
        top = path_y[0] + done * (path_y[1] - path_y[0]) + half * high
        boxes.append((left, top, left + width, top + height))
        alphas.append(done if event_kind == "appears" else 1 - done if event_kind == "vanishes" else 1.0)
    return create_shape(rng, boxes, alphas)
