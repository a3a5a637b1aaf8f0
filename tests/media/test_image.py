"""Pictures of every kind are decoded to upright RGB, with exactly the pixels of the reference."""

from __future__ import annotations

import base64
import io
import re
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import pytest
import torch

from pipeline.errors import DecodeError
from pipeline.media.kinds.image import ORIENTATION_TAG
from tests.media.sample_media import build_media_job, draw_pixels, encode_image, find_package_files

pytestmark = pytest.mark.process

torch.set_num_threads(1)


def reference(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decoded in full, alpha on white, resized plane by plane."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = PIL.Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    planes = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous()
    if planes.shape[-2:] == (size[1], size[0]):
        return planes.numpy()
    resized = torch.nn.functional.interpolate(planes, (size[1], size[0]), mode="bicubic", antialias=True)
    return resized.numpy()


def with_palette_hole() -> bytes:
    image = PIL.Image.fromarray(draw_pixels()).quantize(16)
    return encode_image(image, "PNG", transparency=3)


def encode_psd(pixels: np.ndarray) -> bytes:
    """Three planes of eight bits, without layers."""
    height, width, _ = pixels.shape
    header = struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, height, width, 8, 3)
    return header + bytes(14) + pixels.transpose(2, 0, 1).tobytes()  # no palette, resources or layers; uncompressed


MODES = {
    "RGB": lambda: encode_image(draw_pixels()),
    "grey": lambda: encode_image(PIL.Image.fromarray(draw_pixels()).convert("L")),
    "black and white": lambda: encode_image(PIL.Image.fromarray(draw_pixels()).convert("1")),
    "palette": lambda: encode_image(PIL.Image.fromarray(draw_pixels()).quantize(16)),
    "palette with a hole": with_palette_hole,
    "RGBA": lambda: encode_image(np.dstack([draw_pixels(), draw_pixels(seed=2)[..., :1]])),
    "grey with alpha": lambda: encode_image(np.dstack([draw_pixels()[..., 0], draw_pixels(seed=2)[..., 0]])),
    "CMYK JPEG": lambda: encode_image(PIL.Image.fromarray(draw_pixels()).convert("CMYK"), "JPEG"),
    "progressive JPEG": lambda: encode_image(draw_pixels(), "JPEG", progressive=True),
    "WebP with alpha": lambda: encode_image(np.dstack([draw_pixels(), draw_pixels(seed=2)[..., :1]]), "WEBP"),
    "GIF": lambda: encode_image(draw_pixels(), "GIF"),
    "BMP": lambda: encode_image(draw_pixels(), "BMP"),
    "TIFF": lambda: encode_image(draw_pixels(), "TIFF", compression="tiff_lzw"),
    "CMYK TIFF": lambda: encode_image(PIL.Image.fromarray(draw_pixels()).convert("CMYK"), "TIFF"),
    "AVIF": lambda: encode_image(draw_pixels(), "AVIF"),
    "JPEG 2000": lambda: encode_image(draw_pixels(), "JPEG2000"),
    "ICO": lambda: encode_image(draw_pixels(64, 64), "ICO"),
    "PPM": lambda: encode_image(draw_pixels(), "PPM"),
    "PSD": lambda: encode_psd(draw_pixels()),
}


