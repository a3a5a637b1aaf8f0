"""Data sets on the Hugging Face hub as manifests, by config and split, from a fake hub."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import JobError
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from tests.fake_hub import serve_hub

CARD = b"""---
license: mit
configs:
- config_name: en
  data_files:
  - split: train
    path: en/part-*.parquet
  - split: held_out
    path: [en/late.parquet]
- config_name: de
  data_dir: de
---
# Scans
"""


@pytest.fixture
def hub(monkeypatch):
    with serve_hub(monkeypatch) as fake_hub:
        yield fake_hub


def encode_rows(numbers):
    """A file as the hub has it: pictures as structs, no ids."""
    images = []
    for number in numbers:
        sink = io.BytesIO()
        Image.new("RGB", (40, 30), (number, 90, 160)).save(sink, "PNG")
        images.append({"bytes": sink.getvalue(), "path": f"{number}.png"})
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": images, "label": [*numbers]}), sink, row_group_size=2)
    return sink.getvalue()


def read_labels(workspace, manifest):
    """The label of each row, by its name."""
    job = Job.model_validate(workspace.build_job(input={"manifest": manifest}))
    labels = {}
    for file in list_manifest_files(job):
        source = file.open_source()
        for span in source.list_spans(2):
            rows = source.read_span(span, ["__row__", "label"]).to_pylist()
            labels |= {row["__row__"]: row["label"] for row in rows}
    return labels


def test_a_data_set_card_says_which_files_a_split_has(hub, workspace):
    files = {"README.md": CARD, "en/part-0.parquet": encode_rows(range(3)), "en/part-1.parquet": encode_rows([3, 4])}
    files |= {"en/late.parquet": encode_rows([9]), "de/validation-0.parquet": encode_rows([7])}
    first = hub.commit("acme/scans", **files)
    url = "hf://datasets/acme/scans"
    train = {f"train/{number}": number for number in range(5)}
    assert read_labels(workspace, f"{url}#config=en&split=train") == train
    assert read_labels(workspace, f"{url}#config=en") == {**train, "held_out/0": 9}
    assert read_labels(workspace, f"{url}#config=de&split=validation") == {"validation/0": 7}
    hub.commit("acme/scans", **{"en/part-1.parquet": encode_rows([3, 4, 5])})
    assert read_labels(workspace, f"{url}#config=en&split=train") == {**train, "train/5": 5}
    assert read_labels(workspace, f"{url}@{first}#config=en&split=train") == train
    for chosen, problem in {
        "split=train": "choose one of its configs, #config=en; there are en, de",
        "config=fr&split=train": "there is no config 'fr'; there are en, de",
        "config=en&split=trian": "there is no split 'trian'; there are train, held_out. Did you mean 'train'?",
        "version=3": "has no version; it has config and split",
    }.items():
        with pytest.raises(JobError, match=problem.replace("?", r"\?")):
            read_labels(workspace, f"{url}#{chosen}")


def test_without_a_card_the_names_of_files_say_the_split(hub, workspace):
    files = {f"data/{name}-00000-of-00001.parquet": encode_rows([n]) for n, name in enumerate(["train", "test", "val"])}
    hub.commit("acme/plain", **files, **{"data/notes.jsonl": b"{}"})
    url = "hf://datasets/acme/plain"
    assert read_labels(workspace, f"{url}#split=test") == {"test/0": 1}
    assert read_labels(workspace, f"{url}#split=validation") == {"validation/0": 2}
    hub.commit("acme/single", **{"rows.parquet": encode_rows([5, 6])})
    assert read_labels(workspace, "hf://datasets/acme/single#split=train") == {"train/0": 5, "train/1": 6}
    with pytest.raises(JobError, match="there is no config 'x'; there are default"):
        read_labels(workspace, "hf://datasets/acme/single#config=x")
    with pytest.raises(JobError, match="acme/none"):
        read_labels(workspace, "hf://datasets/acme/none#split=train")


def test_files_of_other_kinds_are_to_be_named(hub, workspace):
    card = b"---\nconfigs:\n- config_name: default\n  data_files: rows.jsonl\n---\n"
    hub.commit("acme/lines", **{"README.md": card, "rows.jsonl": b"{}"})
    with pytest.raises(JobError, match=r"rows\.jsonl is not Parquet, .* name its files, such as hf://.*/rows\.jsonl"):
        read_labels(workspace, "hf://datasets/acme/lines#split=train")


@pytest.mark.process
def test_pictures_of_a_data_set_are_asked_once(hub, workspace):
    first = {
        "data/train-00000-of-00002.parquet": encode_rows(range(3)),
        "data/train-00001-of-00002.parquet": encode_rows([3, 4]),
    }
    hub.commit("acme/pics", **first)
    section = {"manifest": "hf://datasets/acme/pics#split=train", "id": "__row__", "keep": ["label"]}
    with pytest.raises(JobError, match=r"so its rows need ids: set input\.id to a column, such as __row__"):
        workspace.run_job(input={**section, "id": None})
    assert workspace.run_job(input=section) == 0
    parts = workspace.list_parts()
    hub.commit("acme/pics", **{"data/train-00001-of-00002.parquet": encode_rows([3, 4, 5])})
    assert workspace.run_job(input=section) == 0
    assert set(parts) < set(workspace.list_parts())
    answers = {row["id"]: (row["label"], row["media"][0]["width"]) for row in workspace.read_answers()}
    assert answers == {f"train/{number}": (number, 40) for number in range(6)}
    assert workspace.run_job(input=section) == 0
    assert len(workspace.list_parts()) == 3


def test_without_a_split_all_files_are_the_manifest_as_before(hub, workspace):
    hub.commit("acme/all", **{"a/train.parquet": encode_rows([1]), "b/test.parquet": encode_rows([2])})
    job = Job.model_validate(workspace.build_job(input={"manifest": "hf://datasets/acme/all"}))
    assert [file.kind for file in list_manifest_files(job)] == ["parquet", "parquet"]
