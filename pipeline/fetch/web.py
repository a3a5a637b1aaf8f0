"""An http(s) URL -> its bytes, from a server the job may talk to.

The address that was checked is the address that is connected to: the check sits in the resolver of
the connection, so a name that resolves differently a moment later gains nothing. Redirects are
followed here, each hop checked like the first. Proxies of the environment are not used: behind one,
nobody could tell which address is reached.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.request import getproxies

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.errors import FetchError
from pipeline.fetch.access import WEB_SCHEMES, is_allowed_host, is_named_host, is_public_address, redact_source
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.range_download import FIRST_READ_BYTES, ObjectChangedError, RemoteObject, require_length
from pipeline.fetch.retry import TransientError
from pipeline.retry_policy import parse_retry_after

T = TypeVar("T")
MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 60.0
READ_BYTES = 1 << 18
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 20.0  # of silence; the row's deadline bounds the whole
ERROR_KIND_BY_STATUS = {401: "denied", 403: "denied", 404: "not_found", 407: "denied", 410: "not_found", 451: "denied"}
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524)


class PublicAddressResolver(AbstractResolver):
    """Names to addresses, all of them public unless the job names the host."""

    def __init__(self, allowed_hosts: Sequence[str]):
        self.allowed_hosts = allowed_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        for *_, address in found:
            check_address(host, port, str(address[0]), self.allowed_hosts)
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None: ...


def check_address(host: str, port: int | None, address: str, allowed_hosts: Sequence[str]) -> None:
    if not is_named_host(host, port, allowed_hosts) and not is_public_address(address):
        what = address if host == address else f"{host} ({address})"
        raise FetchError("address", f"{what} is not a public address; name {host}:{port} in input.hosts to allow it")


def check_url(url: URL, allowed_hosts: Sequence[str]) -> None:
    """One hop: scheme, host and, where the host is a number, its address."""
    if url.scheme not in WEB_SCHEMES:
        raise FetchError("redirect", f"{redact_source(str(url))}: leads away from http(s)")
    host = url.raw_host
    if not host:
        raise FetchError("uri", f"{redact_source(str(url))}: names no host")
    if not is_allowed_host(host, url.port, allowed_hosts):
        raise FetchError("host", f"{host}:{url.port} is not among input.hosts: {', '.join(allowed_hosts)}")
    if (number := _parse_ip_address(host)) is not None:
        check_address(host, url.port, number, allowed_hosts)


def _parse_ip_address(host: str) -> str | None:
    """The address that a host is, in any spelling: 127.1, 0x7f000001, [::1]. None for a name."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def parse_url(uri: str) -> URL:
    """Signed URLs must travel letter by letter, so only what is no URL as it stands is encoded."""
    try:
        return URL(uri, encoded=uri.isascii() and " " not in uri)
    except ValueError as error:
        raise FetchError("uri", f"{redact_source(uri)}: not a URL") from error


