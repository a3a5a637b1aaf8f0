"""vLLM in the replica and as a server gives the answers of our own engine, schemas and completed answers included.

`make test-vllm` runs it with a Python that has vLLM. A CPU build is enough.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipeline.builtin import evaluate, scene_files, scores
from pipeline.builtin.random_checkpoint import write_random_checkpoint
from pipeline.errors import ExitCode, JobError
from pipeline.job.spec import Job
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.base import get_engine_type
from pipeline.model.engines.vllm import VllmEngineType
from pipeline.types import Clip, Failure, Reply, Request, Sampling, Turn
from tests.model.engines.vllm_server import KEY, serve_with_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="make test-vllm")]
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
WIDE = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}  # head sizes that vLLM's CPU kernels support
VISION = {
    "qwen2_vl": {"hidden_size": 128},
    "qwen2_5_vl": {"out_hidden_size": 128},
    "qwen3_vl": {"out_hidden_size": 128},
}
SMALL = {"max_num_seqs": 8, "max_num_batched_tokens": 2048, "enforce_eager": True}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "label": {"type": "string"},
            "bbox_2d": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0, "maximum": 999},
                "minItems": 4,
                "maxItems": 4,
            },
        },
        "required": ["label", "bbox_2d"],
        "additionalProperties": False,
    }
)


def write_tiny_checkpoint(folder: Path, kind: str) -> Path:
    rope = ROPE | ({"mrope_interleaved": True} if kind == "qwen3_vl" else {})  # as in the checkpoints of the hub
    return write_random_checkpoint(
        folder, kind, text_config=WIDE | {"rope_parameters": rope}, vision_config=VISION[kind]
    )


def build_job(folder: Path, **engine: Any) -> Job:
    summarize = {"name": "t", "input": {"manifest": "m"}, "output": {"path": "out"}, "engine": engine}
    model = {"weights": str(folder), "context": {"max_length": 2048}}
    return Job.model_validate(summarize | {"model": model})


def build_requests(family: Any) -> list[Request]:
    """Images of unusual shapes, several or none, videos at unusual rates, schemas with large and small budgets."""
    rng, side = np.random.default_rng(0), family.patch_size * family.merge_size

    def build_image(height: int, width: int) -> Clip:
        pixels = rng.integers(0, 256, (1, 3, height * side, width * side), dtype=np.uint8)
        return Clip("image", pixels, (width * side, height * side))

    def build_video(frames: int, height: int, width: int) -> Clip:
        pixels = rng.integers(0, 256, (frames, 3, height * side, width * side), dtype=np.uint8)
        times = tuple(0.3 + 0.7 * frame for frame in range(frames))
        return Clip("video", pixels, (width * side, height * side), "film", times, 1 / 0.7)

    rows: dict[str, tuple[tuple[str | Clip, ...], int, str | None]] = {
        "picture": ((build_image(4, 3), "what is this?"), 24, None),
        "two": ((build_image(2, 5), build_image(3, 3), "compare <|image_pad|> both"), 24, None),
        "words": (("no picture",), 24, None),
        "cut": ((build_image(4, 3), "box"), 40, SCHEMA),
        "whole": ((build_image(5, 3), "box"), 200, SCHEMA),
        "film": ((build_video(6, 2, 2), "what happens?"), 24, None),
        "films": (("first ", build_video(5, 2, 3), " then ", build_video(4, 2, 2), "?"), 24, None),
    }
    requests = []
    for name, (parts, budget, schema) in rows.items():
        turns = (Turn("user", parts),)
        encoded = family.encode_turns(turns)
        sampling = Sampling(max_new_tokens=budget)
        requests.append(
            Request(name, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling, schema)
        )
    return requests


def get_answers(job: Job, requests: list[Request]) -> dict[str, Reply | Failure]:
    engine = get_engine_type(job).open(job)
    try:
        return {answer.id: answer for answer in generate_replies(engine, requests)}
    finally:
        engine.close()


def summarize(answers: dict[str, Reply | Failure]) -> dict[str, tuple[str, str]]:
    return {
        name: (answer.text, answer.finish) if isinstance(answer, Reply) else (answer.kind, answer.message)
        for name, answer in answers.items()
    }


def strip_control_tokens(answers: dict[str, Reply | Failure], *names: str) -> dict[str, tuple[str, str]]:
    """Servers leave out control tokens and the bytes of half a character."""
    return {name: (re.sub(r"<\|\w+\|>|\ufffd", "", answers[name].text), answers[name].finish) for name in names}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("w"), request.param)


def test_vllm_in_the_replica_answers_as_our_engine_does(folder):
    requests = build_requests(family_loader.load_family(folder))
    theirs = get_answers(build_job(folder, kind="vllm", **SMALL), requests)
    assert summarize(theirs) == summarize(get_answers(build_job(folder, kind="torch"), requests))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("s"), "qwen2_5_vl")
    with serve_with_vllm(folder, folder / "server.log", max_model_len=2048, slots=8) as url:
        yield url, folder


def test_vllms_server_answers_as_our_engine_does(server):
    url, folder = server
    compared_ids = (
        "picture",
        "words",
        "cut",
        "whole",
        "film",
    )  # without several videos per row, and without special tokens in the text, which are escaped
    requests = [request for request in build_requests(family_loader.load_family(folder)) if request.id in compared_ids]
    theirs = get_answers(build_job(folder, kind="http", url=url, api_key=KEY, video="native"), requests)
    ours = get_answers(build_job(folder, kind="torch"), requests)
    assert strip_control_tokens(theirs, "picture", "words", "whole", "film") == strip_control_tokens(
        ours, "picture", "words", "whole", "film"
    )
    label, box = json.loads(
        theirs["cut"].text
    ).values()  # completed beyond the server's budget; our engine stays within it
    assert label.startswith(json.loads(ours["cut"].text)["label"])
    assert len(box) == 4
    for request in requests:
        assert theirs[request.id].prompt_tokens == len(request.input_ids)


def test_vllms_server_refuses_a_wrong_api_key_and_a_wrong_model(server):
    url, folder = server
    with pytest.raises(JobError, match=r"engine\.api_key: .* answers 401"):
        get_answers(build_job(folder, kind="http", url=url, api_key="mellon"), [])
    with pytest.raises(JobError, match=r"engine\.model: large is named, and .* serves tiny"):
        get_answers(build_job(folder, kind="http", url=url, api_key=KEY, model="large"), [])


SCRIPT = """
import sys
from pathlib import Path
import psutil
from pipeline.model import family_loader
from pipeline.model.engines.vllm import VllmEngineType
from tests.model.engines.test_vllm import SMALL, asked, job

