"""Create small typed invoices. Each character has a cell of its own, about a patch wide.

The order of the parts, the words before them, margins, gaps and the size of the scan vary. The page holds everything
that the answer holds, and the amounts add up.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from pipeline.builtin.drawing import PrintedCharacter, Scene

SELLERS = ("Acme", "Borel", "Cedar", "Delta", "Ember", "Fjord", "Gamma", "Hazel", "Ibis", "Juno", "Kappa", "Lotus")
GOODS = ("Paper", "Ink", "Lamp", "Chair", "Desk", "Cable", "Glue", "Pens", "Toner", "Clips", "Shelf", "Stamp")
CURRENCIES = ("EUR", "USD", "GBP", "CHF")
NUMBER_WORDS, DATE_WORDS, TOTAL_WORDS = ("No ", "Inv ", "Nr "), ("", "Date "), ("Total", "Sum", "To pay")
CHARACTER_WIDTH, LINE_HEIGHT, COLUMNS = 14, 28, 16  # the first two in pixels as the model sees them
NO_FIELD, SELLER, NUMBER, DATE, CURRENCY, TOTAL, GOOD, AMOUNT = range(8)  # each further line has two more fields
TypedCharacter = tuple[int, str, int, int]  # column, character, field, index in the field


def create_invoice_scene(rng: random.Random) -> Scene:
    amounts = [rng.randrange(100, 9999 if rng.random() < 0.6 else 999) for _ in range(rng.choice((1, 2, 2, 3)))]
    truth = {
        "number": str(rng.randrange(1000, 99999)),
        "issued": f"20{rng.randrange(20, 30)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
        "seller": {"name": rng.choice(SELLERS)},
        "currency": rng.choice(CURRENCIES),
        "lines": [{"description": rng.choice(GOODS), "amount": format_amount(amount)} for amount in amounts],
        "taxes": [],
        "total": format_amount(sum(amounts)),
    }
    return create_page_scene(rng, truth, list(lay_out_lines(rng, truth)))


def format_amount(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


def lay_out_lines(rng: random.Random, truth: dict[str, Any]) -> Iterator[list[TypedCharacter]]:
    """The lines of the page as lists of characters; an empty list is a gap."""
    title = place_text(rng.choice((0, 2)), truth["seller"]["name"], SELLER)
    number = place_text(0, rng.choice(NUMBER_WORDS)) + place_text(6 - len(truth["number"]) + 5, truth["number"], NUMBER)
    word = rng.choice(DATE_WORDS)
    date = place_text(0, word) + place_text(len(word) or 1, truth["issued"], DATE)
    yield title
    header_lines = [number, date]
    rng.shuffle(header_lines)
    yield from header_lines
    if rng.random() < 0.5:
        yield []
    for index, line in enumerate(truth["lines"]):
        description = place_text(0, line["description"], GOOD + 2 * index)
        yield description + place_text(COLUMNS - len(line["amount"]), line["amount"], AMOUNT + 2 * index)
    if rng.random() < 0.3:
        yield []
    total = place_text(COLUMNS - len(truth["total"]), truth["total"], TOTAL)
    yield (
        place_text(0, rng.choice(TOTAL_WORDS))
        + place_text(COLUMNS - len(truth["total"]) - 4, truth["currency"], CURRENCY)
        + total
    )


def list_printed_fields(truth: dict[str, Any]) -> Iterator[tuple[int, str]]:
    """(field, text) of everything that the answer reads off the page, in the order of the answer."""
    yield from ((NUMBER, truth["number"]), (DATE, truth["issued"]))
    yield from ((SELLER, truth["seller"]["name"]), (CURRENCY, truth["currency"]))
    for index, line in enumerate(truth["lines"]):
        yield from ((GOOD + 2 * index, line["description"]), (AMOUNT + 2 * index, line["amount"]))
    yield TOTAL, truth["total"]


def place_text(column: int, text: str, field: int = NO_FIELD) -> list[TypedCharacter]:
    return [(column + index, character, field, index) for index, character in enumerate(text) if character != " "]


def create_page_scene(rng: random.Random, truth: dict[str, Any], lines: list[list[TypedCharacter]]) -> Scene:
    scale = rng.uniform(1.0, 2.0)
    margin_x, margin_y = rng.uniform(0, 10) * scale, rng.uniform(0, 10) * scale
    width = round(scale * (CHARACTER_WIDTH * COLUMNS + rng.uniform(14, 28)))
    height = round(scale * (LINE_HEIGHT * len(lines) + rng.uniform(14, 28)))
    paper = rng.choice(((255, 255, 255), (250, 246, 236), (240, 244, 250)))
    ink = rng.choice(((0, 0, 0), (20, 20, 80), (60, 30, 20)))
    characters = [
        PrintedCharacter(
            margin_x + scale * CHARACTER_WIDTH * (typed[0] + 0.5),
            margin_y + scale * LINE_HEIGHT * (row + 0.5),
            *typed[1:],
        )
        for row, line in enumerate(lines)
        for typed in line
    ]

    def draw(_: int) -> Image.Image:
        page = Image.new("RGB", (width, height), paper)
        pen = ImageDraw.Draw(page)
        for each in characters:
            pen.text((each.x, each.y), each.text, fill=ink, font=load_font(round(20 * scale)), anchor="mm")
        return page

    return Scene("invoice", truth, (width, height), draw, characters=characters)


@functools.lru_cache(maxsize=64)
def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
