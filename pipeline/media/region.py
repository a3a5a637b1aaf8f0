"""Regions of a picture: composed as fractions, then rounded to pixels once."""

from __future__ import annotations

from pipeline.types import FractionRegion, PixelRegion, Size

WHOLE: FractionRegion = (0.0, 0.0, 1.0, 1.0)


def compose_regions(outer: FractionRegion, inner: FractionRegion) -> FractionRegion:
    """A region of a region, as a region of the picture.

    >>> compose_regions((0.5, 0.0, 1.0, 1.0), (0.0, 0.25, 0.5, 1.0))
    (0.5, 0.25, 0.75, 1.0)
    """
    left, top, right, bottom = outer
    width, height = right - left, bottom - top
    return left + inner[0] * width, top + inner[1] * height, left + inner[2] * width, top + inner[3] * height


def to_pixel_region(region: FractionRegion | None, source_size: Size) -> PixelRegion | None:
    """At least one pixel; None where the region is None.

    >>> to_pixel_region((0.5, 0.0, 1.0, 0.001), (101, 60))
    (50, 0, 101, 1)
    """
    if region is None:
        return None
    width, height = source_size
    left, top = min(round(region[0] * width), width - 1), min(round(region[1] * height), height - 1)
    return left, top, max(left + 1, round(region[2] * width)), max(top + 1, round(region[3] * height))


def get_shown_size(region: PixelRegion | None, source_size: Size) -> Size:
    return source_size if region is None else (region[2] - region[0], region[3] - region[1])
