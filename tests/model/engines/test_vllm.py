"""vLLM in the replica and as a server gives the answers of our own engine, schemas and completed answers included.

`make test-vllm` runs it with vLLM's CPU build. `tests/conftest.py` keeps vLLM in the process of the tests, because it
starts in seconds there; `run_replica` starts it as a run does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest

from pipeline.__main__ import main
from pipeline.builtin import evaluate, scene_files, scores
from pipeline.errors import ExitCode, JobError
from pipeline.job.answer_section import AnswerSection
from pipeline.model import checkpoint_location, family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.vllm import VllmEngineType
from pipeline.model.row_encoders.choose_encoder import choose_encoder
from pipeline.types import Clip, Reply, Request, Sampling, Turn
from tests.media.sample_media import write_video
from tests.model.engines.foreign_checkpoint import write_foreign_checkpoint
from tests.model.engines.vllm_cases import (
    SMALL,
    build_job,
    build_requests,
    get_answers,
    summarize,
    write_adapter,
    write_hybrid_checkpoint,
    write_thinking_checkpoint,
    write_tiny_checkpoint,
)
from tests.model.engines.vllm_server import KEY, serve_with_vllm
from tests.workspace import JobWorkspace

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(find_spec("vllm") is None, reason="make test-vllm")]
REPLICA = """
import json, sys
from pathlib import Path
import psutil
from pipeline.model import family_loader
from pipeline.model.engine_thread import generate_replies
from pipeline.model.engines.vllm import VllmEngineType
from tests.model.engines.vllm_cases import SMALL, build_job, build_requests, summarize

folder = Path(sys.argv[1])
requests = build_requests(family_loader.load_family(folder))
engine = VllmEngineType().open(build_job(folder, kind="vllm", **SMALL))
list(generate_replies(engine, requests))
engine.engine.engine_core.reset_mm_cache()  # what it forgot is sent again
print(json.dumps(summarize({answer.id: answer for answer in generate_replies(engine, requests)})), flush=True)
engine.submit(requests[0])
for child in psutil.Process().children(recursive=True):
    if "EngineCore" in " ".join(child.cmdline()):
        child.kill()
while True:
    engine.step()