@pytest.mark.parametrize("mode", MODES)
def test_picture_of_any_mode_equals_the_reference(mode, load):
    data = MODES[mode]()
    (clip,) = load(data, resized_width=56, resized_height=84)
    assert np.array_equal(clip.pixels, reference(data, (56, 84)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_picture_upright(orientation, load):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encode_image(draw_pixels(90, 60), name, exif=exif)
        (clip,) = load(data)
        assert clip.source_size == ((60, 90) if orientation > 4 else (90, 60)), name
        assert np.array_equal(clip.pixels, reference(data, clip.size)), name


def test_orientation_among_broken_exif_turns_the_picture_upright(load):
    """Some editors write the resolution as text, which `exif_transpose` cannot rewrite."""
    entries = struct.pack("<HHHIIHHI4s", 2, ORIENTATION_TAG, 3, 1, 6, 0x011A, 2, 4, b"abc\0")
    upright = draw_pixels(60, 90)
    (clip,) = load(encode_image(np.rot90(upright), exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + b"\0\0\0\0"))
    (expected,) = load(encode_image(upright))
    assert np.array_equal(clip.pixels, expected.pixels)


def test_picture_of_the_right_size_is_unchanged(load):
    (clip,) = load(encode_image(draw_pixels(56, 84)), resized_width=56, resized_height=84)
    assert np.array_equal(clip.pixels[0].transpose(1, 2, 0), draw_pixels(56, 84))


def test_16_bit_samples_are_scaled_not_clipped(load):
    ramp = np.linspace(0, 65535, 56 * 56).reshape(56, 56).astype(np.uint16)
    for name in ("PNG", "TIFF"):
        (clip,) = load(encode_image(ramp, name))
        assert np.abs(clip.pixels[0, 0].astype(int) - ramp // 257).max() <= 1


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (255.0, np.float32), (65535, np.int32), (255, np.int32)])
def test_float_and_integer_tiffs_are_scaled_by_their_range(top, dtype, load):
    ramp = (np.linspace(0, 1, 56 * 56).reshape(56, 56) * top).astype(dtype)
    (clip,) = load(encode_image(PIL.Image.fromarray(ramp), "TIFF"))
    assert (int(clip.pixels.min()), int(clip.pixels.max())) == (0, 255)


def test_16_bit_tiff_with_white_as_zero_is_inverted(load):
    ramp = np.linspace(0, 65535, 56 * 56).reshape(56, 56).astype(np.uint16)
    (black,) = load(encode_image(PIL.Image.fromarray(ramp), "TIFF"))
    (white,) = load(encode_image(PIL.Image.fromarray(65535 - ramp), "TIFF", tiffinfo={262: 0}))
    assert np.array_equal(black.pixels, white.pixels)


def test_every_page_of_a_tiff_is_a_picture_with_its_own_size(load):
    pages = [PIL.Image.fromarray(draw_pixels(90, 60, seed)) for seed in range(3)]
    pages[1] = pages[1].crop((0, 0, 30, 60))
    clips = load(encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert [clip.source_size for clip in clips] == [(90, 60), (30, 60), (90, 60)]
    assert not np.array_equal(clips[0].pixels, clips[2].pixels)
    assert [clip.uri[-7:] for clip in clips] == ["#page=1", "#page=2", "#page=3"]


def test_reduced_copies_and_masks_in_a_tiff_are_left_out(load):
    whole, small = (PIL.Image.fromarray(draw_pixels(*size)) for size in ((90, 60), (45, 30)))

    def tiff(*kinds: int) -> bytes:
        file = io.BytesIO()
        with PIL.TiffImagePlugin.AppendingTiffWriter(file) as pages:
            for kind in kinds:
                (small if kind % 2 else whole).save(pages, "TIFF", tiffinfo={254: kind})
                pages.newFrame()
        return file.getvalue()

    clips = load(tiff(1, 0, 1, 4, 2))  # a preview, a page, a copy of it, its mask, the next page
    assert [(clip.source_size, clip.uri[-7:]) for clip in clips] == [((90, 60), "#page=1"), ((90, 60), "#page=2")]
    (copy,) = load(tiff(1))
    assert copy.source_size == (45, 30)


def animated(name: str, count: int = 5, duration: int = 200) -> bytes:
    frames = [PIL.Image.fromarray(np.full((56, 56, 3), index * 40, np.uint8)) for index in range(count)]
    return encode_image(
        frames[0], name, save_all=True, append_images=frames[1:], duration=duration, loop=0, lossless=True
    )


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_animation_is_its_first_frame_or_a_video_where_claimed(name, load):
    data = animated(name)
    (still,) = load(data)
    assert (still.kind, len(still.pixels)) == ("image", 1)
    (moving,) = load(data, "video", frames=5)
    assert moving.times == pytest.approx((0, 0.2, 0.4, 0.6, 0.8))
    assert [round(float(frame.mean()) / 40) for frame in moving.pixels] == [0, 1, 2, 3, 4]


def test_truncated_picture_is_an_error_or_decoded_in_part(load, open_loader):
    data = encode_image(draw_pixels(400, 300), "JPEG")[:6000]
    with pytest.raises(DecodeError) as error:
        load(data)
    assert error.value.kind == "truncated"
    (clip,) = open_loader(build_media_job(tolerate_truncated=True))(data)
    assert clip.source_size == (400, 300)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_fast_decoding_is_close_and_never_enlarges(kind, load, open_loader):
    """MPO is what phones write: a JPEG followed by a preview or a depth map."""
    data = (find_package_files("skimage", "data") / "retina.jpg").read_bytes()
    if kind == "MPO":
        retina = PIL.Image.open(io.BytesIO(data))
        data = encode_image(retina, "MPO", quality=95, save_all=True, append_images=[retina.resize((99, 99))])
    (exact,) = load(data, resized_width=392, resized_height=280)
    (fast,) = open_loader(build_media_job(fast_decode=True))(data, resized_width=392, resized_height=280)
    difference = np.abs(exact.pixels.astype(int) - fast.pixels)
    assert 0 < difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 6


def test_fast_decoding_changes_nothing_below_twice_the_size(load, open_loader):
    data = encode_image(draw_pixels(760, 540), "JPEG")
    (exact,) = load(data, resized_width=392, resized_height=280)
    (fast,) = open_loader(build_media_job(fast_decode=True))(data, resized_width=392, resized_height=280)
    assert np.array_equal(exact.pixels, fast.pixels)


def test_picture_over_the_pixel_limit_is_refused_by_its_header(open_loader):
    load = open_loader(build_media_job(limits={"image": {"pixels": 1000}, "deadline_s": 20}))
    with pytest.raises(DecodeError, match=r"limits\.image\.pixels") as error:
        load(encode_image(draw_pixels()))
    assert error.value.kind == "too_large"


def test_file_of_an_unknown_format_is_called_text_and_not_quoted(load):
    for data in (b"<!DOCTYPE html><html>hush</html>", b"hush=1"):
        with pytest.raises(DecodeError, match="it is text") as error:
            load(data)
        assert error.value.kind == "unknown_format"
        assert not re.search("DOCTYPE|hush", error.value.message)


def test_error_of_a_library_does_not_quote_the_file(load):
    for data in (b"P6\nhunter2hunter2", b"P6 -123 9 255 9", b"\x89PNG\r\n\x1a\nhunter2-password"):
        with pytest.raises(DecodeError) as error:
            load(data)
        assert not re.search("hunter|123|word", error.value.message), error.value.message


def test_picture_in_an_unreadable_format_is_called_a_picture(load):
    with pytest.raises(DecodeError, match=r"a picture in a format that cannot be read$"):
        load(b"II*\0" + bytes(60))


def test_clip_knows_whether_its_uri_is_complete(load, tmp_path):
    (tmp_path / "a.png").write_bytes(encode_image(draw_pixels()))
    (open_to_all,) = load(str(tmp_path / "a.png"))
    (carried,) = load("data:image/png;base64," + base64.b64encode(encode_image(draw_pixels())).decode())
    assert (open_to_all.has_complete_uri, carried.has_complete_uri) == (True, False)
