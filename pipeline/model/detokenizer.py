"""Turns generated tokens into text, and separates what a Thinking model thinks from what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from pipeline.types import TokenLogprob

THINK_START, THINK_END = "<think>", "</think>"
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
        think_end_token = tokenizer.token_to_id(THINK_END) if thinking else None
        return cls(tokenizer, frozenset(stop_tokens), think_end_token, control_tokens)

    def decode(self, tokens: Iterable[int]) -> str:
        text_tokens = [token for token in tokens if token not in self.control_tokens and token not in self.stop_tokens]
        return self.tokenizer.decode(text_tokens, skip_special_tokens=False)

    def split_thinking(self, tokens: list[int]) -> tuple[list[int], list[int]]:
        """The tokens of the thinking, `</think>` included, and those of the answer."""
        end = self.think_end_token
        if end is None:
            return [], tokens
        cut = tokens.index(end) + 1 if end in tokens else len(tokens)
        return tokens[:cut], tokens[cut:]

    def decode_output(self, tokens: list[int]) -> tuple[str | None, str]:
        """The thinking, for a model that thinks, and the answer."""
        if self.think_end_token is None:
            return None, self.decode(tokens)
        thinking, answer = self.split_thinking(tokens)
        thought = self.decode(token for token in thinking if token != self.think_end_token)
        return thought.strip(), self.decode(answer).lstrip()

    def locate_tokens(self, tokens: list[int], logprobs: Sequence[float | None], text: str) -> tuple[TokenLogprob, ...]:
        """Where each of an answer's tokens ends in its text. A character of several tokens ends with the last."""
        stream, lengths, length = DecodeStream(skip_special_tokens=False), [], 0
        for token in tokens:
            if token not in self.control_tokens and token not in self.stop_tokens:
                length += len(stream.step(self.tokenizer, token) or "")
            lengths.append(length)
        stripped = max(0, length - len(text))  # white space after the thinking
        ends = [max(0, length - stripped) for length in lengths[:-1]] + [len(text)]  # half a character may be the last
        return tuple(map(TokenLogprob, ends, logprobs))


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thinking and the answer. The thinking is None where nothing ends it.

    >>> split_thinking("<think>hm</think> red"), split_thinking("red")
    (('hm', 'red'), (None, 'red'))
    """
    thinking, end, answer = text.rpartition(THINK_END)
    return (thinking.lstrip().removeprefix(THINK_START).strip(), answer.lstrip()) if end else (None, text)
