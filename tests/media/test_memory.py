"""The decoder's peak memory for the largest files, beyond what it holds before the first."""

from __future__ import annotations

import sys

import numpy as np
import PIL.Image
import pytest

from tests.media.sample_media import (
    build_media_job,
    draw_pixels,
    encode_image,
    read_memory_peak,
    repeat_video,
    write_video,
)

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def share_decoders():
    """Each test starts its own process, which is the subject."""


def cost(load, source, **ask) -> tuple[int, list]:
    load(encode_image(draw_pixels(56, 56)))
    before = read_memory_peak(load.clip_decoder.decoder.process.pid)
    clips = load(source, **ask)
    return read_memory_peak(load.clip_decoder.decoder.process.pid) - before, clips


def test_large_picture_takes_four_bytes_per_pixel_and_no_copy(open_loader):
    """Pillow holds four. A full copy for numpy would add three, and one for torch three more."""
    rough = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8))
    data = encode_image(rough.resize((9000, 6000), PIL.Image.Resampling.BILINEAR), "JPEG", quality=50)
    peak, (clip,) = cost(open_loader(build_media_job()), data)
    assert clip.source_size == (9000, 6000)
    assert peak < 4.5 * 9000 * 6000 + 64 * MIB


def test_two_hour_video_takes_no_more_memory_than_its_clip(open_loader, tmp_path):
    short = write_video(tmp_path / "short.mp4", 60, size=(640, 360))
    path = repeat_video(short, 1200, tmp_path / "long.mp4")  # 2 h at 10 frames a second
    peak, (clip,) = cost(open_loader(build_media_job(limits={"deadline_s": 60})), str(path), frames=8)
    assert clip.times[-1] == pytest.approx(7199.9)
    assert peak < clip.pixels.nbytes + 64 * MIB
