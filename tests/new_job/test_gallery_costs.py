"""What the jobs of the gallery say of their cost is what `plan` says, and README.md names every job."""

from __future__ import annotations

import re

import pytest

from pipeline.new_job.gallery import COST_COMMENT, JOBS_FOLDER, list_gallery
from tests.new_job.gallery_costs import list_costs


@pytest.mark.slow
@pytest.mark.process
def test_the_costs_in_the_jobs_are_those_that_plan_estimates():
    for path, lines in list_costs([*list_gallery()]):
        found = COST_COMMENT.findall(path.read_text(encoding="utf-8"))
        assert found == ["\n".join(lines) + "\n"], f"{path}: python -m tests.new_job.gallery_costs"


def test_readme_says_which_job_is_for_which_task_and_what_it_costs():
    readme = (JOBS_FOLDER.parent / "README.md").read_text(encoding="utf-8")
    rows = [line for line in readme.splitlines() if line.startswith("|") and "`jobs/" in line]
    named = {row: re.findall(r"`jobs/(\w+)\.yaml`", row) for row in rows}
    assert sorted(task for tasks in named.values() for task in tasks) == sorted(list_gallery())
    for row, tasks in named.items():
        texts = [(JOBS_FOLDER / f"{task}.yaml").read_text(encoding="utf-8") for task in tasks]
        hours = [found[1] for text in texts if (found := re.search(r"one H100 (.*?) hours", text))]
        assert row.endswith(f"| {', '.join(hours)} |"), row
