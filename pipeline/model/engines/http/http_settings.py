"""The section `engine` of a job that asks a server of the OpenAI protocol."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SecretStr

from pipeline.job.key_types import JobSection, PositiveInt, define_key
from pipeline.job.model_section import CoordinateName
from pipeline.job.spec import EngineSettings


class PriceSection(JobSection):
    input: float = define_key("of a million prompt tokens", 0.0, ge=0)
    output: float = define_key("of a million answered tokens", 0.0, ge=0)


class HttpSettings(EngineSettings):
    kind: Literal["http"] = define_key("any server that speaks the OpenAI protocol", affects_answers=False)
    url: str = define_key("its address, up to /v1", affects_answers=False, pattern="^https?://")
    model: str | None = define_key("the model's name there; default: the only one it serves", None)
    api_key: SecretStr | None = define_key("from the environment: ${KEY}", None, affects_answers=False)
    concurrency: PositiveInt = define_key("requests under way at once", 64, affects_answers=False)
    requests_per_minute: float | None = define_key(
        "that one replica sends at most; default: as many as the server answers", None, gt=0, affects_answers=False
    )
    tokens_per_minute: float | None = define_key(
        "of prompts and answers that one replica asks for at most", None, gt=0, affects_answers=False
    )
    timeout_s: float = define_key("for one request, to its last byte", 600.0, gt=0, affects_answers=False)
    patience_s: float = define_key(
        "of waits in which a busy or absent server is asked again", 900.0, gt=0, affects_answers=False
    )
    send: Literal["pixels", "uri"] = define_key(
        "what the server gets: our pixels; or the URIs of pictures on the web, which it fetches and resizes itself, "
        "but no signed ones",
        "pixels",
    )
    jpeg: int | None = define_key(
        "send pixels as JPEG of this quality; default: as PNG, which loses nothing", None, ge=1, le=100
    )
    video: Literal["frames", "native"] = define_key(
        "frames as pictures with their times, or one video as vLLM reads it", "frames"
    )
    coordinates: CoordinateName | None = define_key("the same as model.coordinates, which it overrides", None)
    guide: Literal["auto", "json_schema", "guided_json", "json_object", "none"] = define_key(
        "how the schema is sent; auto: the first of these that the server takes", "auto", affects_answers=False
    )
    price: PriceSection | None = define_key("what tokens cost, in your currency", None, affects_answers=False)
    body: dict[str, Any] = define_key("more keys of each request's body; null takes one of ours away", {})

    def get_served_model(self) -> str | None:
        return self.model

    def compute_cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        if self.price is None:
            return None
        return (self.price.input * prompt_tokens + self.price.output * output_tokens) / 1e6
