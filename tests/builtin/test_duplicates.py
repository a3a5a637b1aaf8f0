"""The demo's job for vectors finds planted duplicates; DuckDB compares vectors as REFERENCE.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.__main__ import main
from pipeline.builtin import scene_files
from pipeline.builtin.evaluate import JOBS_FOLDER, run_task
from tests.bench.duplicates import change_picture

pytestmark = pytest.mark.process

REFERENCE = (Path(__file__).parents[2] / "REFERENCE.md").read_text(encoding="utf-8")
SCENES, COPIES = 150, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Scenes, and copies of some of them: every other one is recompressed, and the others are cropped."""
    folder = tmp_path_factory.mktemp("duplicates")
    manifest = scene_files.write_scene_files(folder / "embed", "detect", SCENES)
    rows = pq.read_table(manifest).to_pylist()
    for number in range(COPIES):
        change = ("recompressed", "cropped")[number % 2]
        copy = change_picture(Image.open(folder / "embed" / rows[number]["media"]).convert("RGB"), change)
        copy.save(folder / "embed" / f"copy-{number}.png")
        rows.append({"id": f"{change}-{rows[number]['id']}", "media": f"copy-{number}.png", "truth": "{}"})
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    assert run_task("embed", folder, [], runner="local") == 0
    return folder


def is_planted(first: str, second: str) -> bool:
    return first.endswith(second) or second.endswith(first)


def test_planted_duplicates_are_found_and_nothing_else(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["neighbours", "answers/embed", "--above", "0.99"]) == 0
    found = [(row["id"], row["of"]) for row in pq.read_table("neighbours.parquet").to_pylist()]
    right = [pair for pair in found if is_planted(*pair)]
    assert len(right) / len(found) >= 0.9
    assert sum("recompressed" in first + second for first, second in right) == COPIES // 2
    assert sum("cropped" in first + second for first, second in right) >= 4


def test_whitened_vectors_find_planted_duplicates_at_the_default_cosine(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["neighbours", "answers/embed", "--whiten", "--vectors", "white.parquet"]) == 0
    found = [(row["id"], row["of"]) for row in pq.read_table("neighbours.parquet").to_pylist()]
    right = [pair for pair in found if is_planted(*pair)]
    assert right == found
    assert sum("cropped" in first + second for first, second in right) >= 5
    query = """SELECT a.id, b.id FROM 'white.parquet' AS a JOIN 'white.parquet' AS b
               ON a.id < b.id AND list_cosine_similarity(a.vector, b.vector) >= 0.8"""
    assert {frozenset(pair) for pair in duckdb.sql(query).fetchall()} >= {frozenset(pair) for pair in right}


def test_a_copy_is_nearest_to_what_it_was_made_of(folder, monkeypatch):
    monkeypatch.chdir(folder)
    copies = [f"{('recompressed', 'cropped')[n % 2]}-detect-{n:05}" for n in range(COPIES)]
    near = [word for row_id in copies for word in ("--near", row_id)]
    assert main(["neighbours", "answers/embed", *near, "--count", "1"]) == 0
    found = [(row["id"], row["of"]) for row in pq.read_table("neighbours.parquet").to_pylist()]
    assert sum(is_planted(*pair) for pair in found) >= 18


def test_the_sql_of_the_readme_finds_the_most_similar_rows(folder, monkeypatch):
    monkeypatch.chdir(folder / "answers" / "embed")
    (query,) = re.findall(r"```sql\n(SELECT a\.id.*?)```", REFERENCE, re.DOTALL)
    rows = duckdb.sql(query).fetchall()
    assert len(rows) == 10
    assert all(is_planted(first, second) for first, second, _ in rows[:9])
    assert rows[0][2] == pytest.approx(1, abs=1e-3)
    width = 128
    cast = f"embedding::FLOAT[{width}]"
    ((similarity,),) = duckdb.sql(
        f"SELECT min(array_cosine_similarity({cast}, {cast})) FROM 'data/*/*.parquet'"
    ).fetchall()
    assert similarity == pytest.approx(1, abs=1e-5)


def test_score_and_compare_tell_whether_the_nearest_row_belongs_with_a_row(folder, monkeypatch, capsys):
    """The truth names the scene that a picture shows. A scene without a copy is there to be mistaken for others."""
    monkeypatch.chdir(folder)
    part = pq.read_table("answers/embed/data", columns=["id", "embedding"])
    ids, vectors = part["id"].to_pylist(), np.array(part["embedding"].to_pylist())
    Path("scenes.csv").write_text("id,truth\n" + "".join(f"{row_id},{row_id[-5:]}\n" for row_id in ids))
    assert main(["score", "answers/embed", "--truth", "scenes.csv", "--json"]) == 0
    measures = json.loads(capsys.readouterr().out)["fields"]["answer"]["measures"]
    cosines = vectors @ vectors.T - 2 * np.eye(len(ids))
    order = np.argsort(-cosines, axis=1)
    copied = [row for row in range(len(ids)) if int(ids[row][-5:]) < COPIES]
    for measure, count in {"right": 1, "one of 5 nearest": 5, "one of 10 nearest": 10}.items():
        hits = [any(ids[other][-5:] == ids[row][-5:] for other in order[row, :count]) for row in copied]
        assert measures[measure]["value"] == pytest.approx(np.mean(hits))
    assert 0.5 < measures["right"]["value"] <= measures["one of 10 nearest"]["value"]

    changes = ["--set", f"input.manifest={folder}/embed/manifest.parquet", "--set", "output.path=answers/embed"]
    changes += ["--set", "answer.embedding.dim=4", "--on-change", "add"]
    assert main(["run", str(JOBS_FOLDER / "embed.yaml"), "--local", *changes]) == 0
    capsys.readouterr()
    assert main(["compare", "answers/embed", "--truth", "scenes.csv", "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    nearest = [np.argsort(-cosines[row])[0] for row in range(len(ids))]
    short = vectors[:, :4] / np.linalg.norm(vectors[:, :4], axis=1, keepdims=True)
    short_nearest = np.argmax(short @ short.T - 2 * np.eye(len(ids)), axis=1)
    assert comparison["agreement"]["nearest row"]["agreeing"] == sum(nearest == short_nearest)
    first, second = (comparison["measures"]["answer"]["right"][key] for key in ("first", "second"))
    assert second < first == pytest.approx(measures["right"]["value"])
    Path("alone.csv").write_text("id,truth\n" + "".join(f"{row_id},{row_id}\n" for row_id in ids))
    assert main(["score", "answers/embed", "--truth", "alone.csv"]) == 2
    assert "no two rows have the same truth" in capsys.readouterr().err
    assert main(["report", "answers/embed", "--truth", "scenes.csv", "--roots", "."]) == 0
    assert "the truth is" not in Path("answers/embed/report.html").read_text()
