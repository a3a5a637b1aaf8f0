"""Long videos on servers: only what the frames need is read, the frames are the same, and doubt means a download."""

from __future__ import annotations

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import av
import numpy as np
import pytest

from pipeline.errors import FetchError
from pipeline.fetch import range_download, sparse_video
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.header_fetcher import HeaderFetcher
from pipeline.media import clips as looking
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder, build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.types import MediaOptions, MediaRef
from tests.media.sample_media import Plain, a_job, film, repeated

MIB = 1 << 20


class Files(BaseHTTPRequestHandler):
    """Gives ranges of files; `spoil` may change what is answered."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012 - reset by the fixture
    sent = 0
    spoil = staticmethod(lambda handler: None)

    def do_GET(self):
        wish = self.headers.get("Range", "")
        self.asked.append(wish)
        self.ranges, self.etag, self.keep = True, '"1"', None
        if type(self).spoil(self):
            return
        body = self.files[self.path]
        match = re.match(r"bytes=(\d+)-(\d+)", wish) if self.ranges and self.headers["If-Range"] == self.etag else None
        part = body[int(match[1]) : int(match[2]) + 1] if match else body
        self.send_response(206 if match else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", self.etag)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if match:
            self.send_header("Content-Range", f"bytes {match[1]}-{match[2]}/{len(body)}")
        self.end_headers()
        part = part[: self.keep]
        self.close_connection = self.keep is not None
        for start in range(0, len(part), 1 << 16):
            self.wfile.write(part[start : start + (1 << 16)])
            type(self).sent += len(part[start : start + (1 << 16)])

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """20 minutes at 10 frames a second: 12 MB, a key frame every 12 frames."""
    folder = tmp_path_factory.mktemp("films")
    short = film(folder / "short.mp4", 60, size=(320, 240), crf="1")
    long = repeated(short, 200, folder / "long.mp4")
    found = {"moov at the end": long, "matroska": repeated(short, 200, folder / "long.mkv")}
    for name, flags in {"moov at the beginning": "faststart", "fragmented": "frag_keyframe+empty_moov"}.items():
        found[name] = folder / f"{flags}.mp4"
        with av.open(str(long)) as source, av.open(str(found[name]), "w", options={"movflags": flags}) as target:
            stream = source.streams.video[0]
            copy = target.add_stream_from_template(stream)
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    return found


@pytest.fixture(scope="module")
def server(films):
    Files.files = {f"/{name.replace(' ', '-')}": path.read_bytes() for name, path in films.items()}
    serving = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    serving.daemon_threads = True
    serving.handle_error = lambda *_: None
    threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True).start()
    yield f"127.0.0.1:{serving.server_port}"
    serving.shutdown()


@pytest.fixture(scope="module")
def opened(server):
    job = a_job(limits={"deadline_s": 60})
    job = job.model_copy(update={"input": job.input.model_copy(update={"hosts": (server,)})})
    with Fetcher(job) as fetcher, ClipDecoder(job, Plain()) as eyes:
        yield fetcher, eyes, job


@pytest.fixture
def see(server, opened, short_waits, monkeypatch):
    monkeypatch.setattr(sparse_video, "LEAST_BYTES", MIB)
    monkeypatch.setattr("pipeline.fetch.web.FIRST", MIB // 4)
    monkeypatch.setattr(sparse_video, "FIRST", MIB // 4)
    monkeypatch.setattr(sparse_video, "GAP", 1 << 10)
    monkeypatch.setattr(Files, "spoil", lambda handler: None)
    Files.asked.clear()
    Files.sent = 0

    def at(name: str, **ask):
        uri = name if "/" in name else f"http://{server}/{name.replace(' ', '-')}"
        (clip,) = load_clips(MediaRef(uri, None, MediaOptions(**ask)), fetcher=opened[0], clip_decoder=opened[1])
        return clip

    return at


@pytest.mark.parametrize("name", ["moov at the beginning", "moov at the end"])
def test_the_same_frames_come_from_a_fraction_of_the_bytes(name, see, films):
    local = see(str(films[name]), frames=8)
    remote = see(name, frames=8)
    assert np.array_equal(remote.pixels, local.pixels)
    assert (remote.times, remote.fps) == (local.times, local.fps)
    assert Files.sent < films[name].stat().st_size / 4
    assert all(wish.startswith("bytes=") for wish in Files.asked[1:])


def test_a_part_far_into_the_video_is_read_alone(see, films):
    ask = {"video_start": 1000.0, "video_end": 1002.0, "frames": 5}
    assert np.array_equal(see("moov at the end", **ask).pixels, see(str(films["moov at the end"]), **ask).pixels)
    assert Files.sent < films["moov at the end"].stat().st_size / 4


@pytest.mark.parametrize("name", ["matroska", "fragmented"])
def test_what_has_no_list_of_its_frames_is_downloaded(name, see, films):
    assert np.array_equal(see(name, frames=8).pixels, see(str(films[name]), frames=8).pixels)
    assert Files.sent >= films[name].stat().st_size


def test_where_frames_are_wanted_closely_the_video_is_fetched_ahead_whole(see, opened, monkeypatch):
    monkeypatch.setattr(opened[0], "frames", 1000)
    assert see("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.sent >= len(Files.files["/moov-at-the-end"])


@pytest.mark.parametrize("name", ["moov at the beginning", "moov at the end"])
def test_to_plan_a_video_its_table_is_read_and_no_frame(name, see, opened, films, server):
    ask, uri = MediaOptions(frames=700), f"http://{server}/{name.replace(' ', '-')}"
    Files.sent = 0
    with (
        HeaderFetcher(opened[2]) as heads,
        ClipDecoder(opened[2], Plain(), HeaderDecoder(build_decode_limits(opened[2]))) as eyes,
    ):
        (clip,) = load_clips(MediaRef(uri, None, ask), fetcher=heads, clip_decoder=eyes)
    assert Files.sent < films[name].stat().st_size / 4
    local = see(str(films[name]), frames=700)
    assert (clip.times, clip.fps, clip.source_size) == (local.times, local.fps, local.source_size)
    assert clip.pixels.shape == local.pixels.shape


def test_a_server_without_ranges_is_read_from_start_to_end(see, monkeypatch):
    monkeypatch.setattr(Files, "spoil", lambda handler: setattr(handler, "ranges", False))
    assert see("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.asked == [""]


def test_a_server_that_says_it_has_ranges_and_has_not_is_read_from_start_to_end(see, monkeypatch):
    def lie(handler):
        del handler.headers["If-Range"]
        handler.headers["If-Range"] = "no"

    monkeypatch.setattr(Files, "spoil", lie)
    assert see("moov at the end", frames=8).pixels.shape[0] == 8
    assert Files.asked.count("") == 2


def test_a_video_replaced_half_way_is_seen_as_it_is_now(see, films, monkeypatch):
    local = see(str(films["moov at the end"]), frames=8)

    def change(handler):
        handler.etag = '"1"' if len(Files.asked) < 4 else '"2"'

    monkeypatch.setattr(Files, "spoil", change)
    assert np.array_equal(see("moov at the end", frames=8).pixels, local.pixels)
    assert Files.asked.count("") == 2


def test_ranges_that_are_cut_are_asked_for_again(see, films, monkeypatch):
    local = see(str(films["moov at the end"]), frames=8)

    def cut(handler):
        handler.keep = 1000 if handler.headers.get("Range") and len(Files.asked) % 2 else None

    monkeypatch.setattr(Files, "spoil", cut)
    assert np.array_equal(see("moov at the end", frames=8).pixels, local.pixels)
    assert Files.asked.count("") == 1


def test_every_range_is_guarded_like_the_first_request(see, monkeypatch):
    def lead_away(handler):
        if handler.headers.get("Range"):
            handler.send_response(302)
            handler.send_header("Location", "http://169.254.169.254/latest/meta-data/")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return True

    monkeypatch.setattr(Files, "spoil", lead_away)
    with pytest.raises(FetchError) as refusal:
        see("moov at the end", frames=8)
    assert refusal.value.kind == "host"


def test_where_a_decoder_lacks_bytes_the_video_is_read_whole(see, opened, films, monkeypatch):
    local = see(str(films["moov at the end"]), frames=8)
    real = opened[1].decoder.ranges
    monkeypatch.setattr(opened[1].decoder, "ranges", lambda batches, ends: [r[:1] for r in real(batches, ends=ends)])
    assert "frames" in looking.WHOLE_FILE_RETRY_KINDS
    assert np.array_equal(see("moov at the end", frames=8).pixels, local.pixels)
    assert Files.sent >= films["moov at the end"].stat().st_size


def test_nothing_is_left_on_disk(see, opened):
    see("moov at the end", frames=8)
    assert [path.name for path in opened[0].scratch.path.iterdir()] == [".lock"]


def test_the_rest_of_an_object_is_read_in_parts(monkeypatch, tmp_path):
    import asyncio

    from pipeline.fetch.blob import BlobWriter
    from pipeline.job.spec import LimitsSection

    async def get(start: int, end: int) -> bytes:
        return bytes(range(start, end))

    monkeypatch.setattr(range_download, "RANGE_BYTES", 3)
    sink = BlobWriter("s3://b/k", limits=LimitsSection(), folder=tmp_path, file_name="0")
    sink.write(b"\0\1")
    asyncio.run(range_download.download_rest(range_download.RemoteObject(10, get), sink))
    assert sink.to_blob().data == bytes(range(10))
