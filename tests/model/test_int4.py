"""Four-bit layers, rounded here or read from AWQ checkpoints in the layout of real ones."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.model import hf_models
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch import experts, int4, int4_linear
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.model_loader import build_model, has_weight, without_weights
from pipeline.model.family_loader import load_architecture, load_config, load_family
from pipeline.types import Clip, Request, Sampling, Turn
from tests.model.awq_checkpoint import write_awq_checkpoint

pytestmark = pytest.mark.process

torch.set_num_threads(1)
WIDE = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,  # larger random weights amplify rounding beyond what trained ones do
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
}
NARROW = WIDE | {"num_attention_heads": 8, "num_key_value_heads": 1}
NARROW["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
CPU = torch.device("cpu")


def load(folder, **options):
    return build_model(folder, load_config(folder), **options)


def logits(model, tokens=40):
    ids = torch.arange(tokens).unsqueeze(0) * 7 % 250
    with torch.no_grad():
        return model(input_ids=ids).logits.float()[0]


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("dense") / "model", "qwen2_5_vl", text_config=WIDE)


@pytest.fixture(scope="module")
def awq(tmp_path_factory, dense):
    folder = tmp_path_factory.mktemp("awq")
    return folder, write_awq_checkpoint(folder, dense)


DEVICES = pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)


@DEVICES
@pytest.mark.parametrize("shape", [(64, 128), (192, 256), (512, 3584), (128, 96)])
def test_packed_nibbles_unpack_to_the_same_nibbles(device, shape):
    nibbles = torch.randint(0, 16, shape, generator=torch.Generator().manual_seed(0)).to(device)
    tiles = shape[0] // (8 if device == "cuda" else int4_linear.measure_cpu_tile())
    back = int4_linear.unpack_nibbles(int4_linear.pack_nibbles(nibbles), shape[1], 0, tiles)
    assert torch.equal(back.long(), nibbles)


@DEVICES
@pytest.mark.parametrize("rows", [1, 3, 60])
def test_the_kernel_and_the_dense_copy_compute_the_same(device, rows):
    torch.manual_seed(rows)
    layer = int4.quantize_linear(torch.nn.Linear(256, 192).bfloat16(), device=torch.device(device))
    inputs = torch.randn(rows, 256).bfloat16().to(device)
    by_kernel = layer(inputs).float()
    by_copy = torch.nn.functional.linear(inputs.float(), layer.dequantize(torch.float32), layer.bias.float())
    assert relative_error(by_kernel, by_copy) < 0.01


def test_many_rows_use_the_dense_copy(monkeypatch):
    layer = int4.quantize_linear(torch.nn.Linear(128, 64).bfloat16(), device=CPU)
    inputs = torch.randn(33, 128).bfloat16()
    by_kernel = layer(inputs)
    monkeypatch.setitem(int4_linear.MAX_KERNEL_ROWS, "cpu", 32)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu", None)
    assert relative_error(layer(inputs).float(), by_kernel.float()) < 0.01


def test_a_weight_dequantized_in_several_steps_is_the_same(monkeypatch):
    layer = int4.quantize_linear(torch.nn.Linear(128, 320), device=CPU)
    whole = layer.dequantize(torch.float32)
    monkeypatch.setattr(int4_linear, "MAX_DENSE_WEIGHTS", 128 * int4_linear.measure_cpu_tile())
    assert torch.equal(layer.dequantize(torch.float32), whole)


def test_rounding_moves_no_weight_by_more_than_half_a_step():
    linear = torch.nn.Linear(256, 128)
    steps = linear.weight.detach().view(128, 2, 128)
    step = (steps.amax(-1) - steps.amin(-1)) / 15
    moved = (
        (int4.quantize_linear(linear, device=CPU).dequantize(torch.float32) - linear.weight)
        .abs()
        .view(128, 2, 128)
        .amax(-1)
    )
    assert (moved <= 0.5001 * step).all()


def test_a_group_of_equal_weights_keeps_them():
    linear = torch.nn.Linear(128, 64, bias=False)
    torch.nn.init.constant_(linear.weight, 0.25)
    assert torch.allclose(int4.quantize_linear(linear, device=CPU).dequantize(torch.float32), linear.weight, atol=1e-4)


def test_an_awq_checkpoint_stays_in_four_bits_and_equals_its_dequantized_weights(awq, dense):
    folder, rounded = awq
    reference = hf_models.get_model_class("qwen2_5_vl").from_pretrained(dense, dtype=torch.float32).eval()
    before = logits(reference)
    own = dict(reference.named_parameters())
    for name, value in rounded.items():
        own[next(key for key in own if key.endswith(name.removeprefix("model.")))].data.copy_(value)
    expected = logits(reference)
    model = load(folder, dtype="float32")
    layers = [module for module in model.modules() if isinstance(module, int4_linear.Int4Linear)]
    assert len(layers) == 3 * 7
    assert relative_error(logits(model), expected) < 1e-4  # float32: always through the dense copy
    assert 0.01 < relative_error(expected, before) < 1  # the rounding is there to be seen


def test_kernel_and_dense_copy_of_an_awq_checkpoint_agree_within_rounding(awq, monkeypatch):
    folder, _ = awq
    model = load(folder, dtype="auto")
    exact = logits(load(folder, dtype="float32"))
    by_kernel = logits(model)
    monkeypatch.setitem(int4_linear.MAX_KERNEL_ROWS, "cpu", 0)
    by_copy = logits(model)
    assert model.dtype == torch.bfloat16
    assert relative_error(by_kernel, exact) < 0.05
    assert relative_error(by_copy, exact) < 0.05


def test_an_awq_layer_that_the_kernel_cannot_take_becomes_dense(tmp_path):
    folder = write_random_checkpoint(tmp_path / "dense", "qwen2_5_vl", text_config=NARROW)
    (tmp_path / "awq").mkdir()
    write_awq_checkpoint(tmp_path / "awq", folder)
    model = load(tmp_path / "awq", dtype="float32")
    kinds = {type(layer) for layer in model.model.language_model.layers[0].self_attn.children()}
    assert {torch.nn.Linear, int4_linear.Int4Linear} <= kinds
    assert torch.isfinite(logits(model)).all()


def test_quantize_rounds_only_the_language_model(dense):
    model = load(dense, dtype="float32", quantize="int4")
    exact = logits(load(dense, dtype="float32"))
    assert 0.001 < relative_error(logits(model), exact) < 0.5  # 21 layers of random weights
    kinds = {name for name, module in model.named_modules() if isinstance(module, int4_linear.Int4Linear)}
    assert len(kinds) == 3 * 7
    assert all(".language_model.layers." in name for name in kinds)


def test_four_bits_take_less_than_a_third_of_the_memory_of_sixteen():
    linear = torch.nn.Linear(1024, 1024, bias=False).bfloat16()
    layer = int4.quantize_linear(linear, device=CPU)
    held = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    assert held < 0.3 * linear.weight.numel() * 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "marlin"}, "GEMM"),
        ({"quant_method": "awq", "bits": 8, "group_size": 128, "version": "gemm"}, "4 bits"),
    ],
)
def test_unknown_quantisations_are_refused_by_name(dense, said, message):
    with pytest.raises(JobError, match=message):
        build_model(dense, load_config(dense) | {"quantization_config": said})


def test_a_quantised_checkpoint_is_not_rounded_again(awq):
    with pytest.raises(JobError, match="already"):
        load(awq[0], dtype="auto", quantize="int4")


def test_a_checkpoint_with_missing_weights_is_refused(dense, tmp_path):
    for file in dense.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(dense / "model.safetensors")
    gone = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight"))
    save_file({name: tensors[name] for name in tensors if name != gone}, tmp_path / "model.safetensors")
    with pytest.raises(JobError, match=r"lacks 1 of the model's weights: .*layers\.1\.mlp\.up_proj\.weight"):
        load(tmp_path, dtype="auto")


REAL = {  # config.json of Qwen2.5-VL-7B-Instruct-AWQ, as the hub has it
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "initializer_range": 0.02,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
    "quantization_config": {
        "bits": 4,
        "group_size": 128,
        "modules_to_not_convert": ["visual"],
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    },
}


def test_config_and_tensor_names_of_the_real_7b_awq_checkpoint_are_understood(dense, tmp_path):
    for file in dense.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(REAL))
    family = load_family(tmp_path)
    assert (family.context_length, family.tokens_per_second, family.factor) == (128000, 2, 28)
    with without_weights():
        model = hf_models.get_model_class("qwen2_5_vl")(hf_models.get_config_class("qwen2_5_vl").from_dict(REAL))
    linears = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    hub = {
        f"model.layers.{layer}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}.{kind}"
        for layer in range(28)
        for name in linears
        for kind in ("qweight", "qzeros", "scales")
    }
    names = {load_architecture("qwen2_5_vl").to_parameter_name(name) for name in hub}
    lacking = {name for name, _ in model.named_parameters() if not has_weight(name, names)}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in lacking if "language_model.layers" in name} == {
        "input_layernorm",
        "post_attention_layernorm",
        *linears[:3],  # their biases
    }
    assert not any(name.endswith("proj.weight") for name in lacking if "language_model" in name)
    assert all(param.is_meta for param in model.parameters())
    assert all(
        int4_linear.can_use_kernel(torch.empty(out, inn, device="meta"), "cpu")
        for out, inn in [(512, 3584), (3584, 18944)]
    )


def test_an_awq_checkpoint_answers_a_mixed_batch_like_its_dequantized_weights(awq, dense, tmp_path):
    folder, rounded = awq
    tensors = load_file(dense / "model.safetensors")
    save_file(tensors | {name: value.float() for name, value in rounded.items()}, tmp_path / "model.safetensors")
    for file in dense.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    family = load_family(dense)
    picture = Clip("image", np.arange(3 * 56 * 84, dtype=np.uint8).reshape(1, 3, 56, 84), (9, 9))
    video = Clip("video", np.arange(5 * 3 * 28 * 56, dtype=np.uint8).reshape(5, 3, 28, 56), (9, 9), fps=2.0)
    chat = [Turn("system", ("Be brief",)), Turn("user", (picture,)), Turn("assistant", ("A",)), Turn("user", ("B?",))]
    asked = [[Turn("user", parts)] for parts in (("Hi",), (picture, "?"), (picture, picture), (video, "then"))]
    requests = []
    for name, turns in enumerate([*asked, chat]):
        encoded = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=9)
        requests.append(Request(str(name), tuple(turns), encoded.input_ids, encoded.positions, sampling=sampling))

    def answers(place):
        engine = TorchEngine(place, family, dtype="float32", slots=3, device="cpu")
        said = {reply.id: reply.text for reply in generate_replies(engine, requests)}
        engine.close()
        return said

    assert answers(folder) == answers(tmp_path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    sizes = {"hidden_size": 128, "moe_intermediate_size": 96, "head_dim": 16}
    return write_random_checkpoint(tmp_path_factory.mktemp("moe") / "model", "qwen3_vl_moe", text_config=sizes)


def test_experts_are_quantized_too(mixture):
    model = load(mixture, dtype="float32", quantize="int4")
    mixtures = [module for module in model.modules() if isinstance(module, int4.Int4Experts)]
    assert len(mixtures) == 3
    assert not hasattr(model.model.language_model.layers[0].mlp.experts, "gate_up_proj")
    dense = load(mixture, dtype="float32")
    assert 0.001 < relative_error(logits(model), logits(dense)) < 0.9
    rows = torch.randn(11, 128)
    place = torch.randint(0, 4, (11, 2), generator=torch.Generator().manual_seed(0))
    place[:, 1] = (place[:, 0] + 1) % 4
    shares = torch.rand(11, 2)
    theirs = dense.model.language_model.layers[0].mlp.experts
    ours = mixtures[0]
    for number in range(4):  # the same rounded weights, in the reference's own arithmetic
        theirs.gate_up_proj.data[number] = ours.gate_up[number].dequantize(torch.float32)
        theirs.down_proj.data[number] = ours.down[number].dequantize(torch.float32)
    assert torch.allclose(ours(rows, place, shares), theirs(rows, place, shares), atol=1e-5)


def test_the_experts_of_a_row_do_not_depend_on_other_rows(mixture):
    layer = load(mixture, dtype="float32", quantize="int4").model.language_model.layers[1].mlp.experts
    rows = torch.randn(20, 128)
    place = torch.stack([torch.arange(20) % 4, (torch.arange(20) + 1) % 4], 1)
    shares = torch.rand(20, 2)
    together = layer(rows, place, shares)
    alone = torch.cat([layer(*(part[row : row + 1] for part in (rows, place, shares))) for row in range(20)])
    assert torch.allclose(together, alone, atol=1e-5)


def choose_experts(rows=11, not_here=False):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.stack([torch.randperm(4 + not_here, generator=generator)[:2] for _ in range(rows)])
    return torch.randn(rows, 128, generator=generator), chosen, torch.rand(rows, 2, generator=generator)


@pytest.mark.parametrize("max_rows", [64, 4])
def test_experts_side_by_side_compute_what_single_ones_do(mixture, max_rows, monkeypatch):
    """On CUDA few rows go through all experts at once, many are sorted by expert."""
    monkeypatch.setitem(experts.MAX_KERNEL_ROWS, "cuda", max_rows)
    dense = load(mixture, dtype="float32").model.language_model.layers[0].mlp.experts
    single, wide = int4.Int4Experts(dense, device=CPU), experts.WideInt4Experts(dense, device=CPU)
    choice = choose_experts()
    assert torch.allclose(wide(*choice), single(*choice), atol=1e-5)


@pytest.mark.parametrize("not_here", [False, True])
def test_all_experts_at_once_compute_what_transformers_does(mixture, not_here):
    dense = load(mixture, dtype="float32").model.language_model.layers[0].mlp.experts
    dense._is_expert_parallel = not_here
    rows, chosen, shares = choose_experts(not_here=not_here)
    shares = shares.masked_fill(chosen == 4, 0)  # as the ranks' hook does
    expected = dense(rows, chosen, shares)
    assert torch.allclose(experts.compute_all_experts(dense, rows, chosen, shares), expected, atol=1e-5)


def test_both_storage_layouts_of_experts_give_the_same_model(mixture, tmp_path):
    tensors = load_file(mixture / "model.safetensors")
    stacked = [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]
    assert len(stacked) == 6
    turned = {name: tensors[name].transpose(1, 2).contiguous() for name in stacked}
    save_file(tensors | turned, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for file in mixture.iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    expected, turned_logits = logits(load(mixture, dtype="float32")), logits(load(tmp_path, dtype="float32"))
    assert torch.allclose(turned_logits, expected, atol=1e-5)  # some CPUs sum in another order
