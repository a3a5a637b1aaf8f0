"""Decides whether a job may read what a manifest names. Rules only: nothing is opened.

Manifests may be written by strangers, so only listed schemes are allowed: http(s) to public addresses or to hosts that
the job names, and local paths under roots that the job names, after symlinks are followed. Filesystems whose URIs name
a host (hdfs, webhdfs, ftp, sftp) are not among them: they would be a way around the list of hosts. `stores.py` has the
rule for object stores.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import TypeGuard
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlencode, urlsplit, urlunsplit

from pipeline.errors import FetchError

STORE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss")  # read through fsspec
WEB_SCHEMES = ("http", "https")
MAX_URI_LENGTH = 8192
# Python's own tables of special addresses change with its version and lack some, so these are the registries of IANA.
PRIVATE_IPV4_NETWORKS = tuple(
    map(
        ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
            *("203.0.113.0/24", "224.0.0.0/3"),
        ),
    )
)
PUBLIC_IPV6_NETWORK = ip_network("2000::/3")
PRIVATE_IPV6_NETWORKS = tuple(map(ip_network, ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")))  # within it
NAT64_NETWORK = ip_network("64:ff9b::/96")
IPV4_IN_IPV6_NETWORKS = (NAT64_NETWORK, *map(ip_network, ("64:ff9b:1::/48", "::/96", "::ffff:0:0/96")))
FORBIDDEN_NETWORKS = tuple(
    map(
        ip_network,
        (
            *("169.254.0.0/16", "fe80::/10"),  # link-local; metadata services of most clouds are there
            *("168.63.129.16", "100.100.100.200", "192.0.0.192"),  # of Azure, Alibaba and Oracle
            *("fd00:ec2::/32", "fd20:ce::/32", "fd00:42::42"),  # of AWS, Google and Scaleway
        ),
    )
)
SECRET_PARAMETER = re.compile(
    r"x-(amz|goog|ms|oss)-|(^|[-_])(sig|signature|token|key|secret|password|pwd|auth|credential|policy)s?($|[-_])"
    r"|keyid|key-pair-id|access_?key|apikey|jwt|session|^(se|sp|sv|sr|st|skoid|sktid|expires)$",
    re.I,
)


def is_data_uri(source: str) -> bool:
    return source[:5].lower() == "data:"


def is_remote(source: str | bytes) -> TypeGuard[str]:
    """Whether a source must be fetched: it does not carry its bytes."""
    return isinstance(source, str) and not is_data_uri(source)


def parse_scheme(uri: str) -> str:
    """`data`, `file`, or one of WEB_SCHEMES and STORE_SCHEMES; FetchError for anything else."""
    if not uri or uri.isspace():
        raise FetchError("uri", "the URI is empty")
    if is_data_uri(uri):
        return "data"
    if len(uri) > MAX_URI_LENGTH or any(ord(char) < 32 or ord(char) == 127 for char in uri):
        raise FetchError("uri", f"not a URI: longer than {MAX_URI_LENGTH} characters, or it holds control characters")
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(?=//|:|/)", uri)
    scheme = match[1].lower() if match else "file"
    if scheme not in ("file", *WEB_SCHEMES, *STORE_SCHEMES):
        allowed = ", ".join(("file", "data", *WEB_SCHEMES, *STORE_SCHEMES))
        raise FetchError("scheme", f"{redact_source(uri)}: {scheme}: is not an allowed scheme; allowed: {allowed}")
    if scheme in STORE_SCHEMES and ".." in re.split(r"[/\\]", unquote(uri)):
        raise FetchError("path", f"{redact_source(uri)}: `..` is not allowed in a path")
    return scheme


def resolve_local_path(uri: str, allowed_roots: Sequence[str], *, follow_links: bool = False) -> Path:
    """The file behind a local path, which must lie under one of the roots. Relative paths start at a root.

    With `follow_links` only the link must lie there.
    """
    if not allowed_roots:
        raise FetchError("root", f"{redact_source(uri)}: local files are refused; list their folder under input.roots")
    roots = [_list_possible_paths(root)[0].resolve() for root in allowed_roots]
    candidates = [root / path for path in _list_possible_paths(uri) for root in roots]  # an absolute path stays itself
    try:
        named = next((file for file in candidates if file.exists()), candidates[0])
        path = named.resolve()
    except (OSError, RuntimeError) as error:  # a name too long, a loop of symlinks
        raise FetchError("path", f"{redact_source(uri)}: cannot be followed ({type(error).__name__})") from error
    places = ", ".join(map(str, roots))
    if any(path.is_relative_to(root) for root in roots):
        return path
    lexical_roots = [*roots, *(_list_possible_paths(root)[0].absolute() for root in allowed_roots)]
    if ".." not in named.parts and any(named.absolute().is_relative_to(root) for root in lexical_roots):
        if follow_links:
            return path
        problem = f"is a link to {path}, which lies outside {places}; set input.follow_links: true, or list"
        raise FetchError("root", f"{redact_source(uri)}: {problem} {path.parent} under input.roots to allow it")
    raise FetchError(
        "root", f"{redact_source(uri)}: lies outside {places}; list its folder under input.roots to allow it"
    )


def _list_possible_paths(uri: str) -> list[Path]:
    """The paths that a local path or `file:` URI may mean: as written, or percent-encoded.

    >>> [str(path) for path in _list_possible_paths("file:///in/No%201#a.png")]
    ['/in/No%201#a.png', '/in/No 1']
    """
    match = re.match(r"file:(?://([^/?#]*))?(.*)", uri, re.IGNORECASE | re.DOTALL)
    if match is None:
        return [Path(uri)]
    if match[1] not in (None, "", "localhost"):
        raise FetchError("path", f"{redact_source(uri)}: a file: URI cannot name a host; write file:///folder/name")
    return [Path(match[2]), Path(os.fsdecode(unquote_to_bytes(re.split("[?#]", match[2])[0])))]


def find_page_words(uri: str) -> str:
    """What a `file:` URI says behind its path, where it may ask for pages and is no part of the file's name."""
    match = re.search(r"#.*|\?(?:[^#]*&)?pages?=.*", uri, re.DOTALL)
    paths = _list_possible_paths(uri)
    is_cut_off = match and len(paths) > 1 and not paths[0].exists()
    return match[0] if match and is_cut_off else ""


