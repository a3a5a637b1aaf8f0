"""Shows rows that are alike as rows of thumbnails, on a page in the style of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.inspect.neighbours import FoundRow
from pipeline.inspect.output_reader import OutputReader
from pipeline.inspect.report import build_media_access, load_original_job
from pipeline.inspect.report.page import render_page
from pipeline.inspect.report.previews import MediaPreview, PreviewLoader
from pipeline.inspect.report.statistics import ReportOptions
from pipeline.output.local_files import write_named_file

MAX_STRIPS, MAX_STRIP_ROWS, MAX_CHOSEN_ROWS = 100, 12, 1000
THUMBNAIL_SIDE = 220  # pixels


@dataclass(frozen=True, slots=True)
class Thumbnail:
    id: str
    label: str
    preview: MediaPreview | None  # None for a row without media


@dataclass(frozen=True, slots=True)
class Strip:
    heading: str
    thumbnails: Sequence[Thumbnail]
    more: int  # rows that are not shown


def write_page(reader: OutputReader, rows: Sequence[FoundRow], file: Path, title: str, access: ReportOptions) -> int:
    """Returns how many media are not shown because no option allows to read their place."""
    if rows and rows[0].of is None:  # a diverse choice
        groups = {"": list(rows)}
        max_rows = MAX_CHOSEN_ROWS
    else:
        groups = {str(of): list(members) for of, members in groupby(rows, key=lambda row: row.of)}
        max_rows = MAX_STRIP_ROWS
    shown = dict(list(groups.items())[:MAX_STRIPS])
    wanted = {row.id for members in shown.values() for row in members[:max_rows]} | shown.keys()
    media = read_first_media(reader, wanted)
    job = load_original_job(reader).model_copy(update={"input": build_media_access(reader.dataset.store.path, access)})
    with closing(PreviewLoader(job, max_image_side=THUMBNAIL_SIDE, max_frames=1)) as previews:

        def show(row_id: str, label: str) -> Thumbnail:
            info = media.get(row_id)
            return Thumbnail(row_id, label, previews.load_preview(info) if info else None)

        strips = [
            Strip(
                f"{of}: {len(members):,}" if of else f"{len(members):,} rows, in the order of the choice",
                [show(of, "")] * bool(of) + [show(row.id, format_cosine(row)) for row in members[:max_rows]],
                max(0, len(members) - max_rows),
            )
            for of, members in shown.items()
        ]
    values = {
        "name": reader.job.get("name", "answers"),
        "title": title,
        "path": reader.dataset.store.path,
        "fingerprint": reader.dataset.fingerprint,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "strips": strips,
        "more_strips": len(groups) - len(shown),
    }
    html = render_page(values, files(__package__).joinpath("neighbours.html.j2"))
    write_named_file(file, html.encode(), option="--page")
    return previews.withheld_media


def format_cosine(row: FoundRow) -> str:
    return "" if row.cosine is None else f"{row.cosine:.4f}"


def read_first_media(reader: OutputReader, ids: set[str]) -> dict[str, Mapping[str, Any]]:
    """The first medium of each of these rows, as the newest run saw it."""
    newest: dict[str, Mapping[str, Any]] = {}
    for part in reader.parts:
        for row in reader.dataset.read_part(part, ["id", "run", "media"]).to_pylist():
            if row["id"] in ids and row["media"] and row["run"] >= newest.get(row["id"], row)["run"]:
                newest[row["id"]] = row
    return {row_id: row["media"][0] for row_id, row in newest.items()}
