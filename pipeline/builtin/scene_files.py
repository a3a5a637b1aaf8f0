"""Write scenes as pictures, videos and a manifest, as a user would have them."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.builtin.drawing import Scene
from pipeline.builtin.scenes import create_scene


def write_scene_files(folder: Path, task: str, scene_count: int, *, first_scene: int = 0) -> Path:
    """Write scenes that training never drew. The manifest has columns id, media and truth (JSON)."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first_scene, first_scene + scene_count):
        scene = create_scene("evaluate", task, number)
        name = f"{number:05}.{'mp4' if scene.fps else 'png'}"
        if scene.fps:
            write_video(scene, folder / name)
        else:
            scene.draw_frame(0).save(folder / name)
        rows.append({"id": f"{task}-{number:05}", "media": name, "truth": json.dumps(scene.answer)})
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    return manifest


def write_video(scene: Scene, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=round(scene.fps), options={"crf": "12"})
        stream.width, stream.height = scene.size
        stream.pix_fmt = "yuv420p"
        for number in range(scene.frame_count):
            frame = av.VideoFrame.from_ndarray(np.asarray(scene.draw_frame(number)), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
