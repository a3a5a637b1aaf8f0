"""An output folder -> one HTML page to look at: figures, a gallery with what the model saw and said, errors by reason.

Opens offline, from any disk. Reads the output and the media it speaks of; writes only the page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError, OutputError
from pipeline.inspect.report.cards import card, content, is_wide
from pipeline.inspect.report.charts import Palette
from pipeline.inspect.report.gather import Wish, gather, groups
from pipeline.inspect.report.page import render
from pipeline.inspect.report.pictures import Album
from pipeline.inspect.status import Folder, open_output
from pipeline.job.spec import Job
from pipeline.output.answer.geometry import meanings


@dataclass(frozen=True, slots=True)
class Written:
    path: Path
    rows: int
    bytes: int


def report(path: str, to: Path, *, wish: Wish | None = None, question: str | None = None) -> Written:
    """Write the page for one question of an output: the one named, or the one asked last."""
    wish = wish or Wish()
    folder = open_output(path, question)
    figures, chosen = gather(folder.store, folder.fingerprint, wish)
    if missing := set(wish.ids) - {each.row["id"] for each in chosen}:
        raise JobError(f"--id {min(missing)}: no row of that id is answered in {path}")
    found = groups(folder.wrong())
    means = meanings(schema_of(folder.question))
    palette = Palette()
    with closing(Album(job_of(folder))) as album:
        wide = any(is_wide(each.row) for each in chosen)  # all alike: a page that is easy to scan
        cards = [card(each, means, album.picture, palette, wide=wide) for each in chosen]
    html = render(content(folder, figures, found, cards))
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(html, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{to}: cannot be written: {error.strerror}; name another place with --to") from error
    return Written(to, len(cards), len(html.encode()))


def schema_of(question: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema that the answers fit; empty where they are text."""
    text = str(question.get("answer", {}).get("schema", "")).rpartition("\n")[2]
    found: dict[str, Any] = json.loads(text) if text.startswith("{") else {}
    return found


def job_of(folder: Folder) -> Job:
    """The job that asked, for where its media may be looked for."""
    nowhere = {"name": "-", "input": {"manifest": "-"}, "model": {"weights": "-"}, "output": {"path": "-"}}
    try:
        return Job.model_validate(folder.job or nowhere)
    except ValidationError:  # of another version
        return Job.model_validate(nowhere)
