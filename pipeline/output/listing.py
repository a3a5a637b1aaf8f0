"""Lists the objects below a folder page by page: an output may hold ten million of them.

The pages of an S3 listing are parsed here, because the client's own parser takes twenty times as long. It gets what is
left of the page, and the whole page where this parser does not understand all of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

import fsspec

from pipeline.output.thread_map import map_in_threads

LOCAL_PAGE_OBJECTS = 10_000
S3_PARSER = "vlbatch-listing"  # the name under which it is registered, and of what it adds to a reply
S3_ENTRY = re.compile(
    rb"<Contents>\s*<Key>([^<]+)</Key>\s*<LastModified>([^<]+)</LastModified>.*?<Size>(\d+)</Size>.*?</Contents>", re.S
)


class ObjectInfo(NamedTuple):
    size: int
    modified_at: float | None  # by the store's clock


NO_INFO = ObjectInfo(0, None)
Page = list[tuple[str, ObjectInfo]]  # paths in the folder that is listed
S3Reply = tuple[Page, str]  # and the token of the next page; empty: there is none
FetchS3Page = Callable[[str, str], S3Reply]  # takes the first characters of the names, and a token


def list_local_pages(root: str) -> Iterator[Page]:
    """Raise FileNotFoundError if there is no such folder; what disappears meanwhile is left out."""
    page: Page = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = os.scandir(f"{root}/{folder}")
        except FileNotFoundError:
            if folder:
                continue
            raise
        with entries:
            for entry in entries:
                if entry.is_dir():
                    folders.append(f"{folder}{entry.name}/")
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                page.append((folder + entry.name, ObjectInfo(status.st_size, status.st_mtime)))
                if len(page) == LOCAL_PAGE_OBJECTS:
                    yield page
                    page = []
    yield page


def list_other_pages(filesystem: Any, root: str) -> Iterator[Page]:
    entries = filesystem.find(root, detail=True).items()
    yield [
        (path.rpartition(f"{root}/")[2], ObjectInfo(info.get("size") or 0, get_modified_time(info)))
        for path, info in entries
    ]


def list_s3_pages(fetch_page: FetchS3Page, first_characters: str) -> Iterator[Page]:
    """A long listing of names that begin with one of some characters becomes one listing for each, side by side."""
    page, token = fetch_page("", "")
    if token and first_characters:
        tokens = dict.fromkeys(first_characters, "")
    else:
        yield page
        tokens = {"": token} if token else {}
    while tokens:
        replies = map_in_threads(lambda item: fetch_page(*item), list(tokens.items()))
        next_tokens = {}
        for prefix, (page, token) in zip(tokens, replies, strict=True):
            yield page
            if token:
                next_tokens[prefix] = token
        tokens = next_tokens


def fetch_s3_page(filesystem: Any, root: str, first_characters: str, token: str) -> S3Reply:
    bucket, key, _ = filesystem.split_path(root)
    filesystem.connect()
    client = fsspec.asyn.sync(filesystem.loop, filesystem.get_s3, bucket)
    client.meta.events.register("before-parse.*.ListObjectsV2", parse_s3_page, unique_id=S3_PARSER)  # before `s3.*`
    options = {"ContinuationToken": token} if token else {}
    reply = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/{first_characters}", **options)
    page: Page = [(path.removeprefix(f"{key}/"), info) for path, info in reply.get(S3_PARSER, ())]
    for info in reply.get("Contents", ()):
        page.append((info["Key"].removeprefix(f"{key}/"), ObjectInfo(info["Size"], info["LastModified"].timestamp())))
    return page, reply.get("NextContinuationToken", "")


def parse_s3_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Take the entries out of a page, if they look as expected."""
    body: bytes = response_dict["body"]
    entries = S3_ENTRY.findall(body)
    is_understood = b"<EncodingType>url</EncodingType>" in body and len(entries) == body.count(b"<Contents>")
    if not entries or not is_understood:
        return
    customized_response_dict[S3_PARSER] = [
        (
            unquote_plus(key.decode()) if b"%" in key or b"+" in key else key.decode(),
            ObjectInfo(int(size), datetime.fromisoformat(modified_at.decode()).timestamp()),
        )
        for key, modified_at, size in entries
    ]
    first, end = body.index(b"<Contents>"), body.rindex(b"</Contents>") + len(b"</Contents>")
    response_dict["body"] = body[:first] + body[end:]


def get_modified_time(info: Mapping[str, Any]) -> float | None:
    value = next((info[key] for key in ("mtime", "LastModified", "last_modified", "updated") if key in info), None)
    return value.timestamp() if isinstance(value, datetime) else value if isinstance(value, float) else None
