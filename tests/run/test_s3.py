"""Runs over S3, with a real server on this machine that checks credentials."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import s3fs
from PIL import Image

from tests.seaweed import KEY, SECRET


def draw_noise(shade: int) -> bytes:
    sink = io.BytesIO()
    Image.effect_noise((48, 32), 20 + shade).save(sink, "PNG")
    return sink.getvalue()


BROKEN = ("missing", "text", "truncated", "empty")


def fill_bucket(env) -> s3fs.S3FileSystem:
    """980 pictures, 5 missing keys, and 15 objects that are no pictures."""
    store = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=env["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True, asynchronous=False
    )
    store.mkdir("scans")
    shades = [draw_noise(shade) for shade in range(7)]
    broken_content = {"text": b"no picture at all", "truncated": shades[0][:-400], "empty": b""}
    rows, objects = [], {}
    for number in range(1000):
        kind = BROKEN[number // 50 % 4] if number % 50 == 0 else "picture"
        name = f"scans/pics/{number:04}-{kind}.png"
        rows.append({"id": f"{number:04}-{kind}", "image": f"s3://{name}"})
        if kind != "missing":
            objects[name] = broken_content.get(kind, shades[number % 7])
    store.pipe(objects)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.pipe_file("scans/manifest.parquet", sink.getvalue())
    return store


def read_rows(store, folder):
    store.invalidate_cache()
    paths = [path for path in store.find(folder) if path.endswith(".parquet")]
    return [row for path in paths for row in pq.read_table(io.BytesIO(store.cat_file(path))).to_pylist()]


def test_1000_objects_with_20_broken_ones_give_980_answers_and_20_typed_errors(workspace, s3_environment):
    store = fill_bucket(s3_environment)
    manifest_ids = {
        row["id"] for row in pq.read_table(io.BytesIO(store.cat_file("scans/manifest.parquet"))).to_pylist()
    }
    job = workspace.write_job_file(
        input={"manifest": "s3://scans/manifest.parquet", "keep": []},
        output={"path": "s3://scans/out", "chunk_rows": 50},
        limits={"error_rate": 0.05},
    )
    command = [sys.executable, "-m", "pipeline", "run", str(job)]
    done = subprocess.run(command, env=s3_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    answered, failed = read_rows(store, "scans/out/data"), read_rows(store, "scans/out/errors")
    assert (len(answered), len(failed)) == (980, 20)
    assert {row["id"] for row in [*answered, *failed]} == manifest_ids
    assert all(row["text"] == f"seen {row['id']}" for row in answered)
    assert Counter((row["id"][5:], row["stage"], row["kind"]) for row in failed) == {
        ("missing", "fetch", "not_found"): 5,
        ("text", "decode", "unknown_format"): 5,
        ("truncated", "decode", "truncated"): 5,
        ("empty", "decode", "empty"): 5,
    }
    second = subprocess.run([*command, "--local"], env=s3_environment, capture_output=True, text=True, check=False)
    assert second.returncode == 3, second.stderr
    assert "1,000 done before; 0 to do" in second.stderr
    assert len(read_rows(store, "scans/out/errors")) == 20


def test_wrong_credentials_are_refused_before_anything_runs(workspace, s3_environment):
    job = workspace.write_job_file(
        input={"manifest": "s3://scans/manifest.parquet", "keep": []}, output={"path": "s3://scans/no"}
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(job), "--local"],
        env={**s3_environment, "AWS_SECRET_ACCESS_KEY": "guessed"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "access denied; check the credentials in the environment" in done.stderr
