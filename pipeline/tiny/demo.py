"""A folder -> drawn pictures, a manifest, and a job run over them on the built-in model: the first ten minutes.

The built-in model has random weights for now, so its captions mean nothing; everything around it is the real thing.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from pipeline import jobfile
from pipeline.run import drive
from pipeline.run.progress import say

COLORS = ("red", "green", "blue", "orange", "purple", "black")
PICTURES = 24
JOB = Path(__file__).parents[2] / "jobs" / "demo" / "caption.yaml"


def draw(seed: int) -> tuple[Image.Image, str]:
    """A picture of one shape, and what is on it."""
    chance = random.Random(seed)
    width, height = chance.randrange(160, 480), chance.randrange(160, 480)
    picture = Image.new("RGB", (width, height), "white")
    color, shape = chance.choice(COLORS), chance.choice(("square", "circle"))
    side = chance.randrange(40, min(width, height) - 20)
    left, top = chance.randrange(0, width - side), chance.randrange(0, height - side)
    pen = ImageDraw.Draw(picture)
    (pen.rectangle if shape == "square" else pen.ellipse)((left, top, left + side, top + side), fill=color)
    return picture, f"{color} {shape}"


def make(folder: Path) -> Path:
    """Pictures and their manifest; the same seed draws the same picture."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(PICTURES):
        picture, truth = draw(seed)
        name = f"pictures/{seed:03}.png"
        picture.save(folder / name)
        rows.append({"id": f"{seed:03}", "image": name, "truth": truth})
    manifest = folder / "manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), manifest)
    return manifest


def demo(folder: str) -> int:
    place = Path(folder)
    manifest = make(place)
    say(f"{PICTURES} pictures drawn in {place / 'pictures'}, listed in {manifest}; job: {JOB.name}")
    job = jobfile.load(JOB, changes=[f"input.manifest={manifest}", f"output.path={place / 'captions'}"])
    code = drive.run(job)
    answers = ds.dataset(place / "captions" / "data").to_table(["id", "truth", "answer", "tokens"]).to_pylist()
    for row in sorted(answers, key=lambda row: str(row["id"]))[:3]:
        say(f"  {row['id']}  {row['truth']}: {row['answer']}")
    say(
        "The built-in model has random weights: its answers are valid JSON of the asked schema, and nothing more.\n"
        "Next, a real model over your own pictures:\n"
        "  python -m pipeline run jobs/caption.yaml --set input.manifest=./my-pictures --limit 20"
    )
    return code
