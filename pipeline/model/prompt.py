"""Builds the pieces of a prompt, in order, from turns and a checkpoint's chat template.

The text of a row stays a `str` and the structure of the prompt is made of `SpecialToken`, so no text can close a turn
or open an image. The template is rendered once, on a probe, to learn what it puts around turns; a template of another
format is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from pipeline.errors import JobError
from pipeline.types import Clip, MediaRef, Turn

PROBE_TEXT = "What is this?"
RENDERED_PROBE = re.compile(
    rf"(?:<\|im_start\|>system\n(?P<system>.*?)<\|im_end\|>\n)?"
    rf"<\|im_start\|>user\n{re.escape(PROBE_TEXT)}<\|im_end\|>\n<\|im_start\|>assistant\n(?P<opening>.*)",
    re.DOTALL,
)
GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")  # a tag that only transformers knows


class SpecialToken(Enum):
    """The tokens that begin and end a turn."""

    START = "<|im_start|>"
    END = "<|im_end|>"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """The text that a checkpoint's chat template adds to the turns."""

    default_system: str | None = None  # the system turn of a conversation without one
    answer_prefix: str = ""  # how every answer begins: `<think>\n` for a Thinking checkpoint

    @property
    def thinking(self) -> bool:
        return self.answer_prefix.startswith("<think>")


def parse_chat_template(template: str) -> ChatFormat:
    """What a chat template puts around a conversation.

    >>> turn = "<|im_start|>{{ m.role }}\\n{{ m.content[0].text }}<|im_end|>\\n"
    >>> opening = "<|im_start|>assistant\\n<think>\\n\\n"
    >>> parse_chat_template("{% for m in messages %}" + turn + "{% endfor %}" + opening)
    ChatFormat(default_system=None, answer_prefix='<think>\\n')
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    probe = [{"role": "user", "content": [{"type": "text", "text": PROBE_TEXT}]}]
    try:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        plain_template = environment.from_string(GENERATION_TAG.sub(_replace_generation_tag, template))
        text = plain_template.render(messages=probe, add_generation_prompt=True)
    except TemplateError as error:
        raise JobError(f"the checkpoint's chat template cannot be rendered: {error}") from error
    match = RENDERED_PROBE.fullmatch(text)
    if not match:
        raise JobError(
            f"the checkpoint's chat template is not of the Qwen-VL kind: it renders {PROBE_TEXT!r} as {text!r}"
        )
    return ChatFormat(match["system"], match["opening"])


def _replace_generation_tag(tag: re.Match[str]) -> str:
    """The tag marks the model's own words for training; their content is always rendered."""
    return f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}"


def build_prompt_pieces(
    turns: Sequence[Turn], chat_format: ChatFormat, *, add_vision_id: bool
) -> Iterator[str | SpecialToken | Clip]:
    """The prompt up to the answer. `add_vision_id` numbers the media: 'Picture 1: '."""
    counts = {"image": 0, "video": 0}
    if chat_format.default_system is not None and (not turns or turns[0].role != "system"):
        turns = [Turn("system", (chat_format.default_system,)), *turns]
    for turn in turns:
        yield SpecialToken.START
        yield f"{turn.role}\n"
        is_earlier_answer = chat_format.thinking and turn.role == "assistant"
        for part in turn.parts:
            if isinstance(part, MediaRef):
                raise TypeError("a prompt is built of Clips; this MediaRef was never loaded")
            if add_vision_id and isinstance(part, Clip):
                counts[part.kind] += 1
                yield f"{'Picture' if part.kind == 'image' else 'Video'} {counts[part.kind]}: "
            yield remove_thinking(part) if is_earlier_answer and isinstance(part, str) else part
        yield SpecialToken.END
        yield "\n"
    yield SpecialToken.START
    yield f"assistant\n{chat_format.answer_prefix}"


def remove_thinking(text: str) -> str:
    """An earlier answer without its thoughts, which Thinking models never see again."""
    _, end, answer = text.rpartition("</think>")
    return answer.lstrip("\n") if end else text
