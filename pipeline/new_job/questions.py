"""Asks at a terminal for what `init` was not told. Elsewhere, what is missing is an error that names the flag."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.prompt import Prompt

from pipeline.errors import PipelineError
from pipeline.job.job_loader import parse_job
from pipeline.new_job.gallery import find_gallery_job, list_gallery
from pipeline.new_job.schema_text import FIELDS_HELP
from pipeline.new_job.write_job import NewJob

DEFAULT_TASK = "caption"
OWN_FIELDS = "fields"  # a schema of one's own, for a task that the gallery does not have


def complete_answers(given: Mapping[str, Any]) -> NewJob:
    """The options of the command line, completed by asking."""
    options = {name: value for name, value in given.items() if value is not None}
    is_asking = sys.stdin.isatty() and "manifest" not in options
    if is_asking:
        options = ask_missing(options)
    elif "manifest" not in options:
        raise PipelineError("init needs --manifest: a folder of media, or a table with a column of URIs")
    task = options.get("task", DEFAULT_TASK)
    path = Path(options.get("to") or f"{OWN_FIELDS if options.get('fields') and 'task' not in options else task}.yaml")
    names = ("manifest", "model", "gpus", "url", "fields", "prompt", "media", "id")
    return NewJob(path, task, **{name: options[name] for name in names if name in options})


def ask_missing(options: dict[str, Any]) -> dict[str, Any]:
    console, gallery = Console(), list_gallery()
    if "task" not in options and "fields" not in options:
        for job in gallery.values():
            console.print(f"  {job.task:<10} {job.summary}", highlight=False)
        console.print(
            f"  {OWN_FIELDS:<10} Reads fields of your own from every picture, video or page.", highlight=False
        )
        task = Prompt.ask("What should the model do", choices=[*gallery, OWN_FIELDS], default=DEFAULT_TASK)
        if task == OWN_FIELDS:
            options["prompt"] = Prompt.ask("What to ask about each")
            options["fields"] = Prompt.ask(f"Which fields ({FIELDS_HELP})")
        else:
            options["task"] = task
    options["manifest"] = Prompt.ask("A folder of media, or a table with a column of URIs")
    template = parse_job(find_gallery_job(options.get("task", DEFAULT_TASK)).text, environment={"LLM_KEY": ""})
    if "model" not in options and "url" not in options and template.model.weights:
        options["model"] = Prompt.ask("Which model", default=template.model.weights)
        options.setdefault("gpus", int(Prompt.ask("GPUs for one copy of it; 0 runs on CPU", default="1")))
    return options
