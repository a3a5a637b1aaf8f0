"""Asks at a terminal for what `init` was not told. Elsewhere, what is missing is an error that names the flag."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.prompt import IntPrompt, Prompt

from pipeline.command_text import wrap_line
from pipeline.errors import PipelineError
from pipeline.job.job_loader import parse_job
from pipeline.job.spec import Job
from pipeline.manifest.files import list_manifest_files
from pipeline.new_job.gallery import find_gallery_job, list_gallery
from pipeline.new_job.job_text import set_keys
from pipeline.new_job.schema_text import FIELDS_HELP, parse_fields
from pipeline.new_job.write_job import NewJob

DEFAULT_TASK = "caption"
OWN_FIELDS = "fields"  # a schema of one's own, for a task that the gallery does not have


def complete_answers(given: Mapping[str, Any]) -> NewJob:
    """The options of the command line, completed by asking."""
    options = {name: value for name, value in given.items() if value is not None}
    is_asking = sys.stdin.isatty() and "manifest" not in options
    if is_asking:
        try:
            options = ask_missing(options)
        except EOFError as error:
            raise PipelineError("the questions were not answered to the end, so nothing was written") from error
    elif "manifest" not in options:
        raise PipelineError("init needs --manifest: a folder of media, or a table with a column of URIs")
    task = options.get("task", DEFAULT_TASK)
    path = Path(options.get("to") or f"{name_job(options)}.yaml")
    names = ("manifest", "model", "gpus", "url", "fields", "prompt", "media", "id")
    return NewJob(path, task, **{name: options[name] for name in names if name in options})


def name_job(options: Mapping[str, Any]) -> str:
    return OWN_FIELDS if options.get("fields") and "task" not in options else options.get("task", DEFAULT_TASK)


def ask_missing(options: dict[str, Any]) -> dict[str, Any]:
    console, gallery = Console(), list_gallery()
    if "task" not in options and "fields" not in options:
        summaries = {job.task: job.summary for job in gallery.values()}
        summaries[OWN_FIELDS] = "Reads fields of your own from every picture, video or page."
        for task, summary in summaries.items():
            line = wrap_line(f"  {task:<10} {summary}", console.width, indent=13)
            console.print(line, markup=False, highlight=False)
        task = Prompt.ask("What should the model do", choices=[*summaries], show_choices=False, default=DEFAULT_TASK)
        if task == OWN_FIELDS:
            options["prompt"] = Prompt.ask("What to ask about each")
            options["fields"] = ask_until_valid(console, f"Which fields ({FIELDS_HELP})", parse_fields)
        else:
            options["task"] = task
    template = find_gallery_job(options.get("task", DEFAULT_TASK)).text
    options["manifest"] = ask_until_valid(
        console,
        "A folder of media, or a table with a column of URIs",
        lambda manifest: list_manifest_files(parse_template(set_keys(template, {"input.manifest": manifest}))),
    )
    weights = parse_template(template).model.weights
    if "model" not in options and "url" not in options and weights:
        options["model"] = Prompt.ask("Which model", default=weights)
        if "gpus" not in options:
            options["gpus"] = IntPrompt.ask("GPUs for one copy of it; 0 runs on CPU", default=1)
    if "to" not in options and Path(f"{name_job(options)}.yaml").exists():
        names = (f"{name_job(options)}-{number}.yaml" for number in count(2))
        options["to"] = Prompt.ask(
            f"{name_job(options)}.yaml exists. Which file to write",
            default=next(name for name in names if not Path(name).exists()),
        )
    return options


def parse_template(text: str) -> Job:
    return parse_job(text, environment={"LLM_KEY": ""})


def ask_until_valid(console: Console, question: str, check: Callable[[str], object]) -> str:
    while True:
        answer = Prompt.ask(question)
        try:
            check(answer)
            return answer
        except PipelineError as error:
            console.print(str(error), markup=False, highlight=False, soft_wrap=True)
