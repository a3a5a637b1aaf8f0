"""Temporary errors of a store are retried, others stop the run with a reason, and no object is written twice."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections import Counter

import boto3
import pyarrow as pa
import pytest
from moto.server import ThreadedMotoServer

from pipeline import retry_policy
from pipeline.errors import OutputError, StoppedError
from pipeline.output.dataset import Dataset, encode_parquet
from pipeline.output.store import OutputStore
from tests.faults import BUSY, CUT, DOWN, EXPIRED, LOST, Fault, Proxy, first, only, storm

pytestmark = pytest.mark.process

PART = encode_parquet(pa.table({"id": [str(number) for number in range(500)]}), {"errors": "e"})

STRANGE_NAMES = ["a b+c%20d&amp;.parquet", "é/ü.json", *(f"{number:024x}.parquet" for number in range(40))]
PARTS = [f"{number * 0x123456789ABCDEF0123456 % 16**24:024x}" for number in range(50)]


@pytest.fixture(scope="module")
def proxy():
    """An S3 server on this machine behind a proxy that injects errors."""
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host = f"127.0.0.1:{server.get_host_and_port()[1]}"
    with Proxy(host) as opened:
        named = {"aws_access_key_id": "k", "aws_secret_access_key": "s", "region_name": "us-east-1"}
        opened.client = boto3.client("s3", endpoint_url=f"http://{host}", **named)
        yield opened
    server.stop()


@pytest.fixture
def store(proxy, short_waits, monkeypatch, tmp_path):
    """A store in a new bucket, with credentials in a file that can be rotated."""
    write_credentials(tmp_path, "OLDKEY")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"b{os.urandom(4).hex()}"
    proxy.client.create_bucket(Bucket=bucket)
    opened = OutputStore(f"s3://{bucket}/out")
    proxy.rule = None
    proxy.seen.clear()
    return opened


def write_credentials(folder, key):
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")


def get_bucket(store):
    return store.path.split("/")[2]


@pytest.mark.parametrize("fault", [BUSY, DOWN, CUT, Fault(status=429, code="TooManyRequests")])
def test_each_temporary_error_costs_one_request_and_no_object(fault, store, proxy):
    proxy.rule = first(3, fault)
    assert store.create_object("data/a.parquet", PART)
    proxy.rule = first(3, fault)
    assert store.list_names("data") == {"a.parquet"}
    proxy.rule = first(3, fault)
    assert store.read_object("data/a.parquet") == PART


@pytest.mark.parametrize("lost", [1, 3])
def test_an_object_whose_reply_was_lost_is_recognised(lost, store, proxy):
    proxy.rule = only(first(lost, LOST), method="PUT")
    assert store.create_object("data/a.parquet", PART) is True
    assert store.create_object("data/a.parquet", PART[::-1]) is False
    assert store.read_object("data/a.parquet") == PART


def test_each_attempt_to_create_an_object_must_be_allowed(store, proxy, tmp_path, monkeypatch):
    def refuse_third_attempt():
        attempts.append(len(attempts))
        if len(attempts) == 3:
            raise StoppedError("taken over")

    def fail(*_):
        raise OSError(errno.EIO, "stumbled")

    proxy.rule = storm(1.0, BUSY)
    monkeypatch.setattr("pipeline.output.local_files.os.link", fail)
    for each in (store, OutputStore(str(tmp_path / "out"))):
        attempts = []
        with pytest.raises(StoppedError, match="taken over"):
            each.create_object("data/a", b"x", refuse_third_attempt)
    assert len(proxy.seen) == 2
    assert list((tmp_path / "out/data").iterdir()) == []


def test_a_store_that_replaces_objects_is_refused(store, proxy):
    store.check_create_only("_lease/probe-1")
    proxy.rule = storm(1.0, Fault(drop="If-None-Match"))
    with pytest.raises(OutputError, match=r"this store replaces objects that must only be created .*If-None-Match"):
        store.check_create_only("_lease/probe-2")
    assert store.list_names("_lease") == set()


def test_a_truncated_read_of_an_own_object_is_repeated(store, proxy):
    lost, short = only(first(1, LOST), method="PUT"), only(first(2, Fault(short=100)), method="GET")
    proxy.rule = lambda seen: lost(seen) or short(seen)
    assert store.create_object("data/a.parquet", PART) is True


@pytest.mark.parametrize("fault", [Fault(short=100), Fault(keep=100)])
def test_a_part_that_arrives_truncated_is_read_again(fault, store, proxy):
    store.create_object("data/a.parquet", PART)
    store.create_object("questions/q.json", b'{"a": 1}' * 100)
    proxy.rule = only(first(2, fault), method="GET")
    assert store.read_object("data/a.parquet") == PART
    proxy.rule = only(first(2, fault), method="GET")
    assert store.read_object("questions/q.json") == b'{"a": 1}' * 100


def test_a_part_that_is_truncated_in_the_store_is_named(store, proxy):
    proxy.client.put_object(Bucket=get_bucket(store), Key="out/data/a.parquet", Body=PART[:100])
    with pytest.raises(
        OutputError, match=r"out/data/a\.parquet: is cut short; delete it, and its rows are asked again"
    ):
        store.read_object("data/a.parquet")


def test_a_hundred_objects_survive_random_errors(store, proxy):
    proxy.rule = storm(0.3, BUSY, DOWN, CUT, LOST, Fault(delay_s=0.1))
    assert all(store.create_object(f"data/{number}.parquet", PART) for number in range(100))
    assert not any(store.create_object(f"data/{number}.parquet", PART + PART) for number in range(0, 100, 10))
    assert store.list_names("data") == {f"{number}.parquet" for number in range(100)}
    assert all(store.read_object(f"data/{number}.parquet") == PART for number in range(0, 100, 10))


def test_a_busy_store_is_waited_for_once(store, proxy):
    proxy.rule = storm(1.0, BUSY)
    with pytest.raises(
        OutputError, match=r"out/data/a: the store is too busy \(.*after 16 attempts\)\. Committed answers are kept"
    ):
        store.create_object("data/a", b"x")
    assert len(proxy.seen) == retry_policy.OUTPUT_POLICIES["unavailable"].max_attempts
    with pytest.raises(OutputError, match="too busy"):
        store.create_object("data/a", b"x")
    assert len(proxy.seen) == retry_policy.OUTPUT_POLICIES["unavailable"].max_attempts + 1
    proxy.rule = None
    assert store.create_object("data/a", b"x")


def test_rotated_credentials_are_picked_up(store, proxy, tmp_path):
    assert store.create_object("data/a", b"x")
    proxy.rule = lambda seen: EXPIRED if seen.key == "OLDKEY" else None
    write_credentials(tmp_path, "NEWKEY")
    assert store.create_object("data/b", b"x")
    assert [seen.key for seen in proxy.seen if seen.method == "PUT"] == ["OLDKEY", "OLDKEY", "NEWKEY"]


def test_an_expired_token_is_recognised_where_the_reply_has_no_body(store, proxy, tmp_path):
    """As that to HEAD, which a client sends before it reads a small object."""
    assert store.create_object("data/a", b"x")
    proxy.rule = lambda seen: EXPIRED if seen.key == "OLDKEY" and seen.method == "HEAD" else None
    write_credentials(tmp_path, "NEWKEY")
    assert store.has_object("data/a")
    assert {seen.key for seen in proxy.seen if seen.method == "HEAD"} == {"OLDKEY", "NEWKEY"}


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_invalid_credentials_stop_the_run_and_are_not_shown(code, store, proxy):
    proxy.rule = storm(1.0, Fault(status=403, code=code))
    with pytest.raises(OutputError, match="the credentials have expired or are not valid; renew them") as refusal:
        store.create_object("data/a", b"x")
    assert len(proxy.seen) == retry_policy.OUTPUT_POLICIES["credentials"].max_attempts
    assert "OLDKEY" not in str(refusal.value)


def test_denied_access_is_not_retried(store, proxy):
    proxy.rule = storm(1.0, Fault(status=403, code="AccessDenied"))
    with pytest.raises(OutputError, match=r"access denied; check output\.path and the credentials"):
        store.create_object("data/a", b"x")
    assert len(proxy.seen) == 1


def test_a_deleted_bucket_stops_the_run_at_the_next_commit(store, proxy):
    proxy.client.delete_bucket(Bucket=get_bucket(store))
    with pytest.raises(OutputError, match=r"is not there \(any more\): a bucket or a file was deleted"):
        store.create_object("data/a", b"x")
    assert len(proxy.seen) == 1


def test_an_unreachable_store_is_reported(short_waits, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{port}"), ("ACCESS_KEY_ID", "k")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with pytest.raises(OutputError, match=r"the store cannot be reached \(.*after 16 attempts\)"):
        OutputStore("s3://nowhere/out").create_object("data/a", b"x")


def test_a_full_disk_stops_at_once_and_leaves_no_partial_file(tmp_path):
    """A file size limit makes the kernel refuse in the middle of a write, as a full disk does."""
    program = (
        "import resource, sys\n"
        "from pipeline.output.store import OutputStore\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "store = OutputStore(sys.argv[1])\n"
        "assert store.create_object('data/small', b'x' * 900)\n"
        "store.create_object('data/large', b'x' * 100_000)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "OutputError" in done.stderr
    assert "data/large: no space is left; make room" in done.stderr
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["small"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE) != (1000, 1000)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_or_quota_is_reported(number, tmp_path, monkeypatch):
    def full(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.output.local_files.os.fsync", full)
    with pytest.raises(OutputError, match="no space is left"):
        OutputStore(str(tmp_path)).create_object("data/a", b"x")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_temporary_disk_error_is_retried(tmp_path, monkeypatch, short_waits):
    troubles, fsync = [errno.EIO, errno.ESTALE], os.fsync

    def stumble(file):
        if troubles:
            raise OSError(troubles.pop(), "stumbled")
        fsync(file)

    monkeypatch.setattr("pipeline.output.local_files.os.fsync", stumble)
    assert OutputStore(str(tmp_path)).create_object("data/a", b"x")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]


def test_a_folder_that_cannot_be_listed_does_not_count_as_empty(tmp_path, monkeypatch, short_waits):
    store = OutputStore(str(tmp_path))
    store.create_object("data/a", b"x")
    failures, scandir = [errno.EIO, errno.ESTALE], os.scandir

    def stumble(path):
        if failures:
            raise OSError(failures.pop(), "stumbled")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stumble)
    assert store.list_names("data") == {"a"}


def test_a_link_whose_reply_was_lost_is_recognised(tmp_path, monkeypatch):
    """NFS sends the request again, and the server answers that the file exists."""
    store, link = OutputStore(str(tmp_path)), os.link

    def link_twice(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr("pipeline.output.local_files.os.link", link_twice)
    assert store.create_object("data/a", b"first") is True
    assert store.create_object("data/a", b"second") is False
    assert store.read_object("data/a") == b"first"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["a"]


def test_an_object_dates_from_its_creation_and_not_from_when_it_was_written(tmp_path):
    store = OutputStore(str(tmp_path))

    def age_temporary_file():
        (temp_file,) = (tmp_path / "data").iterdir()
        os.utime(temp_file, (0, 0))

    store.create_object("data/a", b"x", age_temporary_file)
    assert store.list_objects("data")["a"].modified_at > 1e9


def test_a_file_is_uploaded_whole(tmp_path, store, proxy):
    (tmp_path / "large").write_bytes(PART * 100)
    proxy.rule = only(first(2, LOST), method="PUT")
    for each in (OutputStore(str(tmp_path / "out")), store):
        each.upload_file("currency=EUR/a.parquet", tmp_path / "large")
        assert each.read_object("currency=EUR/a.parquet") == PART * 100
    assert [path.name for path in (tmp_path / "out/currency=EUR").iterdir()] == ["a.parquet"]


def test_an_object_is_overwritten_and_deleted(tmp_path, store):
    for each in (OutputStore(str(tmp_path)), store):
        assert each.create_object("lease/1.beat", b"held 1")
        each.overwrite("lease/1.beat", b"held 2")
        assert each.read_object("lease/1.beat") == b"held 2"
        each.delete_object("lease/1.beat")
        each.delete_object("lease/1.beat")
        assert each.list_names("lease") == set()
        assert each.list_names("never") == set()


def test_a_file_in_place_of_the_output_is_no_error_that_passes(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be used as an output \(File exists\); choose another folder"):
        OutputStore(str(tmp_path / "file")).create_object("_export.json", b"{}")


@pytest.mark.parametrize("page_size", [7, 1000])
def test_all_pages_of_an_s3_listing_are_read(page_size, store, proxy, monkeypatch):
    for name in STRANGE_NAMES:
        proxy.client.put_object(Bucket=get_bucket(store), Key=f"out/data/{name}", Body=b"x" * len(name))
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(page_size))
    proxy.rule = storm(0.2, BUSY)
    listed = store.list_objects("data")
    assert {name: info.size for name, info in listed.items()} == {name: len(name) for name in STRANGE_NAMES}
    assert all(info.modified_at > 1.7e9 for info in listed.values())


@pytest.mark.parametrize("page_size", [3, 1000])
def test_a_long_listing_of_parts_is_divided(page_size, store, proxy, monkeypatch):
    for chunk in PARTS:
        proxy.client.put_object(Bucket=get_bucket(store), Key=f"out/data/fp=f/{chunk}.parquet", Body=b"x")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", str(page_size))
    proxy.seen.clear()
    assert list(Dataset(store, "f").list_parts()) == sorted(PARTS)
    requests = Counter("continuation" in seen.path for seen in proxy.seen)
    assert requests[False] == (17 if page_size == 3 else 1)
