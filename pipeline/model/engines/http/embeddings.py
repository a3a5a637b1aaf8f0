"""Asks a server for the vector of a request: the body of a request to `/v1/embeddings`, and its response.

A server of a model that is known here gets the chat, as vLLM takes it: so the model's own template is followed. Any
other server gets the text, as OpenAI's own does; rows with media are chats there, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.engines.http.request_body import Dialect, build_message
from pipeline.model.engines.http.responses import TransientServerError, parse_count
from pipeline.model.engines.refusals import shorten_message
from pipeline.model.row_encoders.embedding_encoder import DEFAULT_INSTRUCTION
from pipeline.types import Reply, Request


def build_embedding_body(request: Request, settings: HttpSettings, dialect: Dialect, *, knows_model: bool) -> bytes:
    body: dict[str, Any] = {"model": dialect.model, "encoding_format": "float"}
    if knows_model or request.clips:
        body["messages"] = [build_message(turn, settings, None) for turn in request.turns]
        body |= {"add_generation_prompt": True, "add_special_tokens": True}
    else:
        texts = [part for turn in request.turns for part in turn.parts if isinstance(part, str)]
        body["input"] = "\n".join(text for text in texts if text != DEFAULT_INSTRUCTION)
    if dialect.can_skip_resize and request.clips and settings.send == "pixels":
        body["mm_processor_kwargs"] = {"do_resize": False}
    body |= settings.body
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


def parse_embedding(request: Request, response: Mapping[str, Any]) -> Reply:
    try:
        vector = np.asarray(response["data"][0]["embedding"], np.float32)
        if vector.ndim != 1 or not len(vector):
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError) as error:
        shown = shorten_message(json.dumps(response))
        raise TransientServerError("protocol", f"the server's answer has no vector: {shown}") from error
    usage = response.get("usage")
    prompt_tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Reply(request.id, "", vector=vector, prompt_tokens=parse_count(prompt_tokens))