folder, what = Path(sys.argv[1]), sys.argv[2]
if what == "start":
    (folder / "model.safetensors").write_bytes(b"")
engine = VllmEngineType().open(job(folder, kind="vllm", **SMALL))
engine.submit(asked(family_loader.load_family(folder))[0])
for child in psutil.Process().children(recursive=True):
    if "EngineCore" in " ".join(child.cmdline()):
        child.kill()
while True:
    engine.step()
"""


@pytest.mark.parametrize(("what", "words"), [("start", "vLLM does not start"), ("death", "vLLM's engine is dead")])
def test_an_engine_that_does_not_start_or_dies_ends_its_process_with_a_message(tmp_path, what, words):
    """Ray answers a crash with another process. An exception would count against the rows."""
    command = [sys.executable, "-c", SCRIPT, str(write_tiny_checkpoint(tmp_path, "qwen2_5_vl")), what]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=300)
    assert done.returncode == ExitCode.HANG
    assert f"vlbatch: {words}" in done.stderr


def test_an_unknown_argument_is_refused_with_the_closest_known_one():
    answers = VllmEngineType().find_problems(build_job(Path("w"), kind="vllm", max_num_seq=4, dtype="float16"))
    assert answers == [
        "engine.dtype: say it as model.dtype",
        "engine.max_num_seq: vLLM's engine has no such argument. Did you mean 'max_num_seqs'?",
    ]


@pytest.fixture(scope="module", params=[("builtin:tiny", "caption detect video"), ("builtin:tiny-invoice", "invoice")])
def served_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, list[str]]]:
    """The URL of a server with a built-in model, and the tasks of the model."""
    name, tasks = request.param
    with serve_with_vllm(
        checkpoint_location.locate_checkpoint(name),
        tmp_path_factory.mktemp("t") / "server.log",
        max_model_len=4096,
        slots=32,
    ) as url:
        yield url, tasks.split()


def test_the_built_in_models_answer_and_score_the_same_with_every_engine(served_model, tmp_path, monkeypatch):
    """The jobs of the demo with one line changed give the same answers and scores."""
    url, tasks = served_model
    monkeypatch.setenv("DOORS_KEY", KEY)
    http = {"url": url, "api_key": "${DOORS_KEY}"}
    for task in tasks:
        native = {"video": "native"} if task == "video" else {}  # which changes the fingerprint
        engines = {"torch": {}, "vllm": {**SMALL, "max_num_seqs": 32}, "http": http | native}
        manifest = scene_files.write_scene_files(tmp_path / task, task, 24)
        answers, scores_by_engine = {}, {}
        for kind, more in engines.items():
            out = tmp_path / task / kind
            line = json.dumps({"kind": kind, **more})
            changes = [f"engine={line}", f"output.path={out}", "model.context.max_length=4096", "limits.error_rate=1"]
            assert evaluate.run_task(task, tmp_path, changes, runner="local") == 0
            columns = ["id", "text", "answer", "finish", "tokens", "flags", "question", "fingerprint"]
            rows = ds.dataset(out / "data").to_table(columns).to_pylist()
            for row in rows:
                del row["tokens"]["output"]  # forced text may take fewer tokens than the model would use
            answers[kind] = {row["id"]: row for row in rows}
            scores_by_engine[kind] = scores.score_answers(task, evaluate.read_answers_and_truths(manifest, out))
        assert len(answers["torch"]) == 24
        for name, row in answers["torch"].items():
            assert answers["vllm"][name] == row
            assert answers["http"][name] == row | (
                {"fingerprint": answers["http"][name]["fingerprint"]} if native else {}
            )
        assert scores_by_engine["vllm"] == scores_by_engine["http"] == scores_by_engine["torch"]
        assert min(scores_by_engine["torch"].values()) > 0.6
