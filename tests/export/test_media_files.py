"""Media are read again for an export: files as they are, pages and frames as pictures of the original size."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from pipeline.export.media_files import MediaFiles, find_extension, read_head
from pipeline.export.remarks import Remarks
from tests.media.sample_media import build_media_job, draw_pixels, encode_image, read_frame_number, write_video

pytestmark = pytest.mark.process


@pytest.fixture
def media_files(tmp_path):
    files = MediaFiles(build_media_job((str(tmp_path),)))
    yield files
    files.close()


def build_row(kind, *uris):
    return {"id": "r", "media": [{"kind": kind, "uri": uri} for uri in uris]}


def decode(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)))


def test_pictures_are_files_pages_or_frames_in_their_own_size(media_files, tmp_path):
    first, second = draw_pixels(90, 60), draw_pixels(50, 70, seed=1)
    jpeg = encode_image(first, "JPEG")
    (tmp_path / "a.gif").write_bytes(jpeg)
    PIL.Image.fromarray(first).save(tmp_path / "b.tif", save_all=True, append_images=[PIL.Image.fromarray(second)])
    video = write_video(tmp_path / "c.mp4", frames=40)
    remarks = Remarks()
    row = build_row("image", "a.gif", "b.tif#page=2", str(tmp_path / "b.tif#page=1"))
    pictures = [media_files.read_picture(row, index, remarks) for index in range(3)]
    assert pictures[0] == jpeg
    assert np.array_equal(decode(pictures[1]), second)
    assert np.array_equal(decode(pictures[2]), first)
    frame = media_files.read_picture(build_row("video", str(video)), 0, remarks, second=0.5)
    assert read_frame_number(decode(frame).transpose(2, 0, 1)) == 5
    with media_files.open_file(build_row("video", str(video)), 0, remarks) as blob:
        assert (blob.path, find_extension(read_head(blob))) == (video, "mp4")
    assert remarks.format_lines() == []


def test_media_that_cannot_be_read_are_remarks(media_files, tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    remarks = Remarks()
    row = build_row("image", "a.pdf", "(bytes)", "/etc/passwd", "/etc/hostname")
    assert [media_files.read_picture(row, index, remarks) for index in range(4)] == [None] * 4
    assert [(text, count) for text, (count, _) in remarks.found.items()] == [
        ("media not copied (undecodable)", 1),
        ("media not copied (inline)", 1),
        ("media not copied (root)", 2),
    ]
    assert "media not copied (root): 2, for instance of row r: /etc/passwd: lies" in remarks.format_lines()[0]
