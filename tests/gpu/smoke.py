"""Step `smoke`: what the machine is, and one matrix product."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from tests.gpu.bench import Bench

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "pillow", "pydantic", "triton")


def run(bench: Bench) -> None:
    report = bench.report
    report.figure("python", platform.python_version())
    report.figure("cores", os.cpu_count() or 0)
    for package in PACKAGES:
        try:
            report.figure(package, version(package))
        except PackageNotFoundError:
            report.figure(package, "absent")
    if bench.is_cuda:
        properties = torch.cuda.get_device_properties(bench.device)
        report.figure("card", properties.name)
        report.figure("memory GiB", round(properties.total_memory / 2**30, 1))
        report.figure("compute capability", f"{properties.major}.{properties.minor}")
        report.figure("CUDA of torch", str(torch.version.cuda))
    left, right = torch.randn(64, 96), torch.randn(96, 32)
    product = (left.to(bench.device, torch.bfloat16) @ right.to(bench.device, torch.bfloat16)).float().cpu()
    expected = left.bfloat16().float() @ right.bfloat16().float()
    report.check_at_most("error of a product in bfloat16", relative_error(product, expected), 0.01)


def relative_error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return ((ours - expected).norm() / expected.norm()).item()
