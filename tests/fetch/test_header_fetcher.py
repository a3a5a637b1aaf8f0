"""Planning reads only the beginning of media, and finds the same as reading them whole."""

from __future__ import annotations

import io
import re
import threading
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import PIL.Image
import pytest

from pipeline.errors import ItemError
from pipeline.fetch.fetcher import Fetcher
from pipeline.fetch.header_fetcher import PREFIX_BYTES, open_header_fetcher
from pipeline.fetch.object_store import ObjectStore
from pipeline.media.decoder_client import DecoderClient
from pipeline.media.header_decoder import HeaderDecoder
from pipeline.media.kinds.base import DecodeLimits
from tests.fetch.conftest import serve_scans
from tests.media.sample_media import build_media_job

pytestmark = pytest.mark.process

LIMITS = DecodeLimits(image_pixels=10_000_000, frame_pixels=10_000_000, duration_s=60)


def encode_noise(format_name, mode="RGB", size=(700, 300), **options):
    """An image that is larger than the prefix that is read of it."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels, mode).save(file, format_name, **options)
    assert len(file.getvalue()) > PREFIX_BYTES
    return file.getvalue()


def build_rotated_exif():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


def encode_tiff_pages():
    noise = np.random.default_rng(0).integers(0, 256, (3, 400, 300, 3), np.uint8)
    first, *others = (PIL.Image.fromarray(page[: 200 + 100 * number]) for number, page in enumerate(noise))
    file = io.BytesIO()
    first.save(file, "TIFF", save_all=True, append_images=others)
    return file.getvalue()


IMAGES = {
    "a.jpg": encode_noise("JPEG", quality=95),
    "rotated.jpg": encode_noise("JPEG", quality=95, exif=build_rotated_exif()),
    "a.png": encode_noise("PNG"),
    "rotated.png": encode_noise("PNG", exif=build_rotated_exif()),
    "a.gif": encode_noise("GIF"),
    "a.bmp": encode_noise("BMP"),
    "lossy.webp": encode_noise("WEBP", quality=95),
    "lossless.webp": encode_noise("WEBP", lossless=True),
    "extended.webp": encode_noise("WEBP", "RGBA", lossless=True),
}
OTHER_FILES = {
    "pages.tiff": encode_tiff_pages(),
    "rotated.webp": encode_noise("WEBP", exif=build_rotated_exif()),
    "large.png": encode_noise("PNG", size=(3500, 3000)),  # over the limit
}


class Files(BaseHTTPRequestHandler):
    """Serves ranges of the images. Below /plain it ignores ranges and serves whole files."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        body = (IMAGES | OTHER_FILES).get(name, b"")
        requested = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if name == "gone.png":
            self.send_response(404)
        elif requested and not body:
            self.send_response(416)
        elif requested and "plain" not in self.path:
            first, last = int(requested[1]), min(int(requested[2]), len(body) - 1)
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
def servers():
    """The URLs below which the images are served, and a job that may read them."""
    web = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    web.daemon_threads = True
    web.handle_error = lambda *_: None  # clients hang up on purpose
    threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
    with serve_scans({**IMAGES, **OTHER_FILES, "empty.png": b""}):
        job = build_media_job(limits={"deadline_s": 60})
        hosts = (f"127.0.0.1:{web.server_port}",)
        job = job.model_copy(update={"input": job.input.model_copy(update={"hosts": hosts, "stores": ("s3://scans",)})})
        yield {"web": f"http://{hosts[0]}", "plain": f"http://{hosts[0]}/plain", "s3": "s3://scans"}, job
    web.shutdown()


@pytest.fixture(scope="module")
def decoders():
    with closing(DecoderClient(LIMITS)) as decoder, closing(HeaderDecoder(LIMITS)) as header_decoder:
        yield decoder, header_decoder


def probe(fetcher, decoder, uri):
    with fetcher.fetch(uri) as blob:
        return decoder.open(blob, blob.kind or "image", claimed_kind=None, deadline=time.monotonic() + 60)


