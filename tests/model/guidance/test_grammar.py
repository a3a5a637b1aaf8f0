"""Whatever a model samples, the answer fits its schema and its budget.

No model is needed: every token that a mask allows is one that some model would sample.
"""

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
from pipeline.model.guidance.grammar import AnswerMatcher, GrammarCompiler, MatcherState, count_min_bytes
from pipeline.schema import json_schema, schema_loader
from tests import qwen_vocabulary
from tests.awkward_schemas import AWKWARD, listed, struct

pytestmark = pytest.mark.process

SHIPPED = {name: schema_loader.load_schema(name, base_folder=Path()).text for name in registry.SCHEMAS}  # type: ignore[union-attr]
SCHEMAS = SHIPPED | {
    name: json_schema.format_schema(json_schema.canonicalize_schema(node)) for name, node in AWKWARD.items()
}
LISTED = json_schema.format_schema(
    json_schema.canonicalize_schema(struct(b={"type": "array", "items": {"type": "integer"}}, c={"type": "string"}))
)
NAME = json_schema.format_schema(json_schema.canonicalize_schema(struct(name={"type": "string"})))


@functools.cache
def build_tiny_compiler() -> GrammarCompiler:
    return build_compiler(build_tiny_tokenizer(), 512)


@functools.cache
def build_real_compiler() -> GrammarCompiler:
    return build_compiler(qwen_vocabulary.tokenizer(), qwen_vocabulary.MODEL_VOCABULARY)


def build_compiler(tokenizer: Tokenizer, vocab_size: int) -> GrammarCompiler:
    stop = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    return GrammarCompiler(tokenizer, vocab_size=vocab_size, stop_tokens=stop)


