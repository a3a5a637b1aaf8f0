"""Whatever a model would say, the answer fits its schema and its budget. No model is needed to show it: every token
that a mask allows is one that some model would choose."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from pipeline import registry
from pipeline.builtin.random_checkpoint import build_tiny_tokenizer
from pipeline.errors import GenerateError
from pipeline.json_values import parse_answer
from pipeline.model.guidance.grammar import AnswerMatcher, GrammarCompiler
from pipeline.schema import json_schema, schema_loader
from tests import qwen_vocabulary
from tests.awkward_schemas import AWKWARD, listed, struct

SHIPPED = {name: schema_loader.load_schema(name, base_folder=Path()).text for name in registry.SCHEMAS}  # type: ignore[union-attr]
SCHEMAS = SHIPPED | {
    name: json_schema.format_schema(json_schema.canonicalize_schema(node)) for name, node in AWKWARD.items()
}
LISTED = json_schema.format_schema(
    json_schema.canonicalize_schema(struct(b={"type": "array", "items": {"type": "integer"}}, c={"type": "string"}))
)
NAME = json_schema.format_schema(json_schema.canonicalize_schema(struct(name={"type": "string"})))


@functools.cache
def tiny() -> GrammarCompiler:
    return grammars(build_tiny_tokenizer(), 512)


@functools.cache
def real() -> GrammarCompiler:
    return grammars(qwen_vocabulary.tokenizer(), qwen_vocabulary.MODEL_VOCABULARY)


def grammars(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    stop = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return GrammarCompiler(tokenizer, vocab_size=vocab_size, stop_tokens=stop)


def allowed(matcher: AnswerMatcher) -> np.ndarray:
    mask = np.zeros(-(-matcher.compiler.tokenizer.vocab_size // 32), np.int32)
    matcher.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def choose(matcher: AnswerMatcher, rng: np.random.Generator, habit: str) -> int:
    """A token that some model would choose: any, a long one, or one that ends nothing."""
    options, texts = allowed(matcher), matcher.compiler.encoder.token_bytes
    few = rng.choice(options, size=min(48, len(options)))
    if habit == "long":
        return int(max(few[:8], key=lambda token: len(texts[token])))
    if habit == "endless":
        few = [token for token in few if not set(texts[token]) & set(b'"}]')] or few
    return int(few[0])


def step(matcher: AnswerMatcher, taken: list[int], rng: np.random.Generator, habit: str) -> None:
    """What an engine does with a row in one step."""
    token = choose(matcher, rng, habit)
    for follower in [token] if not matcher.get_forced_tokens() else matcher.get_forced_tokens():
        if matcher.is_done or not matcher.accept_token(follower):
            return
        taken.append(follower)


def answers(known: GrammarCompiler, rows: Sequence[tuple[str, int, str]]) -> list[tuple[list[int], str, str]]:
    """Tokens, text and error of each row (schema, budget, habit), all advancing together."""
    rngs = [np.random.default_rng(index) for index in range(len(rows))]
    matchers = [known.create_matcher(SCHEMAS[name], budget=budget) for name, budget, _ in rows]
    taken: list[list[int]] = [[] for _ in rows]
    errors = [""] * len(rows)
    while active := [index for index, matcher in enumerate(matchers) if not matcher.is_done and not errors[index]]:
        for index in active:
            try:
                step(matchers[index], taken[index], rngs[index], rows[index][2])
            except GenerateError as error:
                errors[index] = error.kind
    spell = known.encoder.token_bytes
    return [
        (tokens, b"".join(spell[token] for token in tokens).decode(), error)
        for tokens, error in zip(taken, errors, strict=True)
    ]


def check(known: GrammarCompiler, count: int) -> None:
    rng = np.random.default_rng(7)
    names = list(SCHEMAS) * (count // len(SCHEMAS) + 1)
    more = (0, 1, 2, 5, 10, 20, 40)
    habits = ("any", "long", "endless")
    rows = [
        (name, known.count_min_tokens(SCHEMAS[name]) + int(rng.choice(more)), str(rng.choice(habits)))
        for name in names[:count]
    ]
    errors: Counter[str] = Counter()
    for first in range(0, count, 16):
        batch = rows[first : first + 16]
        for (name, budget, habit), (tokens, text, error) in zip(batch, answers(known, batch), strict=True):
            errors[error] += 1
            assert len(tokens) <= budget, f"{name} took {len(tokens)} tokens of {budget} ({habit})"
            if not error:
                value, repaired = parse_answer(text)
                assert not repaired, text
                Draft202012Validator(json.loads(SCHEMAS[name])).validate(value)
    assert set(errors) <= {"", "no_close"}
    assert errors["no_close"] <= count / 100


def test_every_answer_fits_schema_and_budget_over_a_tiny_vocabulary() -> None:
    check(tiny(), 1000)


def test_every_answer_fits_schema_and_budget_over_the_real_vocabulary() -> None:
    check(real(), 160)


@pytest.mark.parametrize("said", ['{"b":[1,2', '{"b":[45', '{"b":[-3'])
@pytest.mark.parametrize("room", range(7, 13))
def test_an_ending_adds_no_digit_to_the_number_that_it_ends(said: str, room: int) -> None:
    tokens = tiny().tokenizer.tokenize_str(said)
    matcher = tiny().create_matcher(LISTED, budget=len(tokens) + room)
    kept = [token for token in tokens if not matcher.is_truncated and matcher.accept_token(token)]
    matcher.truncate()
    ended = b"".join(tiny().encoder.token_bytes[token] for token in kept + matcher.get_forced_tokens()).decode()
    assert ended == said + '],"c":""}' or len(kept) < len(tokens)


def test_a_number_that_only_a_comma_can_end_is_ended_by_it() -> None:
    box = json_schema.format_schema(
        json_schema.canonicalize_schema(struct(b=listed({"type": "integer"}, minItems=4, maxItems=4)))
    )
    matcher = tiny().create_matcher(box, budget=200)
    tokens = tiny().tokenizer.tokenize_str('{"b":[21768,1816')
    assert all(matcher.accept_token(token) for token in tokens)
    matcher.truncate()
    ended = b"".join(tiny().encoder.token_bytes[token] for token in tokens + matcher.get_forced_tokens()).decode()
    assert json.loads(ended)["b"][:2] == [21768, 1816]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_schema_has_a_minimum_that_fits_small_budgets(name: str) -> None:
    assert real().count_min_tokens(SHIPPED[name]) <= 24


def test_a_budget_below_the_minimum_is_refused_with_the_minimum() -> None:
    least = tiny().count_min_tokens(SHIPPED["invoice"])
    with pytest.raises(GenerateError, match=f"raise max_new_tokens to {least} or more") as caught:
        tiny().create_matcher(SHIPPED["invoice"], budget=least - 1)
    assert caught.value.kind == "no_close"


def test_a_schema_that_must_contain_itself_has_no_answer() -> None:
    endless = {"$ref": "#/$defs/N", "$defs": {"N": struct(inner={"$ref": "#/$defs/N"})}}
    with pytest.raises(GenerateError) as caught:
        tiny().count_min_tokens(json_schema.format_schema(json_schema.canonicalize_schema(endless)))
    assert caught.value.kind in ("no_close", "schema")


def test_a_schema_that_the_grammar_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(GenerateError, match="uniqueItems"):
        tiny().create_matcher('{"type":"array","uniqueItems":true}', budget=50)


def test_what_is_certain_comes_without_asking_the_model() -> None:
    matcher = real().create_matcher(NAME, budget=50)
    assert real().tokenizer.decode_str(list(matcher.get_forced_tokens())) == '{"name'


def test_a_token_that_leaves_no_room_for_an_ending_is_not_taken() -> None:
    known = tiny()
    texts = json_schema.format_schema(
        json_schema.canonicalize_schema(struct(a={"type": "array", "items": struct(long_name={"type": "string"})}))
    )
    matcher = known.create_matcher(texts, budget=known.count_min_tokens(texts) + 2)
    for token in known.tokenizer.tokenize_str('{"a":['):
        assert matcher.accept_token(token)
    brace = known.encoder.token_ids[b"{"]
    assert not matcher.accept_token(brace)
    assert known.tokenizer.decode_str(list(matcher.get_forced_tokens())) == "]}"
    assert allowed(matcher).tolist() == [matcher.get_forced_tokens()[0]]


def test_a_forced_ending_says_that_the_answer_was_cut() -> None:
    matcher = tiny().create_matcher(NAME, budget=20)
    for token in tiny().tokenizer.tokenize_str('{"name":"x"}'):
        matcher.accept_token(token)
    assert matcher.is_done
    assert not matcher.is_truncated
    matcher, rng = tiny().create_matcher(NAME, budget=20), np.random.default_rng(0)
    taken: list[int] = []
    while not matcher.is_done:
        step(matcher, taken, rng, "endless")
    assert matcher.is_truncated
    assert len(taken) <= 20


def test_text_uses_the_budget_to_its_end() -> None:
    known, rng = real(), np.random.default_rng(0)
    matcher, taken = known.create_matcher(NAME, budget=60), list[int]()
    while not matcher.is_done:
        step(matcher, taken, rng, "endless")
    assert len(taken) >= 57


def test_there_is_no_white_space_between_values() -> None:
    matcher = real().create_matcher(NAME, budget=50)
    matcher.accept_token(real().encoder.token_ids[b"{"])
    assert real().encoder.token_ids[b" "] not in allowed(matcher)
    assert real().encoder.token_ids[b"\n"] not in allowed(matcher)


def test_unknown_keys_cannot_be_written() -> None:
    matcher = real().create_matcher(NAME, budget=50)
    brace, other = real().tokenizer.tokenize_str('{"other')
    assert matcher.accept_token(brace)
    with pytest.raises(GenerateError, match="did not follow"):
        matcher.accept_token(other)


def test_special_tokens_are_never_part_of_an_answer() -> None:
    matcher = real().create_matcher(NAME, budget=50)
    for token in real().tokenizer.tokenize_str('{"name":"A'):
        matcher.accept_token(token)
    options = set(allowed(matcher).tolist())
    assert len(options) > 100_000
    assert not options & set(range(151_643, 151_936))


def test_thinking_is_free_and_bounded_and_the_answer_has_its_own_budget() -> None:
    known, rng = real(), np.random.default_rng(0)
    budget = known.count_min_tokens(SHIPPED["boxes"]) + 10
    matcher, taken = known.create_matcher(SHIPPED["boxes"], budget=budget, thinking_budget=12), list[int]()
    assert not set(allowed(matcher).tolist()) & known.stop_tokens
    while not matcher.is_done:
        step(matcher, taken, rng, "any")
    end = taken.index(151_668)
    thought, answer = taken[: end + 1], taken[end + 1 :]
    assert len(thought) <= 12
    assert len(thought) + len(answer) <= 12 + budget
    value, repaired = parse_answer(b"".join(known.encoder.token_bytes[token] for token in answer).decode())
    assert not repaired
    assert list(value) == ["boxes"]


def test_a_model_may_stop_thinking_early() -> None:
    matcher = real().create_matcher(NAME, budget=50, thinking_budget=1000)
    matcher.accept_token(151_668)
    assert real().tokenizer.decode_str(list(matcher.get_forced_tokens())) == "\n\n"
    for token in matcher.get_forced_tokens():
        matcher.accept_token(token)
    assert real().tokenizer.decode_str(list(matcher.get_forced_tokens())) == '{"name'


def test_an_answer_that_could_go_on_ends_with_a_stop_token() -> None:
    known = tiny()
    matcher = known.create_matcher(SCHEMAS["a bare number"], budget=5)
    matcher.accept_token(known.encoder.token_ids[b"7"])
    assert not matcher.is_done
    assert known.stop_tokens & set(allowed(matcher).tolist())
    matcher.accept_token(min(known.stop_tokens))
    assert matcher.is_done
