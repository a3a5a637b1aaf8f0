"""transformers -> its model classes, whatever state torchvision is in.

transformers imports torchvision wherever it is installed, and a wheel built for another torch dies
while it is imported. The models need nothing of it, so it is looked for once, not found, and that
answer is remembered; whoever wants torchvision itself can still import it.
"""

from __future__ import annotations

import sys
from typing import Any

CLASS_PREFIXES = {  # by `model_type` of a config.json
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
}


def import_transformers() -> Any:
    hidden = "torchvision" not in sys.modules
    if hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        import transformers
        from transformers.utils.import_utils import is_torchvision_available

        is_torchvision_available()
    finally:
        if hidden:
            del sys.modules["torchvision"]
    return transformers


def get_model_class(model_type: str) -> Any:
    return getattr(import_transformers(), CLASS_PREFIXES[model_type] + "ForConditionalGeneration")


def get_config_class(model_type: str) -> Any:
    return getattr(import_transformers(), CLASS_PREFIXES[model_type] + "Config")
