"""Writes files on a local disk so that readers see them whole or not at all.

The data goes into a temporary file in the same folder first; its name starts with a dot, which listings skip.
"""

from __future__ import annotations

import io
import os
import shutil
import uuid
from pathlib import Path
from typing import IO


def create_file(path: str, data: bytes) -> bool:
    """Create a file; False if it exists already."""
    temp_path = _write_temp_file(path, data)
    try:
        os.link(temp_path, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(temp_path)
    return True


def replace_file(path: str, data: bytes) -> None:
    os.replace(_write_temp_file(path, data), path)


def copy_file(source: Path, path: str) -> None:
    with open(source, "rb") as data:
        os.replace(_write_temp_file(path, data), path)


def _write_temp_file(path: str, data: bytes | IO[bytes]) -> str:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temp_path = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temp_path, "wb") as file:
            shutil.copyfileobj(io.BytesIO(data) if isinstance(data, bytes) else data, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if os.path.exists(temp_path):
            os.unlink(temp_path)
        raise
    return temp_path