def open_session(allowed_hosts: Sequence[str]) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(resolver=PublicAddressResolver(allowed_hosts), limit=64, limit_per_host=16)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
        headers={"User-Agent": "vlbatch", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def open_unrestricted_session(max_connections: int) -> aiohttp.ClientSession:
    """For addresses that no manifest named, through the environment's proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
        trust_env=bool(getproxies()),  # or aiohttp would look for them anew at every request, in a thread
    )


async def read_prefix(
    uri: str, max_bytes: int, *, session: aiohttp.ClientSession, allowed_hosts: Sequence[str]
) -> tuple[bytes, int]:
    """Its first bytes, and how many it has; nothing where the server does not say."""

    async def take(response: aiohttp.ClientResponse) -> tuple[bytes, int]:
        whole = response.headers.get("Content-Range", "").rpartition("/")[2]
        size = int(whole) if whole.isdecimal() else 0 if response.status == 206 else response.content_length or 0
        if not size or "Content-Encoding" in response.headers:
            return b"", 0
        return await response.content.readexactly(min(max_bytes, size)), size  # what else comes is cut off

    try:
        return await _send_request(uri, take, {"Range": f"bytes=0-{max_bytes - 1}"}, session, allowed_hosts)
    except asyncio.IncompleteReadError as error:
        raise TransientError("truncated", f"{redact_source(uri)}: the connection was cut before the end") from error
    except FetchError as error:
        if error.kind != "refused":
            raise
        return b"", 0  # perhaps only the range of it: of an empty file there is none


async def read_range(
    uri: str, start: int, end: int, *, session: aiohttp.ClientSession, allowed_hosts: Sequence[str]
) -> bytes:
    """Some bytes of what gave its beginning when it was asked for that."""
    headers = {"Range": f"bytes={start}-{end - 1}"}
    return await _send_request(
        uri, lambda response: _read_range_response(response, start, end, ""), headers, session, allowed_hosts
    )


async def download(
    uri: str,
    writer: BlobWriter,
    *,
    session: aiohttp.ClientSession,
    allowed_hosts: Sequence[str],
    full_download: bool = False,
) -> RemoteObject | None:
    """Feeds the sink. Gives the rest of a long video, unless `whole`, where the server lets one ask for parts."""

    async def get(start: int, end: int) -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Range": version}
        return await _send_request(
            uri, lambda response: _read_range_response(response, start, end, version), headers, session, allowed_hosts
        )

    size, version = await _send_request(
        uri, lambda response: _download_response(response, writer, full_download), {}, session, allowed_hosts
    )
    return RemoteObject(size, get) if size else None


async def _send_request(
    uri: str,
    read_response: Callable[[aiohttp.ClientResponse], Awaitable[T]],
    headers: Mapping[str, str],
    session: aiohttp.ClientSession,
    allowed_hosts: Sequence[str],
) -> T:
    """One answer, wherever redirects lead. Raises Passing for what is worth another attempt."""
    url = parse_url(uri)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            check_url(url, allowed_hosts)
            async with session.get(url, allow_redirects=False, headers=headers) as response:
                if response.status not in (301, 302, 303, 307, 308):
                    _check_status(response, redact_source(uri))
                    return await read_response(response)
                url = _resolve_redirect(url, response)
    except aiohttp.InvalidURL as error:
        raise FetchError("uri", f"{redact_source(uri)}: not a URL") from error
    except aiohttp.ClientResponseError as error:
        raise FetchError("protocol", f"{redact_source(uri)}: the server does not speak HTTP") from error
    except aiohttp.ClientPayloadError as error:
        raise TransientError("truncated", f"{redact_source(uri)}: the connection was cut before the end") from error
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise TransientError("timeout", f"{redact_source(uri)}: the server is silent") from error
    except aiohttp.ClientConnectorDNSError as error:
        trouble = FetchError if error.errno == socket.EAI_NONAME else TransientError
        raise trouble("dns", f"{redact_source(uri)}: the host has no address") from error
    except aiohttp.ClientSSLError as error:
        raise FetchError("tls", f"{redact_source(uri)}: the server's certificate is not accepted") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError("connection", f"{redact_source(uri)}: {type(error).__name__}") from error
    raise FetchError("redirect", f"{redact_source(uri)}: more than {MAX_REDIRECTS} redirects")


def _resolve_redirect(url: URL, response: aiohttp.ClientResponse) -> URL:
    place = response.headers.get("Location", "")
    try:
        target = url.join(parse_url(place))
    except ValueError as error:
        raise FetchError("redirect", f"{redact_source(str(url))}: redirects to something that is no URL") from error
    if not place or target.scheme not in WEB_SCHEMES:
        raise FetchError(
            "redirect",
            f"{redact_source(str(url))}: redirects to {redact_source(place) or 'nowhere'}, away from http(s)",
        )
    return target


def _check_status(response: aiohttp.ClientResponse, uri: str) -> None:
    status = response.status
    if status in TRANSIENT_STATUSES:
        raise TransientError(
            "unavailable",
            f"{uri}: the server answers {status}",
            retry_after_s=min(parse_retry_after(response.headers), MAX_RETRY_AFTER_S),
        )
    if status not in (200, 206):
        raise FetchError(
            ERROR_KIND_BY_STATUS.get(status, "refused"),
            f"{uri}: the server answers {status} {response.reason or ''}".rstrip(),
        )


async def _download_response(
    response: aiohttp.ClientResponse, writer: BlobWriter, full_download: bool
) -> tuple[int, str]:
    """All of it; or the beginning, and the size and the version of what may be had in parts."""
    headers, size = response.headers, response.content_length or 0
    writer.check_declared_size(size)
    version = headers.get("ETag", "") or headers.get("Last-Modified", "")
    parts = headers.get("Accept-Ranges") == "bytes" and "Content-Encoding" not in headers
    async for chunk in response.content.iter_chunked(READ_BYTES):
        writer.write(chunk)
        if (
            parts
            and not full_download
            and version[:2] not in ("", "W/")
            and writer.kind == "video"
            and size > writer.received_bytes >= FIRST_READ_BYTES
        ):
            return size, version
    return 0, ""


async def _read_range_response(response: aiohttp.ClientResponse, start: int, end: int, version: str) -> bytes:
    uri = redact_source(str(response.url))
    place = response.headers.get("Content-Range", "").partition("/")[0]
    now = response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
    if response.status != 206 or place != f"bytes {start}-{end - 1}" or (version and now not in ("", version)):
        raise ObjectChangedError(uri)
    data = bytearray()
    async for chunk in response.content.iter_chunked(READ_BYTES):
        data += chunk
        if len(data) > end - start:
            raise ObjectChangedError(uri)
    return require_length(bytes(data), end - start, uri)
