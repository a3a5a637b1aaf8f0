"""The shares of all ranks make up the model, and only small weights are held twice."""

import json
import shutil
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.model import hf_models
from pipeline.model.engines.torch import memory, shard
from pipeline.model.engines.torch.model_loader import build_model, without_weights
from pipeline.model.engines.torch.shard import TensorParallel, WeightLayout
from pipeline.model.engines.torch.vision_encoder import ClipSlice, assign_slices
from pipeline.model.families.model_architecture import SHARD_RULES
from pipeline.model.family_loader import load_architecture, load_config
from tests.model import fp8_checkpoint
from tests.model.engines.conftest import FAMILIES, HYBRID_FAMILIES, QUANTIZABLE_SIZES
from tests.model.fp8_checkpoint import split_into_fp8

pytestmark = pytest.mark.process

REPLICATED_OWNERS = (
    "norm",
    "layernorm",
    "q_norm",
    "k_norm",
    "gate",
    "shared_expert_gate",
)  # owners of weights that every rank holds


def build_shares(folder, size, **options):
    return [build_model(folder, load_config(folder), tp=TensorParallel(rank, size), **options) for rank in range(size)]


def join_parts(name, parts, whole):
    """The weight that ranks hold parts of, and along which dimension."""
    dims = [
        dim for dim, (part, whole_size) in enumerate(zip(parts[0].shape, whole.shape, strict=True)) if part < whole_size
    ]
    if not dims:
        assert all(torch.equal(part, whole) for part in parts), name
        return None
    assert len(dims) == 1, name
    return torch.cat(parts, dims[0])


