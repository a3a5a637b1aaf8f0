"""Kernels and bytes of each pass of the engine on CUDA, counted without a card, as a table.

    python tests/bench/cuda_costs.py [--size tiny|real] [--only qwen3_vl] [--write]

`--write` stores them for `tests/model/engines/test_fake_cuda.py`, which fails where they change by a tenth. Bytes are
those that kernels read and write if caches hold nothing; keys and values in the cache are not counted. Peak bytes are
what a pass allocates at a time. A pass cannot take less time than its bytes take at the card's bandwidth: that is
arithmetic, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.bench import harness
from tests.model.engines.fake_cuda import load_device_guard
from tests.model.engines.fake_models import KINDS, measure_passes

TABLE = Path(__file__).parents[1] / "model" / "engines" / "fake_cuda_costs.json"
BANDWIDTH = {"H100": 3.35e12, "A100": 2.0e12, "L4": 0.3e12}  # bytes a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "real"), action="append")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    known = json.loads(TABLE.read_text())
    with tempfile.TemporaryDirectory() as folder:
        load_device_guard(Path(folder))
        for size in options.size or ("tiny", "real"):
            for model_type, weights in KINDS:
                if (key := f"{size} {model_type} {weights}") and options.only in key:
                    with pytest.MonkeyPatch.context() as monkeypatch:
                        costs, _, _ = measure_passes(model_type, weights, size, Path(folder) / key, monkeypatch)
                    print(f"\n### {key}\n")
                    times = {
                        card: [1e3 * cost[1] / rate for cost in costs.values()] for card, rate in BANDWIDTH.items()
                    }
                    lines = [
                        [name, *cost, *(times[card][at] for card in times)]
                        for at, (name, cost) in enumerate(costs.items())
                    ]
                    header = ["pass", "kernels", "bytes", "peak bytes", *(f"{card} ms" for card in times)]
                    print(harness.format_table(header, lines))
                    known[key] = costs
    if options.write:
        lines = [f"  {json.dumps(key)}: {json.dumps(costs)}" for key, costs in sorted(known.items())]
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
