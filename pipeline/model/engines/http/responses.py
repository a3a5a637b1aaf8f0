"""Converts a server's response to a Reply, or to the error that says what happens next.

    TransientServerError    send the request again: the server is busy or away, or the response is broken
    RequestRefusedError     the request fails as it is: an error row, or a try in another dialect
    JobError, StoppedError  every request fails: a wrong key, model or address, or no credit; the run stops

Nothing here does I/O. Messages repeat what the server says, shortened and without the API key.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

from pipeline.errors import GenerateError, JobError, StoppedError
from pipeline.json_values import replace_lone_surrogates
from pipeline.model.detokenizer import THINK_START, split_thinking
from pipeline.model.engines.refusals import classify_refusal, shorten_message
from pipeline.retry_policy import parse_retry_after
from pipeline.types import Reply, Request, TokenLogprob

BUSY_STATUSES, UNAVAILABLE_STATUSES = (425, 429), (502, 503, 504, 520, 521, 522, 523, 524, 529)
CONTENT_FILTER_MESSAGE = re.compile(r"moderation|flagged|content.?(filter|policy|management)", re.I)
NO_CREDIT_MESSAGE = re.compile(r"insufficient_quota|billing|credit balance|exceeded your current quota", re.I)


class TransientServerError(Exception):
    """The same request may succeed in a moment. `cause` says whether the row or the server is to blame."""

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        cause: Literal["row", "server", "unknown"] = "row",
        retry_after_s: float = 0.0,
    ):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.cause = cause
        self.retry_after_s = retry_after_s  # what the server asks for


class RequestRefusedError(GenerateError):
    """The server does not accept the request. The message holds the server's reason."""


def parse_response(
    status: int, headers: Mapping[str, str], text: str, *, url: str, api_key: str = ""
) -> dict[str, Any]:
    """The JSON of a successful response; raises for any other."""
    response = parse_json_object(text)
    if response is None and status == 200:
        message = f"{url} answers with something that is not JSON: {shorten_message(text, api_key)}"
        raise TransientServerError("protocol", message)
    if response is not None and status == 200:
        status = find_hidden_status(response)
        if status == 200:
            return response
    message = f"{url} answers {status}: {shorten_message(extract_error_message(response, text), api_key)}"
    raise build_error(status, headers, text, message)


def find_hidden_status(response: Mapping[str, Any]) -> int:
    """Some gateways answer 200 and put the status of the model's server into the body."""
    error = response.get("error")
    if not error or "choices" in response:
        return 200
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and code >= 400 else 500


def build_error(status: int, headers: Mapping[str, str], text: str, message: str) -> Exception:
    if status == 402 or (status == 429 and NO_CREDIT_MESSAGE.search(text)):
        return StoppedError(f"stopped: {message}. When there is credit again, the same command goes on from here")
    retry_after_s = parse_retry_after(headers)
    if status in BUSY_STATUSES:
        return TransientServerError("busy", message, cause="server", retry_after_s=retry_after_s)
    if status in UNAVAILABLE_STATUSES:
        return TransientServerError("away", message, cause="unknown", retry_after_s=retry_after_s)
    if status in (408, 409) or (status >= 500 and status not in (501, 505)):
        return TransientServerError("server", message, retry_after_s=retry_after_s)
    if CONTENT_FILTER_MESSAGE.search(text):
        return RequestRefusedError("content_filter", message)
    return build_job_error(status, headers, message) or RequestRefusedError(classify_refusal(text), message)


def build_job_error(status: int, headers: Mapping[str, str], message: str) -> JobError | None:
    """The fault of every request, with the key of the job to change; None where only this row is refused."""
    if status in (401, 403):
        return JobError(f"engine.api_key: {message}; set the variable that it names to a key that may use this model")
    if status == 404:
        key = "engine.model" if "model" in message.partition(": ")[2].lower() else "engine.url"
        return JobError(f"{key}: {message}; name a model that is served there, and the address up to /v1")
    if 300 <= status < 400:
        return JobError(f"engine.url: {message}; redirects are not followed, name {headers.get('Location')}")
    if status in (405, 501, 505):
        return JobError(f"engine.url: {message}; is that the address of an OpenAI-protocol server, up to /v1?")
    return None


