"""Runs over S3, with a real server on this machine that checks credentials."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections import Counter

import deltalake
import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from pyiceberg.catalog.sql import SqlCatalog

from tests.seaweed import KEY, SECRET, draw_noise, read_rows

pytestmark = pytest.mark.process

BROKEN = ("missing", "text", "truncated", "empty")


def fill_bucket(env, bucket: str, count: int) -> s3fs.S3FileSystem:
    """Pictures; of 200, one key is missing and three objects are no pictures."""
    store = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=env["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True, asynchronous=False
    )
    store.mkdir(bucket)
    shades = [draw_noise(shade) for shade in range(7)]
    broken_content = {"text": b"no picture at all", "truncated": shades[0][:-400], "empty": b""}
    rows, objects = [], {}
    for number in range(count):
        kind = BROKEN[number // 50 % 4] if number % 50 == 0 else "picture"
        name = f"{bucket}/pics/{number:04}-{kind}.png"
        rows.append({"id": f"{number:04}-{kind}", "image": f"s3://{name}"})
        if kind != "missing":
            objects[name] = broken_content.get(kind, shades[number % 7])
    store.pipe(objects)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    store.pipe_file(f"{bucket}/manifest.parquet", sink.getvalue())
    return store


def test_every_object_of_a_bucket_becomes_an_answer_or_a_typed_error(workspace, s3_environment):
    bucket, count, broken = "scans", 200, 4
    store = fill_bucket(s3_environment, bucket, count)
    manifest_ids = {
        row["id"] for row in pq.read_table(io.BytesIO(store.cat_file(f"{bucket}/manifest.parquet"))).to_pylist()
    }
    job = workspace.write_job_file(
        input={"manifest": f"s3://{bucket}/manifest.parquet", "keep": []},
        output={"path": f"s3://{bucket}/out", "chunk_rows": 50},
        limits={"error_rate": 0.05},
    )
    command = [sys.executable, "-m", "pipeline", "run", str(job)]
    done = subprocess.run(command, env=s3_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    answered, failed = read_rows(store, f"{bucket}/out/data"), read_rows(store, f"{bucket}/out/errors")
    assert (len(answered), len(failed)) == (count - broken, broken)
    assert {row["id"] for row in [*answered, *failed]} == manifest_ids
    assert all(row["text"] == f"seen {row['id']}" for row in answered)
    assert Counter((row["id"][5:], row["stage"], row["kind"]) for row in failed) == {
        ("missing", "fetch", "not_found"): broken // 4,
        ("text", "decode", "unknown_format"): broken // 4,
        ("truncated", "decode", "truncated"): broken // 4,
        ("empty", "decode", "empty"): broken // 4,
    }
    second = subprocess.run([*command, "--local"], env=s3_environment, capture_output=True, text=True, check=False)
    assert second.returncode == 3, second.stderr
    assert f"{count:,} done before; 0 to do" in second.stderr
    assert len(read_rows(store, f"{bucket}/out/errors")) == broken


def test_wrong_credentials_are_refused_before_anything_runs(workspace, s3_environment):
    job = workspace.write_job_file(
        input={"manifest": "s3://scans-200/manifest.parquet", "keep": []}, output={"path": "s3://scans-200/no"}
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


@pytest.mark.slow
def test_tables_and_tars_in_a_bucket_are_manifests(workspace, s3_environment):
    store = s3fs.S3FileSystem(
        key=KEY, secret=SECRET, endpoint_url=s3_environment["AWS_ENDPOINT_URL_S3"], skip_instance_cache=True
    )
    store.mkdir("lake")
    store.pipe_file("lake/pics/0.png", draw_noise(0))
    tables = {
        name: pa.table({"id": [f"{name}-a", f"{name}-b"], "image": ["s3://lake/pics/0.png"] * 2})
        for name in ("delta", "lance", "in/iceberg")
    }
    options = {
        "aws_endpoint": s3_environment["AWS_ENDPOINT_URL_S3"],
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "aws_access_key_id": KEY,
        "aws_secret_access_key": SECRET,
    }
    deltalake.write_deltalake("s3://lake/delta", tables["delta"], storage_options=options)
    lance.write_dataset(tables["lance"], "s3://lake/lance", storage_options=options)
    file_io = {"s3.endpoint": options["aws_endpoint"], "s3.access-key-id": KEY, "s3.secret-access-key": SECRET}
    file_io |= {"warehouse": "s3://lake", "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"}
    catalog = SqlCatalog("test", uri=f"sqlite:///{workspace.folder}/catalog.db", **file_io)
    catalog.create_namespace("in")
    catalog.create_table("in.iceberg", tables["in/iceberg"].schema).append(tables["in/iceberg"])
    sink, picture = io.BytesIO(), draw_noise(0)
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name in ("a.png", "b.png"):
            header = tarfile.TarInfo(name)
            header.size = len(picture)
            archive.addfile(header, io.BytesIO(picture))
    store.pipe_file("lake/tars/0.tar", sink.getvalue())
    of_tables = {"manifest": [f"s3://lake/{name}" for name in tables]}
    of_tars = {"manifest": "s3://lake/tars/{0..0}.tar", "media": [], "id": None}
    for name, section, count in (("tables", of_tables, 6), ("tars", of_tars, 2)):
        job = workspace.write_job_file(input={**section, "keep": []}, output={"path": f"s3://lake/out/{name}"})
        command = [sys.executable, "-m", "pipeline", "run", str(job), "--local"]
        done = subprocess.run(command, env=s3_environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(read_rows(store, f"lake/out/{name}/data")) == count
    job = workspace.write_job_file(input={**of_tables, "keep": []}, output={"path": "s3://lake/out/tables"})
    for kind in ("delta", "lance"):
        for added in (6, 0):
            command = [sys.executable, "-m", "pipeline", "export", str(job), f"s3://lake/answers/{kind}", "--to", kind]
            done = subprocess.run(command, env=s3_environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert f"{added} rows added" in done.stdout
    assert lance.dataset("s3://lake/answers/lance", storage_options=options).count_rows() == 6
    assert len(deltalake.DeltaTable("s3://lake/answers/delta", storage_options=options).to_pyarrow_table()) == 6
