"""Prepares rows for the model: reads the Items of a chunk, then turns each into a Request by a list of steps.

    steps that choose what is decoded      of the job's media.steps
    load_media                             fetch, decode, resize
    steps that change Clips                of the job's media.steps
    EncodePrompt                           tokens and positions

A row that fails in a step becomes a Failure. Planning uses the same Preparer with a fetcher and a decoder that read
headers.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from pipeline.context import RunContext, open_family
from pipeline.errors import ItemError, JobError, PipelineError, ReadError, build_internal_failure
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.versions import VersionReader
from pipeline.job.answer_section import AnswerSection
from pipeline.job.spec import MediaSection
from pipeline.job.step_settings import build_step
from pipeline.manifest.chunks import TARGET_CHUNK_BYTES, Chunk, read_chunk_rows
from pipeline.manifest.files import ManifestFile, read_with_retries
from pipeline.manifest.items import build_item
from pipeline.manifest.kept_columns import convert_kept_rows
from pipeline.manifest.row_reader import ManifestRow, RowReader
from pipeline.manifest.row_versions import check_row_versions
from pipeline.media.base import FrameDecoder, MediaFetcher
from pipeline.media.clips import list_sources, load_media
from pipeline.media.decode import ClipDecoder
from pipeline.media.steps.base import PreparationState, PreparationTools, Step, runs_before_loading
from pipeline.model.families.base import Family
from pipeline.model.row_encoders.base import RowEncoder
from pipeline.model.row_encoders.choose_encoder import choose_encoder
from pipeline.step_timer import StepTimer
from pipeline.types import (
    Clip,
    Failure,
    Item,
    MediaRef,
    PreparedItem,
    ReadItem,
    Request,
    RetryHistory,
    Sampling,
    SentItem,
    Turn,
)

DEFAULT_THINKING_TOKENS = 2048
MAX_PIECE_BYTES = 2 * TARGET_CHUNK_BYTES  # of prepared rows that are in memory together; a heavier row is alone
ResultT = TypeVar("ResultT")


class Preparer:
    """Holds what a prepare worker keeps open: connections, the decoder's process, the family's tokenizer."""

    def __init__(
        self, context: RunContext, *, fetcher: MediaFetcher | None = None, decoder: FrameDecoder | None = None
    ):
        job = context.job
        self.context = context
        self.timer = StepTimer()
        self.fetcher = fetcher or Fetcher(job)
        self.family = family = open_family(context)
        self.tools = PreparationTools(self.fetcher, ClipDecoder(job, family, decoder), family, self.timer)
        self.steps = list_steps(job.media, EncodePrompt(family, job.answer, choose_encoder(family, job.answer)))
        self.examples: tuple[Turn, ...] | None = None  # with Clips, once they are prepared
        self.row_reader: RowReader | None = None  # stands where the last chunk ended
        self.no_kept_values = dict.fromkeys(context.kept_schema.names)
        self.version_reader = None if job.input.version == "none" else VersionReader(job)

    def prepare_chunk(self, chunk: Chunk) -> list[PreparedItem]:
        """Every row that the chunk asks, as a Request or a Failure."""
        return list(self.prepare_items(self.read_items(chunk)))

    def prepare_pieces(self, chunk: Chunk) -> Iterator[list[PreparedItem]]:
        """The same in pieces: the next one is prepared when the one before is answered."""
        return cut_pieces(self.prepare_items(self.read_items(chunk)))

    def read_items(self, chunk: Chunk) -> list[ReadItem]:
        with self.timer.measure("read"):
            return read_with_retries(chunk.file, lambda: list(self.iterate_items(chunk)))

    def prepare_items(self, items: Sequence[SentItem]) -> Iterator[PreparedItem]:
        """In order, one at a time; the media of all are fetched ahead. What is prepared stays as it is."""
        parts = (part for item, _ in items for turn in item.turns for part in turn.parts)
        self.fetcher.prefetch([source for part in parts if isinstance(part, MediaRef) for source in list_sources(part)])
        for item, outcome in items:
            yield replace(item, turns=()), outcome or self.prepare_item(item)

    def iterate_items(self, chunk: Chunk) -> Iterator[ReadItem]:
        job, schema_prompt = self.context.job, self.context.schema_prompt
        reader = self._take_row_reader(chunk.file)
        rows = read_chunk_rows(chunk, reader)
        self.row_reader = reader
        kept_rows = convert_kept_rows(chunk.file, [row.values for row in rows], self.context.kept_schema)
        histories = dict(chunk.retry_histories)
        columns, base_folder = reader.columns, chunk.file.base_folder
        row_versions = self.read_versions(rows, reader)
        for row, kept_row, versions in zip(rows, kept_rows, row_versions, strict=True):
            history = histories.get(row.id, RetryHistory())
            kept_values = self.no_kept_values if isinstance(kept_row, ReadError) else kept_row
            empty_item = Item(row.id, row.question, (), kept_values, history=history)
            try:
                raise_if_error(kept_row)
                media_versions = raise_if_error(versions)
                item = build_item(row, columns, job, schema_prompt=schema_prompt, base_folder=base_folder)
                yield replace(item, kept_values=kept_values, history=history, media_versions=media_versions), None
            except ItemError as error:
                yield empty_item, error.to_failure(row.id)
            except Exception:  # noqa: BLE001 - an unexpected error costs one row
                yield empty_item, build_internal_failure(row.id)

    def read_versions(
        self, rows: Sequence[ManifestRow], reader: RowReader
    ) -> Sequence[tuple[str, ...] | ItemError | None]:
        if self.version_reader is None:
            return [None] * len(rows)
        uri_lists = [reader.list_uris(row.values, reader.file.base_folder) for row in rows]
        return check_row_versions(uri_lists, [row.version_digest for row in rows], self.version_reader)

    def _take_row_reader(self, file: ManifestFile) -> RowReader:
        """The last chunk's reader where that read the same file. After an error it is not used again."""
        reader, self.row_reader = self.row_reader, None
        if reader and reader.file == file:
            return reader
        return RowReader(self.context.job, file, self.context.schema_prompt)

    def prepare_item(self, item: Item) -> Request | Failure:
        try:
            return self.build_request(item)
        except ItemError as error:
            return error.to_failure(item.id)
        except PipelineError:
            raise  # about the worker, not the row
        except Exception:  # noqa: BLE001 - an unexpected error costs one row
            return build_internal_failure(item.id)

    def build_request(self, item: Item) -> Request:
        state = PreparationState(item, item.turns, time.monotonic() + self.context.job.limits.deadline_s)
        *steps, encode_prompt = self.steps
        for step in steps:
            state = step(state, self.tools)
        examples = self.load_examples()
        state = encode_prompt(replace(state, turns=insert_examples(state.turns, examples)), self.tools)
        assert state.request is not None
        clip_count = sum(isinstance(part, Clip) for turn in examples for part in turn.parts)
        return replace(state.request, example_clips=clip_count) if examples else state.request

    def load_examples(self) -> tuple[Turn, ...]:
        """Prepare the job's examples as rows are prepared, once."""
        if self.examples is None:
            turns = self.context.examples
            state = PreparationState(Item("", "", turns), turns, time.monotonic() + self.context.job.limits.deadline_s)
            try:
                for step in self.steps[:-1]:
                    state = step(state, self.tools)
            except ItemError as error:
                raise JobError(f"prompt.examples: {error.message}") from error
            self.examples = state.turns
        return self.examples

    def close(self) -> None:
        self.fetcher.close()
        if self.version_reader:
            self.version_reader.close()
        self.tools.clip_decoder.close()


