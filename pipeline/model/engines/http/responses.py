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
from collections.abc import Mapping
from typing import Any

from pipeline.errors import GenerateError, JobError, StoppedError
from pipeline.json_values import replace_lone_surrogates
from pipeline.retry_policy import parse_retry_after
from pipeline.types import FinishReason, Reply, Request

BUSY_STATUSES, UNAVAILABLE_STATUSES = (425, 429), (502, 503, 504, 520, 521, 522, 523, 524, 529)
MAX_MESSAGE_LENGTH = 300
TOO_LONG_MESSAGE = re.compile(
    r"context.{0,8}(length|window)|maximum.{0,20}(length|tokens)|too (long|many tokens)", re.I
)
CONTENT_FILTER_MESSAGE = re.compile(r"moderation|flagged|content.?(filter|policy|management)", re.I)
NO_CREDIT_MESSAGE = re.compile(r"insufficient_quota|billing|credit balance|exceeded your current quota", re.I)


class TransientServerError(Exception):
    """May be gone in a moment. `fault`: the row's own, or perhaps (None) or surely not (False)."""

    def __init__(self, kind: str, message: str, *, is_row_fault: bool | None = True, retry_after_s: float = 0.0):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.is_row_fault = is_row_fault
        self.retry_after_s = retry_after_s  # what the server asked for


class RequestRefusedError(GenerateError):
    """The server does not take the request; the message says why in the server's words."""


def parse_response(
    status: int, headers: Mapping[str, str], text: str, *, url: str, api_key: str = ""
) -> dict[str, Any]:
    """The answer's JSON."""
    answer = parse_json_object(text)
    if status == 200 and answer is None:
        raise TransientServerError(
            "protocol", f"{url} answers with something that is not JSON: {shorten_message(text, api_key)}"
        )
    error = (answer or {}).get("error")
    if status == 200 and error and "choices" not in (answer or {}):  # some gateways hide a status in the body
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and code >= 400 else 500
    if status == 200 and answer is not None:
        return answer
    said = f"{url} answers {status}: {shorten_message(extract_error_message(answer, text), api_key)}"
    if status == 402 or (status == 429 and NO_CREDIT_MESSAGE.search(text)):
        raise StoppedError(f"stopped: {said}. When there is credit again, the same command goes on from here")
    if status in BUSY_STATUSES or status in UNAVAILABLE_STATUSES:
        fault = False if status in BUSY_STATUSES else None
        raise TransientServerError(
            "busy" if status in BUSY_STATUSES else "away",
            said,
            is_row_fault=fault,
            retry_after_s=parse_retry_after(headers),
        )
    if status in (408, 409) or (status >= 500 and status not in (501, 505)):
        raise TransientServerError("server", said, retry_after_s=parse_retry_after(headers))
    if CONTENT_FILTER_MESSAGE.search(text):
        raise RequestRefusedError("content_filter", said)
    raise_job_error(status, said, headers)
    raise RequestRefusedError("too_long" if TOO_LONG_MESSAGE.search(text) else "refused", said)


def raise_job_error(status: int, message: str, headers: Mapping[str, str]) -> None:
    """What is wrong with every request, by the key of the job that would make it right."""
    if status in (401, 403):
        raise JobError(f"engine.api_key: {message}; set the variable that it names to a key that may use this model")
    if status == 404:
        key = "engine.model" if "model" in message.partition(": ")[2].lower() else "engine.url"
        raise JobError(f"{key}: {message}; name a model that is served there, and the address up to /v1")
    if 300 <= status < 400:
        raise JobError(f"engine.url: {message or 'moved'}; redirects are not followed, name {headers.get('Location')}")
    if status in (405, 501, 505):
        raise JobError(f"engine.url: {message}; is that the address of an OpenAI-protocol server, up to /v1?")


def parse_reply(request: Request, response: Mapping[str, Any]) -> Reply:
    """The first choice. A model that declines has not answered."""
    try:
        choice = response["choices"][0]
        said = choice["message"]
        text, why = parse_content(said.get("content")), choice.get("finish_reason")
        apart = parse_content(said.get("reasoning_content") or said.get("reasoning"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise TransientServerError(
            "protocol", f"the server's answer has no message: {shorten_message(json.dumps(response), '')}"
        ) from error
    if why in ("error", "abort"):
        raise TransientServerError("server", f"the server gave the answer up ({why})")
    if why == "content_filter":
        raise GenerateError("content_filter", "the server's filter held the answer back", text=text or None)
    if said.get("refusal"):
        no = str(said["refusal"])
        raise GenerateError("refusal", f"the model declines: {shorten_message(no, '')}", text=no)
    thinking, text = split_thinking(apart, text or "", request)
    finish: FinishReason = "length" if why in ("length", "max_tokens") else "stop"
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        id=request.id,
        text=text,
        finish=finish,
        output_tokens=parse_count(usage.get("completion_tokens")) or 0,
        thinking=thinking,
        logprob=compute_mean_logprob(choice.get("logprobs")),
        prompt_tokens=parse_count(usage.get("prompt_tokens")),
    )


def has_shrunk_images(request: Request, reply: Reply) -> bool:
    """Whether a server of the same model made pictures smaller, so that boxes are those of another size.

    To judge by its count of tokens: some of the vision tokens that were prepared, and not nearly all.
    """
    whole, vision = len(request.input_ids), request.vision_tokens
    pictures = all(clip.kind == "image" for clip in request.clips)
    return pictures and whole - 0.95 * vision < (reply.prompt_tokens or 0) < whole - 0.05 * vision


def split_thinking(reasoning: str | None, text: str, request: Request) -> tuple[str | None, str]:
    """What a Thinking model thought, wherever the server puts it."""
    thinks = request.sampling.max_thinking_tokens is not None or text.lstrip().startswith("<think>")
    if reasoning is not None or not thinks:
        return reasoning, text
    before, end, after = text.rpartition("</think>")
    return (before.lstrip().removeprefix("<think>").strip(), after.lstrip()) if end else (None, text)


def parse_content(content: Any) -> str | None:
    """Text, or the text of parts."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    if content is None or isinstance(content, str):
        return content
    raise TypeError(f"a message of {type(content).__name__}")


def parse_count(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def compute_mean_logprob(logprobs: Any) -> float | None:
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    found = [token.get("logprob") for token in tokens or () if isinstance(token, dict)]
    numbers = [number for number in found if isinstance(number, (int, float))]
    return sum(numbers) / len(numbers) if numbers else None


def parse_json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        value = (
            replace_lone_surrogates(value)[0] if "\\ud" in text.lower() else value
        )  # a server may cut a character in half
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def extract_error_message(response: Mapping[str, Any] | None, text: str) -> str:
    """The server's message, in any of the forms that servers use."""
    error = (response or {}).get("error", response)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error) if error else text


def shorten_message(text: str, api_key: str) -> str:
    clean = text.replace(api_key, "***") if api_key else text
    clean = " ".join(clean.split())
    return clean if len(clean) <= MAX_MESSAGE_LENGTH else f"{clean[:MAX_MESSAGE_LENGTH]}..."
