"""Writes files on a local disk so that readers see them whole or not at all.

The data goes into a temporary file in the same folder first; its name starts with a dot, which listings skip.
"""

from __future__ import annotations

import ctypes
import io
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from pipeline.errors import OutputError


def create_file(path: str, data: bytes, check_allowed: Callable[[], object]) -> bool:
    """Create a file; False if it exists already. `check_allowed` is called just before, and may raise."""
    temp_path = _write_temp_file(path, data)
    try:
        check_allowed()
        os.link(temp_path, path)
    except OSError as error:
        # NFS repeats a request whose reply was lost, and the repeated one fails because the first one succeeded.
        if os.path.exists(path) and os.path.samefile(temp_path, path):
            return True
        if isinstance(error, FileExistsError):
            return False
        raise
    finally:
        with suppress(OSError):  # the file is there, whatever happens to its other name
            os.unlink(temp_path)
    with suppress(OSError):
        os.utime(path)  # from when it is there, not from when it was written
    return True


def replace_file(path: str, data: bytes, *, sync: bool = True) -> None:
    os.replace(_write_temp_file(path, data, sync=sync), path)


def sync_files(folder: str) -> None:
    """Wait until all files of the folder's file system are on its disk. Python has no call for one file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "syncfs"):  # not Linux
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), folder)
    finally:
        os.close(descriptor)


def write_named_file(file: Path, data: bytes, *, option: str = "--to") -> None:
    """Write a file that an option of a command names."""
    try:
        replace_file(str(file.absolute()), data)
    except OSError as error:
        reason = f"cannot be written: {error.strerror}"
        raise OutputError(f"{file}: {reason}; name another file with {option}") from error


def copy_file(source: Path, path: str) -> None:
    with open(source, "rb") as data:
        os.replace(_write_temp_file(path, data), path)


def _write_temp_file(path: str, data: bytes | IO[bytes], *, sync: bool = True) -> str:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temp_path = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    try:
        with open(temp_path, "wb") as file:
            shutil.copyfileobj(io.BytesIO(data) if isinstance(data, bytes) else data, file)
            if sync:
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        if os.path.exists(temp_path):
            os.unlink(temp_path)
        raise
    return temp_path
