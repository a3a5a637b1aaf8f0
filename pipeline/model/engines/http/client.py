"""A request's body -> the server's answer, however often it has to be asked for it.

What may pass is tried again after waits that double and are drawn at random. A failure is held against the row when
it is the row's own: its answer is cut, late or broken, or the server is gone while others are answered. After
FAULTS of those it is an error row. A server that is busy or away for all is waited for `patience_s`, and then the run
stops, at once if the server asks for more: no row is to blame. Every attempt of a row carries the same Idempotency-Key.
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
from pipeline.model.engines.http.responses import TransientServerError, parse_response
from pipeline.retry_policy import RetryPolicy, run_with_retries_async

RETRY_POLICY = RetryPolicy()
MAX_FAULTS = 6
CONNECT_TIMEOUT_S = 15.0
MAX_RESPONSE_BYTES = 64 * 2**20
READ_BYTES = 1 << 16


@dataclass
class RequestAttempts:
    """What has happened to one request so far."""

    sent_at: float = 0.0  # when the last attempt started
    faults: int = 0  # failures that count against the row
    waited_s: float = 0.0


class HttpClient:
    """Opened and used inside one event loop."""

    def __init__(self, settings: HttpSettings):
        self.settings = settings
        self.url = URL(settings.url)
        self.api_key = settings.api_key.get_secret_value().strip() if settings.api_key else ""
        self.proxy = None if proxy_bypass(self.url.host or "") else getproxies().get(self.url.scheme)
        self.limiter = ConcurrencyLimiter(settings.concurrency)
        self.last_response_at = -math.inf  # when the server last answered anybody
        self.retries = 0
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": "vlbatch"} | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}),
        )

    async def send_request(self, path: str, body: bytes | None = None, *, idempotency_key: str = "") -> dict[str, Any]:
        attempts = RequestAttempts()

        async def attempt() -> dict[str, Any]:
            async with self.limiter:
                attempts.sent_at = time.monotonic()
                response = await self.try_request(path, body, idempotency_key)
            self.last_response_at = time.monotonic()
            self.limiter.speed_up()
            return response

        def decide_wait_s(error: TransientServerError, failures: int) -> float:
            return self.decide_wait_s(attempts, error, failures)

        return await run_with_retries_async(attempt, TransientServerError, decide_wait_s)

    def decide_wait_s(self, attempts: RequestAttempts, error: TransientServerError, failures: int) -> float:
        other_request_answered = self.last_response_at > attempts.sent_at
        attempts.faults += other_request_answered if error.is_row_fault is None else error.is_row_fault
        wait_s = max(RETRY_POLICY.compute_wait_s(failures, random.random()), error.retry_after_s)
        attempts.waited_s += wait_s
        if error.is_row_fault is False:
            self.limiter.slow_down(wait_s)
        if attempts.faults >= MAX_FAULTS:
            raise GenerateError(error.kind, f"{error.message}; gave up after {failures} attempts") from error
        if attempts.waited_s > self.settings.patience_s:
            self.stop_if_unresponsive(error)
        self.retries += 1
        return wait_s

    def stop_if_unresponsive(self, error: TransientServerError) -> None:
        """While others are answered, a row that met a busy server so far will have its turn."""
        patience_s = self.settings.patience_s
        if error.retry_after_s > patience_s:
            why = f"it asks to be left alone for {error.retry_after_s:,.0f} s, which is more than engine.patience_s"
        elif self.last_response_at < time.monotonic() - patience_s:
            why = f"nobody was answered for {patience_s:g} s"
        else:
            return
        raise StoppedError(
            f"stopped: engine.url: {error.message}; {why}. "
            "Nothing is lost: when the server is back, the same command goes on from here"
        )

    async def try_request(self, path: str, body: bytes | None, idempotency_key: str) -> dict[str, Any]:
        url = self.url.with_path(f"{self.url.path.rstrip('/')}/{path}").with_query(self.url.query)
        headers = {"Content-Type": "application/json"} | (
            {"Idempotency-Key": idempotency_key, "X-Request-Id": idempotency_key} if idempotency_key else {}
        )
        shown = str(self.url.with_query(None))
        try:
            async with self.session.request(
                "POST" if body is not None else "GET",
                url,
                data=body,
                headers=headers,
                allow_redirects=False,
                proxy=self.proxy,
            ) as response:
                text = await read_body(response)
                return parse_response(response.status, response.headers, text, url=shown, api_key=self.api_key)
        except aiohttp.InvalidURL as error:
            raise JobError(f"engine.url: {shown} is not a URL") from error
        except aiohttp.ClientSSLError as error:
            raise JobError(
                f"engine.url: the certificate of {shown} is not accepted; SSL_CERT_FILE names yours"
            ) from error
        except aiohttp.ClientConnectorDNSError as error:
            if error.errno == socket.EAI_NONAME and self.last_response_at < 0:
                raise JobError(f"engine.url: {self.url.host} has no address") from error
            raise TransientServerError("away", f"{self.url.host} has no address", is_row_fault=None) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise TransientServerError("away", f"{shown} cannot be reached", is_row_fault=None) from error
        except TimeoutError as error:
            limit = f"{self.settings.timeout_s:g} s (engine.timeout_s)"
            raise TransientServerError("timeout", f"{shown} did not answer within {limit}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientServerError("cut", f"{shown}: the connection was cut ({type(error).__name__})") from error

    async def close(self) -> None:
        await self.session.close()


async def read_body(response: aiohttp.ClientResponse) -> str:
    """The body, as far as any answer may reach."""
    parts, size = [], 0
    async for chunk in response.content.iter_chunked(READ_BYTES):
        parts.append(chunk)
        size += len(chunk)
        if size > MAX_RESPONSE_BYTES:
            raise TransientServerError("protocol", f"an answer of more than {MAX_RESPONSE_BYTES:,} bytes")
    return b"".join(parts).decode("utf-8", "replace")
