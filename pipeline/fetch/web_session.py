"""HTTP sessions that connect only to servers the job allows.

The check sits in the connection's resolver, so the address that was checked is the one that is connected to: a name
that resolves differently a moment later gains nothing. A restricted session ignores the environment's proxies, because
behind a proxy nobody can tell which address is reached.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from urllib.request import getproxies

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.errors import FetchError
from pipeline.fetch.access import WEB_SCHEMES, is_allowed_host, is_named_host, is_public_address, redact_source

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 20.0  # of silence; the row's deadline bounds the whole request


def open_restricted_session(allowed_hosts: Sequence[str]) -> aiohttp.ClientSession:
    """For URLs that a manifest names."""
    connector = aiohttp.TCPConnector(resolver=PublicAddressResolver(allowed_hosts), limit=64, limit_per_host=16)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
        headers={"User-Agent": "vlbatch", "Accept": "*/*", "Accept-Encoding": "identity"},
    )


def open_unrestricted_session(max_connections: int) -> aiohttp.ClientSession:
    """For URLs that no manifest names, through the environment's proxies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_connections),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S),
        trust_env=bool(getproxies()),  # with True, aiohttp looks for proxies at every request, in a thread
    )


class PublicAddressResolver(AbstractResolver):
    """Resolves a name only if all its addresses are public or the job names the host."""

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
            results.append(
                ResolveResult(
                    hostname=host, host=ip, port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
                )
            )
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
    if not is_named_host(host, port, allowed_hosts) and not is_public_address(address):
        shown_host = address if host == address else f"{host} ({address})"
        raise FetchError(
            "address", f"{shown_host} is not a public address; name {host}:{port} in input.hosts to allow it"
        )


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
