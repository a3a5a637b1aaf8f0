"""Guided rows in the engine: any mix of schemas in a batch, beside rows without one."""

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

SCHEMAS = [found for name in registry.SCHEMAS if (found := schema_loader.load_schema(name, base_folder=Path()))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("guided"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return family_loader.load_family(folder)


@pytest.fixture(scope="module", params=[False, True], ids=["", "ahead"])
def engine(folder: Path, family: Family, request: pytest.FixtureRequest) -> Iterator[TorchEngine]:
    opened = TorchEngine(folder, family, slots=8)
    opened.can_launch_ahead = request.param  # as on a GPU
    yield opened
    opened.close()


def ask(family: Family, name: str, **sampling: object) -> Request:
    turns = (Turn("user", (f"What is {name}?",)),)
    prompt = family.encode_turns(turns)
    return Request(name, turns, prompt.input_ids, prompt.positions, sampling=Sampling(**sampling))  # type: ignore[arg-type]


def replies(engine: TorchEngine, requests: list[Request]) -> dict[str, Reply | Failure]:
    return {reply.id: reply for reply in generate_replies(engine, iter(requests))}


def test_a_mixed_batch_gives_answers_that_fit_their_schemas_and_budgets(engine: TorchEngine, family: Family) -> None:
    least = [count_min_tokens(found.text, build_tiny_tokenizer()) for found in SCHEMAS]
    requests, wanted = [], {}
    for index in range(48):
        chosen = index % len(SCHEMAS)
        budget, warmth = least[chosen] + (0, 3, 20, 60)[index % 4], (0.0, 1.5)[index % 2]
        request = ask(family, str(index), max_new_tokens=budget, temperature=warmth, seed=index)
        requests.append(replace(request, schema_text=SCHEMAS[chosen].text))
        wanted[request.id] = SCHEMAS[chosen]
    requests.insert(7, ask(family, "free", max_new_tokens=24))
    found = replies(engine, requests)
    assert len(found) == 49
    for request in requests:
        reply = found[request.id]
        assert isinstance(reply, Reply), reply
        assert reply.output_tokens <= request.sampling.max_new_tokens
        if request.schema_text:
            value, repaired = parse_answer(reply.text)
            assert not repaired
            validate_answer(value, wanted[request.id])
    assert {reply.finish for reply in found.values() if isinstance(reply, Reply)} == {"stop", "length"}


def test_tokens_fed_before_the_grammar_has_seen_them_change_no_answer(folder: Path, family: Family) -> None:
    """Endings are forced and tokens are refused while the next pass is under way."""
    requests = []
    for index in range(36):
        chosen = SCHEMAS[index % len(SCHEMAS)]
        budget = count_min_tokens(chosen.text, build_tiny_tokenizer()) + (0, 4, 9, 30)[index % 4]
        request = ask(family, str(index), max_new_tokens=budget, temperature=(0.0, 1.5)[index % 2], seed=index)
        requests.append(replace(request, schema_text=chosen.text) if index % 7 else request)
    said = []
    for ahead in (False, True):
        engine = TorchEngine(folder, family, slots=5)
        engine.can_launch_ahead = ahead
        answers = [(name, reply) for name, reply in replies(engine, requests).items() if isinstance(reply, Reply)]
        said.append(
            {name: replace(answer, logprob=None) if isinstance(answer, Reply) else answer for name, answer in answers}
        )
        engine.close()
    assert said[0] == said[1]
    assert len(said[0]) == 36


def test_a_row_without_a_schema_is_not_touched_by_its_neighbours(engine: TorchEngine, family: Family) -> None:
    free = ask(family, "free", max_new_tokens=24)
    guided = replace(ask(family, "guided", max_new_tokens=30), schema_text=SCHEMAS[1].text)
    alone, beside = replies(engine, [free])["free"], replies(engine, [guided, free])["free"]
    assert isinstance(alone, Reply)
    assert isinstance(beside, Reply)
    assert (beside.text, beside.output_tokens) == (alone.text, alone.output_tokens)


def test_what_the_model_likes_best_can_be_forbidden(engine: TorchEngine, family: Family) -> None:
    free = replies(engine, [ask(family, "free", max_new_tokens=1)])["free"]
    assert isinstance(free, Reply)
    text = '{"type":"string","enum":["never said","nor this"]}'
    reply = replies(engine, [replace(ask(family, "free", max_new_tokens=20), schema_text=text)])["free"]
    assert isinstance(reply, Reply)
    assert reply.text in ('"never said"', '"nor this"')
    assert free.text not in ('"', "never", "nor")


def test_a_budget_that_is_too_small_is_an_error_row_that_says_what_is_needed(
    engine: TorchEngine, family: Family
) -> None:
    request = replace(ask(family, "a", max_new_tokens=3), schema_text=SCHEMAS[0].text)
    reply = replies(engine, [request])["a"]
    assert isinstance(reply, Failure)
    assert reply.kind == "no_close"
    assert f"raise max_new_tokens to {count_min_tokens(SCHEMAS[0].text, build_tiny_tokenizer())}" in reply.message
