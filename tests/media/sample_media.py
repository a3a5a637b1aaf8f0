"""Generated media, a job to load them with, and frame rules that follow the options."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image

from pipeline.job.spec import Job
from pipeline.types import Clip, MediaOptions, Size


class PlainFrameRules:
    """Rounds sizes to multiples of 28 and spreads frames evenly."""

    def fit_image_size(self, source: Size, options: MediaOptions) -> Size:
        if options.resized_width and options.resized_height:
            return options.resized_width, options.resized_height
        shrink = min(1.0, ((options.max_pixels or 448 * 448) / (source[0] * source[1])) ** 0.5)
        width, height = (max(28, round(side * shrink / 28) * 28) for side in source)
        return width, height

    def fit_video_size(self, source: Size, frame_count: int, options: MediaOptions) -> Size:
        return self.fit_image_size(source, options)

    def select_frames(self, frame_range: range, fps: float, options: MediaOptions) -> list[int]:
        count = min(
            options.frames or max(1, int(len(frame_range) / fps * (options.fps or 2))),
            options.max_frames or 8,
            len(frame_range),
        )
        return [int(index) for index in np.linspace(frame_range[0], frame_range[-1], count).round()]


def build_media_job(roots: tuple[str, ...] = ("/",), limits: dict[str, Any] | None = None, **media: Any) -> Job:
    return Job.model_validate(
        {
            "name": "media",
            "input": {"manifest": "m.parquet", "roots": roots},
            "model": {"weights": "builtin:tiny"},
            "media": {"video": {"max_frames": 8}} | media,
            "limits": limits or {"deadline_s": 20},
            "output": {"path": "out"},
        }
    )


def find_package_files(package: str, *folders: str) -> Path:
    """A folder of an installed package, found without importing it."""
    spec = find_spec(package)
    assert spec
    assert spec.origin
    return Path(spec.origin).parent.joinpath(*folders)


LoadClips = Callable[..., list[Clip]]


def draw_pixels(width: int = 90, height: int = 60, seed: int = 0) -> np.ndarray:
    """Smooth colours with some detail, like a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return np.array(PIL.Image.fromarray(noise).resize((width, height), PIL.Image.Resampling.BICUBIC))


def encode_image(pixels: np.ndarray | PIL.Image.Image, name: str = "PNG", **settings: Any) -> bytes:
    buffer = io.BytesIO()
    (pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)).save(buffer, name, **settings)
    return buffer.getvalue()


def read_frame_number(pixels: np.ndarray) -> int:
    """The number that `write_video` drew into a frame [3, height, width]."""
    return round(float(pixels[:, 4 : pixels.shape[1] // 3].mean()) / 4)


def write_video(
    path: Path,
    frames: int = 60,
    *,
    size: Size = (112, 84),
    rate: int = 10,
    codec: str = "libx264",
    times_ms: list[int] | None = None,
    **options: str,
) -> Path:
    """A video. The upper half of a frame has four times the frame's number as its brightness."""
    container = av.open(str(path), "w")
    stream = container.add_stream(codec, rate=rate)
    stream.width, stream.height = size
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.options = {"g": "12", "bf": "2", "crf": "10"} | options if codec == "libx264" else options
    if times_ms:
        stream.codec_context.time_base = Fraction(1, 1000)
    base = draw_pixels(*size, seed=1)
    for index in range(frames):
        pixels = np.roll(base, index * 3, axis=1)
        pixels[: size[1] // 2] = index * 4 % 256
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts = times_ms[index] if times_ms else index
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
    container.close()
    return path


def repeat_video(path: Path, times: int, target: Path) -> Path:
    """Repeats a video without encoding it again."""
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        span = sum(packet.duration for packet in packets)
        for turn in range(times):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts = packet.pts + turn * span, packet.dts + turn * span
                again.duration, again.time_base, again.is_keyframe = (
                    packet.duration,
                    packet.time_base,
                    packet.is_keyframe,
                )
                again.stream = copy
                container.mux(again)
    return target


def read_memory_peak(process: int) -> int:
    """The most bytes that a process has held."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