def weigh_row(prepared_item: PreparedItem) -> int:
    """The bytes of its pixels. Those of examples are there once, whatever the number of rows."""
    request = prepared_item[1]
    return sum(clip.pixels.nbytes for clip in request.row_clips) if isinstance(request, Request) else 0


def cut_pieces(prepared_items: Iterable[PreparedItem]) -> Iterator[list[PreparedItem]]:
    piece: list[PreparedItem] = []
    weight = 0
    for prepared_item in prepared_items:
        piece.append(prepared_item)
        weight += weigh_row(prepared_item)
        if weight >= MAX_PIECE_BYTES:
            yield piece
            piece, weight = [], 0
    if piece:
        yield piece


def keep_first_piece(items: Sequence[ReadItem], prepared_items: Iterator[PreparedItem]) -> Iterator[SentItem]:
    """The rows of the first piece as they are prepared, and the others as they were read."""
    weight = 0
    for item in items:
        if weight >= MAX_PIECE_BYTES:
            yield item
        else:
            yield (prepared_item := next(prepared_items))
            weight += weigh_row(prepared_item)


def raise_if_error(value: ResultT | ItemError) -> ResultT:
    if isinstance(value, ItemError):
        raise value
    return value


def insert_examples(turns: tuple[Turn, ...], examples: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Examples stand behind the system message.

    >>> [turn.role for turn in insert_examples((Turn("system", ()), Turn("user", ())), (Turn("example", ()),))]
    ['system', 'example', 'user']
    """
    first = sum(turn.role == "system" for turn in turns[:1])
    return (*turns[:first], *examples, *turns[first:])


def list_steps(media: MediaSection, encode_prompt: Step) -> list[Step]:
    """The steps of every row, in order."""
    job_steps: list[Step] = [build_step(name, arguments) for step in media.steps for name, arguments in step.items()]
    return [
        *[step for step in job_steps if runs_before_loading(step)],
        load_media,
        *[step for step in job_steps if not runs_before_loading(step)],
        encode_prompt,
    ]


@dataclass(frozen=True, slots=True)
class EncodePrompt:
    """The last step: turns and their Clips become a Request."""

    family: Family
    answer: AnswerSection
    row_encoder: RowEncoder

    def __call__(self, state: PreparationState, tools: PreparationTools) -> PreparationState:
        sampling = self.build_sampling(state.item)
        with tools.timer.measure("prompt"):
            turns, encoded, continuations, pooling = self.row_encoder.encode_turns(state.turns)
            longest = max((len(part.token_ids) for part in continuations), default=0)
            budget = sampling.max_new_tokens + (sampling.max_thinking_tokens or 0)
            self.family.check_length(encoded, longest + budget)
        request = Request(
            state.item.id,
            turns,
            encoded.input_ids,
            encoded.positions,
            encoded.vision_tokens,
            sampling,
            estimated_tokens=encoded.estimated_tokens,
            continuations=continuations,
            pooling=pooling,
        )
        return replace(state, request=request)

    def build_sampling(self, item: Item) -> Sampling:
        """The seed depends on the job's seed and the row's id, so that every worker samples the same answer."""
        answer = self.answer
        if not answer.is_written:
            return Sampling(max_new_tokens=0)
        seed = int.from_bytes(hashlib.blake2b(f"{answer.seed}\0{item.id}".encode(), digest_size=4).digest())
        default_thinking = DEFAULT_THINKING_TOKENS if self.family.thinking else None
        return Sampling(
            max_new_tokens=item.max_new_tokens or answer.max_new_tokens,
            temperature=answer.temperature,
            top_p=answer.top_p,
            top_k=answer.top_k,
            seed=seed,
            max_thinking_tokens=answer.thinking.max_tokens if answer.thinking else default_thinking,
        )
