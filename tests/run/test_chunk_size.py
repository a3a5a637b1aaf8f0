"""A chunk has as many rows as weigh a bound when they are prepared, and no run holds more than a piece of one."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import prepare
from pipeline.__main__ import main
from pipeline.answer import Answerer
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.media.decode import ClipDecoder
from pipeline.prepare import Preparer, weigh_row
from pipeline.run import chunk_size
from pipeline.run.preflight import build_run_context
from pipeline.run.resume import split_in_process
from tests.media.sample_media import write_video

BY_DEFAULT = {"output": {"chunk_rows": None}}


def write_documents(folder: Path):
    pages = [Image.new("RGB", (300, 400), (page * 60, 0, 0)) for page in range(4)]
    pages[0].save(folder / "a.pdf", save_all=True, append_images=pages[1:])
    return [{"id": f"r{n}", "image": "a.pdf", "hint": "h"} for n in range(10)], {}


def write_videos_that_claim_to_be_pictures(folder: Path):
    write_video(folder / "a.mp4", 40).rename(folder / "a.png")
    return [{"id": f"r{n}", "image": "a.png", "hint": "h"} for n in range(10)], {}


def write_chats_with_many_pictures(folder: Path):
    Image.new("RGB", (90, 60)).save(folder / "a.png")
    content = [{"type": "image", "image": "a.png"}] * 12
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": "Which?"}]}]
    sections = {"input": {"media": [], "messages": "chat"}, "prompt": {"user": None}}
    return [{"id": f"r{n}", "chat": json.dumps(chat), "hint": "h"} for n in range(10)], sections


def build_context(workspace, **sections):
    job = Job.model_validate(workspace.build_job(**sections, **BY_DEFAULT))
    files = list_manifest_files(job)
    return build_run_context(job, files), files


@pytest.mark.process
@pytest.mark.parametrize(
    "write_rows", [write_documents, write_videos_that_claim_to_be_pictures, write_chats_with_many_pictures]
)
def test_heavy_rows_that_settings_do_not_tell_make_small_chunks(workspace, monkeypatch, write_rows):
    rows, sections = write_rows(workspace.folder)
    workspace.write_manifest(rows)
    context, files = build_context(workspace, **sections)
    expected = chunk_size.choose_chunk_size(context, files)
    assert (expected.rows, expected.is_unusual) == (89, False)
    with closing(Preparer(context)) as preparer:
        chunks = [chunk for chunk, _ in split_in_process(context.job, files, context.schema_prompt)]
        weights = [weigh_row(row) for chunk in chunks for row in preparer.prepare_chunk(chunk)]
    assert min(weights) > 40 * 30 * 3
    monkeypatch.setattr(chunk_size, "TARGET_CHUNK_BYTES", 3 * max(weights) + 1)
    lowered = chunk_size.choose_chunk_size(context, files)
    assert (lowered.rows, lowered.is_unusual) == (3, True)
    monkeypatch.setattr(chunk_size, "TARGET_CHUNK_BYTES", 10)
    assert chunk_size.choose_chunk_size(context, files).rows == 1


@pytest.fixture
def heavy_rows(workspace, monkeypatch):
    """Ten rows of which two are a chunk by default."""
    rows = workspace.draw_images(10)
    workspace.write_manifest(rows)
    context, files = build_context(workspace)
    (weight,) = set(chunk_size.look_at_first_rows(context, files).weights)
    monkeypatch.setattr(chunk_size, "TARGET_CHUNK_BYTES", 2 * weight)
    return rows


def test_later_runs_and_exports_cut_what_the_first_run_has_cut(workspace, heavy_rows, monkeypatch, capsys):
    assert workspace.run_job(**BY_DEFAULT) == 0
    assert workspace.messages[0].startswith(
        "chunks of 2 rows: the first rows weigh 0.0 MiB each when they are prepared"
    )
    first_parts = workspace.list_parts()
    assert len(first_parts) == 5
    monkeypatch.setattr(chunk_size, "TARGET_CHUNK_BYTES", 2**40)
    workspace.write_manifest([*heavy_rows, *workspace.draw_images(3, start=10)])
    assert workspace.run_job(**BY_DEFAULT) == 0
    assert "13 rows, 10 done before; 3 to do in 2 chunks" in workspace.messages[0]
    assert workspace.list_parts().items() >= first_parts.items()
    assert Counter(workspace.list_answered_ids()) == Counter(f"r{number}" for number in range(13))
    job = str(workspace.write_job_file(**BY_DEFAULT))
    assert main(["export", job, str(workspace.folder / "table")]) == 0
    assert "13 rows" in capsys.readouterr().out
    assert main(["plan", job]) == 0
    assert "13 rows, 13 done before, 0 to do" in capsys.readouterr().out


def test_an_output_that_notes_no_number_keeps_its_chunks(workspace, heavy_rows, monkeypatch):
    with monkeypatch.context() as light:
        light.setattr(chunk_size, "TARGET_CHUNK_BYTES", 2**40)
        assert workspace.run_job(**BY_DEFAULT) == 0
    [question] = (workspace.folder / "out/questions").iterdir()
    values = json.loads(question.read_text())
    assert values.pop("chunk_rows") == 89
    question.write_text(json.dumps(values))
    (first_part,) = workspace.list_parts()
    workspace.write_manifest([*heavy_rows, *workspace.draw_images(2, start=10)])
    assert workspace.run_job(**BY_DEFAULT) == 0
    assert "2 to do in 1 chunk" in workspace.messages[0]
    assert len(workspace.list_parts()) == 2
    assert first_part in workspace.list_parts()


def test_the_plan_says_how_chunks_are_cut(workspace, heavy_rows, capsys):
    assert main(["plan", str(workspace.write_job_file(**BY_DEFAULT))]) == 0
    assert "chunks          of 2 rows: the first rows weigh" in capsys.readouterr().out
    assert main(["plan", str(workspace.write_job_file())]) == 0
    assert "chunks          of 4 rows: output.chunk_rows" in capsys.readouterr().out


def test_media_are_not_read_where_the_number_is_known(workspace, heavy_rows, monkeypatch):
    opened = []
    monkeypatch.setattr(chunk_size, "Preparer", opened.append)
    assert workspace.run_job() == 0
    assert workspace.run_job(**BY_DEFAULT) == 0
    assert opened == []


def test_rows_that_cannot_be_read_do_not_count(workspace, monkeypatch):
    workspace.write_manifest(workspace.write_broken_images(3))
    assert chunk_size.choose_chunk_size(*build_context(workspace)).rows == 89


def test_a_chunk_that_is_too_heavy_is_answered_in_pieces_and_committed_whole(workspace, monkeypatch):
    workspace.write_manifest([*workspace.draw_images(5), *workspace.write_broken_images(1)])
    context, files = build_context(workspace)
    weight = chunk_size.look_at_first_rows(context, files).weights[0]
    monkeypatch.setattr(prepare, "MAX_PIECE_BYTES", 2 * weight)
    answer_items, sizes, pixels = Answerer.answer_items, [], []
    read = ClipDecoder.decode

    def count_rows(self, prepared_items):
        sizes.append(len(prepared_items))
        return answer_items(self, prepared_items)

    def record_pixels(self, *arguments, **options):
        clips = read(self, *arguments, **options)
        pixels.extend(weakref.ref(clip.pixels) for clip in clips)
        assert sum(reference() is not None for reference in pixels) <= 3  # of the piece, and the row to come
        return clips

    monkeypatch.setattr(Answerer, "answer_items", count_rows)
    monkeypatch.setattr(ClipDecoder, "decode", record_pixels)
    assert workspace.run_job(output={"chunk_rows": 6}) == 3
    assert sizes == [2, 2, 2]
    assert len(pixels) == 5
    assert np.array_equal(workspace.list_answered_ids(), [f"r{number}" for number in range(5)])
    assert len(workspace.list_parts()) == 1
