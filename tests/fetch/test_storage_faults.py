"""S3 behind a faulty proxy: transient errors are retried, others are reported once, and no request is wasted."""

from __future__ import annotations

import boto3
import pytest
from moto.server import ThreadedMotoServer

from pipeline import retry_policy
from pipeline.errors import FetchError
from pipeline.fetch.fetcher import Fetcher
from pipeline.job.spec import Job
from tests.faults import BUSY, CUT, DOWN, EXPIRED, LOST, Fault, Proxy, first, only, storm

pytestmark = pytest.mark.process

JPEG = b"\xff\xd8" + bytes(range(256)) * 8
MP4 = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 20_000  # 5 MB: more than one read


@pytest.fixture(scope="module")
def proxy():
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host = f"127.0.0.1:{server.get_host_and_port()[1]}"
    with Proxy(host) as opened:
        client = boto3.client(
            "s3",
            endpoint_url=f"http://{host}",
            aws_access_key_id="k",
            aws_secret_access_key="s",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="scans")
        for number in range(100):
            client.put_object(Bucket="scans", Key=f"{number}.jpg", Body=JPEG)
        client.put_object(Bucket="scans", Key="long.mp4", Body=MP4)
        opened.client = client
        yield opened
    server.stop()


@pytest.fixture
def fetcher(proxy, short_waits, monkeypatch, tmp_path):
    """Credentials are in a file, where a rotation replaces them."""
    write_credentials(tmp_path, "OLDKEY")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    proxy.rule = None
    proxy.seen.clear()
    job = Job.model_validate(
        {
            "name": "fetch",
            "input": {"manifest": "m.parquet", "stores": ["s3://scans"]},
            "model": {"weights": "builtin:tiny"},
            "limits": {"deadline_s": 20},
            "output": {"path": "out"},
        }
    )
    with Fetcher(job) as open_fetcher:
        yield open_fetcher


def write_credentials(folder, key):
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s\n")


def fetch_error(fetcher, source):
    with pytest.raises(FetchError) as raised:
        fetcher.fetch(source)
    return raised.value


@pytest.mark.parametrize("fault", [BUSY, DOWN, CUT, LOST, Fault(keep=1000), Fault(short=1000), Fault(status=429)])
def test_each_transient_error_costs_one_request_and_no_row(fault, fetcher, proxy):
    proxy.rule = first(3, fault)
    assert fetcher.fetch("s3://scans/1.jpg").data == JPEG
    assert len(proxy.seen) == 4


def test_a_hundred_rows_survive_a_mix_of_all_faults(fetcher, proxy):
    proxy.rule = storm(0.3, BUSY, DOWN, CUT, LOST, Fault(keep=700), Fault(short=700), Fault(delay_s=0.2))
    sources = [f"s3://scans/{number}.jpg" for number in range(100)]
    fetcher.prefetch(sources)
    assert [fetcher.fetch(source).data for source in sources] == [JPEG] * 100
    assert 120 < len(proxy.seen) < 200


def test_only_a_truncated_range_is_requested_again(fetcher, proxy):
    proxy.rule = lambda seen: Fault(keep=5000) if seen.number == 1 else None
    with fetcher.fetch("s3://scans/long.mp4") as blob:
        assert blob.path.read_bytes() == MP4
    ranges = [seen.range for seen in proxy.seen]
    assert ranges == ["bytes=0-4194303", *["bytes=4194304-5120011"] * 2]


def test_a_store_that_stays_busy_is_reported_as_busy(fetcher, proxy, monkeypatch):
    proxy.rule = storm(1.0, BUSY)
    error = fetch_error(fetcher, "s3://scans/1.jpg")
    assert (error.kind, len(proxy.seen)) == ("unavailable", retry_policy.MEDIA_POLICIES["unavailable"].max_attempts)


def test_rotated_credentials_are_picked_up(fetcher, proxy, tmp_path):
    assert fetcher.fetch("s3://scans/1.jpg").data == JPEG
    proxy.rule = lambda seen: EXPIRED if seen.key == "OLDKEY" else None
    write_credentials(tmp_path, "NEWKEY")
    assert fetcher.fetch("s3://scans/2.jpg").data == JPEG
    assert [seen.key for seen in proxy.seen] == ["OLDKEY", "OLDKEY", "NEWKEY"]


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch"])
def test_credentials_that_stay_invalid_are_reported(code, fetcher, proxy, monkeypatch):
    proxy.rule = storm(1.0, Fault(status=403, code=code))
    error = fetch_error(fetcher, "s3://scans/1.jpg")
    assert (error.kind, len(proxy.seen)) == ("credentials", retry_policy.MEDIA_POLICIES["credentials"].max_attempts)
    assert "renew them" in error.message


def test_a_denied_or_missing_object_is_requested_once(fetcher, proxy):
    proxy.rule = only(storm(1.0, Fault(status=403, code="AccessDenied")), path="/scans/1.jpg")
    assert fetch_error(fetcher, "s3://scans/1.jpg").kind == "denied"
    assert fetch_error(fetcher, "s3://scans/none.jpg").kind == "not_found"
    assert len(proxy.seen) == 2


def test_an_object_replaced_meanwhile_is_read_again_from_its_start(fetcher, proxy):
    newer = MP4[:100] + MP4[100:][::-1]

    def replace_before_the_second(seen):
        if seen.number == 1:
            proxy.client.put_object(Bucket="scans", Key="moving.mp4", Body=newer)

    proxy.client.put_object(Bucket="scans", Key="moving.mp4", Body=MP4)
    proxy.rule = replace_before_the_second
    with fetcher.fetch("s3://scans/moving.mp4") as blob:
        assert blob.path.read_bytes() == newer
    assert len(proxy.seen) == 4
