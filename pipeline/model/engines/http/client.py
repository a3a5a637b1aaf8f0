"""Sends a request to the server until it is answered, refused or given up.

A transient failure counts against the row if the row may have caused it: its response is late, broken or cut, or the
server was away while it answered other requests. After MAX_ROW_FAULTS of those the row fails. While the server is busy
or away for everybody, requests wait for up to `engine.patience_s`; then the run stops, because no row is to blame. All
attempts of a row carry the same Idempotency-Key.
"""

from __future__ import annotations

import math
import random
import socket
import time
from dataclasses import dataclass
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from pipeline.errors import GenerateError, JobError, StoppedError
from pipeline.model.engines.http.concurrency import ConcurrencyLimiter
from pipeline.model.engines.http.http_settings import HttpSettings
from pipeline.model.engines.http.rate_limit import RateLimit
from pipeline.model.engines.http.responses import TransientServerError, parse_response
from pipeline.retry_policy import RetryPolicy, run_with_retries_async

RETRY_POLICY = RetryPolicy()
MAX_ROW_FAULTS = 6
CONNECT_TIMEOUT_S = 15.0
MAX_RESPONSE_BYTES = 64 * 2**20
READ_BYTES = 1 << 16


@dataclass
class RequestAttempts:
    """The history of one request's attempts."""

    sent_at: float = 0.0  # of the last attempt
    row_faults: int = 0
    waited_s: float = 0.0


class HttpClient:
    """Belongs to the event loop in which it is created."""

    def __init__(self, settings: HttpSettings):
        self.settings = settings
        self.url = URL(settings.url)
        self.api_key = settings.api_key.get_secret_value().strip() if settings.api_key else ""
        self.proxy = None if proxy_bypass(self.url.host or "") else getproxies().get(self.url.scheme)
        self.limiter = ConcurrencyLimiter(settings.concurrency)
        self.rate_limit = RateLimit(settings)
        self.last_response_at = -math.inf  # to any request
        self.retries = 0
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": "vlbatch", **({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})},
        )

    async def send_request(
        self, path: str, body: bytes | None = None, *, idempotency_key: str = "", max_tokens: int = 0
    ) -> dict[str, Any]:
        """`max_tokens` are what the request may cost; requests without count for no limit."""
        attempts = RequestAttempts()

        async def attempt() -> dict[str, Any]:
            async with self.limiter:
                if max_tokens:
                    await self.rate_limit.wait_for_turn(max_tokens)
                attempts.sent_at = time.monotonic()
                response = await self.try_request(path, body, idempotency_key)
                self.rate_limit.settle(max_tokens, response)
            self.last_response_at = time.monotonic()
            self.limiter.speed_up()
            return response

        def decide_wait_s(error: TransientServerError, failures: int) -> float:
            return self.decide_wait_s(attempts, error, failures)

        return await run_with_retries_async(attempt, TransientServerError, decide_wait_s)

    def decide_wait_s(self, attempts: RequestAttempts, error: TransientServerError, failures: int) -> float:
        """Seconds to wait before the next attempt; raises to give up the row or the run."""
        answered_others = self.last_response_at > attempts.sent_at
        attempts.row_faults += error.cause == "row" or (error.cause == "unknown" and answered_others)
        wait_s = max(RETRY_POLICY.compute_wait_s(failures, random.random()), error.retry_after_s)
        attempts.waited_s += wait_s
        if error.cause == "server":
            self.limiter.slow_down(wait_s)
        if attempts.row_faults >= MAX_ROW_FAULTS:
            raise GenerateError(error.kind, f"{error.message}; gave up after {failures} attempts") from error
        if attempts.waited_s > self.settings.patience_s:
            self.stop_if_unresponsive(error)
        self.retries += 1
        return wait_s

    def stop_if_unresponsive(self, error: TransientServerError) -> None:
        """Stop the run, unless the server still answers other requests: then this one gets its turn."""
        patience_s = self.settings.patience_s
        if error.retry_after_s > patience_s:
            reason = f"it asks to be left alone for {error.retry_after_s:,.0f} s, which is more than engine.patience_s"
        elif self.last_response_at < time.monotonic() - patience_s:
            reason = f"it answered nobody for {patience_s:g} s"
        else:
            return
        raise StoppedError(
            f"stopped: engine.url: {error.message}; {reason}. "
            "Nothing is lost: when the server is back, the same command goes on from here"
        )

    async def try_request(self, path: str, body: bytes | None, idempotency_key: str) -> dict[str, Any]:
        url = self.url.with_path(f"{self.url.path.rstrip('/')}/{path}").with_query(self.url.query)
        shown_url = str(self.url.with_query(None))
        headers = {"Content-Type": "application/json"}
        if idempotency_key:
            headers |= {"Idempotency-Key": idempotency_key, "X-Request-Id": idempotency_key}
        method = "GET" if body is None else "POST"
        try:
            async with self.session.request(
                method, url, data=body, headers=headers, allow_redirects=False, proxy=self.proxy
            ) as response:
                text = await read_body(response)
                return parse_response(response.status, response.headers, text, url=shown_url, api_key=self.api_key)
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise self.convert_connection_error(error, shown_url) from error

    def convert_connection_error(self, error: Exception, shown_url: str) -> Exception:
        match error:
            case aiohttp.InvalidURL():
                return JobError(f"engine.url: {shown_url} is not a URL")
            case aiohttp.ClientSSLError():
                return JobError(
                    f"engine.url: the certificate of {shown_url} is not accepted; SSL_CERT_FILE names yours"
                )
            case aiohttp.ClientConnectorDNSError():
                if error.errno == socket.EAI_NONAME and self.last_response_at < 0:
                    return JobError(f"engine.url: {self.url.host} has no address")
                return TransientServerError("away", f"{self.url.host} has no address", cause="unknown")
            case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                return TransientServerError("away", f"{shown_url} cannot be reached", cause="unknown")
            case TimeoutError():
                limit = f"{self.settings.timeout_s:g} s (engine.timeout_s)"
                return TransientServerError("timeout", f"{shown_url} did not answer within {limit}")
        return TransientServerError("cut", f"{shown_url}: the connection was cut ({type(error).__name__})")

    async def close(self) -> None:
        await self.session.close()


async def read_body(response: aiohttp.ClientResponse) -> str:
    parts, size = [], 0
    async for chunk in response.content.iter_chunked(READ_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise TransientServerError("protocol", f"the response has more than {MAX_RESPONSE_BYTES:,} bytes")
    return b"".join(parts).decode("utf-8", "replace")
