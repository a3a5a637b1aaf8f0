"""A temporary folder for downloads that disappears with its worker, even if the worker is killed.

The owner holds a lock on a file in the folder, and the kernel releases the lock when the process ends. The next worker
on the machine deletes folders whose lock is free. Otherwise killed workers would fill the disk with partial videos.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

FOLDER_PREFIX, LOCK_NAME = "vlbatch-", ".lock"
MIN_ABANDONED_AGE_S = 60.0  # a younger folder may not be locked yet


class ScratchFolder:
    def __init__(self) -> None:
        delete_abandoned_folders(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self.lock_descriptor = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock_descriptor, fcntl.LOCK_EX)

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock_descriptor)


def delete_abandoned_folders(parent_folder: Path) -> None:
    for lock in parent_folder.glob(f"{FOLDER_PREFIX}*/{LOCK_NAME}"):
        try:
            if time.time() - lock.stat().st_mtime < MIN_ABANDONED_AGE_S:
                continue
            with open(lock, "r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # in use, of another user, or just deleted by another worker
            continue
