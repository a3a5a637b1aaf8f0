"""The tokenizer of the built-in models spells every text, and answers with few tokens."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.builtin.scenes import create_scene
from pipeline.builtin.training.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
TOKENIZER.encode_special_tokens = True


def split_into_tokens(text: str) -> list[str]:
    tokens: list[str] = TOKENIZER.encode(text, add_special_tokens=False).tokens
    return tokens


@given(st.text())
def test_every_text_decodes_to_itself(text):
    text = TOKENIZER.normalizer.normalize_str(text)
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_a_standalone_number_is_one_token_and_a_quoted_one_is_digits():
    assert split_into_tokens("[120,64]") == ["[", "120", ",", "64", "]"]
    assert split_into_tokens('"120"') == ['"', "1", "2", "0", '"']


@pytest.mark.parametrize(("task", "max_tokens"), [("caption", 40), ("detect", 40), ("invoice", 80), ("video", 30)])
def test_an_answer_is_a_few_dozen_tokens(task, max_tokens):
    for number in range(50):
        text = json.dumps(create_scene("train", task, number).answer, separators=(",", ":"))
        assert len(split_into_tokens(text)) <= max_tokens
