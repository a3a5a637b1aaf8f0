"""The trained models' tokenizer: every text has its tokens, and answers have few."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training import vocabulary

TOKENIZER = vocabulary.build_tokenizer()
TOKENIZER.encode_special_tokens = True


def tokens(text: str) -> list[str]:
    found: list[str] = TOKENIZER.encode(text, add_special_tokens=False).tokens
    return found


@given(st.text())
def test_every_text_comes_back(text):
    text = TOKENIZER.normalizer.normalize_str(text)
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_numbers_are_one_token_alone_and_digits_in_words():
    assert tokens("[120,64]") == ["[", "120", ",", "64", "]"]
    assert tokens('"120"') == ['"', "1", "2", "0", '"']


@pytest.mark.parametrize(("task", "most"), [("caption", 40), ("detect", 40), ("invoice", 80), ("video", 30)])
def test_an_answer_is_a_few_dozen_tokens(task, most):
    for number in range(50):
        text = json.dumps(create_scene("train", task, number).answer, separators=(",", ":"))
        assert len(tokens(text)) <= most