def parse_reply(request: Request, response: Mapping[str, Any]) -> Reply:
    """The first choice of a chat completion."""
    try:
        choice = response["choices"][0]
        message = choice["message"]
        text, finish_reason = parse_content(message.get("content")), choice.get("finish_reason")
        reasoning = parse_content(message.get("reasoning_content") or message.get("reasoning"))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        shown = shorten_message(json.dumps(response))
        raise TransientServerError("protocol", f"the server's answer has no message: {shown}") from error
    if finish_reason in ("error", "abort"):
        raise TransientServerError("server", f"the server gave the answer up ({finish_reason})")
    if finish_reason == "content_filter":
        raise GenerateError("content_filter", "the server's filter held the answer back", text=text or None)
    if message.get("refusal"):
        refusal = str(message["refusal"])
        raise GenerateError("refusal", f"the model declines: {shorten_message(refusal)}", text=refusal)
    text = text or ""
    thinks = request.sampling.max_thinking_tokens is not None or text.lstrip().startswith(THINK_START)
    if reasoning is None and thinks:  # some servers separate the two themselves
        reasoning, text = split_thinking(text)
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        id=request.id,
        text=text,
        finish="length" if finish_reason in ("length", "max_tokens") else "stop",
        output_tokens=parse_count(usage.get("completion_tokens")) or 0,
        thinking=reasoning,
        logprob=compute_mean_logprob(choice.get("logprobs")),
        token_logprobs=locate_tokens(choice.get("logprobs"), text) if request.wants_confidence else (),
        prompt_tokens=parse_count(usage.get("prompt_tokens")),
    )


def has_shrunk_images(request: Request, reply: Reply) -> bool:
    """Whether a server of the same model made pictures smaller, so that its boxes are those of another size.

    The server's token count tells: it then holds some of the prepared vision tokens, but not nearly all.
    """
    prepared, vision = len(request.input_ids), request.vision_tokens
    all_images = all(clip.kind == "image" for clip in request.clips)
    return all_images and prepared - 0.95 * vision < (reply.prompt_tokens or 0) < prepared - 0.05 * vision


def parse_content(content: Any) -> str | None:
    """Text, or the text of a list of parts."""
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
    values = [token.get("logprob") for token in tokens or () if isinstance(token, dict)]
    numbers = [value for value in values if isinstance(value, (int, float))]
    return sum(numbers) / len(numbers) if numbers else None


def locate_tokens(logprobs: Any, text: str) -> tuple[TokenLogprob, ...]:
    """Where each token ends in the text; nothing where the tokens do not spell it. Thinking may stand before it."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    try:
        pieces = [bytes(token["bytes"]) if token.get("bytes") else token["token"].encode() for token in tokens or ()]
        values = [float(token["logprob"]) for token in tokens or ()]
    except (TypeError, ValueError, KeyError, AttributeError):
        return ()
    spelled = b"".join(pieces)
    start = spelled.rfind(text.encode())
    if start < 0:
        return ()
    byte_ends = (max(end - start, 0) for end in accumulate(map(len, pieces)))
    ends = (len(text.encode()[:end].decode(errors="ignore")) for end in byte_ends)
    return tuple(map(TokenLogprob, ends, values))


def parse_json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # a server may cut a character in half
            value = replace_lone_surrogates(value)[0]
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def extract_error_message(response: Mapping[str, Any] | None, text: str) -> str:
    """The server's message, in any of the forms that servers use."""
    error = (response or {}).get("error", response)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return error if isinstance(error, str) else json.dumps(error) if error else text
