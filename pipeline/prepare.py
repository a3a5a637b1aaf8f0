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

from pipeline.context import RunContext, open_family
from pipeline.errors import ItemError, PipelineError, build_internal_failure
from pipeline.fetch.fetcher import Fetcher
from pipeline.manifest.chunks import Chunk, read_chunk_rows
from pipeline.manifest.files import read_with_retries
from pipeline.manifest.items import build_item
from pipeline.manifest.rows import RowReader, check_kept_values
from pipeline.media.clips import list_sources, load_clips
from pipeline.media.decode import EXTRA_S_PER_FRAME, ClipDecoder
from pipeline.media.decoder_client import DecoderClient
from pipeline.step_timer import StepTimer
from pipeline.types import Clip, Failure, Item, MediaRef, PreparedItem, ReadItem, Request, RetryHistory, Sampling, Turn

if TYPE_CHECKING:
    pass


class Preparer:
    """What a prepare worker keeps open: connections, the decoder's process, the family's tokenizer."""

    def __init__(
        self,
        context: RunContext,
        *,
        fetcher_class: type[Fetcher] = Fetcher,
        decoder_class: type[DecoderClient] = DecoderClient,
    ):
        self.context = context
        self.family = open_family(context)
        self.fetcher = fetcher_class(context.job)
        self.clip_decoder = ClipDecoder(context.job, self.family, decoder_class)
        self.row_reader: RowReader | None = None  # open where the last chunk ended
        self.timer = StepTimer()

    def prepare_chunk(self, chunk: Chunk) -> list[PreparedItem]:
        """Every row of a chunk that is to be asked, as a Request or as the Failure it ended in."""
        return list(self.prepare_items(self.read_items(chunk)))

    def read_items(self, chunk: Chunk) -> list[ReadItem]:
        with self.timer.measure("read"):
            return read_with_retries(chunk.file, lambda: list(self.iterate_items(chunk)))

    def prepare_items(self, items: Sequence[ReadItem]) -> Iterator[PreparedItem]:
        """Some rows of a chunk, in order, one at a time."""
        media = [part for item, _ in items for turn in item.turns for part in turn.parts if isinstance(part, MediaRef)]
        self.fetcher.prefetch([source for medium in media for source in list_sources(medium)])
        for item, failure in items:
            yield replace(item, turns=()), failure or self.prepare_item(item)

    def iterate_items(self, chunk: Chunk) -> Iterator[ReadItem]:
        work = self.context
        reader, self.row_reader = self.row_reader, None  # a reader that fails is not used again
        if reader is None or reader.file != chunk.file:
            reader = RowReader(work.job, chunk.file, work.schema_prompt)
        rows = read_chunk_rows(chunk, reader)
        self.row_reader = reader
        again = dict(chunk.retry_histories)
        check_kept_values(chunk.file, [row.values for row in rows], work.kept_schema)
        for row, row_id, question in rows:
            keep, past = {name: row[name] for name in reader.columns.kept}, again.get(row_id, RetryHistory())
            try:
                item = build_item(
                    row,
                    item_id=row_id,
                    question=question,
                    columns=reader.columns,
                    job=work.job,
                    user_prompt=work.schema_prompt if work.job.prompt.user is None else work.job.prompt.user,
                    base_folder=chunk.file.base_folder,
                )
                yield replace(item, kept_values=keep, history=past), None
            except ItemError as error:
                yield Item(row_id, question, (), keep, history=past), error.to_failure(row_id)
            except Exception:  # noqa: BLE001 - the row boundary
                yield Item(row_id, question, (), keep, history=past), build_internal_failure(row_id)

    def prepare_item(self, item: Item) -> Request | Failure:
        try:
            return self.build_request(item)
        except ItemError as error:
            return error.to_failure(item.id)
        except PipelineError:
            raise  # about the worker, not the row
        except Exception:  # noqa: BLE001 - the row boundary
            return build_internal_failure(item.id)

    def build_request(self, item: Item) -> Request:
        ends = time.monotonic() + self.context.job.limits.deadline_s
        turns: tuple[Turn, ...] = ()
        for turn in item.turns:
            parts, ends = self.prepare_parts(turn, ends)
            turns = (*turns, Turn(turn.role, parts))
        sampling = self.build_sampling(item)
        with self.timer.measure("prompt"):
            encoded = self.family.encode_turns(turns)
            self.family.check_length(encoded, sampling.max_new_tokens + (sampling.max_thinking_tokens or 0))
        return Request(item.id, turns, encoded.input_ids, encoded.positions, encoded.vision_tokens, sampling)

    def prepare_parts(self, turn: Turn, deadline: float) -> tuple[tuple[str | Clip, ...], float]:
        """What a turn shows and says, and until when the rest of the row has time."""
        parts: list[str | Clip] = []
        for part in turn.parts:
            if isinstance(part, MediaRef):
                left = deadline - time.monotonic()
                clips = load_clips(
                    part, fetcher=self.fetcher, clip_decoder=self.clip_decoder, meter=self.timer, deadline_s=left
                )
                deadline += sum(EXTRA_S_PER_FRAME * len(clip.times) for clip in clips)
                parts += clips
            else:
                parts.append(part)
        return tuple(parts), deadline

    def build_sampling(self, item: Item) -> Sampling:
        """The seed is of the job's seed and the row's id, so that a retry anywhere says the same again."""
        answer = self.context.job.answer
        seed = int.from_bytes(hashlib.blake2b(f"{answer.seed}\0{item.id}".encode(), digest_size=4).digest())
        thinking = answer.thinking.max_tokens if answer.thinking else 2048 if self.family.thinking else None
        return Sampling(
            max_new_tokens=item.max_new_tokens or answer.max_new_tokens,
            temperature=answer.temperature,
            top_p=answer.top_p,
            top_k=answer.top_k,
            seed=seed,
            max_thinking_tokens=thinking,
        )

    def close(self) -> None:
        self.fetcher.close()
        self.clip_decoder.close()
