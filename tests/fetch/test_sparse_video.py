"""Long videos on servers: only the bytes that the frames need are read, or all of them in case of doubt."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from pipeline.errors import DecodeError, FetchError
from pipeline.fetch import remote_object, sparse_video
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.header_fetcher import open_header_fetcher
from pipeline.media.clips import WHOLE_FILE_RETRY_KINDS, load_clips
from pipeline.media.decode import ClipDecoder, build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.types import MediaOptions, MediaRef
from tests.media.sample_media import PlainFrameRules, build_media_job, repeat_video, write_video

pytestmark = pytest.mark.process

MIB = 1 << 20


class Files(BaseHTTPRequestHandler):
    """Serves ranges of files. `misbehave` may change the response, or send one and return True."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012
    requested_ranges: list[str] = []  # noqa: RUF012 - reset by the fixture
    sent_bytes = 0
    misbehave = staticmethod(lambda handler: None)

    def do_GET(self):
        requested_range = self.headers.get("Range", "")
        self.requested_ranges.append(requested_range)
        self.serves_ranges, self.etag, self.max_body_bytes = True, '"1"', None
        if type(self).misbehave(self):
            return
        body = self.files[self.path]
        match = (
            re.match(r"bytes=(\d+)-(\d+)", requested_range)
            if self.serves_ranges and self.headers["If-Range"] == self.etag
            else None
        )
        part = body[int(match[1]) : int(match[2]) + 1] if match else body
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", self.etag)
        if self.serves_ranges:
            self.send_header("Accept-Ranges", "bytes")
        if match:
            self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{len(body)}")
        self.end_headers()
        part = part[: self.max_body_bytes]
        self.close_connection = self.max_body_bytes is not None
        for start in range(0, len(part), 1 << 16):
            self.wfile.write(part[start : start + (1 << 16)])
            type(self).sent_bytes += len(part[start : start + (1 << 16)])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """20 minutes at 10 frames per second: 12 MB with a key frame every 12 frames."""
    folder = tmp_path_factory.mktemp("videos")
    short = write_video(folder / "short.mp4", 60, size=(320, 240), crf="1")
    long = repeat_video(short, 200, folder / "long.mp4")
    paths = {"moov at the end": long, "matroska": repeat_video(short, 200, folder / "long.mkv")}
    for name, flags in {"moov at the beginning": "faststart", "fragmented": "frag_keyframe+empty_moov"}.items():
        paths[name] = folder / f"{flags}.mp4"
        with av.open(str(long)) as source, av.open(str(paths[name]), "w", options={"movflags": flags}) as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    return paths


