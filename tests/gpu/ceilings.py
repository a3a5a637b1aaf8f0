"""Step `ceilings`: what the device can do at best. The speeds of later steps are shares of it."""

from __future__ import annotations

import torch

from tests.bench import device_limits
from tests.gpu.bench import Bench


def run(bench: Bench) -> None:
    side, size = (64, 2**16) if bench.is_toy else (None, None)
    flops = device_limits.measure_matmul_flops(bench.device, torch.bfloat16, side=side)
    bandwidth = device_limits.measure_copy_bandwidth(bench.device, size=size)
    bench.report.figure("matrix products, TFLOP/s", flops / 1e12)
    bench.report.figure("copies, GB/s", bandwidth / 1e9)
    bench.report.check("both are numbers above zero", min(flops, bandwidth) > 0)
