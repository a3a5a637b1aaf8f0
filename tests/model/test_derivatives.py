"""Known checkpoints of other makers: their settings are keys of a job, and REFERENCE.md has the same table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.__main__ import main
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.job.keys import find_fields
from pipeline.model.derivatives import DERIVATIVES
from pipeline.model.engines.torch.model_loader import build_model
from pipeline.model.family_loader import load_config
from pipeline.registry import FAMILIES

REFERENCE = (Path(__file__).parents[2] / "REFERENCE.md").read_text(encoding="utf-8")
TOWER_PARTS = ("blocks", "merger", "patch_embed", "pos_embed", "deepstack_merger_list")


@pytest.mark.parametrize("derivative", DERIVATIVES, ids=lambda derivative: derivative.name)
def test_the_table_names_families_and_keys_that_exist_and_is_that_of_the_readme(derivative):
    assert derivative.model_type in FAMILIES
    assert not derivative.settings or derivative.source
    for key in derivative.settings:
        *section, name = key.split(".")
        assert name in find_fields(tuple(section)), key
    (line,) = [line for line in REFERENCE.splitlines() if line.startswith(f"| {derivative.name} |")]
    settings = re.findall(r"`([a-z_.]+): ([^`]+)`", line)
    assert f"`{derivative.model_type}`" in line
    assert dict(settings) == {key: str(value) for key, value in derivative.settings.items()}


@pytest.mark.process
def test_check_hints_at_the_settings_of_a_known_checkpoint(workspace, capsys):
    folder = write_random_checkpoint(workspace.folder / "RolmOCR", "qwen2_5_vl")
    workspace.write_manifest(workspace.draw_images(1))
    path = str(workspace.write_job_file(model={"weights": str(folder)}))
    hint = (
        "model.weights: RolmOCR: ask to return the plain text representation of the document as if reading it naturally"
    )
    assert main(["check", path]) == 0
    assert f"{hint}; others use answer.max_new_tokens=8192 (uv-scripts" in capsys.readouterr().out
    assert main(["check", path, "--set", "answer.max_new_tokens=8192"]) == 0
    assert f"{hint} (uv-scripts" in capsys.readouterr().out
    assert main(["check", path, "--set", "model.weights=builtin:tiny"]) == 0
    assert "others use" not in capsys.readouterr().out


def to_unified_name(name: str) -> str:
    """The name that Cosmos3's unified checkpoints have for a weight of Qwen3-VL."""
    name = name.removeprefix("model.").removeprefix("language_model.").removeprefix("visual.")
    for part, other in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("o_proj", "to_out")):
        name = name.replace(f"self_attn.{part}.", f"self_attn.{other}.")
    return name.replace("self_attn.q_norm.", "self_attn.norm_q.").replace("self_attn.k_norm.", "self_attn.norm_k.")


@pytest.mark.process
def test_the_generator_in_a_cosmos3_checkpoint_is_not_read(tmp_path):
    folder = write_random_checkpoint(tmp_path / "model", "cosmos3_omni")
    expected = dict(build_model(folder, load_config(folder)).named_parameters())
    tensors = {to_unified_name(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    assert any(name.startswith(TOWER_PARTS) for name in tensors)
    generator = ["layers.0.self_attn.add_q_proj.weight", "layers.0.self_attn.norm_added_q.weight", "proj_in.weight"]
    generator += ["layers.0.mlp_moe_gen.up_proj.weight", "audio_modality_embed", "layers.0.self_attn.to_add_out.weight"]
    save_file(tensors | {name: torch.zeros(3) for name in generator}, folder / "model.safetensors")
    config = load_config(folder)
    config["vision_config"]["model_type"] = "cosmos3_omni"  # as older ones have it
    (folder / "config.json").write_text(json.dumps(config))
    model = dict(build_model(folder, load_config(folder)).named_parameters())
    assert model.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in model.items())
