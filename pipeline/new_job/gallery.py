"""Lists the jobs in `jobs/`, which are the templates of new jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.registry import format_suggestion

JOBS_FOLDER = Path(__file__).parents[2] / "jobs"
JOB_SCHEMA_NAME = "job.schema.json"
COST_COMMENT = re.compile(r"^# Cost of .*\n(?:#   .*\n)+", re.MULTILINE)  # tests/new_job/gallery_costs.py writes it


@dataclass(frozen=True, slots=True)
class GalleryJob:
    task: str
    summary: str  # its first comment
    text: str  # without the comment on its cost, which holds for its own model and media


def list_gallery() -> dict[str, GalleryJob]:
    """By task, in alphabetical order."""
    jobs = {}
    for path in sorted(JOBS_FOLDER.glob("*.yaml")):
        text = COST_COMMENT.sub("", path.read_text(encoding="utf-8"))
        comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
        jobs[path.stem] = GalleryJob(path.stem, comments[1], text)  # the first comment is for editors
    return jobs


def find_gallery_job(task: str) -> GalleryJob:
    gallery = list_gallery()
    if task not in gallery:
        raise PipelineError(
            f"there is no task {task!r}; there are {', '.join(gallery)}{format_suggestion(task, gallery)}"
        )
    return gallery[task]
