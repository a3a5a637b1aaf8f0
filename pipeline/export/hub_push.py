"""Puts an export on the Hugging Face hub, as one commit.

Files of an earlier push that the export does not have are deleted in the same commit, and files that are there already
are not sent again. A repository that is created for it is private.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

from pipeline.errors import OutputError
from pipeline.export.dataset_card import CARD
from pipeline.fetch.storage_clients import load_error_types
from pipeline.output.store import OutputStore

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
PUSHED_FOLDER = "data/"


def push_export(
    target: OutputStore, files: Sequence[str], repository: str, message: str, say: Callable[[str], None]
) -> None:
    client = huggingface_hub.HfApi()
    error_types: tuple[type[Exception], ...] = (*load_error_types("hf"), ValueError)
    with tempfile.TemporaryDirectory(prefix="vlbatch-") as folder:
        try:
            if not client.repo_exists(repository, repo_type="dataset"):
                client.create_repo(repository, repo_type="dataset", private=True)
                say(f"created the private data set {repository}")
            before = client.list_repo_files(repository, repo_type="dataset")
            stale = [name for name in before if name.startswith(PUSHED_FOLDER) and name not in files]
            operations: list[Operation] = [
                *(CommitOperationAdd(name, find_local_file(target, name, Path(folder))) for name in [CARD, *files]),
                *(CommitOperationDelete(name) for name in stale),
            ]
            commit = client.create_commit(repository, operations, commit_message=message, repo_type="dataset")
        except error_types as error:
            reason = str(error).strip().partition("\n")[0]
            raise OutputError(f"--push {repository}: {reason}; the export itself is complete") from error
    say(f"pushed to {commit.commit_url}")


def find_local_file(target: OutputStore, name: str, folder: Path) -> str:
    """A file of the export on this machine; one in a store is downloaded."""
    if target.is_local:
        return f"{target.root}/{name}"
    path = folder / name.replace("/", "~")
    path.write_bytes(target.read_object(name))
    return str(path)
