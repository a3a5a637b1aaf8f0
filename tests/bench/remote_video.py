"""The cost of frames from a long remote video: reading only their parts, against downloading the whole.

    python tests/bench/remote_video.py [--quick]

A video of two hours at 640x360, with a key frame every two seconds, lies on an S3 server on this machine. It is read
through s3:// and http://, as MP4 with its table at the end and at the beginning, and as Matroska, which is always
downloaded. Both sides must give equal pixels. The network costs nothing here, so bytes matter more than seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
import av
import boto3
import numpy as np
from moto.server import ThreadedMotoServer

from pipeline.fetch.fetcher import Fetcher
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder
from pipeline.types import Clip, MediaOptions, MediaRef
from tests.bench import harness
from tests.bench.prepare import draw_photo
from tests.faults import Proxy
from tests.media.sample_media import PlainFrameRules, build_media_job, repeat_video

SHORT_VIDEO_S, RATE = 30, 25


def write_short_video(path: Path) -> Path:
    panorama = np.asarray(draw_photo((960, 400)))
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        stream.options = {"preset": "veryfast", "g": str(2 * RATE), "crf": "20"}
        for index in range(SHORT_VIDEO_S * RATE):
            left = index % 320
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(panorama[:360, left : left + 640]), format="rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy_with_faststart(path: Path, target: Path) -> Path:
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as container:
        stream = source.streams.video[0]
        copy = container.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.size:
                packet.stream = copy
                container.mux(packet)
    return target


def build_videos(folder: Path, seconds: int) -> dict[str, Path]:
    short_video = write_short_video(folder / "short.mp4")
    long_video = repeat_video(short_video, seconds // SHORT_VIDEO_S, folder / "long.mp4")
    matroska = repeat_video(short_video, seconds // SHORT_VIDEO_S, folder / "long.mkv")
    return {
        "MP4": long_video,
        "MP4, faststart": copy_with_faststart(long_video, folder / "fast.mp4"),
        "Matroska": matroska,
    }


def upload_videos(proxy: Proxy, paths: list[Path]) -> None:
    os.environ |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    client = boto3.client("s3", endpoint_url=f"http://{proxy.server}")
    client.create_bucket(Bucket="films", ACL="public-read")
    for path in paths:
        client.put_object(Bucket="films", Key=path.name, Body=path.read_bytes(), ACL="public-read")


def compare_readers(
    name: str, uri: str, frames: int, readers: dict[str, Callable[[str, int], Clip]], proxy: Proxy
) -> tuple[list[Any], dict[str, float]]:
    """One line of the table and its figures."""
    seconds, read_mib, pixels = [], [], []
    for read_frames in readers.values():
        proxy.seen.clear()
        seconds.append(
            harness.measure_seconds(lambda read_frames=read_frames: pixels.append(read_frames(uri, frames).pixels))
        )
        read_mib.append(sum(seen.sent for seen in proxy.seen) / 2**20)
    assert np.array_equal(*pixels)
    line = [name, frames, read_mib[0], read_mib[1], read_mib[1] / read_mib[0], *seconds, len(proxy.seen)]
    return line, {f"{name} {frames} bytes": read_mib[1] / read_mib[0], f"{name} {frames} time": seconds[1] / seconds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half an hour, one write_video, fewer frames")
    quick = parser.parse_args().quick
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    lines: list[list[Any]] = []
    ratios: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        Proxy(f"127.0.0.1:{server.get_host_and_port()[1]}") as proxy,
    ):
        videos = build_videos(Path(folder), 1800 if quick else 7200)
        videos = {"MP4": videos["MP4"]} if quick else videos
        upload_videos(proxy, list(videos.values()))
        job = build_media_job(limits={"deadline_s": 600}, video={"max_frames": 768})
        host = proxy.url.removeprefix("http://")
        job = job.model_copy(
            update={"input": job.input.model_copy(update={"hosts": (host,), "stores": ("s3://films",)})}
        )
        with Fetcher(job) as fetcher, ClipDecoder(job, PlainFrameRules()) as clip_decoder:

            def read_frames(uri: str, frames: int, max_frames: int = 64) -> Clip:
                fetcher.reader.max_frames = max_frames
                (clip,) = load_clips(
                    MediaRef(uri, None, MediaOptions(frames=frames)), fetcher=fetcher, clip_decoder=clip_decoder
                )
                return clip

            sides = {"holes": read_frames, "download": lambda uri, frames: read_frames(uri, frames, 10**6)}
            for name, path in videos.items():
                for scheme, base in {"s3": "s3://films", "http": f"{proxy.url}/films"}.items():
                    for frames in (8, 64) if quick else (8, 64, 768):
                        result = compare_readers(f"{name}, {scheme}", f"{base}/{path.name}", frames, sides, proxy)
                        lines.append(result[0])
                        ratios |= result[1]
        sizes = {f"{name} MiB": path.stat().st_size / 2**20 for name, path in videos.items()}
    server.stop()
    header = ["film", "frames", "MiB read", "MiB downloaded", "bytes x", "s", "s downloaded", "requests, download"]
    print(harness.format_table(header, lines), end="\n\n")
    harness.print_report(
        "remote_video", ratios=ratios, figures=sizes, where=harness.describe_machine("av", "s3fs", "aiohttp")
    )


if __name__ == "__main__":
    main()
