"""Data sets for training hold the values of the table and the pictures, as the libraries of their users read them."""

from __future__ import annotations

import io
import json
import shutil

import datasets
import PIL.Image
import pyarrow.parquet as pq
import pytest
import webdataset
import yaml

from pipeline.__main__ import main
from pipeline.export.formats import tar_shards
from pipeline.export.inline_media import InlineMediaReader
from tests.fake_hub import serve_hub

pytestmark = pytest.mark.process

SCHEMA = """
from typing import Literal
from pydantic import BaseModel

class Scene(BaseModel):
    kind: Literal["cat", "dog"]
    counts: dict[str, int]
    note: str | None
"""
REPLY = {"kind": "dog", "counts": {"paws": 4, "tails": 1}, "note": None}


@pytest.fixture
def sections(workspace):
    """Answers about six pictures; r1 is none, r2 shows two, and r3's id has a dot and a slash."""
    rows = [*workspace.draw_images(6)]
    for row in rows:
        row["other"] = None
    rows[2]["other"], rows[3]["id"], rows[1]["image"] = rows[4]["image"], "scans/3.png", "pics/none.png"
    workspace.write_manifest(rows)
    (workspace.folder / "scene.py").write_text(SCHEMA)
    sections = {
        "answer": {"schema": f"{workspace.folder}/scene.py:Scene"},
        "engine": {"default": json.dumps(REPLY)},
        "input": {"media": ["image", "other"], "require": "any"},
        "prompt": {"system": "Be brief.", "user": "{hint}: what is it?"},
    }
    workspace.run_job(**sections)
    return sections


@pytest.fixture
def export(workspace, sections, capsys):
    def run_export(*options):
        target = workspace.folder / "exported"
        code = main(["export", str(workspace.write_job_file(**sections)), str(target), "--allow-errors", *options])
        return code, target, capsys.readouterr()

    return run_export


def read_original(workspace, number):
    return (workspace.folder / f"pics/{number}.png").read_bytes()


def test_a_hugging_face_data_set_has_images_and_class_labels(workspace, export):
    code, target, messages = export("--to", "huggingface")
    assert code == 0, messages.err
    assert "row with several pictures, of which `image` has the first: 1, for instance row r2" in messages.out
    data = datasets.load_dataset(str(target), cache_dir=str(workspace.folder / "cache"))["train"]
    assert data["id"] == ["r0", "r2", "scans/3.png", "r4", "r5"]
    assert isinstance(data.features["image"], datasets.Image)
    assert data.features["kind"] == datasets.ClassLabel(names=["cat", "dog"])
    assert data["kind"] == [1] * 5
    counts = [{"key": "paws", "value": 4}, {"key": "tails", "value": 1}]
    assert data[0]["answer"] == {"kind": "dog", "counts": counts, "note": None}
    raw = data.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == [read_original(workspace, n) for n in (0, 2, 3, 4, 5)]
    assert data[0]["image"].size == (40, 30)


