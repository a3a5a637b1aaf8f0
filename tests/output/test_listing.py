"""The pages of a listing, on a disk and as S3 sends them."""

from __future__ import annotations

import os

from pipeline.output.listing import S3_PARSER, ObjectInfo, parse_s3_page
from pipeline.output.store import OutputStore

ENTRY = "<Contents><Key>out/{}</Key>{}<Size>5</Size></Contents>"
TIME = "<LastModified>1970-01-01T00:01:40.000Z</LastModified>"


def test_a_page_of_another_form_is_left_to_the_client():
    known = ENTRY.format("a%2Bb", TIME)
    for entries in ([known], [known, ENTRY.format("c", "")], [ENTRY.format("c", ""), known]):
        body = f"<R><EncodingType>url</EncodingType>{''.join(entries)}<IsTruncated>false</IsTruncated></R>".encode()
        reply, found = {"body": body}, {}
        parse_s3_page(response_dict=reply, customized_response_dict=found)
        if entries == [known]:
            assert found == {S3_PARSER: [("out/a+b", ObjectInfo(5, 100.0))]}
            assert reply["body"] == b"<R><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated></R>"
        else:
            assert not found
            assert reply["body"] == body
    reply = {"body": body.replace(b"<EncodingType>url</EncodingType>", b"")}
    parse_s3_page(response_dict=reply, customized_response_dict=found)
    assert not found


def test_a_file_that_disappears_while_a_folder_is_listed_is_left_out(tmp_path):
    (tmp_path / "data/deep").mkdir(parents=True)
    for name in ("a", "deep/b", ".c.tmp"):
        (tmp_path / "data" / name).write_bytes(b"123")
    os.symlink(tmp_path / "nowhere", tmp_path / "data/gone")
    listed = OutputStore(str(tmp_path)).list_objects("data")
    assert {name: info.size for name, info in listed.items()} == {"a": 3, "deep/b": 3}
