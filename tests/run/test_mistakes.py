"""Forty mistakes that people make, and the messages that they get. A change of a message must be made here too."""

# ruff: noqa: E501 - a golden text stands on one line

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image

from pipeline import builtin
from pipeline.__main__ import main
from pipeline.cluster.pools import compute_pool_sizes
from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.sources.parquet import ParquetSource
from pipeline.run import preflight

GOOD = """\
name: labels
input:
  manifest: m.parquet
  id: id
  media: image
prompt:
  user: What is it?
model:
  weights: builtin:tiny
engine: {kind: scripted}
output:
  path: out
"""
ROWS = [{"id": "a", "image": "a.png", "vendor": "Acme", "data": b"1"}]
Case = tuple[str, Callable[[Path], object], list[str], str]


def job(before: str = "", after: str = "") -> Callable[[Path], object]:
    """The good job, with one piece of text in another's place."""
    assert before in GOOD
    return lambda here: (here / "job.yaml").write_text(GOOD.replace(before, after, 1) if before else GOOD)


def written(name: str, text: str, *more: Callable[[Path], object]) -> Callable[[Path], object]:
    def make(here: Path) -> None:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)
        for each in more:
            each(here)

    return make


def rows(table: list[dict[str, object]]) -> Callable[[Path], object]:
    return lambda here: pq.write_table(pa.Table.from_pylist(table), here / "m.parquet")


