"""Data sets on the Hugging Face hub by config and split: `hf://datasets/owner/name@revision#config=en&split=train`.

The files of a split are those that the data set card names, or those whose names say the split. They are read at the
commit that the revision is when a run is planned. Many data sets have no ids, so each row has a column `__row__`: the
split and the number of the row in it, which stays as rows are added at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from itertools import accumulate
from typing import Any

import fsspec
import huggingface_hub
import pyarrow as pa
import yaml

from pipeline.errors import JobError
from pipeline.manifest.sources.base import Span, TableParts, TablePartSource
from pipeline.manifest.sources.parquet import ParquetSource
from pipeline.registry import format_suggestion

ROW_COLUMN = "__row__"
CARD = "README.md"
SPLIT_WORDS = {  # as Hugging Face's datasets reads the names of files
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
FOOTER_THREADS = 16
FileNames = Mapping[str, Sequence[str]]  # by split


class HubDatasetSource(TablePartSource, ParquetSource):
    file_endings = ()  # it is not found by the name of its file
    choices, needs_choice = ("config", "split"), True
    default_id = ROW_COLUMN

    def __init__(self, url: str, part: str = ""):
        self.place: Mapping[str, Any] = json.loads(part)
        ParquetSource.__init__(self, f"{url}/{self.place['file']}")

    @classmethod
    def is_table(cls, filesystem: Any, path: str) -> bool:
        return "hf" in filesystem.protocol and path.startswith("datasets/")

    @classmethod
    def list_parts(cls, url: str, choice: Mapping[str, str]) -> TableParts:
        url = pin_revision(url)
        filesystem, path = fsspec.core.url_to_fs(url)
        names = sorted(name.removeprefix(f"{path}/") for name in filesystem.find(path))
        card = filesystem.cat_file(f"{path}/{CARD}").decode(errors="replace") if CARD in names else ""
        try:
            splits = choose_split(choose_config(parse_card(card), names, choice.get("config")), choice.get("split"))
        except ValueError as error:
            raise JobError(f"input.manifest: {url}: {error}") from error
        files = [(split, name) for split, found in splits.items() for name in found]
        if other := [name for _, name in files if not name.endswith(".parquet")]:
            advice = f"name its files, such as {url}/{other[0]}"
            raise JobError(f"input.manifest: {url}: {other[0]} is not Parquet, so it cannot be read by split; {advice}")
        with ThreadPoolExecutor(FOOTER_THREADS) as threads:
            counts = list(threads.map(lambda file: ParquetSource(f"{url}/{file[1]}").footer.num_rows, files))
        parts = []
        for split in splits:
            own = [(name, count) for (owner, name), count in zip(files, counts, strict=True) if owner == split]
            starts = accumulate((count for _, count in own), initial=0)
            parts += [
                {"file": name, "split": split, "start": start} for (name, _), start in zip(own, starts, strict=False)
            ]
        return TableParts(url, [json.dumps(part) for part in parts])

    def read_schema(self) -> pa.Schema:
        return pa.schema([*super().read_schema(), (ROW_COLUMN, pa.string())])

    def list_spans(self, rows_per_span: int) -> Iterator[Span]:
        return ParquetSource.list_spans(self, rows_per_span)

    def read_span(self, span: Span, columns: Sequence[str] | None = None) -> pa.Table:
        selected = self.read_schema().names if columns is None else list(columns)
        in_file = [name for name in selected if name != ROW_COLUMN]
        start = self.place["start"]
        names = [f"{self.place['split']}/{number}" for number in range(start + span[0], start + span[1])]
        if not in_file:
            return pa.table({ROW_COLUMN: names})
        rows = ParquetSource.read_span(self, span, in_file)
        return rows.append_column(ROW_COLUMN, pa.array(names)).select(selected)


def pin_revision(url: str) -> str:
    """The URL with the commit that its revision is now."""
    filesystem, path = fsspec.core.url_to_fs(url)
    place = filesystem.resolve_path(path)
    client = huggingface_hub.HfApi(endpoint=filesystem.endpoint, token=filesystem.token)
    commit = client.repo_info(place.repo_id, repo_type=place.repo_type, revision=place.revision).sha
    folder = f"/{place.path_in_repo}" if place.path_in_repo else ""
    return f"hf://datasets/{place.repo_id}@{commit}{folder}"


def parse_card(card: str) -> list[Mapping[str, Any]]:
    """The configs that a data set card lists in its YAML header."""
    match = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        header = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError as error:
        raise ValueError(f"its {CARD} has a header that is not YAML ({getattr(error, 'problem', error)})") from error
    configs = header.get("configs") if isinstance(header, dict) else None
    return [config for config in configs or [] if isinstance(config, dict)]


def choose_config(configs: Sequence[Mapping[str, Any]], names: Sequence[str], chosen: str | None) -> FileNames:
    """The files of a config."""
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    known = list(by_name) or ["default"]
    if chosen is not None and chosen not in known:
        suggestion = format_suggestion(chosen, dict.fromkeys(known))
        raise ValueError(f"there is no config {chosen!r}; there are {', '.join(known)}{suggestion}")
    if not by_name:
        return find_splits(names)
    default = next((name for name, config in by_name.items() if config.get("default")), "default")
    name = chosen or (known[0] if len(known) == 1 else default)
    if name not in by_name:
        raise ValueError(f"choose one of its configs, #config={known[0]}; there are {', '.join(known)}")
    return find_config_files(by_name[name], names)


def find_config_files(config: Mapping[str, Any], names: Sequence[str]) -> FileNames:
    folder = str(config.get("data_dir") or "").strip("/")
    below = [name for name in names if not folder or name.startswith(f"{folder}/")]
    listed = config.get("data_files")
    if listed is None:
        return find_splits(below)
    entries = listed if isinstance(listed, list) else [listed]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        split, patterns = (
            (entry.get("split", "train"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
        )
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            whole = f"{folder}/{pattern}" if folder else str(pattern)
            splits.setdefault(str(split), []).extend(name for name in names if fnmatch(name, whole))
    return splits


def find_splits(names: Sequence[str]) -> FileNames:
    """By the names of Parquet files, `data/train-00000-of-00002.parquet`; without such names all are of train.

    >>> find_splits(["data/train-00000.parquet", "data/dev-00000.parquet", "README.md"])
    {'train': ['data/train-00000.parquet'], 'validation': ['data/dev-00000.parquet']}
    """
    tables = [name for name in names if name.endswith(".parquet")]
    splits = {}
    for split, words in SPLIT_WORDS.items():
        pattern = re.compile(rf"(?:^|[/._ -])(?:{'|'.join(words)})(?:[/._ 0-9-]|$)")
        if found := [name for name in tables if pattern.search(name)]:
            splits[split] = found
    return splits or {"train": tables}


def choose_split(splits: FileNames, chosen: str | None) -> FileNames:
    filled = {split: names for split, names in splits.items() if names}
    if chosen is None:
        return filled
    if chosen not in filled:
        suggestion = format_suggestion(chosen, filled)
        raise ValueError(f"there is no split {chosen!r}; there are {', '.join(filled) or 'none'}{suggestion}")
    return {chosen: filled[chosen]}
