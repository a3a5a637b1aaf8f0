"""What the host does in a decoding step of our engine: everything but the model, whose logits are random.

    python tests/bench/host_path.py [--quick]

Milliseconds of the processor for a step of 1, 16, 64 and 256 rows, sampled with a temperature, without a schema and
with one. Steps count as long as no row has ended. The vocabulary is tiny, so that the work for each row shows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.model import family_loader
from pipeline.model.engines.torch.engine import TorchEngine
from pipeline.model.engines.torch.scheduler import ScheduledBatch
from pipeline.model.engines.torch.step_runner import StepOutputs, build_step_inputs
from pipeline.model.families.base import Family
from pipeline.types import Request, Sampling, Turn
from tests.bench import harness

SCHEMA = (
    '{"type":"object","properties":{"label":{"type":"string"},"count":{"type":"integer"},'
    '"tags":{"type":"array","items":{"type":"string"}}},"required":["label","count","tags"],"additionalProperties":false}'
)
WARM_STEPS, MAX_STEPS = 3, 40


class RandomModel:
    """In place of the step runner: it builds what a step needs, and invents the logits."""

    def __init__(self, engine: TorchEngine):
        self.step_runner, self.width, self.seconds = engine.step_runner, engine.sequence_builder.vocabulary_size, 0.0

    def __call__(self, batch: ScheduledBatch, unread: object = None) -> StepOutputs:
        inputs = build_step_inputs(batch)
        self.step_runner.pack_batch(inputs)
        start = time.process_time()
        logits = torch.randn(len(inputs.logit_indices), self.width)
        self.seconds += time.process_time() - start
        return StepOutputs(logits, torch.empty(0), torch.empty(0, 1))


def measure_step(folder: Path, family: Family, rows: int, schema_text: str | None) -> float:
    """The milliseconds of one step."""
    engine = TorchEngine(folder, family, device="cpu", slots=rows, kv_tokens=rows * 1000)
    engine.detokenizer = replace(engine.detokenizer, stop_tokens=frozenset())
    model = RandomModel(engine)
    engine.step_runner = model  # type: ignore[assignment]
    for row in range(rows):
        turns = (Turn("user", (f"hello {row}",)),)
        prompt = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=400, temperature=0.7, seed=row)
        request = Request(str(row), turns, prompt.input_ids, prompt.positions, 0, sampling, schema_text=schema_text)
        engine.submit(request)
    times: list[float] = []
    while len(times) < MAX_STEPS + WARM_STEPS:
        start, model.seconds = time.process_time(), 0.0
        engine.step()
        times.append(time.process_time() - start - model.seconds)
        if len(engine.scheduler.running) < rows:
            break
    engine.close()
    return 1000 * median(times[WARM_STEPS:] or times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round in place of five")
    rounds = 1 if parser.parse_args().quick else 5
    torch.set_num_threads(1)
    figures, lines = {}, []
    with tempfile.TemporaryDirectory() as name:
        folder = write_random_checkpoint(Path(name), "qwen2_5_vl")
        family = family_loader.load_family(folder)
        for rows in (1, 16, 64, 256):
            for kind, schema_text in (("free", None), ("guided", SCHEMA)):
                times = [measure_step(folder, family, rows, schema_text) for _ in range(rounds)]
                figures[f"{kind}_{rows}_ms"] = median(times)
            lines.append([rows, figures[f"free_{rows}_ms"], figures[f"guided_{rows}_ms"]])
    print(harness.format_table(["rows", "ms a step", "with a schema"], lines))
    ratios = {f"guided/free_{rows}": guided / free for rows, free, guided in lines}
    harness.print_report("host_path", ratios=ratios, figures=figures, where=harness.describe_machine("torch"))


if __name__ == "__main__":
    main()