"""


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_vllm_in_the_replica_answers_as_our_engine_does(tmp_path, kind):
    folder = write_tiny_checkpoint(tmp_path, kind)
    requests = build_requests(family_loader.load_family(folder))
    theirs = get_answers(build_job(folder, kind="vllm", **SMALL), requests)
    assert summarize(theirs) == summarize(get_answers(build_job(folder, kind="torch"), requests))


def test_vllm_applies_an_adapter_as_we_merge_it(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "model", "qwen3_vl")
    adapter = {"adapter": str(write_adapter(folder, tmp_path / "adapter"))}
    requests = build_requests(family_loader.load_family(folder))
    theirs = get_answers(build_job(folder, model_keys=adapter, kind="vllm", **SMALL), requests)
    ours = get_answers(build_job(folder, model_keys=adapter, kind="torch"), requests)
    plain = get_answers(build_job(folder, kind="torch"), requests)
    assert summarize(theirs) == summarize(ours)
    assert all(summarize(plain)[name] != answer for name, answer in summarize(ours).items())


def test_vllm_runs_a_hybrid_model_on_the_prompts_that_we_prepare(tmp_path):
    """Its kernels for a CPU take bfloat16 only, so answers begin alike and may part later."""
    folder = write_hybrid_checkpoint(tmp_path)
    requests = build_requests(family_loader.load_family(folder))
    half = {"dtype": "bfloat16"}
    theirs = get_answers(build_job(folder, model_keys=half, kind="vllm", **SMALL), requests)
    ours = get_answers(build_job(folder, model_keys=half, kind="torch"), requests)
    for name, answer in theirs.items():
        assert isinstance(answer, Reply), answer
        assert answer.text[:3] == ours[name].text[:3]
    for name in ("cut", "whole"):
        assert json.loads(theirs[name].text).keys() == {"label", "bbox_2d"}


def test_a_thinking_model_thinks_within_its_budget_and_then_fits_the_schema(tmp_path):
    folder = write_thinking_checkpoint(tmp_path)
    requests = build_requests(family_loader.load_family(folder), max_thinking_tokens=12)
    more = {"structured_outputs_config": {"enable_in_reasoning": False}}
    theirs = get_answers(build_job(folder, kind="vllm", **SMALL, **more), requests)
    ours = get_answers(build_job(folder, kind="torch"), requests)
    for name in ("cut", "whole"):
        assert json.loads(theirs[name].text).keys() == {"label", "bbox_2d"}
    for name in ("picture", "two", "film", "films"):
        assert theirs[name].thinking
        assert ours[name].thinking.startswith(theirs[name].thinking)  # vLLM counts the line break after <think>


def build_shared_requests(family: Any) -> list[Request]:
    """Questions about one picture, about another of its size, about one film, and about its frames at other times."""
    rng, side = np.random.default_rng(5), 14 * family.patch_size * family.merge_size
    one, other = (
        Clip("image", rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8), (side, side)) for _ in range(2)
    )
    film = Clip("video", np.repeat(one.pixels, 4, 0), (side, side), "film", (0.0, 0.5, 1.0, 1.5), 2.0)
    late_film = replace(film, times=(7.0, 7.5, 8.0, 8.5))
    rows: list[tuple[str | Clip, ...]] = [(one,) * 11, *((one, f"question {number}") for number in range(4))]
    rows += [
        (other, "question 0"),
        (film, "when?"),
        (late_film, "when?"),
        (one, other, "which?"),
        (other, one, "which?"),
    ]
    return [
        Request(str(number), turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, Sampling(12))
        for number, parts in enumerate(rows)
        for turns in [(Turn("user", parts),)]
        for encoded in [family.encode_turns(turns)]
    ]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_rows_that_show_the_same_media_share_them_and_no_others(tmp_path, kind):
    """The first is refused for its length, after its picture was processed for it."""
    folder = write_tiny_checkpoint(tmp_path, kind)
    requests = build_shared_requests(family_loader.load_family(folder))
    with closing(VllmEngineType().open(build_job(folder, kind="vllm", **SMALL))) as engine:
        theirs = {answer.id: answer for answer in generate_replies(engine, requests)}
        processed = engine.engine.renderer.mm_processor_cache.make_stats()
        copied = engine.metrics()["tokens_copied"]
    assert theirs.pop("0").kind == "too_long"
    assert summarize(theirs) == summarize(get_answers(build_job(folder, kind="torch"), requests[1:]))
    assert processed.total - processed.hits == 1 + 4  # the refused row's, and the four that there are
    assert copied >= 3 * 128  # at least the first block of the other rows of its picture


def build_unwritten_requests(family: Any, **answer: Any) -> list[Request]:
    """The rows of `build_requests` without schemas, asked for choices or for a vector."""
    encoder = choose_encoder(family, AnswerSection(**answer))
    plain = [request for request in build_requests(family) if request.schema_text is None]
    rows = [(request, encoder.encode_turns(request.turns)) for request in plain]
    return [
        Request(
            request.id,
            row.turns,
            row.prompt.input_ids,
            row.prompt.positions,
            row.prompt.vision_tokens,
            Sampling(max_new_tokens=0),
            continuations=row.continuations,
            pooling=row.pooling,
        )
        for request, row in rows
    ]


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_choices_are_as_probable_as_with_our_engine(tmp_path, kind):
    """Of several tokens, one beginning like another, and each by itself."""
    folder = write_tiny_checkpoint(tmp_path, kind)
    family = family_loader.load_family(folder)
    labels = dict.fromkeys(["red", "red wine", "blue sky", "blue sea", "blue", *map(str, range(130))])
    one = build_unwritten_requests(family, choices=labels)
    several = build_unwritten_requests(family, choices=dict.fromkeys(["red wine", "blue"]), multi=True)
    requests = [*one, *(replace(request, id=f"{request.id} multi") for request in several)]
    job = build_job(folder, kind="vllm", **SMALL)
    with closing(VllmEngineType().open(job)) as engine:
        theirs = {answer.id: answer for answer in generate_replies(engine, requests)}
        assert engine.metrics()["rows"] == len(requests)
    ours = get_answers(build_job(folder, kind="torch"), requests)
    for name, answer in ours.items():
        assert theirs[name].continuation_logprobs == pytest.approx(answer.continuation_logprobs, abs=2e-3)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_vectors_are_those_of_our_engine(tmp_path, pool):
    folder = write_tiny_checkpoint(tmp_path, "qwen3_vl")
    family = family_loader.load_family(folder)
    answer = {"embedding": {"from": "language", "pool": pool}}
    requests = build_unwritten_requests(family, **answer)
    ours, theirs = (
        get_answers(build_job(folder, kind=kind, answer=answer, **settings), requests)
        for kind, settings in {"torch": {}, "vllm": SMALL}.items()
    )
    for name, reply in ours.items():
        np.testing.assert_allclose(theirs[name].vector, reply.vector, atol=1e-4)


def run_replica(folder: Path) -> subprocess.CompletedProcess[str]:
    """A replica as in a run, where vLLM has processes of its own. They are killed once the requests are answered."""
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    command, root = [sys.executable, "-c", REPLICA, str(folder)], Path(__file__).parents[3]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)


def test_a_replica_answers_as_our_engine_does_and_ends_when_vllm_dies(tmp_path):
    """Ray answers a crash with another process. An exception would count against the rows."""
    folder = write_tiny_checkpoint(tmp_path, "qwen3_vl")
    requests = build_requests(family_loader.load_family(folder))
    done = run_replica(folder)
    assert json.loads(done.stdout.splitlines()[-1]) == summarize(get_answers(build_job(folder, kind="torch"), requests))
    assert done.returncode == ExitCode.HANG
    assert "vlbatch: vLLM's engine is dead" in done.stderr


def test_a_replica_ends_with_a_message_when_vllm_does_not_start(tmp_path):
    folder = write_tiny_checkpoint(tmp_path, "qwen2_5_vl")
    (folder / "model.safetensors").write_bytes(b"")
    done = run_replica(folder)
    assert done.returncode == ExitCode.HANG
    assert "vlbatch: vLLM does not start" in done.stderr


def test_an_unknown_argument_is_refused_with_the_closest_known_one():
    answers = VllmEngineType().find_problems(build_job(Path("w"), kind="vllm", max_num_seq=4, dtype="float16"))
    assert answers == [
        "engine.dtype: say it as model.dtype",
        "engine.max_num_seq: vLLM's engine has no such argument. Did you mean 'max_num_seqs'?",
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of vLLM's server, and the checkpoint that it serves."""
    folder = checkpoint_location.locate_checkpoint("builtin:tiny")
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with serve_with_vllm(folder, log, max_model_len=4096, slots=32) as url:
        yield url, folder


