"""The tokenizer of the built-in models: bytes for any text, and one token for each frequent piece of an answer.

A standalone number or time is one token (`[120,64`, `:2.5`); digits inside a string are separate tokens. Lines of the
shipped questions and stretches of JSON are one token each, so a row has a few dozen tokens. Such a stretch ends where
the grammar leaves a choice, such as after `[`: guidance spells forced text with the longest tokens, so it would never
allow a token that reaches past a choice. This is BPE without merges: a piece is in the vocabulary or becomes bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.builtin.clip_scenes import EVENT_KINDS
from pipeline.builtin.drawing import COLORS, SHAPES
from pipeline.builtin.invoices import CURRENCIES, GOODS, SELLERS
from pipeline.builtin.random_checkpoint import ADDED_TOKENS, SPECIAL_TOKENS
from pipeline.schema import schema_loader

TASK_SCHEMAS = {"caption": "caption", "detect": "boxes", "invoice": "invoice", "video": "events"}
NUMBERS = [str(number) for number in range(1001)]
SECOND_VALUES = [f"{tenth / 10:.1f}" for tenth in range(100)]
TIMESTAMPS = [f"<{moment} seconds>" for moment in SECOND_VALUES]
JSON_PIECES = [
    '{"caption":"',
    '.","tags":["',
    '","',
    '"],"language":"en"}',
    '{"boxes":[',
    '{"bbox_2d":[',
    '],"label":"',
    '"},{"bbox_2d":[',
    '"}]}',
    '{"events":[',
    '{"what":"',
    '.","start":',
    ',"end":',
    "},",
    "}]}",
    "]}",
    '{"number":"',
    '","issued":"',
    '","seller":{"name":"',
    '"},"currency":"',
    '","lines":[',
    '{"description":"',
    '","amount":"',
    '"},{"description":"',
    '"}],"taxes":[],"total":"',
    '"}',
]
CHAT_PIECES = ["system\n", "You are a helpful assistant.", "user\n", "assistant\n"]
STANDALONE_NUMBER = r"(?<=[\[,])\d{1,4}(?=[,\]])|(?<=:)\d\.\d(?=[,}])"


def load_questions() -> dict[str, str]:
    """The question of each task: the default prompt of its shipped schema."""
    loaded = {task: schema_loader.load_schema(name, base_folder=Path()) for task, name in TASK_SCHEMAS.items()}
    return {task: schema_loader.build_default_prompt(schema) for task, schema in loaded.items() if schema}


def list_phrases() -> Iterator[str]:
    for question in load_questions().values():
        yield from question.splitlines(keepends=True)
    yield from (*CHAT_PIECES, *JSON_PIECES, *TIMESTAMPS, ", a", " and a", "A")
    for color in COLORS:
        yield from (color, f" {color}")
    yield from (f" {word}" for word in (*SHAPES, *EVENT_KINDS))
    yield from (*SELLERS, *GOODS, *CURRENCIES)


def build_tokenizer() -> Tokenizer:
    phrases = list(dict.fromkeys(list_phrases()))
    words = dict.fromkeys([*NUMBERS, *SECOND_VALUES, *phrases])
    pieces = list(dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *map(to_byte_letters, words)]))
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    )
    longest_first = sorted(phrases, key=len, reverse=True)
    split = "|".join([STANDALONE_NUMBER, *map(re.escape, longest_first), r"\d", r"[^\d]"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(token, special=token in SPECIAL_TOKENS, normalized=False) for token in ADDED_TOKENS]
    )
    return tokenizer


def to_byte_letters(word: str) -> str:
    """Spell a word in the letters that byte-level BPE uses for bytes."""
    [(piece, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(word)
    return piece
