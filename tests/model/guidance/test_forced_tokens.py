"""Tokens count as forced where the grammar leaves one way to go on, whoever wrote the answer."""

from __future__ import annotations

import json
from itertools import accumulate

import numpy as np
import pytest

from pipeline.builtin.random_checkpoint import build_tiny_tokenizer
from pipeline.model.detokenizer import Detokenizer
from pipeline.model.guidance.forced_tokens import find_forced_tokens
from pipeline.model.guidance.grammar import GrammarCompiler
from pipeline.model.guidance.reply_completer import ReplyCompleter
from pipeline.types import Reply, Request, TokenLogprob

pytestmark = pytest.mark.process

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["invoice", "invitation"]},
            "name": {"type": "string", "maxLength": 12},
            "n": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["kind", "name", "n"],
        "additionalProperties": False,
    }
)
PIECES = ['{"ki', 'nd":', '"in', "v", "o", 'ice"', ',"name":"', "\u00e9", "", 'a",', '"n":', "5", "}", ""]
FORCED = [True, True, True, True, False, True, True, False, False, False, True, False, True, False]


def build_reply(pieces: list[str]) -> Reply:
    tokens = tuple(TokenLogprob(end, -0.5 - number) for number, end in enumerate(accumulate(map(len, pieces))))
    return Reply("a", "".join(pieces), token_logprobs=tokens, logprob=-7.0)


def build_request(schema: str | None = SCHEMA) -> Request:
    empty = np.zeros(0, np.int32)
    return Request("a", (), empty, empty[None], schema_text=schema)


@pytest.fixture(scope="module")
def completer() -> ReplyCompleter:
    return ReplyCompleter(build_tiny_tokenizer())


def test_forced_tokens_have_no_log_probability_and_the_mean_leaves_them_out(completer):
    reply = completer.complete_reply(build_reply(PIECES), build_request())
    assert [token.logprob is None for token in reply.token_logprobs] == FORCED
    assert [token.end for token in reply.token_logprobs] == list(accumulate(map(len, PIECES)))
    kept = [-0.5 - number for number, forced in enumerate(FORCED) if not forced]
    assert reply.logprob == pytest.approx(sum(kept) / len(kept))


def test_where_nothing_was_forced_a_reply_stays_as_it_is(completer):
    reply = build_reply(PIECES)
    assert completer.complete_reply(reply, build_request(), was_guided=False) == reply
    assert completer.complete_reply(reply, build_request(schema=None)) == reply


def test_behind_a_text_that_left_the_grammar_nothing_counts_as_forced(completer):
    reply = completer.complete_reply(build_reply(['{"kind"', ": ", '"invoice"', ',"name":']), build_request())
    assert [token.logprob is None for token in reply.token_logprobs] == [True, False, False, False]


def test_what_our_own_engine_would_force_counts_as_forced():
    """Its grammar names the tokens; the text of an answer names their bytes."""
    tokenizer, rng = build_tiny_tokenizer(), np.random.default_rng(3)
    end = tokenizer.token_to_id("<|im_end|>")
    compiler = GrammarCompiler(tokenizer, vocab_size=512, stop_tokens=[end])
    detokenizer = Detokenizer.from_tokenizer(tokenizer, [end], thinking=False)
    seen = 0
    for _ in range(20):
        matcher, tokens, forced = compiler.create_matcher(SCHEMA, budget=200), list[int](), list[bool]()
        while not matcher.is_done:
            known = matcher.get_forced_tokens()
            mask = np.zeros(16, np.int32)
            matcher.fill_mask(mask)
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            for token in known or [int(rng.choice(allowed))]:
                assert matcher.accept_token(token)
                tokens.append(token)
                forced.append(bool(known) and token != end)
        text = detokenizer.decode(tokens)
        ends = [place.end for place in detokenizer.locate_tokens(tokens, [0.0] * len(tokens), text)]
        found = find_forced_tokens(text, ends, compiler.compile_schema(SCHEMA).byte_matcher.deep_copy())
        assert not any(ours and not theirs for ours, theirs in zip(forced, found, strict=True))
        seen += sum(forced)
    assert seen > 20
