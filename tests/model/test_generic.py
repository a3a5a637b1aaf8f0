"""The generic family: sizes by the job's budgets alone, and prompts whose tokens are only estimated."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import PromptError
from pipeline.model.families.base import CheckpointFiles
from pipeline.model.families.generic import MAX_IMAGE_PIXELS, MAX_VIDEO_PIXELS, GenericFamily
from pipeline.model.family_loader import build_byte_tokenizer
from pipeline.types import Clip, MediaOptions, Reply, Request, Turn


@pytest.fixture(scope="module")
def family() -> GenericFamily:
    return GenericFamily(CheckpointFiles({}), build_byte_tokenizer())


@pytest.mark.parametrize(
    ("source", "options", "size"),
    [
        ((641, 479), MediaOptions(), (641, 479)),
        ((640, 480), MediaOptions(max_pixels=640 * 480), (640, 480)),
        ((2000, 1000), MediaOptions(max_pixels=20_000), (200, 100)),
        ((1999, 1001), MediaOptions(max_pixels=20_000), (199, 100)),
        ((40, 30), MediaOptions(min_pixels=4800), (80, 60)),
        ((4000, 21), MediaOptions(max_pixels=100), (138, 1)),
        ((640, 480), MediaOptions(resized_width=99, resized_height=7), (99, 7)),
    ],
)
def test_a_picture_keeps_its_shape_and_its_size_within_the_budget(family, source, options, size):
    assert family.fit_image_size(source, options) == size


def test_a_picture_is_never_larger_than_the_budget(family):
    for width in range(900, 1400, 7):
        assert np.prod(family.fit_image_size((width, 1111), MediaOptions())) <= MAX_IMAGE_PIXELS
    with pytest.raises(PromptError, match="over 200 times the other"):
        family.fit_image_size((4100, 20), MediaOptions())


def test_the_frames_of_a_video_share_its_budget(family):
    assert family.fit_video_size((640, 360), 10, MediaOptions()) == (640, 360)
    width, height = family.fit_video_size((1280, 720), 768, MediaOptions())
    assert 0.95 * MAX_VIDEO_PIXELS < 768 * width * height <= MAX_VIDEO_PIXELS
    assert family.fit_video_size((1280, 720), 10, MediaOptions(total_pixels=10 * 160 * 90)) == (160, 90)
    assert family.fit_video_size((160, 90), 10, MediaOptions(min_pixels=320 * 180, total_pixels=9)) == (320, 180)


def test_tokens_are_estimated_and_only_a_server_s_own_count_is_kept(family):
    clip = Clip("image", np.zeros((1, 3, 56, 28), np.uint8), (56, 28))
    encoded = family.encode_turns([Turn("user", (clip, "four letters, 16"))])
    assert (encoded.input_ids.size, encoded.vision_tokens, encoded.estimated_tokens) == (0, 2, 6)
    request = Request("a", (), encoded.input_ids, encoded.positions, 2, estimated_tokens=6)
    assert request.count_tokens(Reply("a", "yes", output_tokens=1, prompt_tokens=300)) == (0, 300, 1)
    assert request.count_tokens(Reply("a", "yes")) == (0, 6, 0)


def test_thinking_is_switched_as_most_templates_know_it():
    assert GenericFamily(CheckpointFiles({}), build_byte_tokenizer()).template_options == {}
    off = GenericFamily(CheckpointFiles({}), build_byte_tokenizer(), thinking=False)
    assert (off.thinking, off.template_options) == (False, {"enable_thinking": False})
    assert GenericFamily(CheckpointFiles({}), build_byte_tokenizer(), thinking=True).thinking
