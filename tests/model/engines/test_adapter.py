"""A LoRA adapter that is merged at load gives the weights that PEFT's own merge gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.model import hf_models
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.model_loader import build_model, load_model
from pipeline.model.engines.torch.shard import TensorParallel
from pipeline.model.engines.vllm.arguments import build_adapter_arguments, refuse_vision_adapter
from pipeline.model.family_loader import load_architecture, load_config
from pipeline.registry import FAMILIES

pytestmark = pytest.mark.process
MODEL_TYPES = [name for name in FAMILIES if name != "generic"]
DIVISIBLE = [name for name in MODEL_TYPES if not load_architecture(name).has_linear_attention]
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "qkv", "gate_proj", "up_proj", "down_proj", "in_proj_qkv", "out_proj"]


def write_adapter(checkpoint: Path, folder: Path, **settings: object) -> torch.nn.Module:
    """Save a random adapter, and return the model that PEFT merges it into."""
    hf_models.import_transformers()  # before peft, which would import it with torchvision
    import peft  # three seconds, which other tests need not wait for

    model = hf_models.get_model_class(load_config(checkpoint)["model_type"]).from_pretrained(checkpoint)
    defaults = {"r": 4, "lora_alpha": 12, "target_modules": LAYERS, "init_lora_weights": False}
    torch.manual_seed(1)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**{**defaults, **settings}))
    wrapped.save_pretrained(folder)
    change_config(folder, init_lora_weights=True)  # as after training; False starts with weights that change something
    return wrapped.merge_and_unload()


def change_config(folder: Path, **keys: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.fixture(scope="module", params=MODEL_TYPES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("base") / "model", request.param)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and an adapter of it."""
    folder = tmp_path_factory.mktemp("small")
    write_random_checkpoint(folder / "model", "qwen2_5_vl")
    write_adapter(folder / "model", folder / "adapter")
    return folder / "model", folder / "adapter"


PATTERNS = {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.k_proj": 3}}


@pytest.mark.parametrize(
    ("checkpoint", "settings"),
    [*((name, {}) for name in MODEL_TYPES), ("qwen2_5_vl", PATTERNS), ("qwen3_vl_moe", PATTERNS)],
    indirect=["checkpoint"],
)
def test_the_merged_weights_are_those_of_peft(checkpoint, tmp_path, settings):
    merged = dict(write_adapter(checkpoint, tmp_path / "adapter", **settings).named_parameters())
    config = load_config(checkpoint)
    ours = dict(build_model(checkpoint, config, adapter=tmp_path / "adapter").named_parameters())
    plain = dict(build_model(checkpoint, config).named_parameters())
    assert ours.keys() == merged.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, merged[name].detach(), rtol=1e-5, atol=1e-6)
    changed = [name for name, weight in ours.items() if not torch.equal(weight, plain[name])]
    assert any(name.startswith("model.visual") for name in changed)
    assert any(
        name.endswith(("layers.2.self_attn.o_proj.weight", "layers.2.linear_attn.out_proj.weight")) for name in changed
    )


@pytest.mark.parametrize(
    ("checkpoint", "size", "quantize"),
    [*((name, 2, None) for name in DIVISIBLE), ("qwen2_5_vl", 1, "int4"), ("qwen3_vl_moe", 1, "int4")],
    indirect=["checkpoint"],
)
def test_ranks_hold_their_shares_of_the_merged_weights(checkpoint, tmp_path, size, quantize):
    write_adapter(checkpoint, tmp_path / "adapter").save_pretrained(tmp_path / "merged")
    for rank in range(size):
        options = {"tp": TensorParallel(rank, size), "quantize": quantize}
        merged = load_model(tmp_path / "merged", load_config(checkpoint), **options)
        ours = load_model(checkpoint, adapter=tmp_path / "adapter", **options)
        expected = merged.language_model.state_dict()
        for name, tensor in ours.language_model.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(tensor, expected[name], rtol=2e-3 if quantize else 1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "uses use_dora, which is not supported; merge it with PEFT's merge_and_unload"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"bias": "all"}, "uses bias"),
        ({"init_lora_weights": "pissa"}, "uses init_lora_weights"),
        ({"peft_type": "LOHA"}, "is an adapter of type LOHA, not LORA"),
    ],
)
def test_an_adapter_of_another_kind_is_refused_by_its_key(small, tmp_path, settings, message):
    model, adapter = small
    for path in adapter.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change_config(tmp_path, **settings)
    with pytest.raises(JobError, match=rf"^model\.adapter: .*{message}"):
        load_model(model, adapter=tmp_path)


