"""`init` writes jobs that run as they are, from flags or from answers at a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.errors import PipelineError
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.new_job.gallery import JOBS_FOLDER, list_gallery
from pipeline.new_job.job_text import remove_section, set_keys
from pipeline.new_job.schema_text import build_schema_text, parse_fields
from pipeline.schema.schema_loader import load_schema

ON_CPU = ["--model", "builtin:tiny", "--gpus", "0"]


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    (tmp_path / "pics").mkdir()
    for number in range(2):
        Image.new("RGB", (64, 64), (250, 10 * number, 0)).save(tmp_path / "pics" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_job(path) -> Job:
    return parse_job(path.read_text(), environment={})


def test_a_job_for_a_folder_says_what_it_was_told_and_keeps_the_comments(pictures, capsys):
    assert main(["init", "detect", "--manifest", "./pics", "--prompt", "Find: cats, dogs.", *ON_CPU]) == 0
    printed = capsys.readouterr().out
    assert "detect: 2 rows, 2 to do" in printed
    assert printed.endswith("next: python -m pipeline run detect.yaml --limit 20\n")
    text = (pictures / "detect.yaml").read_text()
    assert "# Draws boxes around the named things" in text
    assert "on a cluster: OUTPUT=s3://" in text
    job = read_job(pictures / "detect.yaml")
    assert job.prompt.user == "Find: cats, dogs."
    assert (job.model.weights, job.workers.generate.gpus, job.output.path) == ("builtin:tiny", 0, "out/detect")
    assert json.loads((pictures / "job.schema.json").read_text())["title"] == "A job of vlbatch"


@pytest.mark.process
def test_a_job_with_own_fields_runs(pictures, capsys):
    fields = "producer, year: whole, color: red|white, tags: text[]"
    command = ["init", "--manifest", "pics", "--to", "jobs/wine.yaml", "--fields", fields, "--prompt", 'Read "it".']
    assert main([*command, *ON_CPU]) == 0
    assert main(["run", "jobs/wine.yaml", "--local"]) in (0, 3)  # the built-in model was not trained for it
    answer = pq.read_schema(next((pictures / "out/wine/data").rglob("*.parquet"))).field("answer").type
    assert [field.name for field in answer] == ["producer", "year", "color", "tags"]
    assert answer.field("year").type == pa.int64()
    schema = load_schema("jobs/wine_fields.py:Answer", base_folder=pictures)
    assert schema.json_schema["properties"]["color"]["anyOf"][0]["enum"] == ["red", "white"]
    assert "# Reads the fields that the schema names." in (pictures / "jobs/wine.yaml").read_text()


def test_the_columns_of_a_table_are_shown_and_chosen(pictures, capsys):
    rows = {"total": [1.5, 2.5], "scan": ["0.png", "1.png"], "doc_id": ["a", "b"], "note": ["x", "x"]}
    pq.write_table(pa.table(rows), pictures / "pics" / "m.parquet")
    assert main(["init", "caption", "--manifest", "pics/m.parquet", *ON_CPU]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("<- ")[1] for line in lines if "<-" in line] == ["media", "id"]
    job = read_job(pictures / "caption.yaml")
    assert (job.input.media, job.input.id) == (("scan",), "doc_id")
    command = ["init", "caption", "--manifest", "pics/m.parquet", "--to", "b.yaml", "--media", "note", "--id", "scan"]
    assert main(command) == 0
    assert (read_job(pictures / "b.yaml").input.media, read_job(pictures / "b.yaml").input.id) == (("note",), "scan")


def test_bytes_are_media_and_a_chat_needs_none(pictures):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"key": ["a"], "image": pa.array([{"bytes": b"x"}], image)}), "bytes.parquet")
    assert main(["init", "caption", "--manifest", "bytes.parquet", *ON_CPU]) == 0
    job = read_job(pictures / "caption.yaml")
    assert (job.input.media, job.input.id) == (("image",), "key")
    (pictures / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    assert main(["init", "caption", "--manifest", "chat.jsonl", "--to", "chat.yaml", *ON_CPU]) == 0
    assert read_job(pictures / "chat.yaml").input.media == ()


def test_a_table_without_media_is_refused_and_nothing_is_written(pictures, capsys):
    (pictures / "m.csv").write_text("id,note\n1,hello\n")
    assert main(["init", "caption", "--manifest", "m.csv"]) == 2
    assert "m.csv looks like media; name the one that does with --media" in capsys.readouterr().err
    assert not list(pictures.glob("*.yaml"))


def test_nothing_is_overwritten(pictures, capsys):
    (pictures / "caption.yaml").write_text("mine")
    assert main(["init", "caption", "--manifest", "pics"]) == 2
    assert "caption.yaml exists, and init overwrites nothing" in capsys.readouterr().err
    assert (pictures / "caption.yaml").read_text() == "mine"
    (pictures / "wine_fields.py").write_text("mine")
    assert main(["init", "--manifest", "pics", "--fields", "a", "--to", "wine.yaml"]) == 2
    assert (pictures / "wine_fields.py").read_text() == "mine"
    assert not (pictures / "wine.yaml").exists()


def test_a_server_takes_the_place_of_the_model_and_the_gpus(pictures):
    command = ["init", "detect", "--manifest", "pics", "--url", "http://127.0.0.1:9/v1", "--model", "acme/vl"]
    assert main(command) == 0
    job = read_job(pictures / "detect.yaml")
    assert (job.engine.kind, job.engine.model, job.model.family, job.model.weights) == (
        "http",
        "acme/vl",
        "generic",
        "",
    )
    assert job.workers.generate.gpus == 0


def test_without_a_terminal_the_missing_flag_is_named(pictures, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(["init"]) == 2
    assert "init needs --manifest" in capsys.readouterr().err
    assert main(["init", "detct", "--manifest", "pics"]) == 2
    message = capsys.readouterr().err
    assert "there is no task 'detct'; there are caption, " in message
    assert "Did you mean 'detect'?" in message


def test_a_job_for_a_tar_names_the_column_that_its_rows_are_told_by(pictures, capsys):
    with tarfile.open(pictures / "a.tar", "w") as tar:
        for number in range(2):
            tar.add(f"pics/{number}.png", f"{number}.png")
    assert main(["init", "caption", "--manifest", "a.tar", *ON_CPU]) == 0
    assert "caption: 2 rows, 2 to do" in capsys.readouterr().out
    job = read_job(pictures / "caption.yaml")
    assert (job.input.media, job.input.id) == (("media",), "path")


@pytest.mark.process
def test_at_a_terminal_it_asks_until_an_answer_can_be_used(pictures):
    (pictures / "fields.yaml").write_text("a job of earlier")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", "init"])
    os.write(terminal, b"no\nfields\nWhat is it?\nname: nop\nname, size: small|large\nno\npics\nbuiltin:tiny\n?\n0\n\n")
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # the terminal closes with its program
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown.decode()
    for words in (b"pip install vlbatch[pdf]", b"name has the type 'nop'", b"there is no no in", b"valid integer"):
        assert words in b" ".join(shown.split()), shown.decode()
    assert b"not planned here" not in shown
    job = read_job(pictures / "fields-2.yaml")
    assert (job.answer.schema_, job.model.weights) == ("fields-2_fields.py:Answer", "builtin:tiny")
    assert 'Literal["small", "large"]' in (pictures / "fields-2_fields.py").read_text()
    assert (pictures / "fields.yaml").read_text() == "a job of earlier"


@pytest.mark.process
def test_questions_that_are_not_answered_to_the_end_write_nothing(pictures):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "pipeline", "init"])
    os.write(terminal, b"caption\n\x04")
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2, shown.decode()
    assert b"so nothing was written" in shown
    assert [path.name for path in pictures.iterdir()] == ["pics"]


@pytest.mark.parametrize("task", list_gallery())
def test_every_job_of_the_gallery_is_a_template(task):
    text = list_gallery()[task].text
    keys = {"input.manifest": "a, b: [c]", "input.media": "uri", "output.path": "${OUTPUT:-x}", "limits.error_rate": 1}
    changed = set_keys(
        text, {**keys, "workers.generate.gpus": 2, "prompt.user": "two\nlines", "media.fast_decode": True}
    )
    before, after = yaml.safe_load(text), yaml.safe_load(changed)
    assert after["input"] == {**before["input"], "manifest": "a, b: [c]", "media": "uri"}
    assert after["output"]["path"] == "${OUTPUT:-x}"
    assert after["workers"]["generate"]["gpus"] == 2
    assert after["prompt"]["user"] == "two\nlines"
    for section in ("input", "output", "workers", "prompt", "media", "limits"):
        before.pop(section, None), after.pop(section, None)
    assert after == before
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in changed.splitlines() if line.startswith("#")
    ]
    rest = yaml.safe_load(remove_section(changed, "model"))
    assert rest == {key: value for key, value in yaml.safe_load(changed).items() if key != "model"}


@pytest.mark.parametrize("task", list_gallery())
def test_every_job_of_the_gallery_can_run(task, pictures, monkeypatch, capsys):
    """With a built-in model in place of one that would be downloaded."""
    monkeypatch.setenv("LLM_KEY", "key")
    table = {"product_title": ["a"], "product_description": ["b"], "potential_product_categories": [["c"]]}
    pq.write_table(pa.table({**table, "product_image": ["pics/0.png"]}), "products.parquet")
    manifest = "products.parquet" if task == "products" else "pics"
    changes = {"input.manifest": manifest, "workers.generate.gpus": "0"}
    changes |= {} if task == "endpoint" else {"model.weights": "builtin:tiny"}
    changes |= {"answer.embedding.dim": "64"} if task == "embed" else {}  # the built-in vectors are shorter
    job = JOBS_FOLDER / f"{task}.yaml"
    assert main(["check", str(job), *(f"--set={key}={value}" for key, value in changes.items())]) == 0
    assert f"{job} is valid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ("", "names no field"),
        ("Two Words: text", "cannot name a field"),
        ("class: text", "cannot name a field"),
        ("a, a: date", "a is given twice"),
        ("a: integer", "a has the type 'integer'; give comma-separated"),
    ],
)
def test_a_mistake_in_the_fields_is_explained(fields, problem):
    with pytest.raises(PipelineError, match=problem):
        parse_fields(fields)


def test_a_schema_file_may_hold_any_prompt_and_every_type(tmp_path):
    fields = parse_fields('a: text, b: number, c: whole, d: yes-no, e: date, f: x|y, g: date[], h: say "hi"|\\n')
    (tmp_path / "s.py").write_text(build_schema_text(fields, "Answer", 'a "quoted"\n{prompt} \\ é'))
    schema = load_schema("s.py:Answer", base_folder=tmp_path)
    assert list(schema.json_schema["properties"]) == list("abcdefgh")
    assert schema.json_schema["properties"]["h"]["anyOf"][0]["enum"] == ['say "hi"', "\\n"]
