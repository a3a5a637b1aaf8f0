"""Completes a reply that the budget cut off with the shortest ending that fits its schema.

Our own engine never lets the budget end before the answer does; HTTP servers and vLLM do. Their text is parsed again
by the same grammar up to the last token after which an ending still fits, and the ending replaces the rest, as our
engine would have forced it. A text that does not follow the grammar stays as it is, and is asked again or fails.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.types import Reply, Request

STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*"?)|\s+', re.DOTALL)
UNFINISHED_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")
MAX_ENDING_TOKENS = 4096  # where the budget was counted by another tokenizer


class ReplyCompleter:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.compiler: object = None

    def complete_reply(self, reply: Reply, request: Request, answer_tokens: Sequence[int] | None = None) -> Reply:
        """`answer_tokens`, where known, make the ending keep to the budget.

        An empty reply (the budget went into thinking) stays empty: completing it would invent an answer.
        """
        if reply.finish != "length" or request.schema_text is None or not reply.text.strip():
            return reply
        try:
            text = self.complete_text(reply.text, request.schema_text, request.sampling.max_new_tokens, answer_tokens)
        except GenerateError:
            return reply
        return replace(reply, text=text)

    def complete_text(self, text: str, schema: str, budget: int, tokens: Sequence[int] | None) -> str:
        from pipeline.model.guidance.grammar import GrammarCompiler

        if not isinstance(self.compiler, GrammarCompiler):
            vocab_size = self.tokenizer.get_vocab_size()
            self.compiler = GrammarCompiler(self.tokenizer, vocab_size=vocab_size, stop_tokens=[0])
        if tokens is None:
            tokens = self.tokenizer.encode(compact_json(text), add_special_tokens=False).ids
            budget = len(tokens) + MAX_ENDING_TOKENS
        matcher = self.compiler.create_matcher(schema, budget=budget)
        kept_tokens: list[int] = []
        for token in tokens:
            if matcher.is_done or matcher.is_truncated or not matcher.accept_token(token):
                break
            kept_tokens.append(token)
        matcher.truncate()
        return str(self.tokenizer.decode(kept_tokens + matcher.get_forced_tokens(), skip_special_tokens=False))


def compact_json(text: str) -> str:
    """Remove white space between JSON tokens, and a character that was cut in half at the end.

    >>> compact_json('{"a b": [1,\\n "x y'), compact_json('["caf\\\\u00e')
    ('{"a b":[1,"x y', '["caf')
    """
    return UNFINISHED_ESCAPE.sub(r"\1", STRING_OR_SPACE.sub(lambda match: match[1] or "", text).rstrip("\ufffd"))
