"""Download over HTTP from servers that the job allows.

Redirects are followed here, not by aiohttp, so that each one is checked like the first URL. The address is checked in
the connection's resolver, so the address that was checked is the one that is connected to: a name that resolves
differently a moment later gains nothing. Environment proxies are ignored for URLs of a manifest, because behind a proxy
nobody can tell which address is reached.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar
from urllib.request import getproxies

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.errors import FetchError
from pipeline.fetch.access import (
    WEB_SCHEMES,
    is_allowed_host,
    is_forbidden_address,
    is_named_with_port,
    is_public_address,
    join_host_and_port,
    redact_source,
)
from pipeline.fetch.blob import BlobWriter
from pipeline.fetch.remote_object import (
    FIRST_READ_BYTES,
    ObjectChangedError,
    RemoteObject,
    TransientError,
    require_length,
)
from pipeline.retry_policy import parse_retry_after

ResultT = TypeVar("ResultT")
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=20)  # of silence; rows have a deadline, too
MAX_REDIRECTS = 5
MAX_RETRY_AFTER_S = 60.0
READ_BYTES = 1 << 18
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
ERROR_KIND_BY_STATUS = {401: "denied", 403: "denied", 404: "not_found", 407: "denied", 410: "not_found", 451: "denied"}
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504, 507, 509, 520, 521, 522, 523, 524)


class WebClient:
    """The connections of one worker. Coroutines raise TransientError where another attempt may help."""

    def __init__(self, allowed_hosts: Sequence[str]):
        self.allowed_hosts = allowed_hosts
        self.session: aiohttp.ClientSession | None = None

    async def download(self, uri: str, writer: BlobWriter, *, full_download: bool = False) -> RemoteObject | None:
        """Write the response. Of a long video only the beginning, if the server serves ranges; returns the object."""

        async def fetch_range(start: int, end: int) -> bytes:
            return await self.read_range(uri, start, end, version=version)

        size, version = await self._request(uri, lambda response: write_response(response, writer, full_download))
        return RemoteObject(size, fetch_range) if size else None

    async def read_prefix(self, uri: str, max_bytes: int) -> tuple[bytes, int]:
        """The first bytes of a file, and its size. Empty if the server does not tell the size."""

        async def read_response(response: aiohttp.ClientResponse) -> tuple[bytes, int]:
            size = read_total_size(response)
            if not size or "Content-Encoding" in response.headers:
                return b"", 0
            return await response.content.readexactly(min(max_bytes, size)), size

        try:
            return await self._request(uri, read_response, {"Range": f"bytes=0-{max_bytes - 1}"})
        except FetchError as error:
            if error.kind == "refused":  # perhaps only the range is: an empty file has none
                return b"", 0
            raise

    async def read_header(self, uri: str, name: str) -> str:
        """A header of the response; empty if it has none."""

        async def read_response(response: aiohttp.ClientResponse) -> str:
            return response.headers.get(name, "")

        return await self._request(uri, read_response, {"Range": "bytes=0-0"})

    async def read_range(self, uri: str, start: int, end: int, version: str = "") -> bytes:
        headers = {"Range": f"bytes={start}-{end - 1}"} | ({"If-Range": version} if version else {})
        return await self._request(uri, lambda response: read_range_response(response, start, end, version), headers)

    async def _request(
        self,
        uri: str,
        read_response: Callable[[aiohttp.ClientResponse], Awaitable[ResultT]],
        headers: Mapping[str, str] | None = None,
    ) -> ResultT:
        self.session = self.session or open_restricted_session(self.allowed_hosts)
        url = parse_url(uri)
        with translate_errors(redact_source(uri)):
            for _ in range(MAX_REDIRECTS + 1):
                check_url(url, self.allowed_hosts)
                async with self.session.get(url, allow_redirects=False, headers=headers) as response:
                    if response.status not in REDIRECT_STATUSES:
                        check_status(response, redact_source(uri))
                        return await read_response(response)
                    url = resolve_redirect(url, response)
        raise FetchError("redirect", f"{redact_source(uri)}: more than {MAX_REDIRECTS} redirects")

    async def close(self) -> None:
        if self.session:
            await self.session.close()


@contextmanager
def translate_errors(shown_uri: str) -> Iterator[None]:
    try:
        yield
    except aiohttp.InvalidURL as error:
        raise FetchError("uri", f"{shown_uri}: not a URL") from error
    except aiohttp.ClientResponseError as error:
        raise FetchError("protocol", f"{shown_uri}: the server does not speak HTTP") from error
    except (aiohttp.ClientPayloadError, asyncio.IncompleteReadError) as error:
        raise TransientError("truncated", f"{shown_uri}: the connection was cut before the end") from error
    except (TimeoutError, aiohttp.ServerTimeoutError) as error:
        raise TransientError("timeout", f"{shown_uri}: the server is silent") from error
    except aiohttp.ClientConnectorDNSError as error:
        error_class = FetchError if error.errno == socket.EAI_NONAME else TransientError
        raise error_class("dns", f"{shown_uri}: the host has no address") from error
    except aiohttp.ClientSSLError as error:
        raise FetchError("tls", f"{shown_uri}: the server's certificate is not accepted") from error
    except (aiohttp.ClientError, OSError) as error:
        raise TransientError("connection", f"{shown_uri}: {type(error).__name__}") from error


def resolve_redirect(url: URL, response: aiohttp.ClientResponse) -> URL:
    location, shown_url = response.headers.get("Location", ""), redact_source(str(url))
    try:
        target = url.join(parse_url(location))
    except ValueError as error:
        raise FetchError("redirect", f"{shown_url}: redirects to something that is no URL") from error
    if not location or target.scheme not in WEB_SCHEMES:
        shown_target = redact_source(location) or "nowhere"
        raise FetchError("redirect", f"{shown_url}: redirects to {shown_target}, away from http(s)")
    return target


def check_status(response: aiohttp.ClientResponse, shown_uri: str) -> None:
    status = response.status
    if status in TRANSIENT_STATUSES:
        retry_after_s = min(parse_retry_after(response.headers), MAX_RETRY_AFTER_S)
        raise TransientError("unavailable", f"{shown_uri}: the server answers {status}", retry_after_s=retry_after_s)
    if status not in (200, 206):
        kind = ERROR_KIND_BY_STATUS.get(status, "refused")
        raise FetchError(kind, f"{shown_uri}: the server answers {status} {response.reason or ''}".rstrip())


def read_total_size(response: aiohttp.ClientResponse) -> int:
    """The size of the whole file; 0 where the server does not tell."""
    total = response.headers.get("Content-Range", "").rpartition("/")[2]
    if total.isdecimal():
        return int(total)
    return 0 if response.status == 206 else response.content_length or 0


def read_version(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")


async def write_response(response: aiohttp.ClientResponse, writer: BlobWriter, full_download: bool) -> tuple[int, str]:
    """Returns (0, "") after writing all; the size and version of a long video after writing its beginning."""
    size, version = response.content_length or 0, read_version(response)
    writer.check_declared_size(size)
    serves_ranges = response.headers.get("Accept-Ranges") == "bytes" and "Content-Encoding" not in response.headers
    has_strong_version = version[:2] not in ("", "W/")
    async for data in response.content.iter_chunked(READ_BYTES):
        writer.write(data)
        is_long_video = writer.kind == "video" and size > writer.received_bytes >= FIRST_READ_BYTES
        if is_long_video and serves_ranges and has_strong_version and not full_download:
            return size, version
    return 0, ""


async def read_range_response(response: aiohttp.ClientResponse, start: int, end: int, version: str) -> bytes:
    uri = redact_source(str(response.url))
    content_range = response.headers.get("Content-Range", "").partition("/")[0]
    is_changed = version and read_version(response) not in ("", version)
    if response.status != 206 or content_range != f"bytes {start}-{end - 1}" or is_changed:
        raise ObjectChangedError(uri)
    data = bytearray()
    async for chunk in response.content.iter_chunked(READ_BYTES):
        data += chunk
        if len(data) > end - start:
            raise ObjectChangedError(uri)
    return require_length(bytes(data), end - start, uri)


def open_restricted_session(allowed_hosts: Sequence[str]) -> aiohttp.ClientSession:
    """For URLs that a manifest names."""
    connector = aiohttp.TCPConnector(resolver=PublicAddressResolver(allowed_hosts), limit=64, limit_per_host=16)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=TIMEOUT,
        headers={"User-Agent": "vlbatch", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def open_unrestricted_session(max_connections: int) -> aiohttp.ClientSession:
    """For URLs that no manifest names, through the environment's proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=TIMEOUT,
        trust_env=bool(getproxies()),  # with True, aiohttp looks for proxies at every request, in a thread
    )


