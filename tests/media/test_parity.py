"""Pixels and sizes equal those of transformers' processors, number for number."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.media.kinds.base import Probe
from pipeline.media.resize import resize
from pipeline.media.sample import merge_image_options, merge_video_options, select_span
from pipeline.model import family_loader
from pipeline.types import MediaOptions
from tests.media.oracle import digest, noise
from tests.media.sample_media import build_media_job, encode_image

pytestmark = pytest.mark.process

torch.set_num_threads(1)
PICTURE_FAMILIES = ("qwen2_vl", "qwen3_vl")
CLIP_FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    return {
        name: family_loader.load_family(write_random_checkpoint(tmp_path_factory.mktemp(name) / "model", name))
        for name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    }


def patchified(pixels, family):
    """uint8 [frames, 3, height, width] -> normalised patches and their grid, as the models take them."""
    pixels = torch.from_numpy(pixels)
    if len(pixels) % 2:
        pixels = torch.cat([pixels, pixels[-1:]])
    count, colours, height, width = pixels.shape
    side, merge = family.patch_size, family.merge_size
    grid = (count // 2, height // side, width // side)
    view = pixels.view(grid[0], 2, colours, grid[1] // merge, merge, side, grid[2] // merge, merge, side)
    flat = view.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, colours, 2 * side * side).float()
    mean, std = (torch.tensor(values)[None, :, None] * 255 for values in (family.mean, family.std))
    return ((flat - mean) / std).flatten(1).numpy(), grid


def build_picture_cases(name, family, count):
    chance, least = random.Random(name), 4 * family.factor**2
    return [
        {
            "family": name,
            "seed": seed,
            "size": [chance.randint(3, 300), chance.randint(3, 300)],
            "budget": chance.choice([[least, 16 * least], [9 * least, 64 * least]]),
        }
        for seed in range(count)
    ]


def build_clip_cases(name, family, count):
    chance = random.Random(name)
    ask = merge_video_options(build_media_job(video={"max_frames": 768}).media, MediaOptions())
    cases = []
    for seed in range(count):
        size = (chance.randint(20, 90), chance.randint(20, 90))
        frames, fps = chance.randint(2, 40), chance.choice([24.0, 25.0, 29.97, 30.0, 15.0])
        probe = Probe("video", (size,), frames, fps)
        indices = family.select_frames(select_span(probe, ask), probe.fps, ask)
        target = family.fit_video_size(size, len(indices), ask)
        case = {"family": name, "seed": seed, "size": size, "count": frames, "fps": fps}
        cases.append(case | {"indices": indices, "target": target})
    return cases


@pytest.fixture(
    scope="module", params=[pytest.param(60, marks=pytest.mark.quick), pytest.param(300, marks=pytest.mark.slow)]
)
def references(request, families, tmp_path_factory):
    """Cases by medium and family, each with what the reference makes of it. One process answers all: it starts slowly.

    Qwen2.5-VL prepares pictures as Qwen2-VL does, and Qwen2-VL videos as Qwen2.5-VL does.
    """
    groups = {("picture", name): build_picture_cases(name, families[name], request.param) for name in PICTURE_FAMILIES}
    groups |= {("clip", name): build_clip_cases(name, families[name], request.param) for name in CLIP_FAMILIES}
    folder = tmp_path_factory.mktemp("oracle")
    (folder / "cases.json").write_text(json.dumps([case for cases in groups.values() for case in cases]))
    script = Path(__file__).with_name("oracle.py")
    command = [sys.executable, str(script), str(folder / "cases.json"), str(folder / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = iter(json.loads((folder / "answers.json").read_text()))
    return {key: [(case, next(answers)) for case in cases] for key, cases in groups.items()}


@pytest.mark.parametrize("name", PICTURE_FAMILIES)
def test_pictures_equal_those_of_the_reference_processor(name, families, references, load):
    family, media = families[name], build_media_job().media
    clip_decoder, plain = load.clip_decoder, load.clip_decoder.frame_rules
    clip_decoder.frame_rules = family
    try:
        for case, (values, grid) in references["picture", name]:
            asked = MediaOptions(min_pixels=case["budget"][0], max_pixels=case["budget"][1])
            data = encode_image(noise(case["seed"], *case["size"])[0], compress_level=0)
            (clip,) = load(data, min_pixels=asked.min_pixels, max_pixels=asked.max_pixels)
            assert clip.size == family.fit_image_size(tuple(case["size"]), merge_image_options(media, asked)), case
            ours, ours_grid = patchified(np.repeat(clip.pixels, 2, axis=0), family)
            assert digest(ours, ours_grid) == [values, grid], case
            assert family.count_vision_tokens(clip.size) == np.prod(grid) // family.merge_size**2
    finally:
        clip_decoder.frame_rules = plain


@pytest.mark.parametrize("name", CLIP_FAMILIES)
def test_clips_equal_those_of_the_reference_processor(name, families, references):
    family = families[name]
    for case, (values, grid, found) in references["clip", name]:
        assert case["indices"] == found, case
        pixels = resize(noise(case["seed"], *case["size"], case["count"])[case["indices"]], case["target"])
        assert digest(*patchified(pixels, family)) == [values, grid], case
        assert family.count_vision_tokens(case["target"], len(found)) == np.prod(grid) // family.merge_size**2
