"""What the largest files cost in memory: the decoder's peak, beyond what it holds before it sees any."""

from __future__ import annotations

import sys

import numpy as np
import PIL.Image
import pytest

from tests.media.sample_media import a_job, encoded, film, memory_peak, picture, repeated

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
MIB = 1 << 20


def cost(look, source, **ask) -> tuple[int, list]:
    look(encoded(picture(56, 56)))
    before = memory_peak(look.eyes.decoder.process.pid)
    clips = look(source, **ask)
    return memory_peak(look.eyes.decoder.process.pid) - before, clips


def test_a_large_picture_costs_four_bytes_a_pixel_and_no_copy(see_with):
    """Pillow's own four; a whole copy for numpy would be three more, and one for torch three again."""
    rough = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8))
    data = encoded(rough.resize((9000, 6000), PIL.Image.Resampling.BILINEAR), "JPEG", quality=50)
    peak, (clip,) = cost(see_with(a_job()), data)
    assert clip.source_size == (9000, 6000)
    assert peak < 4.5 * 9000 * 6000 + 64 * MIB


def test_a_video_of_two_hours_costs_no_more_than_its_clip(see_with, tmp_path):
    short = film(tmp_path / "short.mp4", 60, size=(640, 360))
    path = repeated(short, 1200, tmp_path / "long.mp4")  # 2 h at 10 frames a second
    peak, (clip,) = cost(see_with(a_job(limits={"deadline_s": 60})), str(path), frames=8)
    assert clip.times[-1] == pytest.approx(7199.9)
    assert peak < clip.pixels.nbytes + 64 * MIB
