"""Which URIs a manifest may name, and how URIs are shown in messages."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import FetchError
from pipeline.fetch.access import (
    is_allowed_host,
    is_forbidden_address,
    is_public_address,
    parse_scheme,
    redact_source,
    resolve_local_path,
)
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.web import check_address
from pipeline.job.spec import Job
from pipeline.manifest.sources.folder import FolderSource

PRIVATE_NAMES = {
    "inside.example": "10.0.0.7",
    "rebound.example": "127.0.0.1",
    "metadata.google.internal": "169.254.169.254",
}


METADATA_ADDRESSES = (
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fe80::a9fe:a9fe%eth0", "::ffff:169.254.169.254"),
    *("64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "::a9fe:a9fe", "2002:a9fe:a9fe::"),
)
PRIVATE_ADDRESSES = (
    *METADATA_ADDRESSES,
    *("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.2", "172.31.0.1", "192.0.0.1", "192.0.2.1", "192.88.99.1"),
    *("192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "::1%lo", "::7f00:1", "64:ff9b:1::808:808", "100::1", "2001::1", "2001:2::1"),
    *("2001:20::1", "2001:db8::1", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fec0::1", "ff02::1"),
)
PUBLIC_ADDRESSES = ("1.1.1.1", "100.128.0.1", "192.0.1.1", "2606:4700:4700::1111", "64:ff9b::101:101", "2a00::1")


def make_job(roots: list[str], hosts: tuple[str, ...] = ()) -> Job:
    return Job.model_validate(
        {
            "name": "access",
            "input": {"manifest": "m.parquet", "roots": roots, "hosts": hosts},
            "model": {"weights": "builtin:tiny"},
            "limits": {"deadline_s": 5},
            "output": {"path": "out"},
        }
    )


@pytest.fixture
def fetcher(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    (root / "photo.jpg").write_bytes(b"\xff\xd8picture")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "way-out").symlink_to(tmp_path / "secret.txt")
    (root / "folder-out").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    (root / "sub").mkdir()
    os.mkfifo(root / "pipe")
    real_getaddrinfo = socket.getaddrinfo

    def resolve(host, *args, **options):
        return real_getaddrinfo(PRIVATE_NAMES.get(host, host), *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with Fetcher(make_job([str(root)])) as open_fetcher:
        yield open_fetcher


HOSTILE = [
    ("http://127.0.0.1/x.png", "address"),
    ("http://127.0.0.1:8265/api/jobs/", "address"),
    ("https://127.0.0.1/x.png", "address"),
    ("http://127.1/x.png", "address"),
    ("http://127.0.1/x.png", "address"),
    ("http://2130706433/x.png", "address"),
    ("http://0x7f000001/x.png", "address"),
    ("http://0x7f.0.0.1/x.png", "address"),
    ("http://0177.0.0.1/x.png", "address"),
    ("http://017700000001/x.png", "address"),
    ("http://localhost/x.png", "address"),
    ("http://LOCALHOST/x.png", "address"),
    ("http://me:secret@127.0.0.1/x.png", "address"),
    ("http://example.com@127.0.0.1/x.png", "address"),
    ("http://[::1]/x.png", "address"),
    ("http://[::ffff:127.0.0.1]/x.png", "address"),
    ("http://[::ffff:7f00:1]/x.png", "address"),
    ("http://[::127.0.0.1]/x.png", "address"),
    ("http://[64:ff9b::7f00:1]/x.png", "address"),
    ("http://[2002:7f00:1::]/x.png", "address"),
    ("http://[fe80::1]/x.png", "address"),
    ("http://[fd00:ec2::254]/latest/meta-data/", "address"),
    ("http://[::]/x.png", "address"),
    ("http://0.0.0.0/x.png", "address"),
    ("http://0/x.png", "address"),
    ("http://169.254.169.254/latest/meta-data/iam/", "address"),
    ("http://100.100.100.200/latest/meta-data/", "address"),
    ("http://168.63.129.16/machine", "address"),
    ("http://metadata.google.internal/computeMetadata/v1/", "address"),
    ("http://inside.example/x.png", "address"),
    ("https://rebound.example/x.png", "address"),
    ("http://10.0.0.1/x.png", "address"),
    ("http://172.16.5.4/x.png", "address"),
    ("http://192.168.1.1/x.png", "address"),
    ("http://224.0.0.1/x.png", "address"),
    ("http://255.255.255.255/x.png", "address"),
    ("http:///x.png", "uri"),
    ("http://[not-an-address]/x.png", "uri"),
    ("http://a.example/\r\nHost: b", "uri"),
    ("ftp://127.0.0.1/x.png", "scheme"),
    ("sftp://host/x.png", "scheme"),
    ("gopher://127.0.0.1:6379/_FLUSHALL", "scheme"),
    ("hdfs://namenode/x.png", "scheme"),
    ("webhdfs://10.0.0.1:50070/x.png", "scheme"),
    ("memory://x.png", "scheme"),
    ("simplecache::http://127.0.0.1/x.png", "scheme"),
    ("zip://x.png::http://127.0.0.1/a.zip", "scheme"),
    ("jar:file:///etc/passwd", "not_found"),
    ("s3://bucket/../other/x.png", "path"),
    ("hf://datasets/a/b/%2e%2e/%2e%2e/api/whoami-v2", "path"),
    ("/etc/passwd", "root"),
    ("//etc/passwd", "root"),
    ("file:///etc/passwd", "root"),
    ("FILE:///etc/passwd", "root"),
    ("file:/etc/passwd", "root"),
    ("file://localhost/etc/passwd", "root"),
    ("file://fileserver/share/x.png", "path"),
    ("file:///%65tc/passwd", "root"),
    ("../secret.txt", "root"),
    ("sub/../../secret.txt", "root"),
    ("file:///tmp/%2e%2e/etc/passwd", "root"),
    ("way-out", "root"),
    ("folder-out/secret.txt", "root"),
    ("loop", "path"),
    ("pipe", "path"),
    ("sub", "path"),
    ("/dev/zero", "root"),
    ("/proc/self/environ", "root"),
    ("photo.jpg\0.png", "uri"),
    ("a" * 5000, "path"),
    ("", "uri"),
    ("   ", "uri"),
    ("javascript:alert(1)", "not_found"),
]


@pytest.mark.parametrize(("uri", "kind"), HOSTILE, ids=[repr(uri)[:60] for uri, _ in HOSTILE])
def test_a_hostile_uri_is_refused_with_a_reason(uri, kind, fetcher):
    with pytest.raises(FetchError) as raised:
        fetcher.fetch(uri)
    assert raised.value.kind == kind, str(raised.value)
    assert "secret" not in raised.value.message.replace("secret.txt", "")


def test_a_file_under_a_root_is_found_by_every_form_of_its_path(fetcher, tmp_path):
    path = tmp_path / "root" / "photo.jpg"
    for uri in ("photo.jpg", "./photo.jpg", str(path), f"file://{path}", f"file:{path}", f"file://localhost{path}"):
        assert fetcher.fetch(uri).data == b"\xff\xd8picture"


def test_a_file_with_special_characters_is_found_encoded_or_not(fetcher, tmp_path):
    path = tmp_path / "root" / "50% off? #1 Straße.jpg"
    path.write_bytes(b"\xff\xd8picture")
    encoded = path.as_uri()
    assert "%23" in encoded
    for uri in (path.name, str(path), f"file://{path}", encoded):
        assert fetcher.fetch(uri).data == b"\xff\xd8picture"


def test_a_file_name_that_is_not_utf8_is_percent_encoded(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9 1.jpg")
    path.write_bytes(b"\xff\xd8picture")
    source = FolderSource(str(tmp_path))
    (span,) = source.list_spans(9)
    (row,) = source.read_span(span).to_pylist()
    assert row == {"path": "caf%E9 1.jpg", "uri": f"file://{tmp_path}/caf%E9 1.jpg"}
    assert resolve_local_path(row["uri"], [str(tmp_path)]) == path


def test_a_path_may_contain_dots_if_it_stays_under_a_root(fetcher, tmp_path):
    (tmp_path / "root" / "manifests").mkdir()
    assert fetcher.fetch(f"{tmp_path}/root/manifests/../photo.jpg").data == b"\xff\xd8picture"


def test_a_link_between_roots_is_followed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "a.png").write_bytes(b"x")
    (tmp_path / "one" / "link.png").symlink_to(tmp_path / "two" / "a.png")
    roots = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert resolve_local_path("link.png", roots) == tmp_path / "two" / "a.png"
    with pytest.raises(FetchError, match="outside"):
        resolve_local_path("link.png", roots[:1])


def test_without_roots_local_files_are_refused_with_advice():
    with pytest.raises(FetchError, match=r"input\.roots"):
        resolve_local_path("/data/a.png", [])


def test_a_listed_host_allows_only_itself():
    hosts = ("cdn.acme.com", "minio:9000", "*.images.example", "[::1]:80")
    assert is_allowed_host("CDN.acme.com.", 443, hosts)
    assert is_allowed_host("a.images.example", 443, hosts)
    assert not is_allowed_host("images.example", 443, hosts)
    assert not is_allowed_host("evilimages.example", 443, hosts)
    assert not is_allowed_host("cdn.acme.com.evil.org", 443, hosts)
    assert is_allowed_host("minio", 9000, hosts)
    assert not is_allowed_host("minio", 22, hosts)
    assert is_allowed_host("::1", 80, hosts)


@pytest.mark.parametrize("hosts", [(), ("inside.example",), ("*.example",), ("inside.example:443",)])
def test_a_private_address_needs_its_host_and_port(hosts):
    with pytest.raises(FetchError, match=r"inside\.example:80 in input\.hosts"):
        check_address("inside.example", 80, "10.0.0.7", hosts)
    check_address("inside.example", 80, "10.0.0.7", ("inside.example:80",))
    with pytest.raises(FetchError, match=r"\[::1\]:80 in input\.hosts"):
        check_address("::1", 80, "::1", hosts)
    check_address("::1", 80, "::1", ("[::1]:80",))


@pytest.mark.parametrize("address", METADATA_ADDRESSES)
def test_a_named_host_never_leads_to_a_metadata_service(address):
    assert is_forbidden_address(address)
    for hosts in (("cdn.acme.com",), ("cdn.acme.com:80",)):
        with pytest.raises(FetchError, match="no job may read"):
            check_address("cdn.acme.com", 80, address, hosts)


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
def test_a_special_address_is_not_public_on_any_python(address):
    assert not is_public_address(address)


@pytest.mark.parametrize("address", PUBLIC_ADDRESSES)
def test_an_address_of_the_open_internet_is_public(address):
    assert is_public_address(address)
    assert not is_forbidden_address(address)


@pytest.mark.parametrize(
    "uri", ["s3://b/k", "gs://b/k", "az://c/k", "abfs://c@a.dfs.core.windows.net/k", "hf://datasets/a/b/c.png"]
)
def test_schemes_of_object_stores_are_allowed(uri):
    assert parse_scheme(uri) == uri.partition(":")[0]


def test_credentials_and_signatures_are_never_shown():
    cases = {
        "https://user:pw@host.example/a.png": "https://host.example/a.png",
        "https://b.s3.amazonaws.com/k?X-Amz-Signature=ab&X-Amz-Credential=cd&versionId=7": "https://b.s3.amazonaws.com/k?versionId=7",
        "https://a.blob.core.windows.net/c/k?sv=2024&se=2027&sig=ab%3D&sp=r": "https://a.blob.core.windows.net/c/k",
        "https://storage.googleapis.com/b/k?X-Goog-Signature=ff&w=5": "https://storage.googleapis.com/b/k?w=5",
        "https://h.example/a?token=t&access_token=u&api_key=v&apikey=w&Key-Pair-Id=x&Signature=y": "https://h.example/a",
        "https://h.example/a#access_token=t": "https://h.example/a",
        "s3://key:secret@bucket/a.png": "s3://bucket/a.png",
        "abfs://container@account.dfs.core.windows.net/k": "abfs://container@account.dfs.core.windows.net/k",
        "s3://bucket/scan.pdf#page=3": "s3://bucket/scan.pdf#page=3",
        "/data/a b.png": "/data/a b.png",
    }
    assert {uri: redact_source(uri) for uri in cases} == cases


def test_a_data_uri_is_shortened():
    assert redact_source("data:image/png;base64," + "A" * 10_000) == "data:image/png;base64,... (10,022 letters)"


def test_a_root_may_be_a_file_uri(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert resolve_local_path("a.png", [f"file://{tmp_path}"]) == Path(tmp_path / "a.png").resolve()


def test_links_are_followed_out_of_the_roots_only_by_name(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "other/deep").mkdir(parents=True)
    (tmp_path / "other/a.png").write_bytes(b"x")
    (tmp_path / "root/link").symlink_to(tmp_path / "other/deep")
    (tmp_path / "root/a.png").symlink_to(tmp_path / "other/a.png")
    roots = [str(tmp_path / "root")]
    assert resolve_local_path("a.png", roots, follow_links=True) == tmp_path / "other/a.png"
    for uri in ("link/../a.png", "../other/a.png", f"{tmp_path}/other/a.png"):
        with pytest.raises(FetchError, match="lies outside"):
            resolve_local_path(uri, roots, follow_links=True)


@pytest.mark.parametrize("host", ["http://minio:9000", "minio:9000/scans", "me@minio", "a.com b.com", ""])
def test_a_host_that_is_written_like_a_url_is_refused(host):
    """It would match no URI, and all rows would fail."""
    with pytest.raises(ValidationError, match=r"write a host as name, name:port or \*\.domain"):
        make_job([], (host,))
