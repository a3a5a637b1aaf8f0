"""Types and helpers that the sections of a job are made of."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BYTE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_product(value: Any) -> Any:
    """Accept `1280*28*28`, as people write pixel budgets."""
    if isinstance(value, str) and re.fullmatch(r"\s*[\d_]+(\s*\*\s*[\d_]+)*\s*", value):
        return math.prod(int(factor) for factor in value.split("*"))
    return value


def parse_byte_size(value: Any) -> Any:
    """Accept `64MiB`."""
    match = re.fullmatch(r"\s*([\d_.]+)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if match and match[2].upper() in BYTE_UNITS:
        return int(float(match[1].replace("_", "")) * BYTE_UNITS[match[2].upper()])
    return value


def wrap_in_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


PositiveInt = Annotated[int, Field(gt=0)]
ProductText = Annotated[str, Field(pattern=r"^\s*[\d_]+(\s*\*\s*[\d_]+)*\s*$")]
ByteSizeText = Annotated[str, Field(pattern=r"^\s*[\d_.]+\s*([KMGTkmgt][Ii]?)?[Bb]?\s*$")]
# What people may write, for editors, is the input type.
PixelCount = Annotated[
    int, Field(gt=0), BeforeValidator(parse_product, json_schema_input_type=PositiveInt | ProductText)
]
ByteCount = Annotated[
    int, Field(gt=0), BeforeValidator(parse_byte_size, json_schema_input_type=PositiveInt | ByteSizeText)
]
NameList = Annotated[tuple[str, ...], BeforeValidator(wrap_in_list, json_schema_input_type=str | tuple[str, ...])]
Fraction = Annotated[float, Field(ge=0, le=1)]


def define_key(description: str, default: Any = ..., *, affects_answers: bool = True, **constraints: Any) -> Any:
    """A key with its one-line meaning. A key that affects answers is part of the fingerprint."""
    return Field(
        default, description=description, json_schema_extra={"affects_answers": affects_answers}, **constraints
    )


class JobSection(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
