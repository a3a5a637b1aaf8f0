"""Turns generated tokens into text, and knows which tokens end an answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer

BOX_TAGS = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start", "quad_end")


@dataclass(frozen=True, slots=True)
class Detokenizer:
    tokenizer: Tokenizer
    stop_tokens: frozenset[int]
    think_end_token: int | None  # `</think>`, for a model whose answers begin inside <think>
    control_tokens: frozenset[int]  # special tokens that are not part of the text

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, stop_tokens: Iterable[int], *, thinking: bool) -> Detokenizer:
        box_tags = {f"<|{tag}|>" for tag in BOX_TAGS}  # tokenizers mark them as special too, but they are the answer
        control_tokens = frozenset(
            number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special and token.content not in box_tags
        )
        think_end_token = tokenizer.token_to_id("</think>") if thinking else None
        return cls(tokenizer, frozenset(stop_tokens), think_end_token, control_tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        text_tokens = [token for token in tokens if token not in self.control_tokens and token not in self.stop_tokens]
        return self.tokenizer.decode(text_tokens, skip_special_tokens=False)