def test_the_card_says_what_was_asked(export):
    _, target, _ = export("--to", "huggingface", "--split", "train=0.5,test=0.5", "--media", "none")
    card = (target / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    files = header["configs"][0]["data_files"]
    assert [entry["split"] for entry in files] == ["train", "test"]
    for text in ("Be brief.", "{hint}: what is it?", "builtin:tiny", '"counts"', "| `tokens` |"):
        assert text in card
    assert {split.num_rows for split in datasets.load_dataset(str(target)).values()} <= {1, 2, 3, 4}
    [schema] = {pq.read_schema(path).remove_metadata() for path in target.glob("data/*.parquet")}
    assert "image" not in schema.names


def test_linked_images_are_read_where_they_are(workspace, export):
    _, target, _ = export("--to", "huggingface", "--media", "link")
    data = datasets.load_dataset(str(target), cache_dir=str(workspace.folder / "cache"))["train"]
    assert data.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"] is None
    assert data[0]["image"].size == (40, 30)


def test_tar_shards_have_media_and_answers_by_key(workspace, export, monkeypatch):
    monkeypatch.setattr(tar_shards, "MAX_SHARD_BYTES", 6000)
    code, target, messages = export("--to", "webdataset")
    assert code == 0, messages.err
    shards = sorted(map(str, target.glob("*.tar")))
    assert len(shards) > 1
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    rows = {sample["json"]["id"]: sample for sample in samples}
    assert list(rows) == ["r0", "r2", "scans/3.png", "r4", "r5"]
    assert all(sample["json"]["answer"] == REPLY for sample in samples)
    assert [sample["__key__"] for sample in samples][2].startswith("scans_3_png~")
    raw = {sample["__key__"]: sample for sample in webdataset.WebDataset(shards, shardshuffle=False)}
    assert raw["r0"]["png"] == read_original(workspace, 0)
    assert (raw["r2"]["png"], raw["r2"]["2.png"]) == (read_original(workspace, 2), read_original(workspace, 4))


def test_tar_shards_are_a_manifest(workspace, export):
    _, target, _ = export("--to", "webdataset")
    [shard] = target.glob("*.tar")
    manifest = {"manifest": str(shard), "media": [], "id": None, "keep": []}
    sections = {"input": manifest, "prompt": {"user": "{json.text}?"}, "output": {"path": f"{workspace.folder}/again"}}
    assert workspace.run_job(**sections) == 0
    assert len(workspace.read_answers("again")) == 5


def test_chats_have_the_question_the_answer_and_their_pictures(workspace, export):
    code, target, messages = export("--to", "sharegpt")
    assert code == 0, messages.err
    info = json.loads((target / "dataset_info.json").read_text())
    assert info["train"]["file_name"] == "train"
    data = datasets.load_dataset("json", data_files=[str(path) for path in (target / "train").glob("*.jsonl")])["train"]
    assert data["id"] == ["r0", "r2", "scans/3.png", "r4", "r5"]
    system, user, assistant = data[1]["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user == {"role": "user", "content": "<image><image>h: what is it?"}
    assert json.loads(assistant["content"]) == REPLY
    for row in data:
        assert row["messages"][1]["content"].count("<image>") == len(row["images"])
        assert all(PIL.Image.open(target / path).size == (40, 30) for path in row["images"])
    assert (target / data[1]["images"][1]).read_bytes() == read_original(workspace, 4)


def test_chats_need_the_columns_that_the_prompt_names(workspace, sections, export):
    sections["input"] = {**sections["input"], "keep": []}
    code, _, messages = export("--to", "sharegpt")
    assert code == 2
    assert "the prompt names hint, which the output does not keep; add it to input.keep: hint" in messages.err


def test_a_data_set_is_pushed_as_one_commit_and_again_as_it_changes(workspace, export, monkeypatch):
    options = ("--to", "huggingface", "--push", "acme/scenes")
    with serve_hub(monkeypatch) as hub:
        code, target, messages = export(*options)
        assert code == 0, messages.err
        assert "created the private data set acme/scenes" in messages.out
        assert hub.are_private == {"acme/scenes": True}
        [_, files] = hub.commits["acme/scenes"]
        exported = {f"data/{path.name}": path.read_bytes() for path in target.glob("data/*.parquet")}
        assert files == {".gitattributes": b"", "README.md": (target / "README.md").read_bytes(), **exported}
        assert export(*options)[0] == 0
        assert len(hub.commits["acme/scenes"]) == 2, "nothing has changed"
        shutil.rmtree(target)
        assert export(*options, "--split", "a=0.5,b=0.5")[0] == 0
        names = set(hub.commits["acme/scenes"][-1]) - {".gitattributes", "README.md"}
        assert names == {f"data/{path.name}" for path in target.glob("data/*.parquet")}
        assert main(["export", str(workspace.folder / "job.yaml"), str(target / "no"), "--push", "acme/scenes"]) == 2


def test_an_incomplete_export_is_not_pushed(workspace, sections, export, monkeypatch):
    workspace.write_manifest(workspace.draw_images(7))
    sections["input"] = {"media": ["image"]}
    with serve_hub(monkeypatch) as hub:
        code, _, messages = export("--to", "huggingface", "--push", "acme/scenes")
    assert code == 4
    assert "not pushed to acme/scenes: rows were not asked yet" in messages.out
    assert not hub.commits


def test_a_hub_that_refuses_is_named(export, monkeypatch):
    with serve_hub(monkeypatch):
        code, target, messages = export("--to", "huggingface", "--push", "not a name")
    assert code == 2
    assert "--push not a name: " in messages.err
    assert "the export itself is complete" in messages.err
    assert (target / "_SUCCESS").exists()


def encode_pages(count):
    pages, sink = [PIL.Image.new("RGB", (40 + 10 * page, 30), (page, 0, 0)) for page in range(count)], io.BytesIO()
    pages[0].save(sink, "TIFF", save_all=True, append_images=pages[1:])
    return sink.getvalue()


def test_media_that_are_bytes_in_the_manifest_go_along_slice_by_slice(workspace, capsys, monkeypatch):
    read_chunk, read_rows = InlineMediaReader.read_chunk, []

    def read_and_count(reader, chunk):
        media = read_chunk(reader, chunk)
        read_rows.append(len(media))
        return media

    monkeypatch.setattr(InlineMediaReader, "read_chunk", read_and_count)
    workspace.draw_images(3)
    contents = [read_original(workspace, 0), encode_pages(2), read_original(workspace, 2)]
    rows = [{"id": f"r{number}", "image": {"bytes": data, "path": "x"}} for number, data in enumerate(contents)]
    workspace.write_manifest(rows)
    sections = {"input": {"keep": []}, "output": {"chunk_rows": 2, "slice_rows": 1}}
    workspace.run_job(**sections)
    job = str(workspace.write_job_file(**sections))
    for kind in ("huggingface", "sharegpt", "webdataset"):
        assert main(["export", job, str(workspace.folder / kind), "--to", kind]) == 0
        assert "media not copied" not in capsys.readouterr().out
    assert read_rows == [1] * 9  # in memory at once
    data = datasets.load_dataset(f"{workspace.folder}/huggingface", cache_dir=f"{workspace.folder}/cache")["train"]
    raw = data.cast_column("image", datasets.Image(decode=False))
    assert [raw[number]["image"]["bytes"] for number in (0, 2)] == [contents[0], contents[2]]
    [lines] = (workspace.folder / "sharegpt/train").glob("*.jsonl")
    chats = [json.loads(line) for line in lines.read_text().splitlines()]
    sizes = [[PIL.Image.open(workspace.folder / "sharegpt" / path).size for path in chat["images"]] for chat in chats]
    assert sizes == [[(40, 30)], [(40, 30), (50, 30)], [(40, 30)]]
    [shard] = (workspace.folder / "webdataset").glob("*.tar")
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(str(shard), shardshuffle=False)}
    assert (samples["r1"]["tif"], samples["r2"]["png"]) == tuple(contents[1:])
