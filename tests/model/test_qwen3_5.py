"""Qwen3.5: the template switches thinking, sizes are those of the published models, engines say what they can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.inspect.plan.gpus import TokenLoad, estimate_gpu
from pipeline.job.spec import Job
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.int4 import Int4Experts
from pipeline.model.engines.torch.int4_linear import Int4Linear
from pipeline.model.engines.torch.linear_state import RESERVED_ROWS, LinearStates
from pipeline.model.engines.torch.memory import choose_state_slots
from pipeline.model.engines.torch.model_loader import load_model
from pipeline.model.engines.torch.model_size import measure_model
from pipeline.model.family_loader import load_config, load_family, load_job_family
from pipeline.model.prompt import parse_chat_template
from pipeline.types import Request, Sampling, Turn
from tests.model import chat_templates
from tests.model.engines.chat_server import ChatServer
from tests.model.engines.conftest import HYBRID_FAMILIES, Lab
from tests.model.engines.fake_models import REAL

pytestmark = pytest.mark.process

THOUGHT, NO_THOUGHT = "<think>\n", "<think>\n\n</think>\n\n"
SILENT_BY_DEFAULT = chat_templates.QWEN35.replace("is false", "is not true").replace(
    "is defined and", "is undefined or"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_random_checkpoint(tmp_path_factory.mktemp("weights") / "model", "qwen3_5")
    (folder / "chat_template.jinja").write_text(chat_templates.QWEN35)
    return folder


def build_job(folder: Path, engine: dict[str, Any], **answer: Any) -> Job:
    sections = {"name": "t", "input": {"manifest": "m"}, "output": {"path": "out"}, "model": {"weights": str(folder)}}
    return Job.model_validate(sections | {"engine": engine, "answer": answer})


@pytest.mark.parametrize(
    ("template", "thinking", "prefix"),
    [
        (chat_templates.QWEN35, None, THOUGHT),
        (chat_templates.QWEN35, True, THOUGHT),
        (chat_templates.QWEN35, False, NO_THOUGHT),
        (SILENT_BY_DEFAULT, None, NO_THOUGHT),
        (SILENT_BY_DEFAULT, True, THOUGHT),
    ],
)
def test_an_answer_begins_as_the_template_says(template, thinking, prefix):
    chat_format = parse_chat_template(template, thinking=thinking)
    assert chat_format.answer_prefix == prefix
    assert chat_format.thinking == (prefix == THOUGHT)
    assert chat_format.trims_text
    assert chat_format.drops_thoughts


def test_a_template_that_always_thinks_refuses_to_stop():
    with pytest.raises(JobError, match=r"answer\.thinking: .*always thinks"):
        parse_chat_template(chat_templates.THINKING, thinking=False)
    closed = parse_chat_template(chat_templates.THINKING, thinking=False, closes_thinking=True)
    assert (closed.answer_prefix, closed.thinking) == (NO_THOUGHT, False)
    refusing = "{%- if enable_thinking is false -%}{{ raise_exception('Thinking stays on.') }}{%- endif -%}"
    with pytest.raises(JobError, match=r"Thinking stays on"):
        parse_chat_template(refusing + chat_templates.QWEN35, thinking=False)


@pytest.mark.parametrize(
    ("thinking", "sent"),
    [(None, None), (False, {"enable_thinking": False}), ({"max_tokens": 50}, {"enable_thinking": True})],
)
def test_a_server_is_told_whether_to_think(folder, thinking, sent):
    with ChatServer() as server:
        job = build_job(folder, {"kind": "http", "url": server.url}, thinking=thinking)
        family = load_job_family(folder, job)
        turns = (Turn("user", ("Hi",)),)
        encoded = family.encode_turns(turns)
        request = Request("1", turns, encoded.input_ids, encoded.positions, sampling=Sampling())
        engine = get_engine_type(job).open(job)
        try:
            list(generate_replies(engine, [request]))
        finally:
            engine.close()
    assert server.received[0].body.get("chat_template_kwargs") == sent


def test_a_template_without_a_choice_is_sent_no_option(folder):
    without_choice = write_random_checkpoint(folder.parent / "plain", "qwen3_vl")
    assert load_family(without_choice, thinking=True).template_options == {}


def test_our_engine_is_divided_between_heads_and_says_among_how_many_ranks(folder):
    job = build_job(folder, {"kind": "torch"})
    engine_type, problems = get_engine_type(job), []
    for size in (1, 2, 4):
        model = job.model.model_copy(update={"tensor_parallel": size})
        problems.append(engine_type.find_problems(job.model_copy(update={"model": model})))
    assert problems[:2] == [[], []]
    (problem,) = problems[2]
    assert "2 key heads of linear attention are not divisible by 4" in problem


@pytest.mark.parametrize("model_type", HYBRID_FAMILIES)
def test_four_bit_answers_are_those_of_the_rounded_weights(model_type, tmp_path):
    sizes = {"hidden_size": 128, "linear_num_value_heads": 16, "linear_num_key_heads": 8}
    lab = Lab(tmp_path / "model", model_type, text_config=sizes, vision_config={"out_hidden_size": 128})
    engine = TorchEngine(lab.folder, lab.family, device="cpu", dtype="float32", quantize="int4", slots=3)
    reference, rounded = lab.load_reference().model.language_model, set()
    for name, module in engine.step_runner.loaded.language_model.named_modules():
        if isinstance(module, Int4Experts):
            for kind in ("gate_up", "down"):
                weights = torch.stack([layer.dequantize(torch.float32) for layer in getattr(module, kind)])
                getattr(reference.get_submodule(name), f"{kind}_proj").data = weights
            rounded.add("experts")
        elif isinstance(module, Int4Linear) and ".experts." not in name:
            reference.get_submodule(name).weight.data = module.dequantize(torch.float32)
            rounded.add(name.rpartition(".")[2])
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    mixture = {"experts"} if model_type == "qwen3_5_moe" else set()
    assert rounded == attention | mlp | mixture | {"in_proj_qkv", "in_proj_z", "out_proj"}
    requests = [lab.build_request(str(width), lab.make_image(width, 3), "what?") for width in range(2, 6)]
    texts = {reply.id: reply.text for reply in generate_replies(engine, requests)}
    engine.close()
    assert texts == {request.id: engine.detokenizer.decode(lab.generate_alone(request)[0]) for request in requests}


def test_states_take_half_of_the_memory_and_more_slots_are_refused():
    assert choose_state_slots(1000, 10, 64) == 50
    assert choose_state_slots(1000, 10, 40) == 40
    assert choose_state_slots(5, 10, 64) == 1
    assert choose_state_slots(1000, 10, 64, estimate_step=lambda slots: 100 + 10 * slots) == 30
    assert choose_state_slots(1000, 10, 100, requested=100) == 100
    with pytest.raises(JobError, match=r"engine\.slots: .* 50 slots fit"):
        choose_state_slots(1000, 10, 101, requested=101)


def test_the_planned_states_are_those_that_the_engine_allocates(folder):
    loaded = load_model(folder)
    states = LinearStates.allocate(loaded.state_shape, 4, torch.float32, torch.device("cpu"))
    rows = sum(tensor[2:].nbytes for tensor in (*states.matrices, *states.inputs))
    assert rows == 4 * loaded.state_shape.count_bytes(4)
    kept_share = 3 / 4  # the planned state has all four inputs of the convolution, as transformers keeps them
    size = measure_model(load_config(folder), dtype="float32")
    matrices = sum(tensor[2:].nbytes for tensor in states.matrices)
    assert rows - matrices == pytest.approx(kept_share * (9 * size.state_bytes - matrices))


def test_a_row_takes_the_memory_that_is_planned_and_less_than_without_states(tmp_path):
    """At 2,000 tokens and a medium width, in the tensors of two engines."""
    width = {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}
    linear = {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_key_head_dim": 64}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    rows, tokens, measured = 4, 2000, {}
    for model_type, text in (("qwen3_5", linear | {"linear_value_head_dim": 64}), ("qwen3_vl", {})):
        text |= width | {"head_dim": 64, "rope_parameters": rope}
        folder = write_random_checkpoint(
            tmp_path / model_type, model_type, text_config=text, vision_config={"out_hidden_size": 256}
        )
        engine = TorchEngine(folder, load_family(folder), device="cpu", slots=rows, kv_tokens=rows * tokens)
        cache, states = engine.step_runner.cache, engine.step_runner.states
        tensors = [tensor[:-1] for tensor in (*cache.keys, *cache.values)]
        if states is not None:
            tensors += [tensor[RESERVED_ROWS:] for tensor in (*states.matrices, *states.inputs)]
        measured[model_type] = sum(tensor.nbytes for tensor in tensors) / rows
        engine.close()
        planned = measure_model(load_config(folder), dtype="float32").compute_row_bytes(tokens)
        assert measured[model_type] == pytest.approx(planned, rel=0.05)
    assert measured["qwen3_5"] < 0.4 * measured["qwen3_vl"]


def load_published_config(name: str) -> dict[str, Any]:
    """Those of Qwen3.5-9B and Qwen3.5-35B-A3B, and of Qwen3-VL-8B to compare with; 27B is a wider and deeper 9B."""
    model_type = {"8B": "qwen3_vl", "35B": "qwen3_5_moe"}.get(name, "qwen3_5")
    text, vision = REAL[model_type]
    if name == "27B":
        text = text | {"hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 64}
        text |= {"num_attention_heads": 24, "linear_num_value_heads": 48}
        vision = vision | {"out_hidden_size": 5120}
    return {"model_type": model_type, "text_config": text, "vision_config": vision}


@pytest.mark.parametrize(
    ("name", "billions", "active_billions", "token_kib", "state_mib", "gigabytes"),
    [
        ("9B", 9.41, 8.95, 32, 49.5, (18.8, 8.6)),
        ("27B", 27.36, 26.90, 64, 147.75, (54.7, 18.7)),
        ("35B", 35.11, 3.45, 20, 61.9, (70.2, 20.4)),
    ],
)
def test_sizes_are_those_of_the_published_models(name, billions, active_billions, token_kib, state_mib, gigabytes):
    config = load_published_config(name)
    size = measure_model(config, dtype="bfloat16")
    quantized = measure_model(config, dtype="bfloat16", quantize="int4")
    assert (size.vision_parameters + size.text_parameters) / 1e9 == pytest.approx(billions, abs=0.01)
    assert size.active_parameters / 1e9 == pytest.approx(active_billions, abs=0.01)
    assert size.token_bytes == token_kib * 1024
    assert size.state_bytes / 2**20 == pytest.approx(state_mib, abs=0.1)
    assert (size.weights_bytes / 1e9, quantized.weights_bytes / 1e9) == pytest.approx(gigabytes, abs=0.1)


def test_a_row_takes_little_more_than_half_the_memory_of_a_model_without_states():
    """At 2,000 tokens, with the state kept twice."""
    hybrid, plain = (measure_model(load_published_config(name), dtype="bfloat16") for name in ("9B", "8B"))
    assert hybrid.compute_row_bytes(2000) / 2**20 == pytest.approx(161.5, abs=0.1)
    assert plain.compute_row_bytes(2000) / 2**20 == pytest.approx(281.25, abs=0.1)


@pytest.mark.parametrize(
    ("name", "quantize", "rows"), [("9B", None, 238), ("27B", None, 29), ("35B", None, 19), ("35B", "int4", 187)]
)
def test_a_plan_for_one_h100_counts_states_and_cache(name, quantize, rows):
    size = measure_model(load_published_config(name), dtype="bfloat16", quantize=quantize)
    load = TokenLoad(rows=100_000, vision=1.2e8, prompt=1.6e8, output=2e7, longest=3000)
    assert estimate_gpu("H100", load, size).rows_at_once == pytest.approx(rows, abs=2)