@pytest.mark.parametrize("lab", FAMILIES + HYBRID_FAMILIES, indirect=True)
@pytest.mark.parametrize("size", [2, 4])
def test_shares_make_up_the_model_and_only_small_weights_are_replicated(lab, size):
    model = build_model(lab.folder, load_config(lab.folder))
    if lab.family.architecture.has_linear_attention and size == 4:
        with pytest.raises(JobError, match=r"2 key heads of linear attention .* Possible: 1, 2$"):
            build_shares(lab.folder, size)
        return
    shares = [dict(share.named_parameters()) for share in build_shares(lab.folder, size)]
    replicated = set()
    for name, whole in model.named_parameters():
        made = join_parts(name, [share[name] for share in shares], whole)
        if made is None:
            replicated.add(name)
        elif name.split(".")[-2] in ("in_proj_qkv", "conv1d"):  # queries, keys and values of the same heads
            parts = [share[name].split([len(share[name]) // 4] * 2 + [len(share[name]) // 2]) for share in shares]
            assert torch.equal(torch.cat([torch.cat(kind) for kind in zip(*parts, strict=True)]), whole), name
        elif size == 4 and name.split(".")[-2] in ("k_proj", "v_proj"):  # two key heads for four ranks
            halves = whole.chunk(2)
            assert torch.equal(made, torch.cat([halves[0], halves[0], halves[1], halves[1]])), name
        else:
            assert torch.equal(made, whole), name
    text = {name for name in replicated if ".visual." not in name}
    assert {name.split(".")[-2].removeprefix("input_").removeprefix("post_attention_") for name in text} <= set(
        REPLICATED_OWNERS
    )
    divided = sum(param.numel() for name, param in model.named_parameters() if name not in replicated)
    held = sum(param.numel() for name, param in shares[0].items() if name not in replicated)
    assert held / divided < 1.1 / size


def test_a_rank_reads_only_the_bytes_that_it_holds(lab, monkeypatch):
    from pipeline.model.engines.torch.checkpoint import Checkpoint

    taken, read = [], Checkpoint.read_weight

    def count_numbers(self, name, *arguments, **named):
        weight = read(self, name, *arguments, **named)
        taken.append(weight.numel())
        return weight

    monkeypatch.setattr(Checkpoint, "read_weight", count_numbers)
    share = build_model(lab.folder, load_config(lab.folder), tp=TensorParallel(1, 2))
    assert sum(taken) == sum(param.numel() for param in share.parameters())


@pytest.mark.parametrize("size", [2, 3, 4])
def test_four_bit_shares_have_exactly_the_weights_of_the_whole(tmp_path, size):
    sizes = QUANTIZABLE_SIZES | (
        {"num_attention_heads": 6, "num_key_value_heads": 3, "vocab_size": 384} if size == 3 else {}
    )
    folder = write_random_checkpoint(tmp_path, "qwen3_vl", text_config=sizes)
    options = {"dtype": "float32", "quantize": "int4"}
    whole = build_model(folder, load_config(folder), **options).model.language_model.layers[0]
    shares = [share.model.language_model.layers[0] for share in build_shares(folder, size, **options)]
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        of = "mlp" if name[0] in "gud" else "self_attn"
        dense = [getattr(getattr(layer, of), name).dequantize(torch.float32) for layer in (whole, *shares)]
        assert torch.equal(torch.cat(dense[1:], SHARD_RULES[name].dim), dense[0]), name
        assert dense[1].numel() <= dense[0].numel() * 0.5


def test_an_impossible_number_of_ranks_is_refused_with_the_possible_ones(tmp_path):
    folder = write_random_checkpoint(tmp_path, "qwen2_5_vl")
    with pytest.raises(
        JobError, match=r"tensor_parallel: 3 .*4 attention heads are not divisible by 3.*Possible: 1, 2, 4$"
    ):
        build_model(folder, load_config(folder), tp=TensorParallel(0, 3))


REAL = {  # heads, key heads, head_dim, width, vocabulary, experts
    "Qwen2-VL-2B": (12, 2, 128, 8960, 151936, 0, [1, 2, 4]),
    "Qwen2.5-VL-7B": (28, 4, 128, 18944, 152064, 0, [1, 2, 4]),
    "Qwen2.5-VL-72B": (64, 8, 128, 29568, 152064, 0, [1, 2, 4, 8, 16]),
    "Qwen3-VL-32B": (64, 8, 128, 25600, 151936, 0, [1, 2, 4, 8, 16]),
    "Qwen3-VL-235B-A22B": (64, 4, 128, 12288, 151936, 128, [1, 2, 4, 8, 16]),
}


@pytest.mark.parametrize("name", REAL)
def test_real_models_divide_among_the_expected_numbers_of_ranks(name):
    heads, keys, dim, width, vocabulary, experts, expected = REAL[name]
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=keys, head_dim=dim)
    text.intermediate_size, text.vocab_size = width, vocabulary
    if experts:
        text.num_experts = experts
    for groups in ((), (128,)):
        assert shard.list_tp_sizes(text, group_sizes=groups) == expected
    assert {shard.assign_key_heads(text, TensorParallel(rank, 8))[0] for rank in range(8)} == set(range(min(keys, 8)))


@given(st.integers(1, 500), st.integers(1, 9), st.sampled_from([1, 8, 128]))
def test_spans_cover_everything_once_in_whole_units(units, size, unit):
    spans = [shard.compute_span(units * unit, TensorParallel(rank, size), unit_size=unit) for rank in range(size)]
    assert (spans[0][0], spans[-1][1]) == (0, units * unit)
    assert all(one[1] == other[0] for one, other in pairwise(spans))
    assert max(b - a for a, b in spans) - min(b - a for a, b in spans) <= unit


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9), st.integers(1, 9)), min_size=1), st.integers(1, 8))
def test_slices_are_divided_evenly_and_stay_in_order(grids, size):
    pieces = [ClipSlice(str(key), torch.arange(2 * grid[0]), grid) for key, grid in enumerate(grids)]
    assigned = assign_slices(pieces, size, 2)
    parts = [part for part, _ in assigned]
    for piece in pieces:
        mine = [part for part in parts if part.key == piece.key]
        assert torch.equal(torch.cat([part.pixels for part in mine]), piece.pixels)
        assert sum(part.patches for part in mine) == piece.patches
    assert [part.key for part in parts] == sorted((part.key for part in parts), key=int)
    busy = [sum(part.patches for part, owner in assigned if owner == rank) for rank in range(size)]
    assert max(busy) - min(busy) <= max(part.patches for part in parts)


def separate_experts(tensors):
    """The tensors as files hold them that store a mixture's experts one by one."""
    for name, weight in tensors.items():
        owner, _, kind = name.rpartition(".")
        if weight.dim() != 3 or not owner.endswith("experts"):
            yield name, weight
            continue
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        for expert, matrix in enumerate(weight):
            for part, piece in zip(parts, matrix.chunk(len(parts)), strict=True):
                yield f"{owner}.{expert}.{part}.weight", piece.contiguous()


