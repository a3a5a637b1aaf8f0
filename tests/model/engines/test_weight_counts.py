"""The sizes of models that are counted from a config equal those of transformers' own classes."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.builtin.random_checkpoint import MODEL_CONFIGS
from pipeline.model import hf_models
from pipeline.model.engines.torch import model_size
from pipeline.model.engines.torch.model_size import measure_model
from tests.model.engines.fake_models import REAL

LAYERS = {"num_hidden_layers": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "float32": {"dtype": "float32"},
    "old": {"torch_dtype": "float16"},
    "int4": {"quantization_config": {"quant_method": "awq", "bits": 4}},
}
TEXT_VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3_vl": {"attention_bias": True},
    "qwen3_vl_moe": {"attention_bias": True, "mlp_only_layers": [1], "decoder_sparse_step": 2},
    "qwen3_5": {"attention_bias": True, "linear_conv_kernel_dim": 3, "full_attention_interval": 2},
    "qwen3_5_moe": {"layer_types": ["full_attention", "linear_attention"] * 2 + ["linear_attention"]},
}
VISION_VARIANTS: dict[str, dict[str, Any]] = {
    "qwen3_5": {"deepstack_visual_indexes": [0, 1]},
    "qwen2_vl": {"in_channels": 1, "spatial_merge_size": 3, "temporal_patch_size": 1},
}


def build_config(model_type: str, *, real: bool = False, **top: Any) -> dict[str, Any]:
    """A config as a checkpoint has it."""
    text, vision = REAL[model_type] if real else MODEL_CONFIGS[model_type]
    sizes = {"vocab_size": 320} if not real else {}
    config = hf_models.get_config_class(model_type)(text_config=sizes | text, vision_config=dict(vision)).to_dict()
    return {**config, "model_type": model_type, **top}


def assert_equal_sizes(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """The model's own classes must not be asked for the first of the two."""
    built = model_size.count_on_meta_device
    with monkeypatch.context() as patch:
        patch.setattr(model_size, "count_on_meta_device", None)
        counted = measure_model(config, **options)
    with monkeypatch.context() as patch:
        patch.setattr(model_size, "count_weights", lambda config, dtype: None)
        patch.setattr(model_size, "count_on_meta_device", built)
        assert counted == measure_model(config, **options)


@pytest.mark.parametrize("model_type", REAL)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_count_equals_the_model_in_all_its_figures(model_type, variant, monkeypatch):
    assert_equal_sizes(build_config(model_type, **VARIANTS[variant]), monkeypatch)


@pytest.mark.parametrize("model_type", [*REAL, "cosmos3_omni"])
def test_a_count_follows_the_layers_of_the_config(model_type, monkeypatch):
    config = build_config(model_type)
    config["text_config"].pop("layer_types", None)
    config["text_config"] |= LAYERS | TEXT_VARIANTS.get(model_type, {})
    config["vision_config"] |= VISION_VARIANTS.get(model_type, {})
    assert_equal_sizes(config, monkeypatch, dtype="bfloat16")


@pytest.mark.parametrize("model_type", REAL)
def test_published_models_are_counted(model_type, monkeypatch):
    assert_equal_sizes(build_config(model_type, real=True), monkeypatch, dtype="bfloat16", quantize="int4")


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_the_first_configs_have_the_keys_of_the_text_model_at_the_top(model_type, monkeypatch):
    config = build_config(model_type)
    flat = config.pop("text_config") | config | {"model_type": model_type, "tie_word_embeddings": True}
    assert_equal_sizes(flat, monkeypatch)


@pytest.mark.parametrize(
    ("section", "key"),
    [("vision_config", "deepstack_visual_indexes"), ("vision_config", "patch_size"), ("text_config", "head_dim")],
)
def test_a_config_without_a_needed_key_is_left_to_the_model(section, key, monkeypatch):
    config = build_config("qwen3_vl")
    del config[section][key]
    monkeypatch.setattr(model_size, "count_weights", lambda config, dtype: None)
    expected = measure_model(config)
    monkeypatch.undo()
    assert measure_model(config) == expected
