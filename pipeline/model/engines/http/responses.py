"""What came back from a server -> a Reply, or what has to happen next.

    Passing        worth another attempt: busy, away, broken, cut off
    Refused        this request will never be taken as it is: an error row, or another spelling of it
    JobError       no request will: a wrong key, model or address; the run stops and names the key to change

Pure: a status, headers and text in, a value or an exception out. Messages repeat what the server says, shortened and
without the key, which some servers send back.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from pipeline.errors import GenerateError, JobError, StoppedError
from pipeline.json_values import encodable
from pipeline.types import Finish, Reply, Request

BUSY, AWAY = (425, 429), (502, 503, 504, 520, 521, 522, 523, 524, 529)
LONGEST_SAYING = 300
TOO_LONG = re.compile(r"context.{0,8}(length|window)|maximum.{0,20}(length|tokens)|too (long|many tokens)", re.I)
FLAGGED = re.compile(r"moderation|flagged|content.?(filter|policy|management)", re.I)
SPENT = re.compile(r"insufficient_quota|billing|credit balance|exceeded your current quota", re.I)


class Passing(Exception):
    """May be gone in a moment. `fault`: the row's own, or perhaps (None) or surely not (False)."""

    def __init__(self, kind: str, message: str, *, fault: bool | None = True, after_s: float = 0.0):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fault = fault
        self.after_s = after_s  # what the server asked for


class Refused(GenerateError):
    """The server does not take the request; the message says why in the server's words."""


def judge(status: int, headers: Mapping[str, str], text: str, *, url: str, secret: str = "") -> dict[str, Any]:
    """The answer's JSON."""
    answer = parsed(text)
    if status == 200 and answer is None:
        raise Passing("protocol", f"{url} answers with something that is not JSON: {short(text, secret)}")
    error = (answer or {}).get("error")
    if status == 200 and error and "choices" not in (answer or {}):  # some gateways hide a status in the body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 500
    if status == 200 and answer is not None:
        return answer
    said = f"{url} answers {status}: {short(words(answer, text), secret)}"
    if status == 402 or (status == 429 and SPENT.search(text)):
        raise StoppedError(f"stopped: {said}. When there is credit again, the same command goes on from here")
    if status in BUSY or status in AWAY:
        fault = False if status in BUSY else None
        raise Passing("busy" if status in BUSY else "away", said, fault=fault, after_s=after_s(headers))
    if status in (408, 409) or (status >= 500 and status not in (501, 505)):
        raise Passing("server", said, after_s=after_s(headers))
    if FLAGGED.search(text):
        raise Refused("content_filter", said)
    refuse(status, said, headers)
    raise Refused("too_long" if TOO_LONG.search(text) else "refused", said)


def refuse(status: int, said: str, headers: Mapping[str, str]) -> None:
    """What is wrong with every request, by the key of the job that would make it right."""
    if status in (401, 403):
        raise JobError(f"engine.api_key: {said}; set the variable that it names to a key that may use this model")
    if status == 404:
        key = "engine.model" if "model" in said.partition(": ")[2].lower() else "engine.url"
        raise JobError(f"{key}: {said}; name a model that is served there, and the address up to /v1")
    if 300 <= status < 400:
        raise JobError(f"engine.url: {said or 'moved'}; redirects are not followed, name {headers.get('Location')}")
    if status in (405, 501, 505):
        raise JobError(f"engine.url: {said}; is that the address of an OpenAI-protocol server, up to /v1?")


def reply(request: Request, answer: Mapping[str, Any]) -> Reply:
    """The first choice. A model that declines has not answered."""
    try:
        choice = answer["choices"][0]
        said = choice["message"]
        text, why = spoken(said.get("content")), choice.get("finish_reason")
        apart = spoken(said.get("reasoning_content") or said.get("reasoning"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Passing("protocol", f"the server's answer has no message: {short(json.dumps(answer), '')}") from error
    if why in ("error", "abort"):
        raise Passing("server", f"the server gave the answer up ({why})")
    if why == "content_filter":
        raise GenerateError("content_filter", "the server's filter held the answer back", text=text or None)
    if said.get("refusal"):
        no = str(said["refusal"])
        raise GenerateError("refusal", f"the model declines: {short(no, '')}", text=no)
    thinking, text = thought(apart, text or "", request)
    finish: Finish = "length" if why in ("length", "max_tokens") else "stop"
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        id=request.id,
        text=text,
        finish=finish,
        tokens=counted(usage.get("completion_tokens")) or 0,
        thinking=thinking,
        logprob=mean(choice.get("logprobs")),
        prompt_tokens=counted(usage.get("prompt_tokens")),
    )


def shrunk(request: Request, reply: Reply) -> bool:
    """Whether a server of the same model made pictures smaller, so that boxes are those of another size.

    To judge by its count of tokens: some of the vision tokens that were prepared, and not nearly all.
    """
    whole, vision = len(request.input_ids), request.vision_tokens
    pictures = all(clip.kind == "image" for clip in request.clips)
    return pictures and whole - 0.95 * vision < (reply.prompt_tokens or 0) < whole - 0.05 * vision


def thought(apart: str | None, text: str, request: Request) -> tuple[str | None, str]:
    """What a Thinking model thought, wherever the server puts it."""
    thinks = request.sampling.thinking_tokens is not None or text.lstrip().startswith("<think>")
    if apart is not None or not thinks:
        return apart, text
    before, end, after = text.rpartition("</think>")
    return (before.lstrip().removeprefix("<think>").strip(), after.lstrip()) if end else (None, text)


def spoken(content: Any) -> str | None:
    """Text, or the text of parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    if content is None or isinstance(content, str):
        return content
    raise TypeError(f"a message of {type(content).__name__}")


def counted(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def mean(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    found = [token.get("logprob") for token in tokens or () if isinstance(token, dict)]
    numbers = [number for number in found if isinstance(number, (int, float))]
    return sum(numbers) / len(numbers) if numbers else None


def parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        value = encodable(value)[0] if "\\ud" in text.lower() else value  # a server may cut a character in half
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def words(answer: Mapping[str, Any] | None, text: str) -> str:
    """The server's message, in any of the forms that servers use."""
    error = (answer or {}).get("error", answer)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error) if error else text


def short(text: str, secret: str) -> str:
    clean = text.replace(secret, "***") if secret else text
    clean = " ".join(clean.split())
    return clean if len(clean) <= LONGEST_SAYING else f"{clean[:LONGEST_SAYING]}..."


def after_s(headers: Mapping[str, str]) -> float:
    """What `Retry-After` asks for, in seconds from now; its other form is a date."""
    value = headers.get("Retry-After", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
