"""Objects in S3, from a real server on this machine."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import FetchError
from pipeline.fetch import object_store
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job, LimitsSection
from tests.fetch.conftest import scans

JPEG = b"\xff\xd8" + bytes(range(256)) * 8
MP4 = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 20_000  # 5 MB: more than one read


@pytest.fixture(scope="module")
def bucket():
    with scans({"a.jpg": JPEG, "long.mp4": MP4, "empty.png": b"", "a b#c%20é.jpg": JPEG}) as client:
        yield client


@pytest.fixture
def fetcher(bucket, short_waits):
    with Fetcher(a_job(8 << 20)) as opened:
        yield opened


def a_job(video_bytes: int) -> Job:
    return Job.model_validate(
        {
            "name": "fetch",
            "input": {"manifest": "m.parquet"},
            "model": {"weights": "builtin:tiny"},
            "limits": {"video": {"bytes": video_bytes}, "deadline_s": 20},
            "output": {"path": "out"},
        }
    )


@pytest.mark.parametrize(
    "uri", ["s3://scans/a.jpg", "s3a://scans/a.jpg", "S3://scans/a.jpg", "s3://scans/a b#c%20é.jpg"]
)
def test_an_object_arrives_whatever_its_key_looks_like(uri, fetcher):
    blob = fetcher.fetch(uri)
    assert (blob.kind, blob.data) == ("image", JPEG)


def test_a_video_is_read_in_parts_into_a_file(fetcher):
    with fetcher.fetch("s3://scans/long.mp4") as blob:
        assert blob.path.read_bytes() == MP4


def test_an_empty_object_is_empty_and_no_error_of_the_store(fetcher):
    assert fetcher.fetch("s3://scans/empty.png").data == b""


@pytest.mark.parametrize("uri", ["s3://scans/no.jpg", "s3://no-such-bucket/a.jpg"])
def test_what_is_not_there_is_said_at_once(uri, fetcher):
    with pytest.raises(FetchError) as refusal:
        fetcher.fetch(uri)
    assert refusal.value.kind == "not_found"


def test_an_object_over_the_limit_is_refused_by_its_size(bucket):
    with Fetcher(a_job(4_500_000)) as fetcher, pytest.raises(FetchError) as refusal:
        fetcher.fetch("s3://scans/long.mp4")
    assert refusal.value.kind == "too_large"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "vlbatch[gcs]"), ("az", "vlbatch[azure]"), ("oss", "ossfs")])
def test_a_store_whose_package_is_missing_is_named(scheme, package):
    with pytest.raises(FetchError) as refusal:
        object_store.ObjectStore(scheme)
    assert refusal.value.kind == "package"
    assert f"pip install '{package}'" in refusal.value.message


class LibraryError(Exception):
    pass


class Ends:
    """A store that calls an object without bytes a range that is not there, in its library's own words."""

    async_impl = True

    def _strip_protocol(self, uri):
        return uri

    async def _cat_file(self, path, start, end):
        raise LibraryError("416: The range specified is invalid for the current size of the resource")


def test_an_empty_object_is_empty_in_every_store(tmp_path):
    opened = object.__new__(object_store.ObjectStore)
    opened.provider, opened.filesystem, opened.error_types = "gs", Ends(), (OSError, LibraryError)
    sink = BlobWriter("gs://b/k", limits=LimitsSection(), folder=tmp_path, file_name="0")
    assert asyncio.run(opened.download("gs://b/k", sink)) is None
    assert sink.to_blob().data == b""
