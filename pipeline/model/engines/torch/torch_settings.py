"""The section `engine` of a job that uses our own engine. Importing it does not import torch."""

from __future__ import annotations

from functools import partial
from typing import Literal

from pipeline.job.key_types import PositiveInt, define_key
from pipeline.job.spec import EngineSettings

DEFAULT_HANG_S = 600.0
DEFAULT_PREFILL_TOKENS = 4096
define_speed_key = partial(define_key, affects_answers=False)


class TorchSettings(EngineSettings):
    kind: Literal["torch"] = define_speed_key("our own engine, on torch and transformers", "torch")
    slots: PositiveInt | None = define_speed_key("rows decoded at once; default: by memory", None)
    kv_tokens: PositiveInt | None = define_speed_key("tokens of key-value cache; default: by memory", None)
    patches: PositiveInt | None = define_speed_key("vision patches encoded in one call; default: by memory", None)
    prefill_tokens: PositiveInt | None = define_speed_key(
        f"prompt tokens computed in one step; default {DEFAULT_PREFILL_TOKENS}", None
    )
    reuse_prefixes: bool = define_speed_key("compute what the prompts of several rows begin with only once", True)
    graphs: bool = define_speed_key("on CUDA: replay decode steps as graphs", True)
    compile: bool = define_speed_key("compile the layers with torch: fewer kernels, after a minute at the start", False)
    hang_s: float = define_speed_key(
        "a step that takes longer ends the replica, which is started anew", DEFAULT_HANG_S, gt=0
    )
