"""Which buckets, containers and hub repositories a manifest may name, whatever the workers' credentials can read."""

from __future__ import annotations

import boto3
import pytest
from pydantic import ValidationError

from pipeline.errors import FetchError
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.header_fetcher import open_header_fetcher
from pipeline.fetch.stores import check_store, list_stores
from pipeline.job.spec import Job
from pipeline.manifest.files import ManifestFile
from pipeline.run.preflight import resolve_paths
from tests.fetch.conftest import serve_scans

JPEG = b"\xff\xd8" + bytes(range(256)) * 8


def make_job(**sections) -> Job:
    return Job.model_validate(
        {
            "name": "stores",
            "input": {"manifest": "s3://scans/m.parquet"},
            "model": {"weights": "builtin:tiny"},
            "limits": {"deadline_s": 60},
            "output": {"path": "out"},
        }
        | sections
    )


@pytest.fixture(scope="module")
def buckets():
    """The bucket of the manifest, and one that holds other people's pictures, which the same credentials can read."""
    with serve_scans({"a.jpg": JPEG}) as client:
        client.create_bucket(Bucket="payroll")
        client.put_object(Bucket="payroll", Key="a.jpg", Body=JPEG)
        yield


@pytest.mark.parametrize("open_fetcher", [Fetcher, open_header_fetcher], ids=["run", "plan"])
def test_a_manifest_cannot_make_the_workers_read_another_bucket(buckets, open_fetcher):
    assert boto3.client("s3").get_object(Bucket="payroll", Key="a.jpg")["Body"].read() == JPEG
    job = resolve_paths(make_job(), [ManifestFile("s3://scans/m.parquet", "parquet")])
    with open_fetcher(job) as fetcher:
        assert fetcher.fetch("s3://scans/a.jpg").data == JPEG
        for uri in ("s3://payroll/a.jpg", "S3A://payroll/a.jpg", "s3:///payroll/a.jpg", "s3::payroll/a.jpg"):
            with pytest.raises(
                FetchError, match=r"s3://payroll is not among .*\(s3://scans\).*input\.stores"
            ) as raised:
                fetcher.fetch(uri)
            assert raised.value.kind == "store"


def test_the_stores_of_the_manifest_and_the_output_are_allowed_by_default():
    files = [ManifestFile("hf://datasets/acme/scans@main/a.parquet", "parquet"), ManifestFile("file:///m.csv", "csv")]
    job = resolve_paths(make_job(output={"path": "s3://labels/out"}), files)
    assert job.input.stores == ("hf://datasets/acme/scans", "s3://labels")
    named = make_job(input={"manifest": "m.parquet", "stores": "s3://scans"}, output={"path": "s3://labels/out"})
    assert resolve_paths(named, files).input.stores == ("s3://scans",)


@pytest.mark.parametrize(
    ("scheme", "path", "store"),
    [
        ("s3a", "scans/a.jpg", "s3://scans"),
        ("s3", "scans/a.jpg", "s3a://scans/"),
        ("s3", "scans/public/a.jpg", "s3://scans/public"),
        (
            "s3",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint/scans/a",
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/scans",
        ),
        ("abfss", "scans/a.jpg", "abfs://scans@acme.dfs.core.windows.net"),
        ("hf", "datasets/acme/scans@refs/pr/1/a.jpg", "hf://datasets/acme/scans"),
        ("hf", "acme/model/a.jpg", "hf://acme/model@v1"),
    ],
)
def test_an_object_in_a_listed_store_is_allowed(scheme, path, store):
    check_store(scheme, path, ["gs://else", store])


@pytest.mark.parametrize(
    ("scheme", "path", "store"),
    [
        ("s3", "scans-private/a.jpg", "s3://scans"),
        ("gs", "scans/a.jpg", "s3://scans"),
        ("s3", "scans/a.jpg", "s3://scans/public"),
        ("s3", "scans/public-not/a.jpg", "s3://scans/public"),
        ("s3", "/payroll/scans/a.jpg", "s3://scans"),
        ("hf", "datasets/acme/private/a.jpg", "hf://datasets/acme/scans"),
        ("hf", "acme/scans/a.jpg", "hf://datasets/acme/scans"),
        ("hf", "datasets/acme@x/scans/a.jpg", "hf://datasets/acme/scans"),
        ("az", "scans@x/a.jpg", "az://other"),
    ],
)
def test_an_object_elsewhere_is_refused(scheme, path, store):
    with pytest.raises(FetchError) as raised:
        check_store(scheme, path, [store])
    assert raised.value.kind == "store"


def test_an_access_point_is_a_store_of_its_own():
    arn = "arn:aws:s3:eu-west-1:123456789012:accesspoint"
    assert list_stores([f"s3://{arn}/scans/m.parquet"]) == (f"s3://{arn}/scans",)


@pytest.mark.parametrize("store", ["scans", "s3://", "s3:/scans"])
def test_a_store_without_its_scheme_is_refused_with_advice(store):
    with pytest.raises(ValidationError, match="write a store as s3://bucket"):
        make_job(input={"manifest": "m.parquet", "stores": store})
