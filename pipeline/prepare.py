"""The order of the steps. No Ray, and no loop over chunks: the runners call these.

    read      manifest rows of a chunk -> Items
    prepare   Item -> Request            fetch, decode, resize, prompt: many CPUs
    answer    Request -> Reply -> Row    the model, then its words checked and typed: few GPUs

Where a step fails, a Failure takes the place of the row from there on.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.context import Work, open_family
from pipeline.errors import ItemError, PipelineError, surprise
from pipeline.fetch.fetcher import Fetcher
from pipeline.manifest.chunks import Chunk, check_kept, rows_of
from pipeline.manifest.files import File, reading
from pipeline.manifest.items import read
from pipeline.manifest.sources import Source
from pipeline.media.clips import look, sources
from pipeline.media.decode import FRAME_S, Eyes
from pipeline.media.decoder_client import Decoder
from pipeline.meter import Meter
from pipeline.types import Asked, Clip, Entry, Failure, Item, Medium, Past, Request, Sampling, Turn

if TYPE_CHECKING:
    pass


class Preparer:
    """What a prepare worker keeps open: connections, the decoder's process, the family's tokenizer."""

    def __init__(self, work: Work, *, fetcher: type[Fetcher] = Fetcher, decoder: type[Decoder] = Decoder):
        self.work = work
        self.family = open_family(work)
        self.fetcher = fetcher(work.job)
        self.eyes = Eyes(work.job, self.family, decoder)
        self.source: tuple[File, Source] | None = None  # open where the last chunk ended
        self.meter = Meter()

    def prepare(self, chunk: Chunk) -> list[Entry]:
        """Every row of a chunk that is to be asked, as a Request or as the Failure it ended in."""
        return list(self.requests(self.read(chunk)))

    def read(self, chunk: Chunk) -> list[Asked]:
        with self.meter.on("read"):
            return reading(chunk.file, lambda: list(self.items(chunk)))

    def requests(self, items: Sequence[Asked]) -> Iterator[Entry]:
        """Some rows of a chunk, in order, one at a time."""
        media = [part for item, _ in items for turn in item.turns for part in turn.parts if isinstance(part, Medium)]
        self.fetcher.ahead([source for medium in media for source in sources(medium)])
        for item, failure in items:
            yield replace(item, turns=()), failure or self.request(item)

    def items(self, chunk: Chunk) -> Iterator[Asked]:
        work = self.work
        file, source = self.source or (None, None)  # one of them: each keeps its file open
        self.source = None  # nor is it used again after reading has failed
        source = source if source and file == chunk.file else chunk.file.open()
        wanted, rows = rows_of(chunk, work.job, work.user, source)
        self.source = chunk.file, source
        again = dict(chunk.again)
        check_kept(chunk.file, [row for row, *_ in rows], work.kept)
        for row, row_id, question in rows:
            keep, past = {name: row[name] for name in wanted.keep}, again.get(row_id, Past())
            try:
                item = read(
                    row,
                    id=row_id,
                    question=question,
                    columns=wanted,
                    job=work.job,
                    user=work.user if work.job.prompt.user is None else work.job.prompt.user,
                    base=chunk.file.base,
                )
                yield replace(item, keep=keep, past=past), None
            except ItemError as error:
                yield Item(row_id, question, (), keep, past=past), error.failure(row_id)
            except Exception:  # noqa: BLE001 - the row boundary
                yield Item(row_id, question, (), keep, past=past), surprise(row_id)

    def request(self, item: Item) -> Request | Failure:
        try:
            return self.ask(item)
        except ItemError as error:
            return error.failure(item.id)
        except PipelineError:
            raise  # about the worker, not the row
        except Exception:  # noqa: BLE001 - the row boundary
            return surprise(item.id)

    def ask(self, item: Item) -> Request:
        ends = time.monotonic() + self.work.job.limits.deadline_s
        turns: tuple[Turn, ...] = ()
        for turn in item.turns:
            parts, ends = self.parts(turn, ends)
            turns = (*turns, Turn(turn.role, parts))
        sampling = self.sampling(item)
        with self.meter.on("prompt"):
            encoded = self.family.encode(turns)
            self.family.check(encoded, sampling.max_new_tokens + (sampling.thinking_tokens or 0))
        return Request(item.id, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling)

    def parts(self, turn: Turn, ends: float) -> tuple[tuple[str | Clip, ...], float]:
        """What a turn shows and says, and until when the rest of the row has time."""
        parts: list[str | Clip] = []
        for part in turn.parts:
            if isinstance(part, Medium):
                left = ends - time.monotonic()
                clips = look(part, fetcher=self.fetcher, eyes=self.eyes, meter=self.meter, deadline_s=left)
                ends += sum(FRAME_S * len(clip.times) for clip in clips)
                parts += clips
            else:
                parts.append(part)
        return tuple(parts), ends

    def sampling(self, item: Item) -> Sampling:
        """The seed is of the job's seed and the row's id, so that a retry anywhere says the same again."""
        answer = self.work.job.answer
        seed = int.from_bytes(hashlib.blake2b(f"{answer.seed}\0{item.id}".encode(), digest_size=4).digest())
        thinking = answer.thinking.max_tokens if answer.thinking else 2048 if self.family.thinking else None
        return Sampling(
            max_new_tokens=item.max_new_tokens or answer.max_new_tokens,
            temperature=answer.temperature,
            top_p=answer.top_p,
            top_k=answer.top_k,
            seed=seed,
            thinking_tokens=thinking,
        )

    def close(self) -> None:
        self.fetcher.close()
        self.eyes.close()