@pytest.mark.parametrize("split", [dict, lambda tensors: dict(separate_experts(tensors))], ids=["saved", "separate"])
@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"])
def test_fp8_weights_are_scaled_as_they_are_read(tmp_path, model_type, split):
    """They equal the weights of a dense checkpoint that was rounded in the same way."""
    is_hybrid = load_architecture(model_type).has_linear_attention
    sizes = {} if is_hybrid else QUANTIZABLE_SIZES
    folder = write_random_checkpoint(tmp_path / "fp8", model_type, text_config=sizes)
    tensors = split(load_file(folder / "model.safetensors"))
    rounded = shutil.copytree(folder, tmp_path / "rounded")
    scaled, dense = split_into_fp8(tensors)
    assert len(scaled) > len(tensors) + 10
    save_file(scaled, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(dense, rounded / "model.safetensors", metadata={"format": "pt"})
    said = load_config(folder) | {"quantization_config": fp8_checkpoint.CONFIG}
    for place in (TensorParallel(), TensorParallel(1, 2)):
        expected = dict(build_model(rounded, load_config(folder), dtype="float32", tp=place).named_parameters())
        for name, weight in build_model(folder, said, dtype="float32", tp=place).named_parameters():
            assert torch.equal(weight, expected[name]), name


def test_the_error_of_a_too_large_model_says_how_many_gpus_would_hold_it(monkeypatch):
    text = {"hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64, "num_key_value_heads": 8}
    text |= {"num_hidden_layers": 80, "vocab_size": 152064, "tie_word_embeddings": False}
    vision = {"hidden_size": 1280, "out_hidden_size": 8192, "intermediate_size": 3456, "depth": 32}
    architecture = load_architecture("qwen2_5_vl")
    config = hf_models.get_config_class("qwen2_5_vl").from_dict({"text_config": text, "vision_config": vision})
    with without_weights():
        model = hf_models.get_model_class("qwen2_5_vl")(config)

    def refuse(free, size=1, groups=()):
        monkeypatch.setattr(memory, "measure_free_cuda_bytes", lambda device: free)
        memory.refuse_too_large(
            model, WeightLayout(architecture, TensorParallel(0, size), torch.bfloat16, torch.device("cuda"), groups)
        )

    with pytest.raises(JobError, match=r"needs 14\d\.\d GB .* 75\.0 are free; with model.tensor_parallel: 2 and"):
        refuse(75 * 10**9)
    with pytest.raises(JobError, match=r"each of 2 GPU\(s\) .* with model.tensor_parallel: 8 and"):
        refuse(22 * 10**9, size=2)
    with pytest.raises(JobError, match="no number of GPUs"):
        refuse(3 * 10**9)
    refuse(75 * 10**9, size=2)
    refuse(45 * 10**9, groups=(128,))  # in four bits
    monkeypatch.setattr(memory.os, "sysconf", lambda name: 1000)
    with pytest.raises(JobError, match="this machine has"):
        memory.refuse_too_large(
            model, WeightLayout(architecture, TensorParallel(), torch.bfloat16, torch.device("cpu"))
        )


def test_the_index_decides_which_weight_files_are_read(tmp_path):
    folder = write_random_checkpoint(tmp_path, "qwen2_vl")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: torch.full_like(weight, 7) for name, weight in tensors.items()}, folder / "consolidated.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")})
    )
    model = build_model(folder, load_config(folder))
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


@pytest.mark.parametrize("kept", [True, False])
def test_a_tied_head_is_held_once(tmp_path, kept):
    folder = write_random_checkpoint(tmp_path, "qwen3_vl", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["model.language_model.embed_tokens.weight"]
    if kept:  # some checkpoints hold it all the same
        save_file(tensors | {"lm_head.weight": embeddings.clone()}, folder / "model.safetensors")
    for rank in range(2):
        share = build_model(folder, load_config(folder), tp=TensorParallel(rank, 2))
        assert share.lm_head.weight is share.model.language_model.embed_tokens.weight
        assert torch.equal(share.lm_head.weight, embeddings.chunk(2)[rank])
