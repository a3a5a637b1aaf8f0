"""Videos that are cut off: an error row where the container declares its length, a flag where it can only be seen."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import DecodeError
from pipeline.media.kinds import file_end
from pipeline.media.kinds.av_reader import PyAvReader, open_video
from pipeline.media.kinds.base import DecodeLimits
from tests.media.sample_media import build_media_job, write_video

pytestmark = pytest.mark.process

LIMITS = DecodeLimits(10**8, 10**8, 3600)
UNEVEN_MS = [40 * index**2 for index in range(60)]
DECLARED = {  # container: how it is written
    "plain.mkv": {},
    "sound.mkv": {"sound_s": 9.0},
    "uneven.mkv": {"times_ms": UNEVEN_MS},
    "late_start.mkv": {"first_ms": 30_000},
    "cues_first.mkv": {"reserve_index_space": "20000"},
    "small_clusters.webm": {"codec": "libvpx", "cluster_time_limit": "500"},
    "plain.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg"},
    "sound.avi": {"codec": "mpeg4", "sound_s": 9.0},
    "plain.wmv": {"codec": "wmv2"},
    "plain.flv": {},
    "fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"},
}
STREAMED = {  # their length is not known when they begin
    "live.webm": {"codec": "libvpx", "live": "1"},
    "live.mkv": {"live": "1", "sound_s": 9.0},
    "pipe.avi": {"codec": "mpeg4"},
    "pipe.flv": {},
    "pipe.ivf": {"codec": "libvpx"},
    "plain.ts": {},
    "sound.ts": {"sound_s": 9.0},
    "camcorder.m2ts": {"mpegts_m2ts_mode": "1"},
}


def write_container(
    path: Path,
    *,
    codec: str = "libx264",
    sound_s: float = 0.0,
    times_ms: list[int] | None = None,
    first_ms: int = 0,
    **options: str,
) -> bytes:
    """A video in a container. Those of STREAMED are written without going back."""
    name = {"m2ts": "mpegts", "ts": "mpegts", "mkv": "matroska", "wmv": "asf"}.get(path.suffix[1:], path.suffix[1:])
    times_ms = times_ms or ([first_ms + 100 * index for index in range(60)] if first_ms else None)
    source_path = write_video(
        path.with_suffix(".source.avi" if name in ("avi", "asf") else ".source.mkv"), codec=codec, times_ms=times_ms
    )
    buffer = Unseekable() if path.name in STREAMED else io.BytesIO()
    with av.open(source_path) as source, av.open(buffer, "w", format=name, options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        sound = target.add_stream("mp2" if name == "avi" else "aac", rate=48000, layout="mono") if sound_s else None
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                target.mux(packet)
        for number in range(round(sound_s * 48000 / (sound.frame_size if sound else 1))):
            silence = np.zeros((1, sound.frame_size), np.int16 if name == "avi" else np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format=sound.format.name, layout="mono")
            frame.sample_rate, frame.pts = 48000, number * sound.frame_size
            target.mux(sound.encode(frame))
        if sound:
            target.mux(sound.encode())
    return buffer.data if isinstance(buffer, Unseekable) else buffer.getvalue()


class Unseekable:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Each container is written once."""
    folder, written = tmp_path_factory.mktemp("containers"), {}

    def write_once(name: str) -> bytes:
        if name not in written:
            written[name] = write_container(folder / name, **(DECLARED | STREAMED)[name])
        return written[name]

    return write_once


def open_bytes(data: bytes, folder: Path, limits: DecodeLimits = LIMITS) -> PyAvReader:
    path = folder / "video"
    path.write_bytes(data)
    return open_video(path.open("rb"), limits)


@pytest.mark.parametrize("name", [*DECLARED, *STREAMED])
def test_a_whole_video_is_read_to_its_end_and_has_no_flag(name, write, tmp_path):
    reader = open_bytes(write(name), tmp_path)
    assert (len(reader.times), reader.is_truncated) == (60, False)


@pytest.mark.parametrize("share", [0.7, 0.93])
@pytest.mark.parametrize("name", DECLARED)
def test_a_cut_off_video_is_an_error_or_shown_as_far_as_it_goes(name, share, write, tmp_path):
    whole = write(name)
    cut = whole[: round(len(whole) * share)]
    with pytest.raises(DecodeError, match=r"set media\.tolerate_truncated to show what there is") as error:
        open_bytes(cut, tmp_path)
    assert error.value.kind == "truncated"
    reader = open_bytes(cut, tmp_path, DecodeLimits(10**8, 10**8, 3600, tolerate=True))
    assert reader.is_truncated
    assert 0 < len(reader.times) <= 60


@pytest.mark.parametrize("name", STREAMED)
def test_a_stream_that_ends_amid_an_element_is_shown_and_flagged(name, write, tmp_path):
    whole = write(name)
    reader = open_bytes(whole[: round(len(whole) * 0.7) // 8 * 8 + 5], tmp_path)
    assert reader.is_truncated
    assert 0 < len(reader.times) < 60 or name.startswith("sound")


def test_the_index_behind_the_frames_of_an_avi_may_be_missing(write, tmp_path):
    whole = write("plain.avi")
    reader = open_bytes(whole[: whole.rindex(b"idx1") + 4], tmp_path)
    assert (len(reader.times), reader.is_truncated) == (60, False)


def test_a_length_that_was_copied_from_another_file_does_not_count(write, tmp_path):
    """Programs copy what the first tag of an FLV says."""
    whole = bytearray(write("plain.flv"))
    at = whole.index(file_end.FLV_SIZE_KEY) + len(file_end.FLV_SIZE_KEY)
    whole[at : at + 8] = np.array(1e9, ">f8").tobytes()
    assert not open_bytes(bytes(whole), tmp_path).is_truncated


@pytest.mark.parametrize("name", ["pipe.avi", "pipe.ivf"])
def test_a_header_that_does_not_know_the_duration_makes_no_video_too_long(name, write, tmp_path):
    """It claims 286 s, and 13 years."""
    assert len(open_bytes(write(name), tmp_path, DecodeLimits(10**8, 10**8, 7)).times) == 60
    with pytest.raises(DecodeError, match=r"raise limits\.video\.duration_s"):
        open_bytes(write("plain.mkv"), tmp_path, DecodeLimits(10**8, 10**8, 5))


@pytest.mark.parametrize("head", [*file_end.END_FINDERS, b"G" + bytes(187) + b"G"])
def test_the_end_of_any_bytes_is_found_in_bounded_steps(head, monkeypatch):
    monkeypatch.setattr(file_end, "MAX_ELEMENTS", 1000)
    chance = np.random.default_rng(0)
    for body in (b"", bytes(3000), b"\xff" * 3000, b"\x81\x80" * 3000, *(chance.bytes(3000) for _ in range(200))):
        assert file_end.find_file_end(io.BytesIO(head + body)).declared >= 0


def test_an_answer_about_a_part_of_a_video_has_a_flag(load, open_loader, write):
    whole = write("plain.ts")
    assert not load(whole)[0].is_truncated
    assert load(whole[:-100])[0].is_truncated
    cut = write("plain.mkv")[:-5000]
    (clip,) = open_loader(build_media_job(tolerate_truncated=True))(cut)
    assert clip.is_truncated
