"""Chance -> a clip of drawn frames in which one or two things happen, one after the other, from when to when.

A thing moves, appears (it fills with colour) or vanishes (it fades). The paper is light and the frame is small:
what is to be learned is when.
"""

from __future__ import annotations

import random
from typing import Any

from pipeline.builtin.drawing import Box, Scene, Thing, painter, thing
from pipeline.types import Size

WAYS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}
KINDS = (*WAYS, *WAYS, "appears", "appears", "vanishes", "vanishes")
FPS = 8


def clip(chance: random.Random) -> Scene:
    size = chance.randrange(96, 200, 2), chance.randrange(96, 200, 2)
    count = FPS * chance.choice((3, 4, 5))
    events: list[dict[str, Any]] = []
    things: list[Thing] = []
    at = 0
    for _ in range(chance.choice((1, 2))):
        first = at + chance.randrange(0, FPS)
        last = first + chance.randrange(FPS, 2 * FPS + 1)
        if last >= count:
            break
        kind = chance.choice(KINDS)
        each = lived(chance, size, kind, (first, last), count, half=len(things))
        things.append(each)
        events.append({"what": f"A {each.name} {kind}.", "start": round(first / FPS, 1), "end": round(last / FPS, 1)})
        at = last
    return Scene("video", {"events": events}, size, painter(chance, size, things), count, FPS, things)


def lived(chance: random.Random, size: Size, kind: str, span: tuple[int, int], count: int, *, half: int) -> Thing:
    """The thing to which it happens. The first has the upper half to itself, the second the lower."""
    wide, high = size[0], size[1] / 2
    width, height = wide * chance.uniform(0.25, 0.4), high * chance.uniform(0.45, 0.6)
    along, across = wide - width, high - height
    x, y = chance.uniform(0, along), chance.uniform(0, across)
    dx, dy = WAYS.get(kind, (0, 0))
    path_x = (0.1 * along, 0.9 * along) if dx > 0 else (0.9 * along, 0.1 * along) if dx < 0 else (x, x)
    path_y = (0.05 * across, 0.95 * across) if dy > 0 else (0.95 * across, 0.05 * across) if dy < 0 else (y, y)
    boxes: list[Box] = []
    alphas: list[float] = []
    for frame in range(count):
        done = min(max((frame - span[0]) / (span[1] - span[0]), 0.0), 1.0)
        left = path_x[0] + done * (path_x[1] - path_x[0])
        top = path_y[0] + done * (path_y[1] - path_y[0]) + half * high
        boxes.append((left, top, left + width, top + height))
        alphas.append(done if kind == "appears" else 1 - done if kind == "vanishes" else 1.0)
    return thing(chance, boxes, alphas)
