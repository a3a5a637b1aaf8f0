"""Loads transformers' model classes, whatever state torchvision is in.

transformers imports torchvision wherever it is installed, and a torchvision built for another torch breaks the import.
The models do not need it, so transformers asks for it once while it is hidden, and remembers the answer. Other code
can still import torchvision.
"""

from __future__ import annotations

import sys
from typing import Any

from pipeline.model.family_loader import load_architecture


def import_transformers() -> Any:
    is_hidden = "torchvision" not in sys.modules
    if is_hidden:
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        import transformers
        from transformers.utils.import_utils import is_torchvision_available

        is_torchvision_available()
    finally:
        if is_hidden:
            del sys.modules["torchvision"]
    return transformers


def get_model_class(model_type: str) -> Any:
    return getattr(import_transformers(), load_architecture(model_type).model_class)


def get_config_class(model_type: str) -> Any:
    return getattr(import_transformers(), load_architecture(model_type).config_class)
