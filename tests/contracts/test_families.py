"""The contract of every family in the registry, and a toy family that is added through the registry alone.

A new family is tested as soon as it is registered and `random_checkpoint.MODEL_CONFIGS` has tiny sizes for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.__main__ import main
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import PromptError
from pipeline.model import hf_models
from pipeline.model.engines.torch.model_loader import load_model
from pipeline.model.engines.torch.shard import TensorParallel
from pipeline.model.engines.torch.vision_encoder import ClipSlice, VisionConfig, encode_slices
from pipeline.model.families.base import CheckpointFiles, Family
from pipeline.model.families.qwen2_5_vl import Qwen25VL
from pipeline.model.family_loader import (
    build_byte_tokenizer,
    load_config,
    load_family,
    load_family_class,
)
from pipeline.registry import FAMILIES
from pipeline.types import Clip, CoordinateSystem, MediaOptions, Turn
from tests.workspace import JobWorkspace

pytestmark = pytest.mark.process

KNOWN_MODELS = [name for name in FAMILIES if load_family_class(name).knows_model]
SOURCES = [(640, 480), (33, 400), (3000, 200), (1920, 1080)]


class ToyVL(Qwen25VL):
    """Another patch size and another pixel budget."""

    patch_size = 16
    max_pixels = 6 * 32 * 32


@pytest.fixture(scope="module", params=KNOWN_MODELS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("families") / "model", request.param)


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return load_family(checkpoint)


@pytest.fixture(scope="module", params=FAMILIES)
def any_family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Also the families that read nothing of a checkpoint."""
    if request.param in KNOWN_MODELS:
        return load_family(write_random_checkpoint(tmp_path_factory.mktemp("any") / "model", request.param))
    return load_family_class(request.param)(CheckpointFiles({}), build_byte_tokenizer())


