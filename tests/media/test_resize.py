"""Resizing rows, stripes and planes gives the same bits."""

from __future__ import annotations

import random

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline.media.kinds import image
from pipeline.media.resize import resize, resize_stripes

torch.set_num_threads(1)


def plane_by_plane(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
    if pixels.shape[:2] == size[::-1]:
        return planes.numpy()
    return torch.nn.functional.interpolate(planes, size[::-1], mode="bicubic", antialias=True).numpy()


def test_rows_stripes_and_planes_resize_to_the_same_bits():
    chance = random.Random(0)
    for seed in range(200):
        width, height, rows = chance.randint(1, 300), chance.randint(1, 300), chance.randint(1, 90)
        size = (chance.choice([width, 28 * chance.randint(1, 10)]), chance.choice([height, 28 * chance.randint(1, 10)]))
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        wanted = plane_by_plane(pixels, size)
        assert np.array_equal(resize(pixels[None], size), wanted)
        stripes = (pixels[top : top + rows] for top in range(0, height, rows))
        assert np.array_equal(resize_stripes(stripes, size), wanted)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_very_large_picture_is_resized_in_stripes(monkeypatch):
    monkeypatch.setattr(image, "STRIPE_ABOVE_PIXELS", 1000)
    monkeypatch.setattr(image, "STRIPE_PIXELS", 700)
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), np.uint8)
    assert np.array_equal(image.resize_image(PIL.Image.fromarray(pixels), (56, 84)), plane_by_plane(pixels, (56, 84)))
