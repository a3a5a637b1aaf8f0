"""What planning reads of media, and that it says the same as reading them whole."""

from __future__ import annotations

import io
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest

from pipeline.fetch import object_store
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.header_fetcher import PREFIX_BYTES, HeaderFetcher
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.media.kinds.base import DecodeLimits
from tests.fetch.conftest import scans
from tests.media.sample_media import a_job

BOUNDS = DecodeLimits(image_pixels=10_000_000, frame_pixels=10_000_000, duration_s=60)


def drawn(kind, mode="RGB", size=(700, 300), **how):
    """Noise: larger than what is read of a beginning."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    sink = io.BytesIO()
    PIL.Image.fromarray(pixels, mode).save(sink, kind, **how)
    assert len(sink.getvalue()) > PREFIX_BYTES
    return sink.getvalue()


def turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


def pages():
    noise = np.random.default_rng(0).integers(0, 256, (3, 400, 300, 3), np.uint8)
    first, *others = (PIL.Image.fromarray(each[: 200 + 100 * at]) for at, each in enumerate(noise))
    sink = io.BytesIO()
    first.save(sink, "TIFF", save_all=True, append_images=others)
    return sink.getvalue()


PICTURES = {
    "a.jpg": drawn("JPEG", quality=95),
    "turned.jpg": drawn("JPEG", quality=95, exif=turned()),
    "a.png": drawn("PNG"),
    "turned.png": drawn("PNG", exif=turned()),
    "a.gif": drawn("GIF"),
    "a.bmp": drawn("BMP"),
    "lossy.webp": drawn("WEBP", quality=95),
    "lossless.webp": drawn("WEBP", lossless=True),
    "extended.webp": drawn("WEBP", "RGBA", lossless=True),
}
WHOLE = {
    "pages.tiff": pages(),
    "turned.webp": drawn("WEBP", exif=turned()),
    "large.png": drawn("PNG", size=(3500, 3000)),  # over the limit
}


class Files(BaseHTTPRequestHandler):
    """Gives ranges of the pictures, or, below /plain, all of them whatever was asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        body = (PICTURES | WHOLE).get(name, b"")
        wish = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if name == "gone.png":
            self.send_response(404)
        elif wish and not body:
            self.send_response(416)
        elif wish and "plain" not in self.path:
            first, last = int(wish[1]), min(int(wish[2]), len(body) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body)}")
            body = body[first : last + 1]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def places():
    """Where the pictures lie, and the job that may look there."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    web.daemon_threads = True
    web.handle_error = lambda *_: None  # clients hang up on purpose
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    with scans({**PICTURES, **WHOLE, "empty.png": b""}):
        job = a_job(limits={"deadline_s": 60})
        hosts = (f"127.0.0.1:{web.server_port}",)
        job = job.model_copy(update={"input": job.input.model_copy(update={"hosts": hosts})})
        yield {"web": f"http://{hosts[0]}", "plain": f"http://{hosts[0]}/plain", "s3": "s3://scans"}, job
    web.shutdown()


@pytest.fixture(scope="module")
def eyes():
    whole, header = DecoderClient(BOUNDS), HeaderDecoder(BOUNDS)
    yield whole, header
    whole.close()
    header.close()


def probed(fetcher, decoder, uri):
    with fetcher.fetch(uri) as blob:
        return decoder.open(blob, blob.kind, claimed_kind=None, deadline=time.monotonic() + 60)


@pytest.mark.parametrize("place", ["web", "plain", "s3"])
def test_the_beginning_of_a_picture_says_what_all_of_it_says(place, places, eyes, monkeypatch):
    where, job = places
    with Fetcher(job) as whole, HeaderFetcher(job) as heads:
        monkeypatch.setattr(heads, "_fetch_whole", lambda source: pytest.fail(f"{source} is read whole"))
        for name in PICTURES:
            found = probed(heads, eyes[1], f"{where[place]}/{name}")
            assert found == probed(whole, eyes[0], f"{where[place]}/{name}"), name
            assert found.sizes == (((300, 700),) if "turned" in name else ((700, 300),)), name


@pytest.mark.parametrize("place", ["web", "s3"])
def test_what_the_beginning_does_not_say_comes_whole(place, places, eyes):
    where, job = places
    with HeaderFetcher(job) as heads:
        assert probed(heads, eyes[1], f"{where[place]}/turned.webp").sizes == ((300, 700),)


@pytest.mark.parametrize("place", ["web", "plain", "s3"])
def test_of_a_tiff_the_places_are_read_where_its_pages_are_listed(place, places, eyes, monkeypatch):
    where, job = places
    with HeaderFetcher(job) as heads:
        if place != "plain":  # which has no ranges
            monkeypatch.setattr(heads, "_fetch_whole", lambda source: pytest.fail(f"{source} is read whole"))
        assert probed(heads, eyes[1], f"{where[place]}/pages.tiff").sizes == ((300, 200), (300, 300), (300, 400))


def test_jpegs_and_pngs_are_looked_at_without_a_decoders_process(places):
    where, job = places
    header = HeaderDecoder(BOUNDS)
    with HeaderFetcher(job) as heads:
        for name in ("a.jpg", "turned.jpg", "a.png", "turned.png", "lossy.webp"):
            probed(heads, header, f"{where['s3']}/{name}")
        assert header.client is None


def test_an_object_in_s3_is_one_request_and_none_of_the_client(places, eyes, monkeypatch):
    where, job = places
    monkeypatch.setattr(object_store.ObjectStore, "download", lambda *_, **__: pytest.fail("asked the client"))
    with HeaderFetcher(job) as heads:
        assert probed(heads, eyes[1], f"{where['s3']}/a.jpg").sizes == ((700, 300),)


def test_where_signed_urls_do_not_work_the_client_is_asked_from_then_on(places, eyes, monkeypatch):
    where, job = places
    asked = []
    real = object_store.ObjectStore.sign_url

    async def elsewhere(self, uri):
        asked.append(uri)
        return (await real(self, uri)).replace("/scans/", "/nowhere/")

    monkeypatch.setattr(object_store.ObjectStore, "sign_url", elsewhere)
    with HeaderFetcher(job) as heads:
        for name in ("a.jpg", "a.png", "a.gif"):
            assert probed(heads, eyes[1], f"{where['s3']}/{name}").sizes == ((700, 300),)
    assert asked == ["s3://scans/a.jpg"]


@pytest.mark.parametrize("place", ["web", "plain", "s3"])
def test_what_is_wrong_is_said_as_a_run_says_it(place, places, eyes):
    where, job = places
    for name in ("large.png", "empty.png", "gone.png"):
        said = []
        for kind, decoder in ((Fetcher, eyes[0]), (HeaderFetcher, eyes[1])):
            with kind(job) as fetcher:
                try:
                    said.append(probed(fetcher, decoder, f"{where[place]}/{name}"))
                except Exception as error:  # noqa: BLE001 - whatever it is, both say it
                    said.append((type(error), str(error)))
        assert said[0] == said[1]
        assert isinstance(said[0], tuple)


def test_a_file_on_this_machine_is_opened_where_it_lies(tmp_path, eyes):
    path = tmp_path / "a.tiff"
    pages = [PIL.Image.new("RGB", (200, 300 + 50 * at)) for at in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with HeaderFetcher(a_job()) as heads, heads.fetch(f"file://{path}") as blob:
        assert (blob.data, blob.path, blob.is_temporary) == (None, path, False)
        found = eyes[1].open(blob, "image", claimed_kind=None, deadline=time.monotonic() + 60)
    assert found.sizes == ((200, 300), (200, 350), (200, 400))