def is_named_with_port(host: str, port: int | None, allowed_hosts: Sequence[str]) -> bool:
    """Whether the job names exactly this host and port, which then may have a private address.

    >>> is_named_with_port("minio", 9000, ["minio:9000"]), is_named_with_port("::1", 80, ["[::1]:80"])
    (True, True)
    >>> is_named_with_port("minio", 22, ["minio:9000"]), is_named_with_port("minio", 9000, ["minio"])
    (False, False)
    """
    return join_host_and_port(host.rstrip(".").lower(), port) in (entry.lower() for entry in allowed_hosts)


def join_host_and_port(host: str, port: int | None) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_allowed_host(host: str, port: int | None, allowed_hosts: Sequence[str]) -> bool:
    """Whether the job's list is empty, names the host, or has a wildcard (`*.`) that matches it.

    >>> is_allowed_host("cdn.acme.com", 443, ["cdn.acme.com"]), is_allowed_host("img.acme.com", 443, ["*.acme.com"])
    (True, True)
    """
    name = host.rstrip(".").lower()
    suffixes = tuple(entry[1:].lower() for entry in allowed_hosts if entry.startswith("*."))
    is_named = is_named_with_port(host, port, allowed_hosts) or name in (entry.lower() for entry in allowed_hosts)
    return not allowed_hosts or is_named or name.endswith(suffixes)


def is_public_address(address: str) -> bool:
    """Whether an address is on the open internet, also if IPv6 wraps an IPv4 address.

    >>> [is_public_address(ip) for ip in ("8.8.8.8", "127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe")]
    [True, False, False, False]
    """
    ip = _parse_address(address)
    if isinstance(ip, IPv6Address) and (ip.ipv4_mapped or ip in NAT64_NETWORK):
        ip = _get_last_ipv4(ip)
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in PRIVATE_IPV4_NETWORKS + FORBIDDEN_NETWORKS)
    return ip in PUBLIC_IPV6_NETWORK and not any(ip in network for network in PRIVATE_IPV6_NETWORKS)


def is_forbidden_address(address: str) -> bool:
    """Whether an address is link-local or of a cloud's metadata service, which hands out credentials."""
    ip = _parse_address(address)
    meanings: list[IPv4Address | IPv6Address | None] = [ip]
    if isinstance(ip, IPv6Address):
        meanings += [ip.sixtofour]
        meanings += [_get_last_ipv4(ip)] if any(ip in network for network in IPV4_IN_IPV6_NETWORKS) else []
    return any(meaning in network for meaning in meanings if meaning for network in FORBIDDEN_NETWORKS)


def _parse_address(address: str) -> IPv4Address | IPv6Address:
    return ip_address(address.partition("%")[0])


def _get_last_ipv4(ip: IPv6Address) -> IPv4Address:
    return IPv4Address(int(ip) & 0xFFFFFFFF)


def redact_source(source: str | bytes) -> str:
    """A source for answers and messages: short, without credentials and signatures.

    >>> redact_source("https://me:pw@a.com/x.png?w=5&X-Amz-Signature=abc")
    'https://a.com/x.png?w=5'
    """
    if isinstance(source, bytes):
        return f"({len(source):,} bytes)"
    if is_data_uri(source):
        return f"{source[:64].partition(',')[0]},... ({len(source):,} letters)"
    clean = "".join(char if char.isprintable() else "?" for char in source[:MAX_URI_LENGTH])
    if "://" in clean:
        clean = _remove_secrets(clean)
    return clean if len(clean) <= 1024 else clean[:1000] + "..."


def _remove_secrets(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets without an address
        return uri.partition("://")[0] + "://..."
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme.lower() in ("abfs", "abfss"):  # abfs://container@account/path holds no credential
        host = re.sub(r":[^@]*@", "@", parts.netloc)
    kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not SECRET_PARAMETER.search(name)]
    query = parts.query if len(kept) == len(parse_qsl(parts.query, True)) else urlencode(kept)
    fragment = "" if "=" in parts.fragment and not parts.fragment.startswith("page") else parts.fragment
    return urlunsplit((parts.scheme, host, parts.path, query, fragment))
