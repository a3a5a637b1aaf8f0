"""The kit that measures on a GPU runs here at toy size: its steps are right, and one that fails stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.inspect.plan import measured
from pipeline.inspect.plan.gpus import TokenLoad, estimate_gpu
from tests.gpu import ladder, parity, summary
from tests.gpu.bench import Bench, StepReport

ROOT = Path(__file__).parents[2]
QUICK_STEPS = ("smoke", "quantized", "memory", "ceilings", "speed-7b")


BARE_MACHINE = """
import importlib, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set(sys.argv[1].split(",")):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from tests.gpu import ladder
for step in ladder.STEPS:
    importlib.import_module(step.module)
sys.argv[1:] = sys.argv[2:]
runpy.run_module("tests.gpu", run_name="__main__")
"""
ABSENT = "ray,aiohttp,av,decord,jsonschema,llguidance,psutil,rich,s3fs,yarl,hypothesis"


def open_bench(folder: Path) -> Bench:
    report = StepReport("step", folder / "step.json")
    return Bench(torch.device("cpu"), True, folder, report, time.monotonic() + 600)


def list_failed_checks(values: dict) -> list[str]:
    return [f"{check['name']}: {check['detail']}" for check in values["checks"] if not check["passed"]]


@pytest.mark.process
@pytest.mark.quick
@pytest.mark.parametrize("name", QUICK_STEPS)
def test_a_step_passes_at_toy_size(name, tmp_path):
    (step,) = ladder.select_steps([name])
    values = ladder.run_step(step, ladder.Settings("cpu", True, tmp_path), 600)
    assert (values["error"], list_failed_checks(values)) == ("", [])
    assert values["status"] == "passed"
    assert json.loads((tmp_path / f"{name}.json").read_text()) == values


@pytest.mark.process
@pytest.mark.quick
def test_answers_in_bfloat16_are_as_far_off_as_those_of_transformers(tmp_path):
    bench = open_bench(tmp_path)
    with bench.stand_ins():
        parity.check_family(bench, "qwen2_5_vl", parity.TOY_MODES)
    assert list_failed_checks(bench.report.values) == []


@pytest.mark.slow
def test_the_whole_ladder_passes_as_a_rehearsal(tmp_path):
    command = [sys.executable, "-m", "tests.gpu", "--device", "cpu", "--toy", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    values = json.loads((tmp_path / "summary.json").read_text())
    assert [step["step"] for step in values["steps"]] == [step.name for step in ladder.STEPS]
    assert {step["status"] for step in values["steps"]} == {"passed"}
    text = (tmp_path / "summary.md").read_text()
    assert all(line in text for line in summary.NOT_REHEARSED)


@pytest.mark.process
def test_it_needs_no_more_than_a_bare_machine_has(tmp_path):
    """Beside torch, transformers, numpy, pyarrow and pillow only the wheels of `make gpu-wheels`."""
    words = ["--device", "cpu", "--toy", "--only", "smoke", "--only", "ceilings"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OUT": str(tmp_path)}
    command = [sys.executable, "-c", BARE_MACHINE, ABSENT, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "What a rehearsal cannot show" in done.stdout
    assert [step["step"] for step in json.loads((tmp_path / "summary.json").read_text())["steps"]] == [
        "smoke",
        "ceilings",
    ]


def crash(bench: Bench) -> None:
    bench.report.check("before the crash", True)
    os.kill(os.getpid(), signal.SIGKILL)


def hang(bench: Bench) -> None:
    bench.report.figure("before the hang", 1.0)
    time.sleep(600)


def fail(bench: Bench) -> None:
    raise ValueError("wrong shape")


def find_nothing(bench: Bench) -> None:
    pass


@pytest.mark.parametrize(
    ("run", "limit_s", "status", "error", "kept"),
    [
        (crash, 600, "crashed", "ended by SIGKILL", "before the crash"),
        (hang, 0.5, "out of time", "killed after 0 s", "before the hang"),
        (fail, 600, "failed", "ValueError: wrong shape", ""),
        (find_nothing, 600, "failed", "", ""),
    ],
)
def test_a_step_that_ends_badly_leaves_what_it_found(run, limit_s, status, error, kept, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bad_step", SimpleNamespace(run=run))
    step = ladder.Step("bad", "bad_step", limit_s)
    values = ladder.run_in_own_process(step, ladder.Settings("cpu", True, tmp_path), limit_s)
    assert (values["status"], values["error"]) == (status, error)
    assert kept in str(values["checks"]) + str(values["figures"])
    assert json.loads((tmp_path / "bad.json").read_text())["status"] == status
    text = summary.write_summary(tmp_path, [values], seconds=1.0, is_rehearsal=False)
    assert status in text


def test_a_name_selects_a_step_and_all_whose_name_begins_with_it():
    assert [step.name for step in ladder.select_steps(["memory"])] == ["memory"]
    assert len(ladder.select_steps(["speed"])) == 5
    assert len(ladder.select_steps([])) == len(ladder.STEPS)
    with pytest.raises(SystemExit, match="--only sped: known are smoke, "):
        ladder.select_steps(["sped"])


@pytest.mark.process
def test_the_rows_that_a_step_measures_are_rows_of_the_table_of_plan(tmp_path, monkeypatch):
    (step,) = ladder.select_steps(["speed-8b"])
    values = ladder.run_step(step, ladder.Settings("cpu", True, tmp_path), 600)
    table = tmp_path / "measured.json"
    monkeypatch.setattr(summary, "MEASURED", table)
    table.write_text("[]\n")
    for rate in (1.0, 2.0):
        rows = [row | {"rows_per_s": rate, "card": "NVIDIA L4", "memory_gib": 22.5} for row in values["rows"]]
        summary.write_measured_speeds([table], [values | {"rows": rows}])
    speeds = measured.read_table(table)
    assert [(speed.mix, speed.rows_per_s) for speed in speeds] == [("caption", 2.0), ("video", 2.0)]
    video = speeds[1]
    counts = (video.rows * count for count in (1, video.vision_tokens, video.prompt_tokens, video.output_tokens))
    said = estimate_gpu("L4", TokenLoad(*counts, longest=100), video.model, speeds=[video])
    assert said.gpu_hours == pytest.approx(video.rows / 2.0 / 3600)


def test_goals_are_compared_with_figures():
    result = {"step": "speed-7b", "figures": {"prefill, 4096 tokens a pass, MFU": 0.41, "caption, rows/s": 9.0}}
    assert list(summary.list_goals([result])) == [["speed-7b", "prefill, 4096 tokens a pass, MFU", 0.41, 0.5, "missed"]]