@pytest.mark.parametrize("server", ["web", "plain", "s3"])
def test_the_beginning_of_an_image_tells_what_the_whole_tells(server, servers, decoders, monkeypatch):
    urls, job = servers
    with Fetcher(job) as fetcher, open_header_fetcher(job) as header_fetcher:
        monkeypatch.setattr(header_fetcher.reader, "fetch_whole", lambda source: pytest.fail(f"{source} is read whole"))
        for name in IMAGES:
            header = probe(header_fetcher, decoders[1], f"{urls[server]}/{name}")
            assert header == probe(fetcher, decoders[0], f"{urls[server]}/{name}"), name
            assert header.sizes == (((300, 700),) if "rotated" in name else ((700, 300),)), name


@pytest.mark.parametrize("server", ["web", "s3"])
def test_a_file_whose_beginning_is_not_enough_is_downloaded(server, servers, decoders):
    urls, job = servers
    with open_header_fetcher(job) as header_fetcher:
        assert probe(header_fetcher, decoders[1], f"{urls[server]}/rotated.webp").sizes == ((300, 700),)


@pytest.mark.parametrize("server", ["web", "plain", "s3"])
def test_only_the_page_lists_of_a_tiff_are_read(server, servers, decoders, monkeypatch):
    urls, job = servers
    with open_header_fetcher(job) as header_fetcher:
        if server != "plain":  # which serves no ranges
            monkeypatch.setattr(
                header_fetcher.reader, "fetch_whole", lambda source: pytest.fail(f"{source} is read whole")
            )
        assert probe(header_fetcher, decoders[1], f"{urls[server]}/pages.tiff").sizes == (
            (300, 200),
            (300, 300),
            (300, 400),
        )


def test_common_images_need_no_decoder_process(servers):
    urls, job = servers
    header = HeaderDecoder(LIMITS)
    with open_header_fetcher(job) as header_fetcher:
        for name in ("a.jpg", "rotated.jpg", "a.png", "rotated.png", "lossy.webp"):
            probe(header_fetcher, header, f"{urls['s3']}/{name}")
        assert header.client is None


def test_the_prefix_of_an_s3_object_is_read_without_the_client(servers, decoders, monkeypatch):
    urls, job = servers
    monkeypatch.setattr(ObjectStore, "request_range", lambda *_, **__: pytest.fail("the client was used"))
    with open_header_fetcher(job) as header_fetcher:
        assert probe(header_fetcher, decoders[1], f"{urls['s3']}/a.jpg").sizes == ((700, 300),)


def test_after_a_signed_url_fails_only_the_client_is_used(servers, decoders, monkeypatch):
    urls, job = servers
    signed_uris = []
    sign_url = ObjectStore.sign_url

    async def sign_wrong_url(self, uri):
        signed_uris.append(uri)
        return (await sign_url(self, uri)).replace("/scans/", "/nowhere/")

    monkeypatch.setattr(ObjectStore, "sign_url", sign_wrong_url)
    with open_header_fetcher(job) as header_fetcher:
        for name in ("a.jpg", "a.png", "a.gif"):
            assert probe(header_fetcher, decoders[1], f"{urls['s3']}/{name}").sizes == ((700, 300),)
    assert signed_uris == ["s3://scans/a.jpg"]


@pytest.mark.parametrize("server", ["web", "plain", "s3"])
def test_errors_are_those_of_a_run(server, servers, decoders):
    urls, job = servers
    for name in ("large.png", "empty.png", "gone.png"):
        errors = []
        for open_fetcher, decoder in zip((Fetcher, open_header_fetcher), decoders, strict=True):
            with open_fetcher(job) as fetcher, pytest.raises(ItemError) as raised:
                probe(fetcher, decoder, f"{urls[server]}/{name}")
            errors.append((type(raised.value), str(raised.value)))
        assert errors[0] == errors[1]


def test_a_local_file_is_opened_in_place(tmp_path, decoders):
    path = tmp_path / "a.tiff"
    pages = [PIL.Image.new("RGB", (200, 300 + 50 * at)) for at in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with open_header_fetcher(build_media_job()) as header_fetcher, header_fetcher.fetch(f"file://{path}") as blob:
        assert (blob.data, blob.path, blob.is_temporary) == (None, path, False)
        probed = decoders[1].open(blob, "image", claimed_kind=None, deadline=time.monotonic() + 60)
    assert probed.sizes == ((200, 300), (200, 350), (200, 400))
