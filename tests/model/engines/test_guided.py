"""Guided requests in the engine: any mix of schemas in a batch, beside requests without one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import registry
from pipeline.builtin.random_checkpoint import build_tiny_tokenizer, write_random_checkpoint
from pipeline.json_values import parse_answer
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.families.base import Family
from pipeline.model.guidance.grammar import count_min_tokens
from pipeline.schema import schema_loader
from pipeline.schema.validate import validate_answer
from pipeline.types import Failure, Reply, Request, Sampling, Turn

pytestmark = pytest.mark.process

SCHEMAS = [schema for name in registry.SCHEMAS if (schema := schema_loader.load_schema(name, base_folder=Path()))]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("guided"), getattr(request, "param", "qwen2_5_vl"))


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return family_loader.load_family(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["in-turn", "launch-ahead"])
def engine(folder: Path, family: Family, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    opened = TorchEngine(folder, family, slots=8)
    opened.can_launch_ahead = request.param  # as on a GPU
    yield opened
    opened.close()


def build_request(family: Family, name: str, **sampling: object) -> Request:
    turns = (Turn("user", (f"What is {name}?",)),)
    prompt = family.encode_turns(turns)
    return Request(name, turns, prompt.input_ids, prompt.positions, sampling=Sampling(**sampling))  # type: ignore[arg-type]


def answer_all(engine: TorchEngine, requests: list[Request]) -> dict[str, Reply | Failure]:
    return {reply.id: reply for reply in generate_replies(engine, iter(requests))}


def test_a_mixed_batch_gives_answers_that_fit_their_schemas_and_budgets(engine: TorchEngine, family: Family) -> None:
    min_budgets = [count_min_tokens(schema.text, build_tiny_tokenizer()) for schema in SCHEMAS]
    requests, schema_by_id = [], {}
    for index in range(48):
        chosen = index % len(SCHEMAS)
        budget, temperature = min_budgets[chosen] + (0, 3, 20, 60)[index % 4], (0.0, 1.5)[index % 2]
        request = build_request(family, str(index), max_new_tokens=budget, temperature=temperature, seed=index)
        requests.append(replace(request, schema_text=SCHEMAS[chosen].text))
        schema_by_id[request.id] = SCHEMAS[chosen]
    requests.insert(7, build_request(family, "free", max_new_tokens=24))
    replies = answer_all(engine, requests)
    assert len(replies) == 49
    for request in requests:
        reply = replies[request.id]
        assert isinstance(reply, Reply), reply
        assert reply.output_tokens <= request.sampling.max_new_tokens
        if request.schema_text:
            value, repaired = parse_answer(reply.text)
            assert not repaired
            validate_answer(value, schema_by_id[request.id])
    assert {reply.finish for reply in replies.values() if isinstance(reply, Reply)} == {"stop", "length"}


@pytest.mark.parametrize("folder", ["qwen2_5_vl", "qwen3_5"], indirect=True)
def test_a_step_launched_before_grammars_advance_changes_no_answer(folder: Path, family: Family) -> None:
    """Grammars force and refuse tokens while the next step is pending."""
    requests = []
    for index in range(36):
        chosen = SCHEMAS[index % len(SCHEMAS)]
        budget = count_min_tokens(chosen.text, build_tiny_tokenizer()) + (0, 4, 9, 30)[index % 4]
        request = build_request(
            family, str(index), max_new_tokens=budget, temperature=(0.0, 1.5)[index % 2], seed=index
        )
        requests.append(replace(request, schema_text=chosen.text) if index % 7 else request)
    answers_by_mode = []
    for launch_ahead in (False, True):
        engine = TorchEngine(folder, family, slots=5)
        engine.can_launch_ahead = launch_ahead
        answers = [(name, reply) for name, reply in answer_all(engine, requests).items() if isinstance(reply, Reply)]
        answers_by_mode.append(
            {name: replace(answer, logprob=None) if isinstance(answer, Reply) else answer for name, answer in answers}
        )
        engine.close()
    assert answers_by_mode[0] == answers_by_mode[1]
    assert len(answers_by_mode[0]) == 36


def test_a_request_without_a_schema_is_not_changed_by_guided_ones(engine: TorchEngine, family: Family) -> None:
    free = build_request(family, "free", max_new_tokens=24)
    guided = replace(build_request(family, "guided", max_new_tokens=30), schema_text=SCHEMAS[1].text)
    alone, beside = answer_all(engine, [free])["free"], answer_all(engine, [guided, free])["free"]
    assert isinstance(alone, Reply)
    assert isinstance(beside, Reply)
    assert (beside.text, beside.output_tokens) == (alone.text, alone.output_tokens)


def test_the_likeliest_token_can_be_forbidden(engine: TorchEngine, family: Family) -> None:
    free = answer_all(engine, [build_request(family, "free", max_new_tokens=1)])["free"]
    assert isinstance(free, Reply)
    text = '{"type":"string","enum":["never said","nor this"]}'
    reply = answer_all(engine, [replace(build_request(family, "free", max_new_tokens=20), schema_text=text)])["free"]
    assert isinstance(reply, Reply)
    assert reply.text in ('"never said"', '"nor this"')
    assert free.text not in ('"', "never", "nor")


def test_a_budget_too_small_for_the_schema_is_a_failure_that_says_the_least_budget(
    engine: TorchEngine, family: Family
) -> None:
    request = replace(build_request(family, "a", max_new_tokens=3), schema_text=SCHEMAS[0].text)
    reply = answer_all(engine, [request])["a"]
    assert isinstance(reply, Failure)
    assert reply.kind == "no_close"
    assert f"raise max_new_tokens to {count_min_tokens(SCHEMAS[0].text, build_tiny_tokenizer())}" in reply.message