def test_check_refuses_an_adapter_that_cannot_be_merged(small, workspace, capsys, tmp_path):
    model, adapter = small
    (tmp_path / "dora").mkdir()
    for path in adapter.iterdir():
        (tmp_path / "dora" / path.name).write_bytes(path.read_bytes())
    change_config(tmp_path / "dora", use_dora=True)
    workspace.write_manifest(workspace.draw_images(1))
    job = {"model": {"weights": str(model), "adapter": str(tmp_path / "dora")}, "engine": {"kind": "torch"}}
    assert main(["check", str(workspace.write_job_file(**job))]) == 2
    assert "uses use_dora, which is not supported" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_refused(small, tmp_path):
    model, adapter = small
    wide = write_random_checkpoint(tmp_path / "wide", "qwen2_5_vl", text_config={"intermediate_size": 192})
    with pytest.raises(JobError, match=r"is made for another model: .* is \(64, 192\) here and \(64, 128\) there"):
        load_model(wide, adapter=adapter)
    short = write_random_checkpoint(tmp_path / "short", "qwen2_5_vl", text_config={"num_hidden_layers": 2})
    with pytest.raises(JobError, match=r"changes .*layers\.2\..*, which is no dense weight of this checkpoint"):
        load_model(short, adapter=adapter)
    write_adapter(model, tmp_path / "embeddings", target_modules=["embed_tokens"])
    with pytest.raises(JobError, match=r"embed_tokens.*, which is not of a linear layer"):
        load_model(model, adapter=tmp_path / "embeddings")
    (tmp_path / "embeddings/adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(JobError, match="cannot be read"):
        load_model(model, adapter=tmp_path / "embeddings")


def test_a_run_with_an_adapter_is_another_question_and_answers_otherwise(small, workspace, monkeypatch, capsys):
    model, adapter = small
    monkeypatch.chdir(adapter.parent)
    workspace.write_manifest(workspace.draw_images(2))
    job = {"engine": {"kind": "torch", "slots": 2}, "answer": {"max_new_tokens": 8}}
    path = str(workspace.write_job_file(model={"weights": str(model)}, **job))
    assert main(["run", path, "--local"]) == 0
    plain = workspace.read_answers()
    change = ["--set", "model.adapter=adapter"]
    assert main(["run", path, "--local", *change]) == 2
    assert "model.adapter: was the default, is " in capsys.readouterr().err
    assert main(["run", path, "--local", *change, "--on-change", "add"]) == 0
    rows = workspace.read_answers()
    assert len({row["fingerprint"] for row in rows}) == 2
    assert len(rows) == 4
    assert not {row["text"] for row in plain} & {row["text"] for row in rows if row not in plain}
    change_config(adapter, lora_alpha=13)
    assert main(["run", path, "--local", *change]) == 2
    change_config(adapter, lora_alpha=12)


def find_problems(model: Path, adapter: Path, engine: dict[str, str]) -> list[str]:
    sections = {"name": "t", "input": {"manifest": "m"}, "output": {"path": "out"}, "engine": engine}
    job = Job.model_validate({**sections, "model": {"weights": str(model), "adapter": str(adapter)}})
    return get_engine_type(job).find_problems(job)


def test_a_server_loads_its_adapters_itself(small):
    (problem,) = find_problems(*small, {"kind": "http", "url": "http://localhost/v1"})
    assert problem == "model.adapter: the server loads it; leave it out and give its name there as engine.model"


def test_vllm_takes_an_adapter_that_it_can_apply(small, tmp_path):
    model, adapter = small
    assert find_problems(model, adapter, {"kind": "vllm"}) == []
    assert build_adapter_arguments(adapter) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 8}
    with pytest.raises(JobError, match=r"model\.adapter: .*visual.*language model; merge it"):
        refuse_vision_adapter(adapter, load_architecture("qwen2_5_vl"))
    shutil.copytree(adapter, tmp_path / "large")
    change_config(tmp_path / "large", rank_pattern={"q_proj": 600})
    assert find_problems(model, tmp_path / "large", {"kind": "vllm"}) == [
        "model.adapter: vLLM applies ranks up to 512, not 600"
    ]
    change_config(tmp_path / "large", use_dora=True)
    assert "uses use_dora" in find_problems(model, tmp_path / "large", {"kind": "vllm"})[0]


def test_an_adapter_that_is_not_there_is_said_by_its_key(workspace, capsys):
    workspace.write_manifest(workspace.draw_images(1))
    path = str(workspace.write_job_file())
    assert main(["check", path, "--set", "model.adapter=./none"]) == 2
    assert "model.adapter: ./none is not a folder" in capsys.readouterr().err
