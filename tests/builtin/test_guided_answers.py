"""The grammar allows every token of the answers that the built-in models were trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training.tokenizer import TASK_SCHEMAS, build_tokenizer
from pipeline.model.guidance.grammar import GrammarCompiler
from pipeline.schema import schema_loader

pytestmark = pytest.mark.process


@pytest.mark.parametrize("task", TASK_SCHEMAS)
def test_the_grammar_allows_every_token_of_a_true_answer(task):
    tokenizer = build_tokenizer()
    stop = tokenizer.token_to_id("<|im_end|>")
    compiler = GrammarCompiler(tokenizer, vocab_size=1600, stop_tokens=[stop])
    schema_text = schema_loader.load_schema(TASK_SCHEMAS[task], base_folder=Path()).text
    for number in range(20):
        text = json.dumps(create_scene("train", task, number).answer, separators=(",", ":"))
        matcher, mask = compiler.create_matcher(schema_text, budget=160), np.zeros(50, np.int32)
        for token in [*tokenizer.encode(text, add_special_tokens=False).ids, stop]:
            matcher.fill_mask(mask)
            assert mask.view(np.uint32)[token // 32] >> token % 32 & 1, tokenizer.id_to_token(token)
            assert matcher.accept_token(token)
        assert matcher.is_done
        assert not matcher.is_truncated