def list_allowed_tokens(matcher: AnswerMatcher) -> np.ndarray:
    mask = np.zeros(-(-matcher.compiler.tokenizer.vocab_size // 32), np.int32)
    matcher.fill_mask(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def choose_token(matcher: AnswerMatcher, rng: np.random.Generator, habit: str) -> int:
    """A token that some model would sample: any, a long one, or one that closes nothing."""
    options, texts = list_allowed_tokens(matcher), matcher.compiler.encoder.token_bytes
    candidates = rng.choice(options, size=min(48, len(options)))
    if habit == "long":
        return int(max(candidates[:8], key=lambda token: len(texts[token])))
    if habit == "endless":
        candidates = [token for token in candidates if not set(texts[token]) & set(b'"}]')] or candidates
    return int(candidates[0])


def take_step(matcher: AnswerMatcher, taken: list[int], rng: np.random.Generator, habit: str) -> None:
    """One step of an engine with one row."""
    token = choose_token(matcher, rng, habit)
    for next_token in [token] if not matcher.get_forced_tokens() else matcher.get_forced_tokens():
        if matcher.is_done or not matcher.accept_token(next_token):
            return
        taken.append(next_token)


def generate_answers(
    compiler: GrammarCompiler, rows: Sequence[tuple[str, int, str]]
) -> list[tuple[list[int], str, str]]:
    """Tokens, text and error of each row (schema, budget, habit), all advancing together."""
    rngs = [np.random.default_rng(index) for index in range(len(rows))]
    matchers = [compiler.create_matcher(SCHEMAS[name], budget=budget) for name, budget, _ in rows]
    taken: list[list[int]] = [[] for _ in rows]
    errors = [""] * len(rows)
    while active := [index for index, matcher in enumerate(matchers) if not matcher.is_done and not errors[index]]:
        for index in active:
            try:
                take_step(matchers[index], taken[index], rngs[index], rows[index][2])
            except GenerateError as error:
                errors[index] = error.kind
    spell = compiler.encoder.token_bytes
    return [
        (tokens, b"".join(spell[token] for token in tokens).decode(), error)
        for tokens, error in zip(taken, errors, strict=True)
    ]


def check_answers(compiler: GrammarCompiler, count: int) -> None:
    rng = np.random.default_rng(7)
    names = list(SCHEMAS) * (count // len(SCHEMAS) + 1)
    more = (0, 1, 2, 5, 10, 20, 40)
    habits = ("any", "long", "endless")
    rows = [
        (name, compiler.count_min_tokens(SCHEMAS[name]) + int(rng.choice(more)), str(rng.choice(habits)))
        for name in names[:count]
    ]
    errors: Counter[str] = Counter()
    for first in range(0, count, 16):
        batch = rows[first : first + 16]
        for (name, budget, habit), (tokens, text, error) in zip(batch, generate_answers(compiler, batch), strict=True):
            errors[error] += 1
            assert len(tokens) <= budget, f"{name} took {len(tokens)} tokens of {budget} ({habit})"
            if not error:
                value, repaired = parse_answer(text)
                assert not repaired, text
                Draft202012Validator(json.loads(SCHEMAS[name])).validate(value)
    assert set(errors) <= {"", "no_close"}
    assert errors["no_close"] <= count / 100


@pytest.mark.parametrize(
    "count", [pytest.param(96, marks=pytest.mark.quick), pytest.param(1000, marks=pytest.mark.slow)]
)
def test_every_answer_fits_schema_and_budget_over_a_tiny_vocabulary(count: int) -> None:
    check_answers(build_tiny_compiler(), count)


@pytest.mark.parametrize(
    "count", [pytest.param(48, marks=pytest.mark.quick), pytest.param(160, marks=pytest.mark.slow)]
)
def test_every_answer_fits_schema_and_budget_over_the_real_vocabulary(count: int) -> None:
    check_answers(build_real_compiler(), count)


@pytest.mark.parametrize("written", ['{"b":[1,2', '{"b":[45', '{"b":[-3'])
@pytest.mark.parametrize("spare_tokens", range(7, 13))
def test_an_ending_adds_no_digit_to_an_unfinished_number(written: str, spare_tokens: int) -> None:
    tokens = build_tiny_compiler().tokenizer.tokenize_str(written)
    matcher = build_tiny_compiler().create_matcher(LISTED, budget=len(tokens) + spare_tokens)
    kept = [token for token in tokens if not matcher.is_truncated and matcher.accept_token(token)]
    matcher.truncate()
    completed = b"".join(
        build_tiny_compiler().encoder.token_bytes[token] for token in kept + matcher.get_forced_tokens()
    ).decode()
    assert completed == written + '],"c":""}' or len(kept) < len(tokens)


def test_a_number_in_a_list_of_fixed_length_ends_with_a_comma() -> None:
    box = json_schema.format_schema(
        json_schema.canonicalize_schema(struct(b=listed({"type": "integer"}, minItems=4, maxItems=4)))
    )
    matcher = build_tiny_compiler().create_matcher(box, budget=200)
    tokens = build_tiny_compiler().tokenizer.tokenize_str('{"b":[21768,1816')
    assert all(matcher.accept_token(token) for token in tokens)
    matcher.truncate()
    completed = b"".join(
        build_tiny_compiler().encoder.token_bytes[token] for token in tokens + matcher.get_forced_tokens()
    ).decode()
    assert json.loads(completed)["b"][:2] == [21768, 1816]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schemas_fit_small_budgets(name: str) -> None:
    assert build_real_compiler().count_min_tokens(SHIPPED[name]) <= 24


@pytest.mark.parametrize("name", SHIPPED)
def test_the_bytes_of_the_shortest_answer_are_counted_without_a_vocabulary(name: str) -> None:
    compiled = build_tiny_compiler().compile_schema(SHIPPED[name])
    assert count_min_bytes(SHIPPED[name]) == len(compiled.shortest_answer) >= compiled.min_tokens


def test_a_budget_below_the_minimum_is_refused_with_the_minimum() -> None:
    min_tokens = build_tiny_compiler().count_min_tokens(SHIPPED["invoice"])
    with pytest.raises(GenerateError, match=f"raise max_new_tokens to {min_tokens} or more") as caught:
        build_tiny_compiler().create_matcher(SHIPPED["invoice"], budget=min_tokens - 1)
    assert caught.value.kind == "no_close"


def test_an_endless_schema_is_refused() -> None:
    endless = {"$ref": "#/$defs/N", "$defs": {"N": struct(inner={"$ref": "#/$defs/N"})}}
    with pytest.raises(GenerateError) as caught:
        build_tiny_compiler().count_min_tokens(json_schema.format_schema(json_schema.canonicalize_schema(endless)))
    assert caught.value.kind in ("no_close", "schema")


def test_an_unenforceable_schema_is_refused() -> None:
    with pytest.raises(GenerateError, match="uniqueItems"):
        build_tiny_compiler().create_matcher('{"type":"array","uniqueItems":true}', budget=50)


def test_certain_tokens_are_forced() -> None:
    matcher = build_real_compiler().create_matcher(NAME, budget=50)
    assert build_real_compiler().tokenizer.decode_str(list(matcher.get_forced_tokens())) == '{"name'


def test_a_token_after_which_no_ending_fits_is_refused() -> None:
    compiler = build_tiny_compiler()
    texts = json_schema.format_schema(
        json_schema.canonicalize_schema(struct(a={"type": "array", "items": struct(long_name={"type": "string"})}))
    )
    matcher = compiler.create_matcher(texts, budget=compiler.count_min_tokens(texts) + 2)
    for token in compiler.tokenizer.tokenize_str('{"a":['):
        assert matcher.accept_token(token)
    brace = compiler.encoder.token_ids[b"{"]
    assert not matcher.accept_token(brace)
    assert compiler.tokenizer.decode_str(list(matcher.get_forced_tokens())) == "]}"
    assert list_allowed_tokens(matcher).tolist() == [matcher.get_forced_tokens()[0]]


def test_a_forced_ending_marks_the_answer_as_truncated() -> None:
    matcher = build_tiny_compiler().create_matcher(NAME, budget=20)
    for token in build_tiny_compiler().tokenizer.tokenize_str('{"name":"x"}'):
        matcher.accept_token(token)
    assert matcher.is_done
    assert not matcher.is_truncated
    matcher, rng = build_tiny_compiler().create_matcher(NAME, budget=20), np.random.default_rng(0)
    taken: list[int] = []
    while not matcher.is_done:
        take_step(matcher, taken, rng, "endless")
    assert matcher.is_truncated
    assert len(taken) <= 20


def test_a_long_text_uses_the_whole_budget() -> None:
    compiler, rng = build_real_compiler(), np.random.default_rng(0)
    matcher, taken = compiler.create_matcher(NAME, budget=60), list[int]()
    while not matcher.is_done:
        take_step(matcher, taken, rng, "endless")
    assert len(taken) >= 57


def test_there_is_no_white_space_between_values() -> None:
    matcher = build_real_compiler().create_matcher(NAME, budget=50)
    matcher.accept_token(build_real_compiler().encoder.token_ids[b"{"])
    assert build_real_compiler().encoder.token_ids[b" "] not in list_allowed_tokens(matcher)
    assert build_real_compiler().encoder.token_ids[b"\n"] not in list_allowed_tokens(matcher)


def test_unknown_keys_cannot_be_written() -> None:
    matcher = build_real_compiler().create_matcher(NAME, budget=50)
    brace, other = build_real_compiler().tokenizer.tokenize_str('{"other')
    assert matcher.accept_token(brace)
    with pytest.raises(GenerateError, match="did not follow"):
        matcher.accept_token(other)


def test_special_tokens_are_never_part_of_an_answer() -> None:
    matcher = build_real_compiler().create_matcher(NAME, budget=50)
    for token in build_real_compiler().tokenizer.tokenize_str('{"name":"A'):
        matcher.accept_token(token)
    options = set(list_allowed_tokens(matcher).tolist())
    assert len(options) > 100_000
    assert not options & set(range(151_643, 151_936))


def test_thinking_and_answer_have_separate_budgets() -> None:
    compiler, rng = build_real_compiler(), np.random.default_rng(0)
    budget = compiler.count_min_tokens(SHIPPED["boxes"]) + 10
    matcher, taken = compiler.create_matcher(SHIPPED["boxes"], budget=budget, thinking_budget=12), list[int]()
    assert not set(list_allowed_tokens(matcher).tolist()) & compiler.stop_tokens
    while not matcher.is_done:
        take_step(matcher, taken, rng, "any")
    end = taken.index(151_668)
    thought, answer = taken[: end + 1], taken[end + 1 :]
    assert len(thought) <= 12
    assert len(thought) + len(answer) <= 12 + budget
    value, repaired = parse_answer(b"".join(compiler.encoder.token_bytes[token] for token in answer).decode())
    assert not repaired
    assert list(value) == ["boxes"]


def test_a_model_may_stop_thinking_early() -> None:
    matcher = build_real_compiler().create_matcher(NAME, budget=50, thinking_budget=1000)
    matcher.accept_token(151_668)
    assert build_real_compiler().tokenizer.decode_str(list(matcher.get_forced_tokens())) == "\n\n"
    for token in matcher.get_forced_tokens():
        matcher.accept_token(token)
    assert build_real_compiler().tokenizer.decode_str(list(matcher.get_forced_tokens())) == '{"name'


def test_a_number_ends_with_a_stop_token() -> None:
    compiler = build_tiny_compiler()
    matcher = compiler.create_matcher(SCHEMAS["a bare number"], budget=5)
    matcher.accept_token(compiler.encoder.token_ids[b"7"])
    assert not matcher.is_done
    assert compiler.stop_tokens & set(list_allowed_tokens(matcher).tolist())
    matcher.accept_token(min(compiler.stop_tokens))
    assert matcher.is_done


def test_states_from_thinking_to_a_forced_ending() -> None:
    compiler, states = build_real_compiler(), []
    matcher = compiler.create_matcher(NAME, budget=compiler.count_min_tokens(NAME), thinking_budget=1)
    while not matcher.is_done:
        states.append(matcher.state)
        assert len(list_allowed_tokens(matcher)) == 1
        assert matcher.accept_token(matcher.get_forced_tokens()[0])
    assert list(dict.fromkeys(states)) == [MatcherState.THINKING, MatcherState.AFTER_THINKING, MatcherState.ENDING]
    assert matcher.is_truncated
