"""Decoder processes that outlive the run that started them, because a start takes longer than most tests.

A run gets the process that an earlier run with the same memory limit has left. It is a real one: only its start is
shared.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

from pipeline.media.decoder_client import DecoderClient
from pipeline.media.kinds.base import DecodeLimits

Settings = tuple[int, int, int, tuple[str, ...]]  # what a process is started with: limits and sys.path
idle_decoders: dict[Settings, list[DecoderClient]] = defaultdict(list)


class BorrowedDecoder:
    """A FrameDecoder whose `close` gives the process back, unless an exception ends the run."""

    def __init__(self, settings: Settings, decoder: DecoderClient):
        self.settings, self.decoder = settings, decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def close(self) -> None:
        if self.decoder.process.poll() is None and not sys.exc_info()[0]:
            idle_decoders[self.settings].append(self.decoder)
        else:
            self.decoder.close()


def borrow_decoder(limits: DecodeLimits) -> BorrowedDecoder:
    settings = limits.image_pixels, limits.frame_pixels, limits.threads, tuple(sys.path)
    while idle_decoders[settings]:
        decoder = idle_decoders[settings].pop()
        if decoder.process.poll() is None:
            decoder.limits = limits
            return BorrowedDecoder(settings, decoder)
    return BorrowedDecoder(settings, DecoderClient(limits))


def close_idle_decoders() -> None:
    for decoders in idle_decoders.values():
        while decoders:
            decoders.pop().close()
