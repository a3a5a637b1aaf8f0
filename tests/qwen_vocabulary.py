"""The real tokenizer of the Qwen models with its 151,643 tokens, without a download from the hub.

The package `dashscope` ships the ranks; the merges are rebuilt from them once and cached in the temporary folder.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import os
import tempfile
from itertools import pairwise
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, models

from pipeline.builtin import random_checkpoint

MODEL_VOCABULARY = 151_936  # size of the models' output layer, which is larger than the vocabulary


@functools.cache
def tokenizer() -> Tokenizer:
    """Bytes, merges and special tokens with the ids of the real checkpoints."""
    cached = Path(tempfile.gettempdir()) / f"qwen-vocabulary-{os.getuid()}.json"
    if not cached.exists():
        partial = cached.with_suffix(f".{os.getpid()}")
        _build().save(str(partial), pretty=False)
        partial.rename(cached)
    return Tokenizer.from_file(str(cached))


def _build() -> Tokenizer:
    package = importlib.util.find_spec("dashscope")
    assert package
    assert package.submodule_search_locations
    lines = (Path(package.submodule_search_locations[0]) / "resources" / "qwen.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    byte_characters = _list_byte_characters()
    vocab = {"".join(byte_characters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [
        tuple("".join(byte_characters[byte] for byte in part) for part in _split_token(token, ranks))
        for token in ranks
        if len(token) > 1
    ]
    tiny = random_checkpoint.build_tiny_tokenizer()
    built = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    built.normalizer, built.pre_tokenizer, built.decoder = tiny.normalizer, tiny.pre_tokenizer, tiny.decoder
    special = set(random_checkpoint.SPECIAL_TOKENS)
    built.add_tokens(
        [AddedToken(token, special=token in special, normalized=False) for token in random_checkpoint.ADDED_TOKENS]
    )
    return built


def _list_byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) if byte in shown else chr(256 + hidden.index(byte)) for byte in range(256)]


def _split_token(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens whose merge made this one: apply all merges of a lower rank."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pairs = [(ranks.get(one + other, len(ranks)), at) for at, (one, other) in enumerate(pairwise(parts))]
        rank, at = min(pairs)
        assert rank < ranks[token]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
