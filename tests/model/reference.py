"""Computes positions token by token from the definition, independently of the families.

A text token lies one after the largest position before it, in all three axes. The tokens of one grid
lie at (time, row, column) counted from there, where time is counted in layers (Qwen2-VL, and every layer of
Qwen3-VL is a grid of its own) or in `tokens_per_second` (Qwen2.5-VL).
"""


def compute_positions(ids, grids, *, pads, seconds_per_layer=None, tokens_per_second=1):
    """`grids` are (layers, rows, columns) in tokens, in order; `pads` the ids of vision tokens.

    `seconds_per_layer` holds one number for each grid, None for layers counted by one.
    """
    grids = list(zip(grids, seconds_per_layer or [None] * len(grids), strict=True))
    placed = []
    at = 0
    while at < len(ids):
        start = max((max(place) for place in placed), default=-1) + 1
        if ids[at] not in pads:
            placed.append((start, start, start))
            at += 1
            continue
        (layers, rows, columns), seconds = grids.pop(0)
        for layer in range(layers):
            time = layer if seconds is None else int(layer * seconds * tokens_per_second)
            for row in range(rows):
                for column in range(columns):
                    assert ids[at] in pads
                    placed.append((start + time, start + row, start + column))
                    at += 1
    assert not grids
    return [list(axis) for axis in zip(*placed, strict=True)]
