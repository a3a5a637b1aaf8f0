"""Limits how many requests are in flight: to what the job says, and to fewer while the server is too busy.

The limit is halved at a 429 and grows by one with each full round of responses, as TCP does it. So a thousand requests
that were told to wait do not come back together, and replicas share an endpoint without knowing of each other.
"""

from __future__ import annotations

import asyncio
import random
import time


class ConcurrencyLimiter:
    def __init__(self, max_concurrency: int):
        self.max_concurrency = max_concurrency
        self.limit = float(max_concurrency)
        self.in_flight = 0
        self.paused_until = 0.0
        self.changed = asyncio.Condition()

    async def __aenter__(self) -> None:
        while True:
            async with self.changed:
                await self.changed.wait_for(lambda: self.in_flight < int(self.limit))
                pause_s = self.paused_until - time.monotonic()
                if pause_s <= 0:
                    self.in_flight += 1
                    return
            await asyncio.sleep(pause_s * (1 + random.random() / 4))

    async def __aexit__(self, *_: object) -> None:
        async with self.changed:
            self.in_flight -= 1
            self.changed.notify_all()

    def slow_down(self, pause_s: float) -> None:
        """The server is too busy. Responses that arrive during a pause belong to the same overload."""
        now = time.monotonic()
        if now >= self.paused_until:
            self.limit = max(1.0, self.limit / 2)
        self.paused_until = max(self.paused_until, now + pause_s)

    def speed_up(self) -> None:
        self.limit = min(float(self.max_concurrency), self.limit + 1 / self.limit)
