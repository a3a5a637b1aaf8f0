"""A file may crash, hang or exhaust the decoder. That costs its row only; the next file is decoded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import DecodeError
from pipeline.registry import MEDIA_KINDS
from tests.media.sample_media import build_media_job, draw_pixels, encode_image

pytestmark = pytest.mark.process

HOSTILE = """
import ctypes, os, signal, time


class Hostile:
    def __init__(self, source, limits, *, claimed_kind=None):
        from pipeline.media.kinds.image import ImageKind
        if source == b"\\xff\\xd8 crash":
            ctypes.string_at(0)
        if source == b"\\xff\\xd8 abort":
            os.abort()
        if source == b"\\xff\\xd8 exit":
            os._exit(3)
        if source == b"\\xff\\xd8 killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if source.startswith(b"\\xff\\xd8 once"):
            _, process, source = source.split(b"|", 2)
            if process == str(os.getpid()).encode():
                os.kill(os.getpid(), signal.SIGKILL)
        if source == b"\\xff\\xd8 hang":
            ctypes.CDLL(None).sleep(60)  # in native code, where Python's signals do not reach
        if source == b"\\xff\\xd8 hog":
            self.hog = [__import__("numpy").empty(256 << 20, "u1") for _ in range(400)]
        if source == b"\\xff\\xd8 raise":
            raise RuntimeError("what a library throws")
        self.inner = ImageKind(source, limits, claimed_kind=claimed_kind)
        self.probe, self.read, self.close = self.inner.probe, self.inner.read, self.inner.close
"""


@pytest.fixture(autouse=True)
def share_decoders():
    """Each test starts its own process, which is the subject."""


@pytest.fixture
def open_hostile(tmp_path, monkeypatch, open_loader):
    """A function that opens a loader whose decoder process treats some files as native code treats broken ones."""
    (tmp_path / "hostile_kind.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(MEDIA_KINDS, "image", "hostile_kind:Hostile")
    limits = {"image": {"pixels": 1_000_000}, "video": {"pixels_per_frame": 1000}}
    return lambda deadline_s: open_loader(build_media_job(limits={"deadline_s": deadline_s, **limits}))


@pytest.fixture
def hostile(open_hostile):
    return open_hostile(60)


BAD_FILES = [
    ("crash", "decoder_died", "SIGSEGV"),
    pytest.param("abort", "decoder_died", "SIGABRT", marks=pytest.mark.slow),
    pytest.param("exit", "decoder_died", "code 3", marks=pytest.mark.slow),
    pytest.param("killed", "decoder_died", "memory", marks=pytest.mark.slow),
    ("hog", "memory", "memory"),
    ("raise", "undecodable", "what a library throws"),
]


@pytest.mark.parametrize(("name", "kind", "message"), BAD_FILES)
def test_the_file_after_a_bad_one_is_decoded(hostile, name, kind, message):
    with pytest.raises(DecodeError, match=message) as error:
        hostile(b"\xff\xd8 " + name.encode())
    assert error.value.kind == kind
    assert hostile(encode_image(draw_pixels(56, 56)))[0].source_size == (56, 56)


def test_file_survives_one_death_of_the_decoder(hostile):
    decoder = hostile.clip_decoder.decoder
    first_process = decoder.process.pid
    source = b"\xff\xd8 once|%d|" % first_process + encode_image(draw_pixels(56, 56))
    assert hostile(source)[0].source_size == (56, 56)
    assert decoder.process.pid != first_process


def test_death_of_the_decoder_between_two_files_is_no_error(hostile):
    good = encode_image(draw_pixels(56, 56))
    hostile(good)
    for _ in range(3):
        decoder = hostile.clip_decoder.decoder.process.pid
        os.kill(decoder, signal.SIGKILL)
        os.waitid(os.P_PID, decoder, os.WEXITED | os.WNOWAIT)  # or it is killed at the next file
        assert hostile(good)[0].source_size == (56, 56)


def test_decoder_killed_at_its_start_is_restarted(hostile):
    decoder = hostile.clip_decoder.decoder
    decoder.close()
    decoder._start_process()
    os.kill(decoder.process.pid, signal.SIGKILL)
    assert hostile(encode_image(draw_pixels(56, 56)))[0].source_size == (56, 56)


def test_file_that_hangs_native_code_is_given_up_at_the_deadline(open_hostile):
    good = encode_image(draw_pixels(56, 56))
    hostile = open_hostile(5)
    hostile(good)
    started = time.monotonic()
    with pytest.raises(DecodeError, match=r"limits\.deadline_s") as error:
        hostile(b"\xff\xd8 hang")
    assert error.value.kind == "deadline"
    assert time.monotonic() - started < 20
    assert hostile(good)[0].source_size == (56, 56)


def test_decoder_process_ends_with_its_owner(open_loader):
    load = open_loader(build_media_job())
    load(encode_image(draw_pixels(56, 56)))
    process = load.clip_decoder.decoder.process
    load.clip_decoder.close()
    assert process.poll() is not None


def test_orphaned_decoder_process_ends_even_while_it_hangs(tmp_path):
    (tmp_path / "hostile_kind.py").write_text(HOSTILE)
    script = """
import os, sys, threading, time
sys.path[:0] = sys.argv[1].split(":")
from tests.media.sample_media import build_media_job, PlainFrameRules
from pipeline.fetch.blob import Blob
from pipeline.media.decode import ClipDecoder
from pipeline.registry import MEDIA_KINDS
from pipeline.types import MediaRef
MEDIA_KINDS["image"] = "hostile_kind:Hostile"
clip_decoder = ClipDecoder(build_media_job(), PlainFrameRules())
blob = Blob("x", "image", b"\\xff\\xd8 hang")
decode = lambda: clip_decoder.decode(MediaRef(b""), [blob], deadline=time.monotonic() + 2)
threading.Thread(target=decode, daemon=True).start()
while not clip_decoder.decoder.is_ready:
    time.sleep(0.01)
print(clip_decoder.decoder.process.pid, flush=True)
time.sleep(0.5)
os._exit(0)
"""
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=True)
    child = int(done.stdout)
    for _ in range(200):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the decoder outlived its owner")
