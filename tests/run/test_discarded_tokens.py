"""Tokens of replies that could not be used are counted and paid for."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.__main__ import main
from pipeline.output.commit import read_receipt
from pipeline.output.dataset import Dataset
from pipeline.output.store import OutputStore

SECTIONS = {
    "input": {"messages": "messages", "media": [], "keep": []},
    "prompt": {"user": None},
    "answer": {"schema": "caption", "retries": 1},
    "engine": {"kind": "scripted", "default": "not JSON at all"},  # four words, which are its tokens
}


def test_tokens_of_failed_answers_are_in_the_run_its_report_and_a_rebuilt_receipt(workspace):
    messages = json.dumps([{"role": "user", "content": "hi"}])
    pq.write_table(pa.table({"id": ["a", "b"], "messages": [messages] * 2}), workspace.folder / "m.parquet")
    assert workspace.run_job(**SECTIONS) == 3
    assert "16 of 16 output tokens are in replies that could not be used" in workspace.messages
    [path] = workspace.folder.glob("out/runs/*/report.json")
    report = json.loads(path.read_text())
    assert (report["output_tokens"], report["discarded_tokens"]["output"]) == (16, 16)
    assert report["prompt_tokens"] > 0
    dataset = Dataset(OutputStore(str(workspace.folder / "out")), report["fingerprint"])
    [part] = dataset.list_parts()
    assert read_receipt(dataset, part).tokens.output == 16
    assert main(["report", str(workspace.folder / "out")]) == 0
    assert "output tokens of unusable replies" in (workspace.folder / "out/report.html").read_text()
