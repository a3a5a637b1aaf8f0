"""Serves the live page of an output on this machine: read-only, on a local address, behind a token in its URL.

A page of somebody else in the same browser can neither read it, for want of the token, nor reach it under a name of its
own, because only local names are answered.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from threading import Lock, Thread

from aiohttp import web

from pipeline.errors import OutputError
from pipeline.inspect.live.live_output import LiveOutput
from pipeline.inspect.report.page import render_page

LOCAL_ADDRESS = "127.0.0.1"
LOCAL_NAMES = (LOCAL_ADDRESS, "localhost")
MIN_REFRESH_S = 2.0  # however many pages are open
HEADERS = {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}


class LivePage:
    def __init__(self, output: LiveOutput):
        self.output, self.token = output, secrets.token_urlsafe(16)
        self.html, self.read_at, self.lock = "", -MIN_REFRESH_S, Lock()

    async def answer_request(self, request: web.Request) -> web.Response:
        given = request.query.get("token", "")
        if request.url.host not in LOCAL_NAMES or not secrets.compare_digest(given.encode(), self.token.encode()):
            raise web.HTTPForbidden(text="open the address that the command printed, with its token")
        html = await asyncio.to_thread(self.render)
        return web.Response(text=html, content_type="text/html", headers=HEADERS)

    def render(self) -> str:
        with self.lock:
            if time.monotonic() - self.read_at >= MIN_REFRESH_S:
                folder = files(__package__)
                values = {"view": self.output.read_view()}
                self.html = render_page(values, folder / "live.html.j2", folder / "live.js")
                self.read_at = time.monotonic()
            return self.html


@contextmanager
def serve_live_page(output: LiveOutput, port: int, say: Callable[[str], None]) -> Iterator[str]:
    """Serve in a thread while the block runs. Says and yields the address. Port 0 is any free one."""
    page, loop = LivePage(output), asyncio.new_event_loop()
    application = web.Application()
    application.router.add_get("/", page.answer_request)
    runner = web.AppRunner(application, access_log=None)

    async def start() -> int:
        await runner.setup()
        site = web.TCPSite(runner, LOCAL_ADDRESS, port)
        await site.start()
        return int(runner.addresses[0][1])

    try:
        chosen_port = loop.run_until_complete(start())
    except OSError as error:
        loop.close()
        raise OutputError(f"--serve {port}: {error.strerror}; name another port") from error
    thread = Thread(target=loop.run_forever, name="live page", daemon=True)
    thread.start()
    address = f"http://{LOCAL_ADDRESS}:{chosen_port}/?token={page.token}"
    say(f"live page, on this machine: {address}")
    try:
        yield address
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
