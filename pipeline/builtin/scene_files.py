"""Scenes -> pictures, videos and a manifest on disk, as somebody else might have made them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.builtin.drawing import Scene
from pipeline.builtin.scenes import scene


def write(folder: Path, task: str, count: int, *, start: int = 0) -> Path:
    """So many unseen scenes of a task. The manifest has their ids, where they are, and the truth as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(start, start + count):
        drawn = scene("evaluate", task, number)
        name = f"{number:05}.{'mp4' if drawn.fps else 'png'}"
        if drawn.fps:
            film(drawn, folder / name)
        else:
            drawn.draw(0).save(folder / name)
        rows.append({"id": f"{task}-{number:05}", "media": name, "truth": json.dumps(drawn.answer)})
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    return manifest


def film(drawn: Scene, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(drawn.fps), options={"crf": "12"})
        stream.width, stream.height = drawn.size
        stream.pix_fmt = "yuv420p"
        for number in range(drawn.count):
            picture = av.VideoFrame.from_ndarray(np.asarray(drawn.draw(number)), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
