"""Qwen3.5: the template switches thinking, sizes are those of the published models, engines say what they can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.torch.linear_state import LinearStates
from pipeline.model.engines.torch.memory import choose_state_slots
from pipeline.model.engines.torch.model_loader import load_model
from pipeline.model.engines.torch.model_size import measure_model
from pipeline.model.family_loader import load_config, load_family, load_job_family
from pipeline.model.prompt import parse_chat_template
from pipeline.types import Request, Sampling, Turn
from tests.model import chat_templates
from tests.model.engines.chat_server import ChatServer

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


def test_our_engine_refuses_what_it_cannot_do_with_the_model(folder):
    settings = {"tensor_parallel": 2, "quantize": "int4"}
    job = build_job(folder, {"kind": "torch"})
    assert get_engine_type(job).find_problems(job) == []
    model = job.model.model_copy(update=settings)
    problems = get_engine_type(job).find_problems(job.model_copy(update={"model": model}))
    assert [problem.partition(":")[0] for problem in problems] == ["model.tensor_parallel", "model.quantize"]


def test_states_take_half_of_the_memory_and_more_slots_are_refused():
    assert choose_state_slots(1000, 10, 64, requested=None) == 50
    assert choose_state_slots(1000, 10, 40, requested=None) == 40
    assert choose_state_slots(5, 10, 64, requested=None) == 1
    assert choose_state_slots(1000, 10, 100, requested=100) == 100
    with pytest.raises(JobError, match=r"engine\.slots: .* 50 slots fit"):
        choose_state_slots(1000, 10, 101, requested=101)


def test_the_planned_states_are_those_that_the_engine_allocates(folder):
    loaded = load_model(folder)
    states = LinearStates.allocate(loaded.state_shape, 3, torch.float32, torch.device("cpu"))
    rows = sum(tensor[2:].nbytes for tensor in (*states.matrices, *states.inputs))
    assert rows == 3 * loaded.state_shape.count_bytes(4)
    kept_share = 3 / 4  # the planned state has all four inputs of the convolution, as transformers keeps them
    size = measure_model(load_config(folder), dtype="float32")
    matrices = sum(tensor[2:].nbytes for tensor in states.matrices)
    assert rows - matrices == pytest.approx(kept_share * (2 * 3 * size.state_bytes - matrices))


@pytest.mark.parametrize(
    ("model_type", "vision_width", "billions", "active_billions", "token_kib", "state_mib"),
    [("qwen3_5", 4096, 9.4, 8.9, 32, 49.5), ("qwen3_5_moe", 2048, 35.1, 3.4, 20, 61.9)],
)
def test_sizes_are_those_of_the_published_models(
    model_type, vision_width, billions, active_billions, token_kib, state_mib
):
    config = {"model_type": model_type, "vision_config": {"out_hidden_size": vision_width}, "text_config": {}}
    size = measure_model(config, dtype="bfloat16")
    assert (size.vision_parameters + size.text_parameters) / 1e9 == pytest.approx(billions, abs=0.06)
    assert size.active_parameters / 1e9 == pytest.approx(active_billions, abs=0.06)
    assert size.token_bytes == token_kib * 1024
    assert size.state_bytes / 2**20 == pytest.approx(state_mib, abs=0.1)
