"""Pictures of every kind come out as RGB, upright, and bit for bit what the reference makes of them."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.TiffImagePlugin
import pytest
import torch

from pipeline.errors import DecodeError
from pipeline.media.kinds.image import ORIENTATION_TAG
from tests.media.sample_media import a_job, encoded, picture, shipped

torch.set_num_threads(1)


def reference(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decoded whole, alpha on white, resized plane by plane."""
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
    image = PIL.Image.fromarray(picture()).quantize(16)
    return encoded(image, "PNG", transparency=3)


MODES = {
    "RGB": lambda: encoded(picture()),
    "grey": lambda: encoded(PIL.Image.fromarray(picture()).convert("L")),
    "black and white": lambda: encoded(PIL.Image.fromarray(picture()).convert("1")),
    "palette": lambda: encoded(PIL.Image.fromarray(picture()).quantize(16)),
    "palette with a hole": with_palette_hole,
    "RGBA": lambda: encoded(np.dstack([picture(), picture(seed=2)[..., :1]])),
    "grey with alpha": lambda: encoded(np.dstack([picture()[..., 0], picture(seed=2)[..., 0]])),
    "CMYK JPEG": lambda: encoded(PIL.Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    "progressive JPEG": lambda: encoded(picture(), "JPEG", progressive=True),
    "WebP with alpha": lambda: encoded(np.dstack([picture(), picture(seed=2)[..., :1]]), "WEBP"),
    "GIF": lambda: encoded(picture(), "GIF"),
    "BMP": lambda: encoded(picture(), "BMP"),
    "TIFF": lambda: encoded(picture(), "TIFF", compression="tiff_lzw"),
    "CMYK TIFF": lambda: encoded(PIL.Image.fromarray(picture()).convert("CMYK"), "TIFF"),
    "AVIF": lambda: encoded(picture(), "AVIF"),
    "JPEG 2000": lambda: encoded(picture(), "JPEG2000"),
    "ICO": lambda: encoded(picture(64, 64), "ICO"),
    "PPM": lambda: encoded(picture(), "PPM"),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_what_the_reference_makes_of_it(mode, see):
    data = MODES[mode]()
    (clip,) = see(data, resized_width=56, resized_height=84)
    assert np.array_equal(clip.pixels, reference(data, (56, 84)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stands_upright_by_its_exif_mark(orientation, see):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for name in ("JPEG", "PNG", "WEBP", "TIFF"):
        data = encoded(picture(90, 60), name, exif=exif)
        (clip,) = see(data)
        assert clip.source_size == ((60, 90) if orientation > 4 else (90, 60)), name
        assert np.array_equal(clip.pixels, reference(data, clip.size)), name


def test_a_mark_among_broken_exif_turns_the_picture_all_the_same(see):
    """A resolution that is text, as some editors write it: `exif_transpose` cannot write that anew."""
    entries = struct.pack("<HHHIIHHI4s", 2, ORIENTATION_TAG, 3, 1, 6, 0x011A, 2, 4, b"abc\0")
    upright = picture(60, 90)
    (clip,) = see(encoded(np.rot90(upright), exif=b"Exif\0\0II*\0\x08\0\0\0" + entries + b"\0\0\0\0"))
    (expected,) = see(encoded(upright))
    assert np.array_equal(clip.pixels, expected.pixels)


def test_a_picture_of_the_right_size_is_not_touched(see):
    (clip,) = see(encoded(picture(56, 84)), resized_width=56, resized_height=84)
    assert np.array_equal(clip.pixels[0].transpose(1, 2, 0), picture(56, 84))


def test_sixteen_bits_are_scaled_not_cut_off(see):
    ramp = np.linspace(0, 65535, 56 * 56).reshape(56, 56).astype(np.uint16)
    for name in ("PNG", "TIFF"):
        (clip,) = see(encoded(ramp, name))
        assert np.abs(clip.pixels[0, 0].astype(int) - ramp // 257).max() <= 1


@pytest.mark.parametrize(("top", "dtype"), [(1.0, np.float32), (255.0, np.float32), (65535, np.int32), (255, np.int32)])
def test_float_and_integer_tiffs_are_scaled_by_their_range(top, dtype, see):
    ramp = (np.linspace(0, 1, 56 * 56).reshape(56, 56) * top).astype(dtype)
    (clip,) = see(encoded(PIL.Image.fromarray(ramp), "TIFF"))
    assert (int(clip.pixels.min()), int(clip.pixels.max())) == (0, 255)


def test_a_tiff_of_sixteen_bits_in_which_zero_is_white_is_no_negative(see):
    ramp = np.linspace(0, 65535, 56 * 56).reshape(56, 56).astype(np.uint16)
    (black,) = see(encoded(PIL.Image.fromarray(ramp), "TIFF"))
    (white,) = see(encoded(PIL.Image.fromarray(65535 - ramp), "TIFF", tiffinfo={262: 0}))
    assert np.array_equal(black.pixels, white.pixels)


def test_all_pages_of_a_tiff_are_pictures_each_of_its_own_size(see):
    pages = [PIL.Image.fromarray(picture(90, 60, seed)) for seed in range(3)]
    pages[1] = pages[1].crop((0, 0, 30, 60))
    clips = see(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    assert [clip.source_size for clip in clips] == [(90, 60), (30, 60), (90, 60)]
    assert not np.array_equal(clips[0].pixels, clips[2].pixels)
    assert [clip.uri[-7:] for clip in clips] == ["#page=1", "#page=2", "#page=3"]


def test_smaller_copies_of_a_picture_and_masks_in_a_tiff_are_no_pages(see):
    whole, small = (PIL.Image.fromarray(picture(*size)) for size in ((90, 60), (45, 30)))

    def tiff(*kinds: int) -> bytes:
        file = io.BytesIO()
        with PIL.TiffImagePlugin.AppendingTiffWriter(file) as pages:
            for kind in kinds:
                (small if kind % 2 else whole).save(pages, "TIFF", tiffinfo={254: kind})
                pages.newFrame()
        return file.getvalue()

    clips = see(tiff(1, 0, 1, 4, 2))  # a preview, a page, a copy of it, its mask, the next page
    assert [(clip.source_size, clip.uri[-7:]) for clip in clips] == [((90, 60), "#page=1"), ((90, 60), "#page=2")]
    (copy,) = see(tiff(1))
    assert copy.source_size == (45, 30)


def animated(name: str, count: int = 5, duration: int = 200) -> bytes:
    frames = [PIL.Image.fromarray(np.full((56, 56, 3), index * 40, np.uint8)) for index in range(count)]
    return encoded(frames[0], name, save_all=True, append_images=frames[1:], duration=duration, loop=0, lossless=True)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame_or_a_video_when_asked(name, see):
    data = animated(name)
    (still,) = see(data)
    assert (still.kind, len(still.pixels)) == ("image", 1)
    (moving,) = see(data, "video", frames=5)
    assert moving.times == pytest.approx((0, 0.2, 0.4, 0.6, 0.8))
    assert [round(float(frame.mean()) / 40) for frame in moving.pixels] == [0, 1, 2, 3, 4]


def test_a_cut_off_picture_is_an_error_or_what_there_is_of_it(see, see_with):
    data = encoded(picture(400, 300), "JPEG")[:6000]
    with pytest.raises(DecodeError) as trouble:
        see(data)
    assert trouble.value.kind == "truncated"
    (clip,) = see_with(a_job(tolerate_truncated=True))(data)
    assert clip.source_size == (400, 300)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_fast_decoding_is_near_and_never_enlarges(kind, see, see_with):
    """MPO is what telephones write: a JPEG with a preview or a map of depth behind it."""
    data = (shipped("skimage", "data") / "retina.jpg").read_bytes()
    if kind == "MPO":
        retina = PIL.Image.open(io.BytesIO(data))
        data = encoded(retina, "MPO", quality=95, save_all=True, append_images=[retina.resize((99, 99))])
    (exact,) = see(data, resized_width=392, resized_height=280)
    (fast,) = see_with(a_job(fast_decode=True))(data, resized_width=392, resized_height=280)
    difference = np.abs(exact.pixels.astype(int) - fast.pixels)
    assert 0 < difference.mean() < 1.5
    assert np.percentile(difference, 99) <= 6


def test_fast_decoding_leaves_alone_what_is_less_than_twice_too_large(see, see_with):
    data = encoded(picture(760, 540), "JPEG")
    (exact,) = see(data, resized_width=392, resized_height=280)
    (fast,) = see_with(a_job(fast_decode=True))(data, resized_width=392, resized_height=280)
    assert np.array_equal(exact.pixels, fast.pixels)


def test_a_picture_over_the_limit_is_refused_by_its_header(see_with):
    look = see_with(a_job(limits={"image": {"pixels": 1000}, "deadline_s": 20}))
    with pytest.raises(DecodeError, match=r"limits\.image\.pixels") as trouble:
        look(encoded(picture()))
    assert trouble.value.kind == "too_large"


def test_what_is_no_picture_says_how_it_begins(see):
    with pytest.raises(DecodeError, match="<!DOCTYPE html>") as trouble:
        see(b"<!DOCTYPE html><html>Not found</html>")
    assert trouble.value.kind == "unknown_format"


def test_a_picture_of_a_form_that_nobody_reads_is_not_said_to_be_none(see):
    with pytest.raises(DecodeError, match=r"a picture in a format that cannot be read; it begins with b'II\*"):
        see(b"II*\0" + bytes(60))


def test_a_picture_knows_whether_its_uri_was_shortened_to_be_shown(see, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (open_to_all,) = see(str(tmp_path / "a.png"))
    (carried,) = see("data:image/png;base64," + base64.b64encode(encoded(picture())).decode())
    assert (open_to_all.has_complete_uri, carried.has_complete_uri) == (True, False)