CHECK = ["check", "job.yaml"]
RUN = ["run", "job.yaml", "--local"]
TINY = {"model_type": "qwen2_5_vl"}
MISTAKES: list[Case] = [
    (
        "no such job file",
        job(),
        ["check", "jop.yaml"],
        "error: jop.yaml: there is no such file. Did you mean 'job.yaml'?",
    ),
    (
        "not yaml",
        job("input:\n", "input: [\n"),
        CHECK,
        "error: job.yaml:4: is not valid YAML: expected ',' or ']', but got ':'",
    ),
    (
        "empty file",
        written("job.yaml", ""),
        CHECK,
        "error: job.yaml: holds no keys; a job needs at least name, input, model and output",
    ),
    (
        "typo in a key",
        job("  media: image", "  medai: image"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:5: input.medai: there is no such key. Did you mean 'media'?",
    ),
    (
        "typo in a section",
        job("prompt:", "promt:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:6: promt: there is no such key. Did you mean 'prompt'?",
    ),
    (
        "word for a number",
        job("output:", "answer: {max_new_tokens: many}\noutput:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:11: answer.max_new_tokens: must be a whole number (given: 'many')",
    ),
    (
        "model left out",
        job("model:\n  weights: builtin:tiny\n", ""),
        CHECK,
        "error: job.yaml is not a job that can run:\n  model: is needed and not given",
    ),
    (
        "variable not set",
        job("out\n", "out/${DAY}\n"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:12: output.path: ${DAY} is not set; set it, or write ${DAY:-default}",
    ),
    (
        "key given twice",
        job("  id: id\n", "  id: id\n  id: name\n"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:5: input.id: is given twice",
    ),
    (
        "no such engine",
        job("kind: scripted", "kind: vlm"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:10: engine: kind must be one of torch, scripted, vllm, http",
    ),
    (
        "fewer than the least",
        job("output:", "workers: {generate: {min: 4, max: 2}}\noutput:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:11: workers.generate: max (2) is below min (4)",
    ),
    (
        "output is a file",
        job("path: out", "path: out/answers.parquet"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:11: output: path is a folder, not a file: out/answers.parquet",
    ),
    (
        "rate in percent",
        job("output:", "limits: {error_rate: 5}\noutput:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n  job.yaml:11: limits.error_rate: must be less than or equal to 1 (given: 5)",
    ),
    (
        "set without a value",
        job(),
        [*CHECK, "--set", "model.weights"],
        "error: --set model.weights: write it as key.key=value, such as --set answer.max_new_tokens=64",
    ),
    (
        "set below a value",
        job(),
        [*CHECK, "--set", "name.first=x"],
        "error: --set name.first=x: name is a value, it has no keys",
    ),
    ("no manifest", job("m.parquet", "rows.parquet"), CHECK, "error: input.manifest: there is no rows.parquet in HERE"),
    (
        "pattern of nothing",
        job("m.parquet", "'*.jsonl'"),
        CHECK,
        "error: input.manifest: nothing found at *.jsonl in HERE",
    ),
    (
        "kept column that every output has",
        job("  media: image", "  media: image\n  keep: [id, vendor]"),
        CHECK,
        "error: job.yaml:\n  input.keep: every output has a column id of its own; give the manifest's another name or leave it out, for the output's is the same as text",
    ),
    (
        "output of no store",
        job("path: out", "path: nix://out"),
        CHECK,
        "error: nix://out: Protocol not known: nix",
    ),
    (
        "output of a store that replaces",
        job("path: out", "path: memory://out"),
        CHECK,
        "error: job.yaml:\n  output.path: memory:// cannot refuse to replace an object, which keeps two runs apart; use a local folder, s3://, gs:// or az://",
    ),
    (
        "output in an archive",
        job("path: out", "path: zip://out::s3://bucket/labels.zip"),
        CHECK,
        "error: zip://out::s3://bucket/labels.zip: URLs that chain filesystems with :: are not supported",
    ),
    (
        "manifest in an archive",
        job("m.parquet", "zip://m.parquet::manifests.zip"),
        CHECK,
        "error: input.manifest: zip://m.parquet::manifests.zip: URLs that chain filesystems with :: are not supported",
    ),
    (
        "empty id of a column of numbers",
        rows([{**ROWS[0], "id": 1.0}, {**ROWS[0], "id": float("nan")}]),
        RUN,
        "error: file://HERE/m.parquet: column id (input.id) is empty in the row after '1'; fill it in, or leave input.id out",
    ),
    (
        "column of media not named",
        job("  media: image\n", ""),
        CHECK,
        "error: file://HERE/m.parquet: input.media names no column, so there is nothing to look at; name the columns with media, or in input.messages the column with a chat, which may be text alone; the manifest has: id, image, vendor, data",
    ),
    (
        "manifest as a spreadsheet",
        written("m.xlsx", "PK", job("m.parquet", "m.xlsx")),
        CHECK,
        "error: input.manifest: HERE/m.xlsx: a manifest is a folder, or its name ends in .parquet, .pq, .jsonl, .ndjson, .jsonl.gz, .csv, .tsv, .csv.gz, .tar",
    ),
    (
        "torn line of csv",
        written("m.csv", "id,image\na,a.png\nb\n", job("m.parquet", "m.csv")),
        CHECK,
        "error: file://HERE/m.csv: is not CSV in UTF-8 (CSV parse error: Row #3: Expected 2 columns, got 1: b)",
    ),
    (
        "manifest that is no parquet",
        written("m.parquet", "id,image\n"),
        CHECK,
        "error: file://HERE/m.parquet: is not a Parquet file (Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file.)",
    ),
    (
        "broken line of jsonl",
        written("m.jsonl", '{"id": "a", "image": "a.png"}\n{"id": "b", \n', job("m.parquet", "m.jsonl")),
        CHECK,
        'error: file://HERE/m.jsonl:2: is not JSON (Expecting property name enclosed in double quotes: line 1 column 12 (char 11)): {"id": "b",',
    ),
    (
        "a job file where none can be written",
        job(),
        ["init", "--manifest", "m.parquet", "--to", "m.parquet/new.yaml"],
        "error: m.parquet/new.yaml: cannot be written: File exists; name another file with --to",
    ),
    (
        "two columns of one name",
        written("m.csv", "id,image,image\na,a.png,b.png\n"),
        [*CHECK, "--set", "input.manifest=m.csv", "--set", "prompt.user=What?"],
        "error: file://HERE/m.csv: input.media: the manifest has 2 columns named 'image'; rename all but one",
    ),
    (
        "manifest without rows",
        lambda here: pq.write_table(pq.read_table(here / "m.parquet").slice(0, 0), here / "m.parquet"),
        CHECK,
        "error: input.manifest: m.parquet holds no rows",
    ),
    (
        "empty folder",
        lambda here: ((here / "pics").mkdir(), job("m.parquet\n  id: id\n  media: image", "pics")(here)),
        RUN,
        "error: input.manifest: file://HERE/pics holds no image, video or document; their names end in .jpg, .jpeg, .jfif, .png, .webp, .gif, .tif, .tiff, .bmp, .jp2, .avif, .heic, .heif, .pdf, .mp4, .mov, .mkv, .webm, .avi, .m4v, .mpg, .mpeg, .mts, .m2ts, .wmv, .flv, .3gp, .ogv",
    ),
    (
        "wrong column",
        job("media: image", "media: imgae"),
        CHECK,
        "error: file://HERE/m.parquet: input.media: the manifest has no column 'imgae'; it has: id, image, vendor, data. Did you mean 'image'?",
    ),
    (
        "no column for the prompt",
        job("What is it?", "'{vendro}: what is it?'"),
        CHECK,
        "error: file://HERE/m.parquet: prompt.user: the manifest has no column 'vendro' (for a brace that is text, write {{ or }}); it has: id, image, vendor, data. Did you mean 'vendor'?",
    ),
    (
        "json in a prompt",
        job("What is it?", """'Answer as {"a": 1}'"""),
        CHECK,
        "error: file://HERE/m.parquet: prompt.user: the manifest has no column '\"a\": 1' (for a brace that is text, write {{ or }}); it has: id, image, vendor, data",
    ),
    (
        "nothing to ask",
        job("prompt:\n  user: What is it?\n", ""),
        CHECK,
        "error: file://HERE/m.parquet: there is nothing to ask: give prompt.user, or an answer.schema with a prompt of its own, or in input.messages the column with a chat",
    ),
    (
        "two questions",
        rows([{"id": "a", "messages": "[]"}]),
        [*CHECK, "--set", "input.messages=messages", "--set", "input.media=[]"],
        "error: file://HERE/m.parquet: both input.messages and prompt.user say what to ask; leave one of them out",
    ),
    (
        "bytes without names",
        job("  id: id\n  media: image", "  media: data"),
        CHECK,
        "error: file://HERE/m.parquet: column data holds bytes, so its rows need ids: set input.id to a column",
    ),
    (
        "id that is not unique",
        rows([*ROWS, {**ROWS[0], "image": "b.png"}]),
        RUN,
        "error: id 'a' appears twice with different questions in file://HERE/m.parquet; input.id must name a column that is unique, or be left out",
    ),
    (
        "id that is empty",
        rows([{**ROWS[0], "id": None}]),
        RUN,
        "error: file://HERE/m.parquet: column id (input.id) is empty in a row; fill it in, or leave input.id out",
    ),
    (
        "no such schema",
        job("output:", "answer: {schema: captoin}\noutput:"),
        CHECK,
        "error: the schema 'captoin' is not known; known: caption, boxes, points, events, invoice, document, chart, interface, product. Did you mean 'caption'?",
    ),
    (
        "no schema file",
        job("output:", "answer: {schema: 'mine.py:Mine'}\noutput:"),
        CHECK,
        "error: the schema HERE/mine.py cannot be read: No such file or directory",
    ),
    (
        "schema with a syntax error",
        written(
            "mine.py", "class Mine(BaseModel:\n    pass\n", job("output:", "answer: {schema: 'mine.py:Mine'}\noutput:")
        ),
        CHECK,
        "error: the schema mine.py fails to run: SyntaxError: invalid syntax (mine.py, line 1)",
    ),
    (
        "schema file without its model",
        written(
            "mine.py", "from pydantic import BaseModel\n", job("output:", "answer: {schema: 'mine.py:Mine'}\noutput:")
        ),
        CHECK,
        "error: mine.py has no pydantic model 'Mine'; it has: none",
    ),
    (
        "schema file alone",
        job("output:", "answer: {schema: mine.py}\noutput:"),
        CHECK,
        "error: mine.py does not name a model: write mine.py:Model",
    ),
    (
        "schema that is not json",
        written("mine.json", "{'a': 1}", job("output:", "answer: {schema: mine.json}\noutput:")),
        CHECK,
        "error: mine.json is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
    ),
    (
        "look-around in a schema",
        written(
            "mine.json",
            '{"properties": {"code": {"type": "string", "pattern": "^(?!x)a"}}}',
            job("output:", "answer: {schema: mine.json}\noutput:"),
        ),
        CHECK,
        "error: job.yaml:\n  answer.schema: $.code: look-around, including look-ahead and look-behind, is not supported",
    ),
    (
        "pictures smaller than a token",
        job("output:", "media: {max_pixels: 1}\noutput:"),
        CHECK,
        "error: job.yaml:\n  media.max_pixels: 1 is less than one token of this model, 28*28 pixels",
    ),
    (
        "a number that YAML reads as octal",
        job("output:", "media: {max_pixels: 0200000}\noutput:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n"
        "  job.yaml:11: 0200000 means 65536 in YAML; write a plain number, or put text in quotes",
    ),
    (
        "a name that YAML reads as a number",
        job("name: labels", "name: 2026"),
        CHECK,
        'error: job.yaml is not a job that can run:\n  job.yaml:1: name: must be text; put it in quotes: "2026"',
    ),
    (
        "a list without a value",
        job("  media: image", "  media: image\n  keep:"),
        CHECK,
        "error: job.yaml is not a job that can run:\n"
        "  job.yaml:6: input.keep: must be one value or a list of them (given: nothing)",
    ),
    (
        "budget too small for the schema",
        job("output:", "answer: {schema: invoice, max_new_tokens: 8}\noutput:"),
        CHECK,
        "error: job.yaml:\n  answer.max_new_tokens: the shortest answer that fits the schema has N tokens",
    ),
    (
        "no such model folder",
        job("builtin:tiny", "./my-model"),
        CHECK,
        "error: model.weights: ./my-model is not a folder, and not an id of the hub (OWNER/NAME) either",
    ),
    (
        "no such model on the hub",
        job("builtin:tiny", "Qwen/Qwen2.5-VL-77B"),
        CHECK,
        "error: model.weights: Qwen/Qwen2.5-VL-77B: the hub cannot be reached, and it was not fetched to this machine before (LocalEntryNotFoundError). A folder with the checkpoint works, too. To try the rest without it: --set model.weights=builtin:tiny --set workers.generate.gpus=0",
    ),
    (
        "no such builtin model",
        job("builtin:tiny", "builtin:tinny"),
        CHECK,
        "error: model.weights: there is no builtin:tinny; there is builtin:tiny, builtin:tiny-invoice, builtin:tiny-qwen3, builtin:tiny-qwen3_5",
    ),
    (
        "model folder without a model",
        written("weights/readme.txt", "", job("builtin:tiny", "./weights")),
        CHECK,
        "error: model.weights: there is no config.json in HERE/weights",
    ),
    (
        "model of another kind",
        written(
            "weights/config.json",
            json.dumps({"model_type": "llama"}),
            written("weights/tokenizer.json", "{}", job("builtin:tiny", "./weights")),
        ),
        RUN,
        "error: model.weights: model_type 'llama' is not known; known: qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe, "
        "qwen3_5, qwen3_5_moe, cosmos3_omni, generic",
    ),
    (
        "no credentials",
        job("m.parquet", "s3://bucket/m.parquet"),
        CHECK,
        "error: input.manifest: s3://bucket/m.parquet: access denied; check the workers' credentials and what they allow; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    ),
    (
        "unknown store",
        job("m.parquet", "s4://bucket/m.parquet"),
        CHECK,
        "error: input.manifest: s4://bucket/m.parquet: Protocol not known: s4",
    ),
    (
        "output not writable",
        job("path: out", "path: /dev/null/out"),
        RUN,
        "error: /dev/null/out/questions: cannot be used as an output (Not a directory); choose another folder",
    ),
    (
        "status of a job that did not run",
        job(),
        ["status", "job.yaml"],
        "error: out: there is no output of a run here; run the job first, or give the path that its output.path names",
    ),
    (
        "unknown gpu",
        job(),
        ["plan", "job.yaml", "--gpu", "H10"],
        "error: --gpu H10: known are L4, A10G, L40S, A100-40GB, A100-80GB, H100, H200, B200. Did you mean 'H100'?",
    ),
    (
        "demo below a file",
        job(),
        ["demo", "job.yaml/demo"],
        "error: job.yaml/demo: cannot be written: Not a directory; name another folder",
    ),
    (
        "status of nothing",
        job(),
        ["status", "outt"],
        "error: outt: there is no output of a run here; run the job first, or give the path that its output.path names",
    ),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a job that is right and a manifest of one row, as somebody without credentials or network has."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "HF_TOKEN", "DAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()  # of clients that other tests gave credentials
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(GOOD)
    rows(ROWS)(tmp_path)
    return tmp_path


def told(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """What a command writes to the terminal, with the test's own folder left out."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # of the command line itself
        code = int(stop.code or 0)
    said = capsys.readouterr()
    assert code == 2, said
    assert "Traceback" not in said.err
    text = re.sub(r" +\n", "\n", said.err.replace(str(here), "HERE")).strip()
    return re.sub(r"has \d+ tokens", "has N tokens", text)


@pytest.mark.parametrize(
    ("make", "arguments", "message"), [case[1:] for case in MISTAKES], ids=[case[0] for case in MISTAKES]
)
def test_the_message_says_what_is_wrong_and_what_to_do(here, capsys, make, arguments, message):
    make(here)
    assert told(here, capsys, arguments) == message


@pytest.mark.parametrize("follow_links", ["false", "true"])
def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(here, capsys, monkeypatch, follow_links):
    for name in ("pics/a.png", "pics/closed/b.png", "pics/lost+found/c.png"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64)).save(here / name)
    list_folder, scan_folder = os.listdir, os.scandir

    def refuse(listed: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(path: Any = ".") -> Any:
            if str(path).rstrip("/").endswith(closed):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return listed(path)

        return wrapper

    monkeypatch.setattr(os, "listdir", refuse(list_folder))
    monkeypatch.setattr(os, "scandir", refuse(scan_folder))
    changes = ["--set", "input.manifest=pics", "--set", f"input.follow_links={follow_links}", "--set", "input.id=path"]
    command = [*CHECK, *changes, "--set", "input.media=uri", "--set", "prompt.user=What?"]
    closed: str | tuple[str, ...] = ("/closed", "/lost+found")
    assert told(here, capsys, command) == "error: input.manifest: HERE/pics/closed: no permission to read this folder"
    closed = "/lost+found"
    assert main(command) == 0
    capsys.readouterr()


def test_a_table_that_cannot_be_opened_is_refused_as_other_mistakes_are(here, capsys, monkeypatch):
    def refuse(source: ParquetSource) -> pa.Schema:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ParquetSource, "read_schema", refuse)
    message = "error: input.manifest: file://HERE/m.parquet cannot be read (Permission denied)"
    assert [told(here, capsys, command) for command in (CHECK, RUN)] == [message, message]


def test_a_budget_that_is_large_enough_is_checked_without_the_vocabulary(here, capsys, monkeypatch):
    """Which takes seconds with a model's real one."""

    def count(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(preflight, "count_min_tokens", count)
    job("output:", "answer: {schema: invoice, max_new_tokens: 1024}\noutput:")(here)
    assert main(CHECK) == 0, capsys.readouterr().err


def test_a_run_without_rows_leaves_nothing_behind(here, capsys):
    pq.write_table(pq.read_table("m.parquet").slice(0, 0), "m.parquet")
    before = sorted(here.iterdir())
    assert told(here, capsys, RUN) == "error: input.manifest: m.parquet holds no rows"
    assert sorted(here.iterdir()) == before


def test_a_wrong_command_line_shows_what_is_expected(here, capsys):
    assert told(here, capsys, [*RUN, "--limit", "0"]).endswith("--limit: '0': give a whole number of 1 or more")
    words = told(here, capsys, ["rnu", "job.yaml"]).replace("'", "")
    assert "(choose from" in words
    assert " run, submit, plan, status, " in words


def test_another_question_in_the_same_output_is_refused_with_its_differences(here, capsys):
    (here / "out/questions").mkdir(parents=True)
    (here / "out/questions/abc.json").write_text(json.dumps({"prompt": {"user": "What?"}}))
    said = told(here, capsys, RUN)
    assert said.startswith("error: HERE/out holds answers to another question:")
    assert '  prompt.user: was "What?", is "What is it?"' in said
    assert said.endswith("or add these answers to the same output with --on-change add.")


def test_missing_gpus_are_refused_with_what_to_do():
    asked = Job.model_validate(
        {
            "name": "t",
            "input": {"manifest": "m"},
            "model": {"weights": "w"},
            "workers": {"generate": {"gpus": 1}},
            "output": {"path": "o"},
        }
    )
    with pytest.raises(
        JobError, match=r"the nodes have none; lower it, set workers\.generate\.gpus to 0 to run on CPU"
    ):
        compute_pool_sizes(asked, [{"CPU": 2.0}])


def test_a_gpu_that_torch_does_not_see_is_refused_without_ray_too(here, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    job("engine: {kind: scripted}", "workers: {generate: {gpus: 1}}")(here)
    assert told(here, capsys, RUN).splitlines()[-1] == (
        "error: workers.generate.gpus: torch sees 0 GPUs here and a replica takes 1; "
        "--set workers.generate.gpus=0 runs on CPU"
    )


def test_debug_shows_the_traceback(here):
    with pytest.raises(JobError):
        main(["check", "nothing.yaml", "--debug"])


@pytest.mark.parametrize(("gpus", "told"), [(0, True), (1, False)])
def test_a_warning_says_that_the_model_runs_on_cpu(here, capsys, gpus, told):
    weights = Path(builtin.__file__).parent / "weights/tiny"
    text = GOOD.replace("builtin:tiny", str(weights)).replace("engine: {kind: scripted}", "engine: {kind: torch}")
    (here / "job.yaml").write_text(f"{text}workers: {{generate: {{gpus: {gpus}}}}}\n")
    assert main(["check", "job.yaml"]) == 0
    assert ("careful: workers.generate.gpus is 0, so the model runs on CPU" in capsys.readouterr().out) == told
