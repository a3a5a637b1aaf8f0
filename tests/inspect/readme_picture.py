"""Takes the picture of a report that README shows: python -m tests.inspect.readme_picture"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import vlbatch
from pipeline.builtin.scene_files import write_scene_files
from pipeline.inspect.report import write_report
from pipeline.inspect.report.statistics import ReportOptions
from tests.inspect.browser import Browser

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "jobs" / "demo" / "report.webp"
SIZE = (1500, 900)
SHOWN_SCENES = range(100_006, 100_015)


def take_picture(folder: Path) -> Image.Image:
    """The top of the report of the demo's job for boxes, with the truths beside the answers."""
    scenes, output = folder / "scenes", folder / "answers"
    write_scene_files(scenes, "detect", 16, first_scene=100_000)
    manifest = str(scenes / "manifest.parquet")
    changes = {"input.manifest": manifest, "input.keep": [], "output.path": str(output)}
    vlbatch.run(vlbatch.load_job(ROOT / "jobs/demo/detect.yaml", changes), say=lambda line: None)
    rows = tuple(f"detect-{number}" for number in SHOWN_SCENES)
    options = ReportOptions(0, 0, rows, roots=(str(scenes),), truth=manifest)
    write_report(str(output), folder / "report.html", options=options)
    browser = Browser()
    try:
        browser.open(folder / "report.html", *SIZE)
        browser.value(
            "document.querySelectorAll('figcaption').forEach((line) => line.remove())"
        )  # paths of this machine
        browser.value("document.querySelector('nav').scrollIntoView()")
        return browser.picture()
    finally:
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        take_picture(Path(folder)).save(PICTURE, quality=80)