def make_clip(family: Family, kind: str, columns: int = 3, rows: int = 2) -> Clip:
    """A clip of random pixels, sized in tokens."""
    side, frames = family.patch_size * family.merge_size, 1 if kind == "image" else 5
    shape = (frames, 3, rows * side, columns * side)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times = tuple(frame / 2 for frame in range(frames)) if kind == "video" else ()
    return Clip(kind, pixels, (columns * side, rows * side), times=times, fps=2.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", SOURCES)
def test_images_and_videos_are_resized_to_whole_tokens(family: Family, source: tuple[int, int]) -> None:
    token_side = family.patch_size * family.merge_size
    for size in (family.fit_image_size(source, MediaOptions()), family.fit_video_size(source, 8, MediaOptions())):
        assert all(side > 0 and side % token_side == 0 for side in size)


def test_fewer_pixels_are_fewer_tokens(any_family: Family) -> None:
    budget = 40 * (any_family.patch_size * any_family.merge_size) ** 2
    size = any_family.fit_image_size((1920, 1080), MediaOptions(max_pixels=budget))
    assert any_family.count_vision_tokens(size) <= 40


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_prompt_has_tokens_for_its_media_and_its_text(any_family: Family, kind: str) -> None:
    clip = make_clip(any_family, kind)
    encoded, text = (
        any_family.encode_turns([Turn("user", parts)]) for parts in ((clip, "what is it?"), ("what is it?",))
    )
    length, text_length = (len(prompt.input_ids) or prompt.estimated_tokens for prompt in (encoded, text))
    assert 0 < encoded.vision_tokens < length
    assert length - text_length == any_family.count_media_tokens(clip.size, clip.times)


def test_selected_frames_are_in_order_and_in_range(any_family: Family) -> None:
    frames = any_family.select_frames(range(10, 200), 25.0, MediaOptions(fps=2.0))
    assert frames == sorted(frames)
    assert 10 <= frames[0] <= frames[-1] < 200


@pytest.mark.parametrize("kind", ["image", "video"])
def test_counted_tokens_are_the_tokens_in_the_prompt(family: Family, kind: str) -> None:
    clip = make_clip(family, kind)
    encoded = family.encode_turns([Turn("user", ("\n", clip))])
    without_clip = family.encode_turns([Turn("user", ("\n",))])
    pads = np.isin(encoded.input_ids, (family.image_token, family.video_token)).sum()
    assert encoded.vision_tokens == pads == family.count_vision_tokens(clip.size, len(clip.pixels))
    assert len(encoded.input_ids) - len(without_clip.input_ids) == family.count_media_tokens(clip.size, clip.times)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_every_token_has_a_position_on_each_axis(family: Family, kind: str) -> None:
    encoded = family.encode_turns([Turn("user", (make_clip(family, kind), "what?"))])
    assert encoded.positions.shape == (family.architecture.position_axes, len(encoded.input_ids))
    assert encoded.positions.min() == 0


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_prompt_with_placeholders_has_one_pad_for_each_clip(family: Family, kind: str) -> None:
    clip = make_clip(family, kind)
    token_ids = family.encode_placeholders([Turn("user", (clip, "and", clip))])
    assert sum(token in (family.image_token, family.video_token) for token in token_ids) == 2


def test_a_prompt_that_is_too_long_is_refused(family: Family) -> None:
    encoded = family.encode_turns([Turn("user", ("Hi",))])
    family.check_length(encoded, family.context_length - len(encoded.input_ids))
    with pytest.raises(PromptError):
        family.check_length(encoded, family.context_length)


def test_the_conventions_of_answers_are_declared(any_family: Family) -> None:
    """A family that does not know its model leaves coordinates to the job."""
    assert (any_family.coordinates in get_args(CoordinateSystem)) == any_family.knows_model
    assert any_family.time_origin in ("clip", "source")


def test_the_loader_finds_tower_language_model_and_head(checkpoint: Path, family: Family) -> None:
    loaded = load_model(checkpoint)
    parts = (loaded.vision_tower.module, loaded.language_model, loaded.lm_head)
    assert not any(weight.is_meta for part in parts for weight in part.parameters())
    model_class = hf_models.get_model_class(load_config(checkpoint)["model_type"])
    names = dict(model_class.from_pretrained(checkpoint).named_parameters())
    vision_weights = [name for name in names if family.architecture.is_vision_weight(name)]
    assert len(vision_weights) == len(list(loaded.vision_tower.module.parameters()))
    assert sum(len(list(part.parameters())) for part in parts) == len(names)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_the_tower_gives_one_feature_for_each_vision_token(checkpoint: Path, family: Family, kind: str) -> None:
    clip, vision_config = make_clip(family, kind), VisionConfig.from_family(family)
    clip_slice = ClipSlice("a", clip.pixels, vision_config.compute_grid(clip.pixels.shape))
    tower = load_model(checkpoint).vision_tower
    (features,) = encode_slices(tower, [clip_slice], vision_config, has_flash=False)
    token_count = family.count_vision_tokens(clip.size, len(clip.pixels))
    assert features.shape == (tower.feature_layers, token_count, tower.feature_width)
    assert torch.isfinite(features).all()


def test_two_ranks_share_the_language_model(checkpoint: Path) -> None:
    def count_weights(tp: TensorParallel) -> int:
        return sum(weight.numel() for weight in load_model(checkpoint, tp=tp).language_model.parameters())

    shares = [count_weights(TensorParallel(rank, 2)) for rank in range(2)]
    assert max(shares) < 0.6 * count_weights(TensorParallel())


@pytest.fixture
def toy_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobWorkspace:
    """A job over a checkpoint of the toy family, which only the registry knows."""
    monkeypatch.setitem(FAMILIES, "toy_vl", f"{__name__}:ToyVL")
    model = write_random_checkpoint(tmp_path / "model", "qwen2_5_vl", vision_config={"patch_size": 16})
    (model / "preprocessor_config.json").unlink()  # so that the numbers of the class count
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "toy_vl"}))
    workspace = JobWorkspace(tmp_path)
    (tmp_path / "pics").mkdir()
    for number in range(3):
        Image.new("RGB", (640, 480), (number * 80, 90, 160)).save(tmp_path / f"pics/{number}.png")
    workspace.write_manifest([{"id": f"r{n}", "image": f"pics/{n}.png", "hint": "h"} for n in range(3)])
    return workspace


def write_toy_job(workspace: JobWorkspace) -> str:
    sections: dict[str, Any] = {
        "model": {"weights": str(workspace.folder / "model")},
        "engine": {"kind": "torch", "slots": 4},
        "answer": {"max_new_tokens": 8},
        "workers": {"generate": {"gpus": 0}},
    }
    return str(workspace.write_job_file(**sections))


def test_a_toy_family_needs_one_class_and_one_line(toy_workspace: JobWorkspace, capsys: Any) -> None:
    job_file = write_toy_job(toy_workspace)
    assert main(["check", job_file]) == 0
    assert main(["plan", job_file]) == 0
    assert "vision tokens" in capsys.readouterr().out
    assert main(["run", job_file, "--local"]) == 0
    rows = toy_workspace.read_answers()
    assert sorted(row["id"] for row in rows) == ["r0", "r1", "r2"]
    assert load_family_class("toy_vl") is ToyVL
    family = load_family(toy_workspace.folder / "model")
    assert family.fit_image_size((640, 480), MediaOptions()) == (64, 64)
    assert [row["tokens"]["vision"] for row in rows] == [4, 4, 4]
