"""The section `model` of a job."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from pipeline.job.key_types import JobSection, PositiveInt, define_key
from pipeline.registry import FAMILIES, load_registered
from pipeline.types import CoordinateSystem


def resolve_attention_alias(name: str) -> str:
    return "auto" if name == "flash_attention_2" else name


AttentionName = Annotated[Literal["auto", "sdpa", "flash_attention_2"], AfterValidator(resolve_attention_alias)]


CoordinateName = Annotated[
    CoordinateSystem,
    BeforeValidator(
        lambda name: "pixels" if name == "pixels_of_sent" else name,
        json_schema_input_type=CoordinateSystem | Literal["pixels_of_sent"],
    ),
]
FAMILY_FORMS = {"anyOf": [{"type": "string", "enum": [*FAMILIES]}, {"type": "null"}]}  # for editors


class RopeSection(JobSection):
    type: Literal["yarn"] = define_key("how positions beyond the trained length are scaled", "yarn")
    factor: float = define_key("by how much", gt=1)


class ContextSection(JobSection):
    max_length: PositiveInt | None = define_key(
        "longest row in tokens, answer included; default: the checkpoint's", None
    )
    rope: RopeSection | None = define_key("stretch positions for a longer context", None)


class ModelSection(JobSection):
    family: Annotated[str | None, WithJsonSchema(FAMILY_FORMS)] = define_key(
        "how prompts and pictures are made: generic leaves that to the program that runs the model (vllm, http); "
        "default: as the checkpoint says",
        None,
    )
    weights: str = define_key(
        "hub id, folder, s3:// folder, ms://OWNER/NAME of ModelScope, or builtin:NAME; not needed where a server runs "
        "a generic model",
        "",
        validate_default=True,
    )
    revision: str | None = define_key(
        "branch, tag or commit of a hub id; for other weights their digest, as questions/ of an output has it", None
    )
    adapter: str | None = define_key(
        "a LoRA adapter in PEFT's layout, merged into the weights at load: hub id, folder or s3:// folder", None
    )
    adapter_revision: str | None = define_key("what revision is for weights", None)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = define_key(
        "auto: as the checkpoint says; float16 is computed as float32 on a CPU", "auto"
    )
    attention: AttentionName = define_key(
        "auto: packed attention of torch itself, which is flash attention on CUDA in half precision; "
        "flash_attention_2 means the same",
        "auto",
    )
    quantize: Literal["int4"] | None = define_key("round a bf16 checkpoint's language model at load", None)
    tensor_parallel: PositiveInt = define_key(
        "GPUs (or processes on CPU) that share one copy of the model", 1, affects_answers=False
    )
    context: ContextSection = define_key("how long a row may be", ContextSection())
    coordinates: CoordinateName | None = define_key(
        "how the model writes boxes and points: pixels (of the picture that it was sent), pixels_of_original, "
        "thousandths (0..1000) or fraction (0..1); default: as its family does",
        None,
    )
    overrides: dict[str, Any] = define_key("keys of the checkpoint's config.json to change", {})

    @field_validator("family")
    @classmethod
    def check_family_is_known(cls, family: str | None) -> str | None:
        if family is not None and family not in FAMILIES:
            raise ValueError(f"must be one of {', '.join(FAMILIES)}")
        return family

    @field_validator("weights")
    @classmethod
    def check_weights_are_given(cls, weights: str, info: ValidationInfo) -> str:
        family = info.data.get("family")
        if not weights and (family is None or load_registered(FAMILIES, family, "model.family").knows_model):
            raise PydanticCustomError("missing", "is needed and not given")
        return weights
