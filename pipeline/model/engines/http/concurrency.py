"""How many requests are under way: as many as the job says, fewer when the server says it is too much.

Halved at each 429, up by one for each full round of answers, as TCP does it: a thousand requests that were told to
wait do not come back together, and many replicas share an endpoint without knowing of each other.
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
                shut_s = self.paused_until - time.monotonic()
                if shut_s <= 0:
                    self.in_flight += 1
                    return
            await asyncio.sleep(shut_s * (1 + random.random() / 4))

    async def __aexit__(self, *_: object) -> None:
        async with self.changed:
            self.in_flight -= 1
            self.changed.notify_all()

    def slow_down(self, pause_s: float) -> None:
        """Too much. Those that hear it at the same moment are one sign, not many."""
        now = time.monotonic()
        if now >= self.paused_until:
            self.limit = max(1.0, self.limit / 2)
        self.paused_until = max(self.paused_until, now + pause_s)

    def speed_up(self) -> None:
        self.limit = min(float(self.max_concurrency), self.limit + 1 / self.limit)
