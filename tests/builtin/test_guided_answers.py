"""What the built-in models were taught to say is what a grammar lets them say, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.builtin.scenes import scene
from pipeline.builtin.training import vocabulary
from pipeline.model.guidance.grammar import Grammars
from pipeline.schema import load_schema as schemas


@pytest.mark.parametrize("task", vocabulary.SCHEMAS)
def test_every_token_of_a_right_answer_is_allowed_where_it_stands(task):
    tokenizer = vocabulary.tokenizer()
    stop = tokenizer.token_to_id("<|im_end|>")
    grammars = Grammars(tokenizer, vocab_size=1600, stop=[stop])
    asked = schemas.load(vocabulary.SCHEMAS[task], base=Path()).text
    for number in range(20):
        text = json.dumps(scene("train", task, number).answer, separators=(",", ":"))
        matcher, mask = grammars.matcher(asked, budget=160), np.zeros(50, np.int32)
        for token in [*tokenizer.encode(text, add_special_tokens=False).ids, stop]:
            matcher.fill(mask)
            assert mask.view(np.uint32)[token // 32] >> token % 32 & 1, tokenizer.id_to_token(token)
            assert matcher.accept(token)
        assert matcher.done
        assert not matcher.cut