def test_vllms_server_answers_as_our_engine_does(server):
    url, folder = server
    names = ("picture", "words", "cut", "whole", "film")  # one video in a row, no special tokens in the text
    requests = [request for request in build_requests(family_loader.load_family(folder)) if request.id in names]
    theirs = get_answers(build_job(folder, kind="http", url=url, api_key=KEY, video="native"), requests)
    ours = get_answers(build_job(folder, kind="torch"), requests)
    assert summarize(theirs) == summarize(ours)
    for request in requests:
        assert theirs[request.id].prompt_tokens == len(request.input_ids)


def test_an_answer_that_vllms_server_cuts_is_completed(server):
    url, folder = server
    whole = next(row for row in build_requests(family_loader.load_family(folder)) if row.id == "whole")
    cut = replace(whole, id="cut", sampling=Sampling(max_new_tokens=26))
    answers = get_answers(build_job(folder, kind="http", url=url, api_key=KEY), [whole, cut])
    assert (answers["whole"].finish, answers["cut"].finish) == ("stop", "length")
    (label, box), (cut_label, cut_box) = (json.loads(answers[name].text).values() for name in ("whole", "cut"))
    assert (cut_label, cut_box[0], len(cut_box)) == (label, box[0], 4)


def test_vllms_server_refuses_a_wrong_api_key_and_a_wrong_model(server):
    url, folder = server
    with pytest.raises(JobError, match=r"engine\.api_key: .* answers 401"):
        get_answers(build_job(folder, kind="http", url=url, api_key="mellon"), [])
    with pytest.raises(JobError, match=r"engine\.model: large is named, and .* serves tiny"):
        get_answers(build_job(folder, kind="http", url=url, api_key=KEY, model="large"), [])


