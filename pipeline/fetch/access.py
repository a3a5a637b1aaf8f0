"""What a manifest names -> whether this job may look there. Rules only; nothing is opened.

A manifest is written by strangers. Schemes come from a list; http(s) goes to global addresses or to
hosts that the job names; local paths lie under roots that the job names, symlinks followed first.
Filesystems whose URIs carry a host of their own (hdfs, webhdfs, ftp, sftp) are left out: they would
be a way around the list of hosts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode, urlsplit, urlunsplit

from pipeline.errors import FetchError

STORE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss")  # fsspec fetches these
WEB_SCHEMES = ("http", "https")
MAX_URI_LENGTH = 8192
NAT64 = IPv6Network("64:ff9b::/96")
METADATA_ADDRESSES = {"168.63.129.16"}  # Azure's own service for its machines; global by number only
SECRET_PARAMETER = re.compile(
    r"x-(amz|goog|ms|oss)-|(^|[-_])(sig|signature|token|key|secret|password|pwd|auth|credential|policy)s?($|[-_])"
    r"|keyid|key-pair-id|access_?key|apikey|jwt|session|^(se|sp|sv|sr|st|skoid|sktid|expires)$",
    re.I,
)


def parse_scheme(uri: str) -> str:
    """`data`, `file`, `http`, `https` or one of STORES; FetchError for anything else."""
    if not uri or uri.isspace():
        raise FetchError("uri", "the URI is empty")
    if uri[:5].lower() == "data:":
        return "data"
    if len(uri) > MAX_URI_LENGTH or any(ord(letter) < 32 or ord(letter) == 127 for letter in uri):
        raise FetchError("uri", f"not a URI: longer than {MAX_URI_LENGTH} letters, or control characters in it")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//|:|/)", uri)
    name = match[1].lower() if match else "file"
    if name not in ("file", *WEB_SCHEMES, *STORE_SCHEMES):
        known = ", ".join(("file", "data", *WEB_SCHEMES, *STORE_SCHEMES))
        raise FetchError("scheme", f"{redact_source(uri)}: {name}: is not among what may be fetched: {known}")
    if name in STORE_SCHEMES and ".." in re.split(r"[/\\]", unquote(uri)):
        raise FetchError("path", f"{redact_source(uri)}: `..` is not allowed in a path")
    return name


def resolve_local_path(uri: str, allowed_roots: Sequence[str]) -> Path:
    """The file behind a local path, which lies under one of the roots. Relative paths start at a root."""
    if not allowed_roots:
        raise FetchError("root", f"{redact_source(uri)}: local files are refused; list their folder under input.roots")
    folders = [_list_possible_paths(root)[0].resolve() for root in allowed_roots]
    candidates = [
        folder / path for path in _list_possible_paths(uri) for folder in folders
    ]  # of an absolute one: itself
    try:
        found = next((file for file in candidates if file.exists()), candidates[0]).resolve()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of symlinks
        raise FetchError("path", f"{redact_source(uri)}: cannot be followed ({type(error).__name__})") from error
    if not any(found.is_relative_to(folder) for folder in folders):
        listed = ", ".join(str(folder) for folder in folders)
        raise FetchError(
            "root", f"{redact_source(uri)}: lies outside {listed}; list its folder under input.roots to allow it"
        )
    return found


def _list_possible_paths(uri: str) -> list[Path]:
    """What a local path or `file:` URI may mean: letter by letter, as most programs write them, or percent-encoded.

    >>> [str(path) for path in _paths("file:///in/No%201#a.png")]
    ['/in/No%201#a.png', '/in/No 1']
    """
    match = re.match(r"file:(?://([^/?#]*))?(.*)", uri, re.IGNORECASE | re.DOTALL)
    if match is None:
        return [Path(uri)]
    if match[1] not in (None, "", "localhost"):
        raise FetchError("path", f"{redact_source(uri)}: file: URIs name no host; write file:///folder/name")
    return [Path(match[2]), Path(os.fsdecode(unquote_to_bytes(re.split("[?#]", match[2])[0])))]


def is_named_host(host: str, port: int | None, allowed_hosts: Sequence[str]) -> bool:
    """Whether the job names this very host: such a one may have any address, the operator said so.

    >>> named("cdn.acme.com", 443, ["cdn.acme.com"]), named("minio", 9000, ["minio:9000"])
    (True, True)
    >>> named("minio", 22, ["minio:9000"]), named("img.acme.com", 443, ["*.acme.com"])
    (False, False)
    """
    plain = host.rstrip(".").lower()
    return any(entry.lower() in (plain, f"{plain}:{port}", f"[{plain}]:{port}") for entry in allowed_hosts)


def is_allowed_host(host: str, port: int | None, allowed_hosts: Sequence[str]) -> bool:
    """Whether the job's list lets a host in: no list, its name, or `*.` and the end of its name."""
    ends = [entry[1:].lower() for entry in allowed_hosts if entry.startswith("*.")]
    return (
        not allowed_hosts
        or is_named_host(host, port, allowed_hosts)
        or host.rstrip(".").lower().endswith(tuple(ends) or ("\0",))
    )


def is_public_address(address: str) -> bool:
    """Whether an address is one of the open internet, whatever it is wrapped in.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "100.100.100.200")]
    [True, False, False, False, False]
    """
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        inner += [IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in NAT64 else []
        if wrapped := [each for each in inner if each is not None]:
            return all(is_public_address(str(each)) for each in wrapped)
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and str(ip) not in METADATA_ADDRESSES


def redact_source(source: str | bytes) -> str:
    """A source as it may appear in answers and messages: no credentials, no signatures, not long.

    >>> shown("https://me:pw@a.com/x.png?w=5&X-Amz-Signature=abc")
    'https://a.com/x.png?w=5'
    """
    if isinstance(source, bytes):
        return f"({len(source):,} bytes)"
    if source[:5].lower() == "data:":
        return f"{source[:64].partition(',')[0]},... ({len(source):,} letters)"
    clean = "".join(letter if letter.isprintable() else "?" for letter in source[:MAX_URI_LENGTH])
    if "://" in clean:
        clean = _remove_secrets(clean)
    return clean if len(clean) <= 1024 else clean[:1000] + "..."


def _remove_secrets(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets that are no address
        return uri.partition("://")[0] + "://..."
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme.lower() in ("abfs", "abfss"):  # abfs://container@account/path: no credential
        host = re.sub(r":[^@]*@", "@", parts.netloc)
    kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not SECRET_PARAMETER.search(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, True)) else urlencode(kept)
    fragment = "" if "=" in parts.fragment and not parts.fragment.startswith("page") else parts.fragment
    return urlunsplit((parts.scheme, host, parts.path, query, fragment))
