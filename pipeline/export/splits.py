"""Divides the rows of an export into splits such as train and val, by a hash of their ids.

A row stays in its split when others come or go.
"""

from __future__ import annotations

import hashlib
import re

from pipeline.errors import OutputError

Splits = tuple[tuple[str, float], ...]  # names and shares, which add up to 1


def parse_splits(text: str) -> Splits:
    """
    >>> parse_splits("train=0.9,val=0.1")
    (('train', 0.9), ('val', 0.1))
    """
    splits = re.findall(r"([A-Za-z][\w-]*)=(\d*\.?\d+)(?:,|$)", text)
    shares = {name: float(share) for name, share in splits}
    is_complete = ",".join(f"{name}={share}" for name, share in splits) == text and len(shares) == len(splits)
    if not is_complete or abs(sum(shares.values()) - 1) > 1e-6 or 0.0 in shares.values():
        raise OutputError(f"--split {text}: write names and their shares, which add up to 1: train=0.9,val=0.1")
    return tuple(shares.items())


def choose_split(row_id: str, splits: Splits) -> str:
    """The split of a row; empty without splits.

    >>> [choose_split(row_id, (("train", 0.5), ("val", 0.5))) for row_id in ("a", "b", "c")]
    ['train', 'val', 'train']
    """
    place = int.from_bytes(hashlib.blake2b(row_id.encode(), digest_size=8).digest()) / 2**64
    for name, share in splits:
        place -= share
        if place < 0:
            return name
    return splits[-1][0] if splits else ""
