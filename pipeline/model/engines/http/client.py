"""A request's body -> the server's answer, however often it has to be asked for it.

What may pass is tried again after waits that double and are drawn at random. A failure is held against the row when
it is the row's own: its answer is cut, late or broken, or the server is gone while others are answered. After
FAULTS of those it is an error row. A server that is busy or away for all is waited for `patience_s`, and then the run
stops, at once if the server asks for more: no row is to blame. Every attempt of a row carries the same Idempotency-Key.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import time
from itertools import count
from typing import Any
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from pipeline.errors import GenerateError, JobError, StoppedError
from pipeline.job.spec import HttpEngine
from pipeline.model.engines.http.concurrency import Gate
from pipeline.model.engines.http.responses import Passing, judge
from pipeline.retry_policy import wait_s

FAULTS = 6
CONNECT_S = 15.0
LARGEST_ANSWER = 64 * 2**20
CHUNK = 1 << 16


class Caller:
    """Opened and used inside one event loop."""

    def __init__(self, settings: HttpEngine):
        self.settings = settings
        self.url = URL(settings.url)
        self.secret = settings.api_key.get_secret_value().strip() if settings.api_key else ""
        self.proxy = None if proxy_bypass(self.url.host or "") else getproxies().get(self.url.scheme)
        self.gate = Gate(settings.concurrency)
        self.heard = -math.inf  # when the server last answered anybody
        self.retries = 0
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=CONNECT_S),
            headers={"User-Agent": "vlbatch"} | ({"Authorization": f"Bearer {self.secret}"} if self.secret else {}),
        )

    async def ask(self, path: str, body: bytes | None = None, *, key: str = "") -> dict[str, Any]:
        faults, waited_s = 0, 0.0
        for number in count(1):
            started = time.monotonic()
            try:
                async with self.gate:
                    started = time.monotonic()
                    answer = await self.attempt(path, body, key)
                self.heard = time.monotonic()
                self.gate.faster()
                return answer
            except Passing as trouble:
                others = self.heard > started  # somebody was answered meanwhile
                faults += others if trouble.fault is None else trouble.fault
                pause_s = max(wait_s(number, random.random()), trouble.after_s)
                if trouble.fault is False:
                    self.gate.slower(pause_s)
                waited_s += pause_s
                if faults >= FAULTS:
                    raise GenerateError(
                        trouble.kind, f"{trouble.message}; gave up after {number} attempts"
                    ) from trouble
                if waited_s > self.settings.patience_s:
                    self.stop_if_deaf(trouble)
            self.retries += 1
            await asyncio.sleep(pause_s)
        raise AssertionError("count() ends")

    def stop_if_deaf(self, trouble: Passing) -> None:
        """While others are answered, a row that met a busy server so far will have its turn."""
        patience_s = self.settings.patience_s
        if trouble.after_s > patience_s:
            why = f"it asks to be left alone for {trouble.after_s:,.0f} s, which is more than engine.patience_s"
        elif self.heard < time.monotonic() - patience_s:
            why = f"nobody was answered for {patience_s:g} s"
        else:
            return
        raise StoppedError(
            f"stopped: engine.url: {trouble.message}; {why}. "
            "Nothing is lost: when the server is back, the same command goes on from here"
        )

    async def attempt(self, path: str, body: bytes | None, key: str) -> dict[str, Any]:
        url = self.url.with_path(f"{self.url.path.rstrip('/')}/{path}").with_query(self.url.query)
        headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key, "X-Request-Id": key} if key else {})
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
                text = await read(response)
                return judge(response.status, response.headers, text, url=shown, secret=self.secret)
        except aiohttp.InvalidURL as error:
            raise JobError(f"engine.url: {shown} is not a URL") from error
        except aiohttp.ClientSSLError as error:
            raise JobError(
                f"engine.url: the certificate of {shown} is not accepted; SSL_CERT_FILE names yours"
            ) from error
        except aiohttp.ClientConnectorDNSError as error:
            if error.errno == socket.EAI_NONAME and self.heard < 0:
                raise JobError(f"engine.url: {self.url.host} has no address") from error
            raise Passing("away", f"{self.url.host} has no address", fault=None) from error
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Passing("away", f"{shown} cannot be reached", fault=None) from error
        except TimeoutError as error:
            limit = f"{self.settings.timeout_s:g} s (engine.timeout_s)"
            raise Passing("timeout", f"{shown} did not answer within {limit}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Passing("cut", f"{shown}: the connection was cut ({type(error).__name__})") from error

    async def close(self) -> None:
        await self.session.close()


async def read(response: aiohttp.ClientResponse) -> str:
    """The body, as far as any answer may reach."""
    parts, size = [], 0
    async for chunk in response.content.iter_chunked(CHUNK):
        parts.append(chunk)
        size += len(chunk)
        if size > LARGEST_ANSWER:
            raise Passing("protocol", f"an answer of more than {LARGEST_ANSWER:,} bytes")
    return b"".join(parts).decode("utf-8", "replace")
