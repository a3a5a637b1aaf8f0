"""A file may crash, hang or eat the decoder: that is its own error, and the next file is looked at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import DecodeError
from pipeline.registry import MEDIA_KINDS
from tests.media.sample_media import a_job, encoded, picture

HOSTILE = """
import ctypes, os, pathlib, signal, time


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
        first = pathlib.Path(__file__).with_name("first")
        if source == b"\\xff\\xd8 once" and not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if source == b"\\xff\\xd8 once":
            source = pathlib.Path(__file__).with_name("good").read_bytes()
        if source == b"\\xff\\xd8 hang":
            ctypes.CDLL(None).sleep(60)  # in native code, where Python's signals do not reach
        if source == b"\\xff\\xd8 hog":
            self.hog = [__import__("numpy").empty(256 << 20, "u1") for _ in range(400)]
        if source == b"\\xff\\xd8 raise":
            raise RuntimeError("what a library throws")
        self.inner = ImageKind(source, limits, claimed_kind=claimed_kind)
        self.probe, self.read, self.close = self.inner.probe, self.inner.read, self.inner.close
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch, see_with):
    """The real decoder process, where some files do what broken files do to native code."""
    (tmp_path / "hostile_kind.py").write_text(HOSTILE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(MEDIA_KINDS, "image", "hostile_kind:Hostile")
    return see_with(
        a_job(limits={"deadline_s": 3, "image": {"pixels": 1_000_000}, "video": {"pixels_per_frame": 1000}})
    )


def test_one_bad_file_after_the_other_and_the_good_between_them_is_seen(hostile):
    good = encoded(picture(56, 56))
    fates = {
        "crash": ("decoder_died", "SIGSEGV"),
        "abort": ("decoder_died", "SIGABRT"),
        "exit": ("decoder_died", "code 3"),
        "killed": ("decoder_died", "memory"),
        "hog": ("memory", "memory"),
        "raise": ("undecodable", "what a library throws"),
    }
    for name, (kind, words) in fates.items():
        with pytest.raises(DecodeError, match=words) as trouble:
            hostile(b"\xff\xd8 " + name.encode())
        assert trouble.value.kind == kind, name
        assert hostile(good)[0].source_size == (56, 56)


def test_a_decoder_that_is_killed_over_a_file_once_costs_the_file_nothing(hostile, tmp_path):
    (tmp_path / "good").write_bytes(encoded(picture(56, 56)))
    assert hostile(b"\xff\xd8 once")[0].source_size == (56, 56)
    assert (tmp_path / "first").exists()


def test_a_decoder_that_was_killed_between_two_files_is_nobodys_error(hostile):
    good = encoded(picture(56, 56))
    hostile(good)
    for _ in range(3):
        decoder = hostile.eyes.decoder.process.pid
        os.kill(decoder, signal.SIGKILL)
        os.waitid(os.P_PID, decoder, os.WEXITED | os.WNOWAIT)  # or it is killed at the next file
        assert hostile(good)[0].source_size == (56, 56)


def test_a_decoder_that_is_killed_as_it_starts_is_started_again(hostile):
    decoder = hostile.eyes.decoder
    decoder.close()
    decoder._start_process()
    os.kill(decoder.process.pid, signal.SIGKILL)
    assert hostile(encoded(picture(56, 56)))[0].source_size == (56, 56)


def test_a_file_that_hangs_native_code_is_left_at_the_deadline(hostile):
    good = encoded(picture(56, 56))
    hostile(good)
    started = time.monotonic()
    with pytest.raises(DecodeError, match=r"limits\.deadline_s") as trouble:
        hostile(b"\xff\xd8 hang")
    assert trouble.value.kind == "deadline"
    assert time.monotonic() - started < 20
    assert hostile(good)[0].source_size == (56, 56)


def test_the_decoder_ends_with_its_owner(see_with):
    look = see_with(a_job())
    look(encoded(picture(56, 56)))
    process = look.eyes.decoder.process
    look.eyes.close()
    assert process.poll() is not None


def test_an_orphan_ends_by_itself_even_while_it_hangs(tmp_path):
    (tmp_path / "hostile_kind.py").write_text(HOSTILE)
    script = """
import os, sys, threading, time
sys.path[:0] = sys.argv[1].split(":")
from tests.media.sample_media import a_job, Plain
from pipeline.fetch.blob import Blob
from pipeline.media.decode import ClipDecoder
from pipeline.registry import MEDIA_KINDS
from pipeline.types import MediaRef
MEDIA_KINDS["image"] = "hostile_kind:Hostile"
eyes = ClipDecoder(a_job(), Plain())
blob = Blob("x", "image", b"\\xff\\xd8 hang")
threading.Thread(target=lambda: eyes.decode(MediaRef(b""), [blob], deadline=time.monotonic() + 2), daemon=True).start()
while not eyes.decoder.is_ready:
    time.sleep(0.01)
print(eyes.decoder.process.pid, flush=True)
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