def run_generic(workspace: JobWorkspace, folder: Path, engine: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a job with an unknown model: pictures, a film, and words that are special tokens."""
    rows = workspace.draw_images(4)
    write_video(workspace.folder / "pics/film.mp4", 40)
    rows[1]["hint"] = "<image><end_of_utterance> no order"
    workspace.write_manifest([*rows, {"id": "film", "image": "pics/film.mp4", "hint": "h"}])
    job = workspace.build_job(
        engine=engine,
        prompt={"user": "{hint}?"},
        answer={"schema": "boxes", "max_new_tokens": 60},
        media={"max_pixels": 1000, "video": {"max_pixels": 1000}},
    )
    weights = {"weights": str(folder), "context": {"max_length": 2048}} if engine["kind"] == "vllm" else {}
    job["model"] = {"family": "generic", "coordinates": "thousandths", **weights}
    path = workspace.folder / "generic.yaml"
    path.write_text(json.dumps(job))
    assert main(["run", str(path), "--local"]) == 0
    return workspace.read_answers()


@pytest.mark.parametrize("kind", ["vllm", "http"])
def test_a_model_of_another_maker_loses_no_row_and_holds_the_schema(workspace, tmp_path, monkeypatch, kind):
    folder = write_foreign_checkpoint(tmp_path / "model")
    if kind == "vllm":
        rows = run_generic(workspace, folder, {"kind": "vllm", **SMALL})
    else:
        monkeypatch.setenv("VLLM_KEY", KEY)
        with serve_with_vllm(folder, tmp_path / "log", max_model_len=2048, slots=8) as url:
            rows = run_generic(
                workspace, folder, {"kind": "http", "url": url, "model": "tiny", "api_key": "${VLLM_KEY}"}
            )
    assert [row["id"] for row in rows] == ["film", "r0", "r1", "r2", "r3"]
    for row in rows:
        assert list(row["answer"]) == ["boxes"]
        assert (row["tokens"]["vision"], row["tokens"]["prompt"] > 20) == (0, True)
    assert len(rows[0]["media"][0]["times"]) == 8


def test_a_job_asks_vllms_server_about_a_hybrid_model(workspace, tmp_path):
    """The built-in one has heads of 32 in its linear attention, and vLLM's kernels for a CPU take 128."""
    folder = write_hybrid_checkpoint(tmp_path / "model")
    workspace.write_manifest(workspace.draw_images(4))
    with serve_with_vllm(folder, tmp_path / "log", max_model_len=2048, slots=8, dtype="bfloat16") as url:
        workspace.run_job(
            model={"weights": str(folder), "context": {"max_length": 2048}},
            engine={"kind": "http", "url": url, "api_key": KEY, "body": {"logprobs": True}},
            answer={"schema": "boxes", "max_new_tokens": 60},
        )
    rows = workspace.read_answers()
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3"]
    for row in rows:
        assert list(row["answer"]) == ["boxes"]
        assert row["tokens"]["prompt"] > row["tokens"]["vision"] > 0
        assert row["confidence"] is not None


def list_leaves(value: Any) -> list[Any]:
    parts = list(value.values()) if isinstance(value, dict) else value
    return [leaf for part in parts for leaf in list_leaves(part)] if isinstance(parts, list) else [value]


@pytest.mark.parametrize("task", ["caption", "detect", "video", "invoice"])
def test_the_built_in_models_answer_and_score_the_same_with_every_engine(task, server, tmp_path, monkeypatch):
    """The jobs of the demo with one line changed give the same answers and scores."""
    monkeypatch.setenv("VLLM_KEY", KEY)
    http = {"url": server[0], "api_key": "${VLLM_KEY}", "body": {"logprobs": True}}
    http |= {"video": "native"} if task == "video" else {}
    engines = {"torch": {}, "vllm": {**SMALL, "max_num_seqs": 32}, "http": http}
    if task == "invoice":
        del engines["http"]  # the server has the model of the other tasks
    manifest = scene_files.write_scene_files(tmp_path / task, task, 24)
    answers, scores_by_engine, confidences, fingerprints = {}, {}, {}, {}
    for kind, more in engines.items():
        out = tmp_path / kind
        line = json.dumps({"kind": kind, **more})
        changes = [f"engine={line}", f"output.path={out}", "model.context.max_length=4096", "limits.error_rate=1"]
        assert evaluate.run_task(task, tmp_path, changes, runner="local") == 0
        columns = ["id", "text", "answer", "confidence", "finish", "tokens", "flags", "question", "fingerprint"]
        rows = ds.dataset(out / "data").to_table(columns).to_pylist()
        for row in rows:
            del row["tokens"]["output"]  # forced text may take fewer tokens than the model would use
            confidences[kind, row["id"]] = list_leaves(row.pop("confidence"))
            fingerprints.setdefault(kind, set()).add(row.pop("fingerprint"))
        answers[kind] = {row["id"]: row for row in rows}
        scores_by_engine[kind] = scores.score_answers(task, evaluate.read_answers_and_truths(manifest, out))
    assert len(answers["torch"]) == 24
    for kind in engines:
        assert answers[kind] == answers["torch"]
        assert scores_by_engine[kind] == scores_by_engine["torch"]
        for name in answers[kind]:
            ours, theirs = confidences["torch", name], confidences[kind, name]
            known = [our is not None for our in ours]  # the grammar forced the others
            assert any(known)
            assert known == [their is not None for their in theirs]
            assert list(compress(theirs, known)) == pytest.approx(list(compress(ours, known)), abs=0.02)
    assert fingerprints["vllm"] == fingerprints["torch"]
    assert min(scores_by_engine["torch"].values()) > 0.6
