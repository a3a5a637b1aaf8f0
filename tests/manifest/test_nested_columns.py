"""Columns inside columns: named by path, in Parquet and in JSONL."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import JobError


def build_sections(workspace, name):
    return {
        "input": {"manifest": str(workspace.folder / name), "id": "meta.name", "media": ["image.path"], "keep": []},
        "prompt": {"user": "{meta.tags} of {meta.vendor}"},
        "engine": {"default": "{prompt}"},
    }


@pytest.mark.parametrize("name", ["n.parquet", "n.jsonl"])
def test_nested_columns_give_media_ids_and_prompts(name, workspace):
    rows = [
        {"image": {"path": row["image"]}, "meta": {"name": row["id"], "vendor": "Acme", "tags": ["a", "b"]}}
        for row in workspace.draw_images(3)
    ]
    if name == "n.parquet":
        pq.write_table(pa.Table.from_pylist(rows), workspace.folder / name)
    else:
        (workspace.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert workspace.run_job(**build_sections(workspace, name)) == 0
    assert [(row["id"], row["text"]) for row in workspace.read_answers()] == [
        (f"r{number}", '["a", "b"] of Acme') for number in range(3)
    ]


def test_bytes_inside_a_column_are_media(workspace):
    [row] = workspace.draw_images(1)
    data = (workspace.folder / row["image"]).read_bytes()
    workspace.write_manifest([{"id": "a", "hint": "h", "image": {"bytes": data, "note": "x"}}])
    assert workspace.run_job(input={"media": ["image.bytes"]}) == 0
    assert workspace.list_answered_ids() == ["a"]


def test_a_path_into_plain_text_is_refused(workspace):
    workspace.write_manifest(workspace.draw_images(1))
    with pytest.raises(JobError, match=r"there is no column hint\.a, for a cell holds 'h', which is no JSON object"):
        workspace.run_job(prompt={"user": "{hint.a}?"})
