"""A reply that was cut off -> the same with the shortest ending that fits its schema.

Our own engine never lets the budget end before the answer does; servers and other engines cut. What they wrote is
read again by the same grammar, as far as an ending still fits the budget, and the ending is written in their place.
Free of any model, and the same words that our engine would have forced. What does not follow the grammar stays
as it is: it is then asked again, or an error row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer

from pipeline.errors import GenerateError
from pipeline.types import Reply, Request

STRING_OR_SPACE = re.compile(r'("(?:[^"\\]|\\.)*"?)|\s+', re.DOTALL)
UNFINISHED_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)\\(?:u[0-9a-fA-F]{0,3})?$")  # an escape
MAX_ENDING_TOKENS = 4096  # tokens for an ending where the budget was another tokenizer's


class ReplyCompleter:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.compiler: object = None

    def complete_reply(self, reply: Reply, request: Request, answer_tokens: Sequence[int] | None = None) -> Reply:
        """`tokens`: those of the answer, where they are known; then the ending keeps to the budget.

        Where nothing was said (a budget spent on thinking), an ending would be an answer of our own making.
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
            size = self.tokenizer.get_vocab_size()
            self.compiler = GrammarCompiler(self.tokenizer, vocab_size=size, stop_tokens=[0])
        if tokens is None:
            tokens = self.tokenizer.encode(compact_json(text), add_special_tokens=False).ids
            budget = len(tokens) + MAX_ENDING_TOKENS
        matcher = self.compiler.create_matcher(schema, budget=budget)
        kept: list[int] = []
        for token in tokens:
            if matcher.is_done or matcher.is_truncated or not matcher.accept_token(token):
                break
            kept.append(token)
        matcher.truncate()
        return str(self.tokenizer.decode(kept + matcher.get_forced_tokens(), skip_special_tokens=False))


def compact_json(text: str) -> str:
    """Without the white space between JSON's pieces, and without a character that was cut in half.

    >>> compact('{"a b": [1,\\n "x y'), compact('["caf\\\\u00e')
    ('{"a b":[1,"x y', '["caf')
    """
    return UNFINISHED_ESCAPE.sub(r"\1", STRING_OR_SPACE.sub(lambda match: match[1] or "", text).rstrip("\ufffd"))
