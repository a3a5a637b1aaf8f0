"""What the built-in models were taught to say is what a grammar lets them say, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training import vocabulary
from pipeline.model.guidance.grammar import GrammarCompiler
from pipeline.schema import schema_loader


@pytest.mark.parametrize("task", vocabulary.TASK_SCHEMAS)
def test_every_token_of_a_right_answer_is_allowed_where_it_stands(task):
    tokenizer = vocabulary.build_tokenizer()
    stop = tokenizer.token_to_id("<|im_end|>")
    grammars = GrammarCompiler(tokenizer, vocab_size=1600, stop_tokens=[stop])
    asked = schema_loader.load_schema(vocabulary.TASK_SCHEMAS[task], base_folder=Path()).text
    for number in range(20):
        text = json.dumps(create_scene("train", task, number).answer, separators=(",", ":"))
        matcher, mask = grammars.create_matcher(asked, budget=160), np.zeros(50, np.int32)
        for token in [*tokenizer.encode(text, add_special_tokens=False).ids, stop]:
            matcher.fill_mask(mask)
            assert mask.view(np.uint32)[token // 32] >> token % 32 & 1, tokenizer.id_to_token(token)
            assert matcher.accept_token(token)
        assert matcher.is_done
        assert not matcher.is_truncated
