"""Objects in S3, served by a real server on this machine."""

from __future__ import annotations

import asyncio

import pytest

from pipeline.errors import FetchError
from pipeline.fetch import object_store
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job, LimitsSection
from tests.fetch.conftest import serve_scans

pytestmark = pytest.mark.process

JPEG = b"\xff\xd8" + bytes(range(256)) * 8
MP4 = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 20_000  # 5 MB: more than one read


@pytest.fixture(scope="module")
def bucket():
    with serve_scans({"a.jpg": JPEG, "long.mp4": MP4, "empty.png": b"", "a b#c%20é.jpg": JPEG}) as client:
        yield client


@pytest.fixture
def fetcher(bucket, short_waits):
    with Fetcher(make_job(8 << 20)) as open_fetcher:
        yield open_fetcher


def make_job(video_bytes: int) -> Job:
    return Job.model_validate(
        {
            "name": "fetch",
            "input": {"manifest": "m.parquet", "stores": ["s3://scans", "s3://no-such-bucket"]},
            "model": {"weights": "builtin:tiny"},
            "limits": {"video": {"bytes": video_bytes}, "deadline_s": 20},
            "output": {"path": "out"},
        }
    )


@pytest.mark.parametrize(
    "uri", ["s3://scans/a.jpg", "s3a://scans/a.jpg", "S3://scans/a.jpg", "s3://scans/a b#c%20é.jpg"]
)
def test_an_object_is_fetched_whatever_its_key_contains(uri, fetcher):
    blob = fetcher.fetch(uri)
    assert (blob.kind, blob.data) == ("image", JPEG)


def test_a_video_is_read_in_ranges_into_a_file(fetcher):
    with fetcher.fetch("s3://scans/long.mp4") as blob:
        assert blob.path.read_bytes() == MP4


def test_an_empty_object_is_not_an_error(fetcher):
    assert fetcher.fetch("s3://scans/empty.png").data == b""


@pytest.mark.parametrize("uri", ["s3://scans/no.jpg", "s3://no-such-bucket/a.jpg"])
def test_a_missing_object_is_not_retried(uri, fetcher):
    with pytest.raises(FetchError) as raised:
        fetcher.fetch(uri)
    assert raised.value.kind == "not_found"


def test_an_object_over_the_limit_is_refused_by_its_declared_size(bucket):
    with Fetcher(make_job(4_500_000)) as fetcher, pytest.raises(FetchError) as raised:
        fetcher.fetch("s3://scans/long.mp4")
    assert raised.value.kind == "too_large"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "vlbatch[gcs]"), ("az", "vlbatch[azure]"), ("oss", "ossfs")])
def test_a_missing_package_of_a_store_is_named(scheme, package):
    with pytest.raises(FetchError) as raised:
        object_store.ObjectStore(scheme, ())
    assert raised.value.kind == "package"
    assert f"pip install '{package}'" in raised.value.message


class LibraryError(Exception):
    pass


class EmptyObjectFilesystem:
    """A store that reports an empty object as a missing range, in the words of its library."""

    async_impl = True

    def _strip_protocol(self, uri):
        return uri.removeprefix("gs://")

    async def _cat_file(self, path, start, end):
        raise LibraryError("416: The range specified is invalid for the current size of the resource")


def test_an_empty_object_is_recognised_in_every_store(tmp_path):
    store = object.__new__(object_store.ObjectStore)
    store.scheme, store.provider, store.allowed_stores = "gs", "gs", ("gs://b",)
    store.filesystem, store.error_types = EmptyObjectFilesystem(), (OSError, LibraryError)
    writer = BlobWriter("gs://b/k", limits=LimitsSection(), path=tmp_path / "0")
    assert asyncio.run(store.download("gs://b/k", writer)) is None
    assert writer.to_blob().data == b""
