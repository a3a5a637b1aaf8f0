"""Converts a Request to chat messages, which vLLM makes the prompt of: with the checkpoint's template and processor.

This is for models that nothing is known about here. A video is shown as frames with their times. Special tokens in the
text of a row get an invisible character, so that they stay text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from PIL import Image

from pipeline.types import Clip, Request

WORD_JOINER = "\u2060"
MIN_TOKEN_LENGTH = 3  # shorter special tokens are ordinary characters in some tokenizers


class ChatRenderer:
    """Belongs to one engine of vLLM."""

    def __init__(self, engine: Any, template_options: Mapping[str, bool], *, add_vision_id: bool):
        from vllm.renderers import ChatParams

        self.renderer = engine.renderer
        self.chat_params = ChatParams(chat_template_kwargs={"add_generation_prompt": True, **template_options})
        # the template writes these tokens itself
        self.token_params = self.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        self.special_token = build_token_pattern(engine.get_tokenizer())
        self.add_vision_id = add_vision_id

    def render(self, request: Request) -> Any:
        """The input of the engine."""
        counts: Counter[str] = Counter()
        messages = [
            {"role": turn.role, "content": [piece for part in turn.parts for piece in self.build_parts(part, counts)]}
            for turn in request.turns
        ]
        _, (prompt,) = self.renderer.render_chat([messages], self.chat_params, self.token_params)
        return prompt

    def build_parts(self, part: Any, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        if not isinstance(part, Clip):
            yield {"type": "text", "text": self.escape_special_tokens(part)}
            return
        counts[part.kind] += 1
        if self.add_vision_id:
            yield {"type": "text", "text": f"{'Picture' if part.kind == 'image' else 'Video'} {counts[part.kind]}: "}
        for index, pixels in enumerate(part.pixels.transpose(0, 2, 3, 1)):
            if index < len(part.times):
                yield {"type": "text", "text": f"<{part.times[index]:.1f} seconds>"}
            yield {"type": "image_pil", "image_pil": Image.fromarray(pixels)}

    def escape_special_tokens(self, text: str) -> str:
        return self.special_token.sub(lambda match: match[0][0] + WORD_JOINER + match[0][1:], text)


def build_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Matches what the tokenizer would read as a token of its own, wherever it stands.

    >>> from types import SimpleNamespace
    >>> build_token_pattern(SimpleNamespace(get_added_vocab=lambda: {"<image>": 7, "<": 8})).findall("a <image> < b")
    ['<image>']
    """
    names = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    return re.compile("|".join(re.escape(name) for name in names if len(name) >= MIN_TOKEN_LENGTH) or r"(?!)")
