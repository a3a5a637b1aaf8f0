"""Engines and reference models at real shapes, whose random weights are drawn on the device itself.

A checkpoint of 7 billion weights would take minutes to write and to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.model import family_loader, hf_models
from pipeline.model.engines.torch import model_loader
from pipeline.model.engines.torch.engine import TorchEngine
from tests.bench.engine import SHAPES, never_stop
from tests.model.engines.fake_cuda import FakeCheckpoint
from tests.model.engines.fake_models import FakeLab

MODELS: dict[str, tuple[str, Mapping[str, Any]]] = {  # in order of value; those of 7B and more are in fake_models.REAL
    "3b": ("qwen2_5_vl", SHAPES["3b"]),
    "7b": ("qwen2_5_vl", {}),
    "8b": ("qwen3_vl", {}),
    "30b-a3b": ("qwen3_vl_moe", {}),
    "9b": ("qwen3_5", {}),
}
SPREAD = 0.02


class RandomCheckpoint(FakeCheckpoint):
    """In place of `Checkpoint`: normal weights, each drawn when it is read."""

    def __init__(self, folder: Path, architecture: Any, adapter: Any = None, *, device: torch.device):
        super().__init__(folder, architecture, adapter)
        self.device = device

    def read_weight(self, name: str, weight_shard: Any = None, *, shape: Sequence[int] | None = None) -> Tensor:
        return torch.empty(self.shapes[name], dtype=torch.bfloat16, device=self.device).normal_(0, SPREAD)


def create_lab(folder: Path, model_name: str, *, is_toy: bool) -> FakeLab:
    model_type, changes = MODELS[model_name]
    return FakeLab(
        folder, model_type, size="tiny" if is_toy else "real", weights="bf16", **({} if is_toy else dict(changes))
    )


@contextmanager
def open_engine(lab: FakeLab, device: torch.device, **options: Any) -> Iterator[TorchEngine]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(model_loader, "Checkpoint", partial(RandomCheckpoint, device=device))
        engine = TorchEngine(lab.folder, lab.family, device=device.type, **options)
    never_stop(engine)
    try:
        yield engine
    finally:
        engine.close()


def build_reference(lab: FakeLab, device: torch.device) -> Any:
    """transformers' own model, in bfloat16."""
    config_json = family_loader.load_config(lab.folder)
    config = hf_models.get_config_class(config_json["model_type"]).from_dict(config_json)
    with model_loader.without_weights():
        model = hf_models.get_model_class(config_json["model_type"])(config)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            drawn = torch.empty(weight.shape, dtype=torch.bfloat16, device=device).normal_(0, SPREAD)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    return model.eval().to(device)
