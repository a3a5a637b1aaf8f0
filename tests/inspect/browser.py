"""A real browser for tests, driven by its own debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]


def binary() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to the path of one")
    return found


class Browser:
    """One page. `log` collects what it asked the network for, said on its console, and showed as dialogs."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="vlc")
        command = [binary(), *FLAGS, f"--user-data-dir={self.folder}", "about:blank"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.replies: dict[int, asyncio.Future[Any]] = {}
        self.log: list[tuple[str, Any]] = []
        self.loaded = threading.Event()
        self.number = 0
        self._wait(self._connect())
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _wait(self, work: Any, timeout_s: float = 90) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    async def _connect(self) -> None:
        port = Path(self.folder, "DevToolsActivePort")
        for _ in range(600):
            if port.exists() and port.read_text().count("\n"):
                break
            await asyncio.sleep(0.1)
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json") as answer:
            target = next(each for each in await answer.json() if each["type"] == "page")
        self.wire = await self.session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self.reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for message in self.wire:
            said = message.json()
            if "id" in said:
                self.replies.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self.loaded.set()
            elif said["method"] == "Network.requestWillBeSent":
                self.log.append(("request", said["params"]["request"]["url"]))
            elif said["method"] == "Page.javascriptDialogOpening":
                self.log.append(("dialog", said["params"]["message"]))
            elif said["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
                self.log.append(("console", said["params"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> Any:
        self.number += 1
        future = self.replies[self.number] = asyncio.get_running_loop().create_future()
        await self.wire.send_json({"id": self.number, "method": method, "params": parameters})
        said = await future
        assert "error" not in said, said
        return said["result"]

    def call(self, method: str, **parameters: Any) -> Any:
        return self._wait(self._call(method, parameters))

    def open(self, path: Path, width: int = 1400, height: int = 1000) -> None:
        self.open_url(path.as_uri(), width, height)

    def open_url(self, url: str, width: int = 1400, height: int = 1000) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.log.clear()
        self.loaded.clear()
        self.call("Page.navigate", url=url)
        assert self.loaded.wait(90)

    def value(self, script: str) -> Any:
        """What an expression is worth on the page."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)
        time.sleep(0.05)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        time.sleep(0.05)

    def picture(self, *, whole: bool = False) -> Image.Image:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    def close(self) -> None:
        self._wait(self.session.close())
        self.process.kill()
        self.process.wait()
        self.loop.call_soon_threadsafe(self.loop.stop)
        shutil.rmtree(self.folder, ignore_errors=True)
