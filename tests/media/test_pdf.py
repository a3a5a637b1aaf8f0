"""Pages of a PDF are pictures, rendered at the size that the model asks for."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.errors import DecodeError
from pipeline.fetch.blob import Blob
from pipeline.media.decode import ClipDecoder, build_decode_limits
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.media.sample import parse_pages
from pipeline.types import MediaRef
from tests.media.sample_media import PlainFrameRules, build_media_job

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Three pages of 100x50 points with a black square in the upper left corner. The last page is turned."""
    square = b"0 0 0 rg 0 30 20 20 re f"
    pages = b""
    for number, turn in ((3, b""), (5, b""), (7, b" /Rotate 90")):
        pages += b"%d 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 50]/Contents %d 0 R%s>>endobj\n" % (
            number,
            number + 1,
            turn,
        )
        pages += b"%d 0 obj<</Length %d>>stream\n%s\nendstream endobj\n" % (number + 1, len(square), square)
    data = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    data += b"2 0 obj<</Type/Pages/Kids[3 0 R 5 0 R 7 0 R]/Count 3>>endobj\n" + pages
    data += b"trailer<</Root 1 0 R>>\n%%EOF"
    path = tmp_path_factory.mktemp("pdf") / "scan.pdf"
    path.write_bytes(data)
    return path


def test_every_page_is_an_upright_picture_at_144_dpi(scan, load):
    clips = load(str(scan))
    assert [clip.source_size for clip in clips] == [(200, 100), (200, 100), (100, 200)]
    assert [clip.uri.rpartition("#")[2] for clip in clips] == ["page=1", "page=2", "page=3"]
    flat = clips[0].pixels[0]
    assert flat[:, :20, :20].max() < 40
    assert flat[:, -20:, -20:].min() > 215
    turned = clips[2].pixels[0]  # clockwise: the upper left corner is on the right
    assert turned[:, :20, -20:].max() < 40


@pytest.mark.parametrize(
    ("wish", "found"), [("3", ["3"]), ("2-3", ["2", "3"]), ("1,3", ["1", "3"]), ("2-", ["2", "3"]), ("1-1", ["1"])]
)
def test_uri_fragment_selects_pages(wish, found, scan, load):
    assert [clip.uri.rpartition("=")[2] for clip in load(f"{scan}#page={wish}")] == found


@pytest.mark.parametrize("wish", ["0", "4", "3-9", "2-1", "-", "1,,2", "x"])
def test_missing_pages_are_an_error(wish, scan, load):
    with pytest.raises(DecodeError) as error:
        load(f"{scan}#page={wish}")
    assert error.value.kind == "page"


@pytest.mark.parametrize("selection", ["#2", "#page 2", "?page=2"])
def test_words_that_choose_no_page_are_an_error_for_a_document_of_several(selection):
    with pytest.raises(DecodeError, match=r"does not choose among its 3 pages; write #page=3"):
        parse_pages(selection, 3, 100)


@pytest.mark.parametrize("words", ["#2", "#page 2", "?page=2", "?x=1&page=2"])
def test_words_behind_a_file_uri_that_choose_no_page_are_an_error(words, scan, load):
    """Relative paths of a manifest are file: URIs."""
    with pytest.raises(DecodeError, match=r"does not choose among its 3 pages; write #page=3"):
        load(f"{scan.as_uri()}{words}")


def test_such_words_may_be_a_part_of_a_files_name(scan, load):
    named = Path(shutil.copy(scan, scan.with_name("scan#2.pdf")))
    assert len(load(f"file://{named}")) == 3


def test_page_is_rendered_at_the_size_of_the_model(scan, load):
    (clip,) = load(f"{scan}#page=1", resized_width=1120, resized_height=560)
    edge = clip.pixels[0, 0, 100]
    assert ((edge > 20) & (edge < 235)).sum() <= 2  # a sharp edge, whatever the size


def test_page_over_the_pixel_limit_is_refused(scan, open_loader):
    with pytest.raises(DecodeError, match=r"limits\.image\.pixels"):
        open_loader(build_media_job(limits={"image": {"pixels": 100}, "deadline_s": 20}))(str(scan))


def test_pdf_with_a_password_is_an_error_of_its_own_kind(scan, load):
    data = scan.read_bytes().replace(
        b"trailer<<", b"9 0 obj<</Filter/Standard/V 1/R 2/O(" + b"o" * 32 + b")/U(" + b"u" * 32 + b")/P -4>>endobj\n"
        b"trailer<</Encrypt 9 0 R/ID[(a)(b)]"
    )  # fmt: skip
    with pytest.raises(DecodeError) as error:
        load(data)
    assert error.value.kind == "encrypted"


def test_pdf_claimed_as_video_is_refused(scan, load):
    with pytest.raises(DecodeError) as error:
        load(str(scan), "video")
    assert error.value.kind == "kind"


def build_pdf(pages: bytes, *objects: bytes, trailer: bytes = b"") -> bytes:
    data, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate((b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages%s>>" % pages, *objects), 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    table = b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(offsets) + 1, table)
    end = b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (len(offsets) + 1, trailer, len(data))
    return data + table + end


def build_page(size: int) -> bytes:
    return b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %d 50]>>" % size


def test_a_pdf_without_pages_does_not_report_the_error_of_the_one_before(load):
    lock = b"<</Filter/Standard/V 1/R 2/O(" + b"x" * 32 + b")/U(" + b"y" * 32 + b")/P -4>>"
    encrypted = build_pdf(b"/Kids[4 0 R]/Count 1", lock, build_page(50), trailer=b"/Encrypt 3 0 R/ID[<00><00>]")
    for data, kind in ((encrypted, "encrypted"), (build_pdf(b"/Kids[]/Count 0"), "undecodable")):
        with pytest.raises(DecodeError) as error:
            load(data)
        assert error.value.kind == kind


def test_a_broken_page_fails_only_rows_that_show_it(load, tmp_path):
    path = tmp_path / "broken.pdf"
    path.write_bytes(build_pdf(b"/Kids[3 0 R 9 0 R]/Count 2", build_page(100)))
    with pytest.raises(DecodeError, match="page 2 is broken; choose others with #page="):
        load(str(path))
    (clip,) = load(f"{path}#page=1")
    assert clip.source_size == (200, 100)


def test_plan_refuses_a_page_over_the_pixel_limit_as_a_run_does():
    blob = Blob("huge.pdf", "pdf", data=build_pdf(b"/Kids[3 0 R]/Count 1", build_page(2_000_000)))
    job = build_media_job()
    with (
        ClipDecoder(job, PlainFrameRules(), HeaderDecoder(build_decode_limits(job))) as clip_decoder,
        pytest.raises(DecodeError, match=r"4000000x100 pixels; raise limits\.image\.pixels"),
    ):
        clip_decoder.decode(MediaRef("huge.pdf"), [blob])