@pytest.fixture(scope="module")
def server(videos):
    Files.files = {f"/{name.replace(' ', '-')}": path.read_bytes() for name, path in videos.items()}
    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    http_server.daemon_threads = True
    http_server.handle_error = lambda *_: None
    threading.Thread(target=http_server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{http_server.server_port}"
    http_server.shutdown()


@pytest.fixture(scope="module")
def tools(server):
    job = build_media_job(limits={"deadline_s": 60})
    job = job.model_copy(update={"input": job.input.model_copy(update={"hosts": (server,)})})
    with Fetcher(job) as fetcher, ClipDecoder(job, PlainFrameRules()) as clip_decoder:
        yield fetcher, clip_decoder, job


@pytest.fixture
def load_video(server, tools, short_waits, monkeypatch):
    monkeypatch.setattr(sparse_video, "MIN_SPARSE_BYTES", MIB)
    monkeypatch.setattr("pipeline.fetch.web.FIRST_READ_BYTES", MIB // 4)
    monkeypatch.setattr(sparse_video, "FIRST_READ_BYTES", MIB // 4)
    monkeypatch.setattr(sparse_video, "MERGE_GAP_BYTES", 1 << 10)
    monkeypatch.setattr(Files, "misbehave", lambda handler: None)
    Files.requested_ranges.clear()
    Files.sent_bytes = 0

    def load(name: str, **options):
        uri = name if "/" in name else f"http://{server}/{name.replace(' ', '-')}"
        (clip,) = load_clips(MediaRef(uri, None, MediaOptions(**options)), fetcher=tools[0], clip_decoder=tools[1])
        return clip

    return load


@pytest.mark.parametrize("name", ["moov at the beginning", "moov at the end"])
def test_the_same_frames_come_from_a_fraction_of_the_bytes(name, load_video, videos):
    local = load_video(str(videos[name]), frames=8)
    remote = load_video(name, frames=8)
    assert np.array_equal(remote.pixels, local.pixels)
    assert (remote.times, remote.fps) == (local.times, local.fps)
    assert Files.sent_bytes < videos[name].stat().st_size / 4
    assert all(requested_range.startswith("bytes=") for requested_range in Files.requested_ranges[1:])


def test_a_section_far_into_the_video_is_read_alone(load_video, videos):
    options = {"video_start": 1000.0, "video_end": 1002.0, "frames": 5}
    assert np.array_equal(
        load_video("moov at the end", **options).pixels, load_video(str(videos["moov at the end"]), **options).pixels
    )
    assert Files.sent_bytes < videos["moov at the end"].stat().st_size / 4


@pytest.mark.parametrize("name", ["matroska", "fragmented"])
def test_a_video_without_a_table_of_frames_is_downloaded(name, load_video, videos):
    assert np.array_equal(load_video(name, frames=8).pixels, load_video(str(videos[name]), frames=8).pixels)
    assert Files.sent_bytes >= videos[name].stat().st_size


def test_a_video_is_downloaded_if_frames_lie_close_together(load_video, tools, monkeypatch):
    monkeypatch.setattr(tools[0].reader, "max_frames", 1000)
    assert load_video("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.sent_bytes >= len(Files.files["/moov-at-the-end"])


@pytest.mark.parametrize("name", ["moov at the beginning", "moov at the end"])
def test_planning_reads_the_table_of_frames_and_no_frame(name, load_video, tools, videos, server):
    options, uri = MediaOptions(frames=700), f"http://{server}/{name.replace(' ', '-')}"
    Files.sent_bytes = 0
    with (
        open_header_fetcher(tools[2]) as header_fetcher,
        ClipDecoder(tools[2], PlainFrameRules(), HeaderDecoder(build_decode_limits(tools[2]))) as clip_decoder,
    ):
        (clip,) = load_clips(MediaRef(uri, None, options), fetcher=header_fetcher, clip_decoder=clip_decoder)
    assert Files.sent_bytes < videos[name].stat().st_size / 4
    local = load_video(str(videos[name]), frames=700)
    assert (clip.times, clip.fps, clip.source_size) == (local.times, local.fps, local.source_size)
    assert clip.pixels.shape == local.pixels.shape


def test_a_server_without_ranges_sends_the_whole_video(load_video, monkeypatch):
    monkeypatch.setattr(Files, "misbehave", lambda handler: setattr(handler, "serves_ranges", False))
    assert load_video("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.requested_ranges == [""]


def test_a_server_that_only_claims_to_serve_ranges_sends_the_whole_video(load_video, monkeypatch):
    def ignore_if_range(handler):
        del handler.headers["If-Range"]
        handler.headers["If-Range"] = "no"

    monkeypatch.setattr(Files, "misbehave", ignore_if_range)
    assert load_video("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.requested_ranges.count("") == 2


def test_a_video_replaced_meanwhile_is_downloaded_again(load_video, videos, monkeypatch):
    local = load_video(str(videos["moov at the end"]), frames=8)

    def replace_video(handler):
        handler.etag = '"1"' if len(Files.requested_ranges) < 4 else '"2"'

    monkeypatch.setattr(Files, "misbehave", replace_video)
    assert np.array_equal(load_video("moov at the end", frames=8).pixels, local.pixels)
    assert Files.requested_ranges.count("") == 2


def test_truncated_ranges_are_requested_again(load_video, videos, monkeypatch):
    local = load_video(str(videos["moov at the end"]), frames=8)

    def truncate(handler):
        handler.max_body_bytes = 1000 if handler.headers.get("Range") and len(Files.requested_ranges) % 2 else None

    monkeypatch.setattr(Files, "misbehave", truncate)
    assert np.array_equal(load_video("moov at the end", frames=8).pixels, local.pixels)
    assert Files.requested_ranges.count("") == 1


def test_every_range_is_checked_like_the_first_request(load_video, monkeypatch):
    def redirect(handler):
        if handler.headers.get("Range"):
            handler.send_response(302)
            handler.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

    monkeypatch.setattr(Files, "misbehave", redirect)
    with pytest.raises(FetchError) as raised:
        load_video("moov at the end", frames=8)
    assert raised.value.kind == "host"


def test_a_video_is_downloaded_if_the_decoder_lacks_bytes(load_video, tools, videos, monkeypatch):
    local = load_video(str(videos["moov at the end"]), frames=8)
    list_ranges = tools[1].decoder.ranges

    def list_too_few_ranges(batches, deadline):
        return [ranges[:1] for ranges in list_ranges(batches, deadline=deadline)]

    monkeypatch.setattr(tools[1].decoder, "ranges", list_too_few_ranges)
    assert "frames" in WHOLE_FILE_RETRY_KINDS
    assert np.array_equal(load_video("moov at the end", frames=8).pixels, local.pixels)
    assert Files.sent_bytes >= videos["moov at the end"].stat().st_size


def test_nothing_is_left_on_disk(load_video, tools):
    load_video("moov at the end", frames=8)
    assert [path.name for path in tools[0].reader.scratch_folder.path.iterdir()] == [".lock"]


def test_the_rest_of_an_object_is_read_in_ranges(monkeypatch, tmp_path):
    import asyncio

    from pipeline.fetch.blob import BlobWriter
    from pipeline.job.spec import LimitsSection

    async def fetch_range(start: int, end: int) -> bytes:
        return bytes(range(start, end))

    monkeypatch.setattr(remote_object, "RANGE_BYTES", 3)
    writer = BlobWriter("s3://b/k", limits=LimitsSection(), path=tmp_path / "0")
    writer.write(b"\0\1")
    asyncio.run(remote_object.download_rest(remote_object.RemoteObject(10, fetch_range), writer))
    assert writer.to_blob().data == bytes(range(10))


def test_a_cut_off_video_is_an_error_though_only_a_part_of_it_is_read(load_video, videos, monkeypatch):
    whole = videos["moov at the beginning"].read_bytes()
    monkeypatch.setitem(Files.files, "/cut", whole[: len(whole) * 3 // 4])
    with pytest.raises(DecodeError, match=r"the file ends before [\d,]+ of its 12,?000 frames") as error:
        load_video("cut", frames=8)
    assert error.value.kind == "truncated"
    assert Files.sent_bytes < len(whole) / 4
