"""Names files after rows. The names are the same in every export, and truths find their rows by them."""

from __future__ import annotations

import hashlib
import re

LONGEST_PLAIN_NAME = 100


def name_medium(row_id: str, index: int = 0, second: float | None = None) -> str:
    """A file name without its extension, for one medium of a row or for a frame of it.

    >>> name_medium("scan-7"), name_medium("scan-7", 1), name_medium("scan-7", 0, 2.5), name_medium("a/b.png")
    ('scan-7', 'scan-7~2', 'scan-7~1~2.500s', 'a_b.png~7f336a151c')
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", row_id)[:LONGEST_PLAIN_NAME]
    if name != row_id or name.startswith("."):  # another id could be cut to the same name
        name = f"{name.lstrip('.')}~{hashlib.blake2b(row_id.encode(), digest_size=5).hexdigest()}"
    if second is not None:
        return f"{name}~{index + 1}~{second:.3f}s"
    return f"{name}~{index + 1}" if index else name