class PublicAddressResolver(AbstractResolver):
    """Resolves a name only if the job may read all its addresses."""

    def __init__(self, allowed_hosts: Sequence[str]):
        self.allowed_hosts = allowed_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        results = []
        for kind, _, protocol, _, address in await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM):
            ip = str(address[0])
            check_address(host, port, ip, self.allowed_hosts)
            flags = socket.AI_NUMERICHOST
            results.append(ResolveResult(hostname=host, host=ip, port=port, family=kind, proto=protocol, flags=flags))
        return results

    async def close(self) -> None: ...


def check_url(url: URL, allowed_hosts: Sequence[str]) -> None:
    """Check the scheme, the host and, if the host is an address, the address."""
    if url.scheme not in WEB_SCHEMES:
        raise FetchError("redirect", f"{redact_source(str(url))}: leads away from http(s)")
    host = url.raw_host
    if not host:
        raise FetchError("uri", f"{redact_source(str(url))}: names no host")
    if not is_allowed_host(host, url.port, allowed_hosts):
        raise FetchError("host", f"{host}:{url.port} is not among input.hosts: {', '.join(allowed_hosts)}")
    if (address := _parse_ip_address(host)) is not None:
        check_address(host, url.port, address, allowed_hosts)


def check_address(host: str, port: int | None, address: str, allowed_hosts: Sequence[str]) -> None:
    shown_host = address if host == address else f"{host} ({address})"
    if is_forbidden_address(address):
        raise FetchError("address", f"{shown_host} is a link-local or metadata address, which no job may read")
    if not is_public_address(address) and not is_named_with_port(host, port, allowed_hosts):
        problem = f"is not a public address; name {join_host_and_port(host, port)} in input.hosts to allow it"
        raise FetchError("address", f"{shown_host} {problem}")


def _parse_ip_address(host: str) -> str | None:
    """The address in any spelling: 127.1, 0x7f000001, [::1]. None for a name."""
    if ":" in host:
        return host
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def parse_url(uri: str) -> URL:
    """Encode only what is no URL as it stands: a signature covers every letter."""
    try:
        return URL(uri, encoded=uri.isascii() and " " not in uri)
    except ValueError as error:
        raise FetchError("uri", f"{redact_source(uri)}: not a URL") from error
