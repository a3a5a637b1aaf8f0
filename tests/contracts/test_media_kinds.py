"""What every registered kind of media promises to the decoder's process, and a toy that only the registry names."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.errors import DecodeError
from pipeline.fetch.sniff import sniff_kind
from pipeline.manifest.sources.folder import FolderSource
from pipeline.media.kinds.base import DecodeLimits, Kind, Probe
from pipeline.media.resize import resize
from pipeline.registry import MEDIA_KINDS, load_registered
from pipeline.types import ClipKind, PixelRegion, Size
from tests.media.sample_media import draw_pixels, encode_image, write_video
from tests.workspace import JobWorkspace

pytestmark = pytest.mark.process

LIMITS = DecodeLimits(image_pixels=10**6, frame_pixels=10**6, duration_s=60)


def make_image(folder: Path) -> Path:
    path = folder / "a.png"
    path.write_bytes(encode_image(draw_pixels(120, 80)))
    return path


def make_video(folder: Path) -> Path:
    return write_video(folder / "a.mp4", 12, size=(120, 80))


def make_pdf(folder: Path) -> Path:
    path = folder / "a.pdf"
    path.write_bytes(encode_image(draw_pixels(120, 80), "PDF"))
    return path


SAMPLES: dict[str, Callable[[Path], Path]] = {"image": make_image, "video": make_video, "pdf": make_pdf}
REFUSED_CLAIMS = {("video", "image"), ("pdf", "video")}


def test_every_registered_kind_has_a_sample_here():
    assert SAMPLES.keys() == MEDIA_KINDS.keys()


@pytest.fixture(scope="module", params=MEDIA_KINDS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def path(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAMPLES[name](tmp_path_factory.mktemp(name))


@pytest.fixture
def kind(name: str, path: Path) -> Iterator[Kind]:
    opened: Kind = load_registered(MEDIA_KINDS, name, "kind")(path.open("rb"), LIMITS, claimed_kind=None)
    yield opened
    opened.close()


def test_first_bytes_tell_the_kind(name, path):
    assert sniff_kind(path.read_bytes()[:512]) == name


def test_probe_gives_upright_sizes_and_frames(kind):
    assert kind.probe.kind in ("image", "video")
    assert all(width > 0 and height > 0 for width, height in kind.probe.sizes)
    assert kind.probe.count >= len(kind.probe.sizes) >= 1
    assert kind.probe.kind == "image" or kind.probe.fps > 0


def test_frames_are_resized_and_in_the_requested_order(kind):
    pixels = kind.read([0], (56, 28))
    assert (pixels.dtype, pixels.shape) == (np.uint8, (1, 3, 28, 56))
    last = kind.probe.count - 1
    assert np.array_equal(kind.read([last, 0], (56, 28))[1], pixels[0])


def test_region_is_cut_at_the_resolution_of_the_source(kind):
    width, height = kind.probe.sizes[0]
    whole = kind.read([0], (width, height))
    left, top, right, bottom = width // 4, height // 4, width // 2, height
    region = kind.read([0], (right - left, bottom - top), (left, top, right, bottom))
    difference = np.abs(region.astype(int) - whole[:, :, top:bottom, left:right])
    assert difference.mean() < 2
    assert np.array_equal(kind.read([0], (width, height), (0, 0, width, height)), whole)


@pytest.mark.parametrize("claimed_kind", ["image", "video"])
def test_claimed_kind_is_followed_or_refused(name, path, claimed_kind):
    open_kind = load_registered(MEDIA_KINDS, name, "kind")
    if (name, claimed_kind) in REFUSED_CLAIMS:
        with pytest.raises(DecodeError, match=f"the manifest calls it an? {claimed_kind}") as error:
            open_kind(path.open("rb"), LIMITS, claimed_kind=claimed_kind)
        assert error.value.kind == "kind"
    else:
        opened = open_kind(path.open("rb"), LIMITS, claimed_kind=claimed_kind)
        assert opened.probe.kind == claimed_kind
        opened.close()


def test_file_over_the_pixel_limit_is_refused(name, path):
    def open_and_read():
        opened = load_registered(MEDIA_KINDS, name, "kind")(
            path.open("rb"), DecodeLimits(100, 100, 60), claimed_kind=None
        )
        opened.read([0], (28, 28))

    with pytest.raises(DecodeError, match=r"raise limits\.") as error:
        open_and_read()
    assert error.value.kind == "too_large"


def test_file_of_another_format_is_one_error(name, tmp_path):
    broken = tmp_path / "broken"
    broken.write_bytes(b"neither this nor that" * 50)
    with pytest.raises(DecodeError):
        load_registered(MEDIA_KINDS, name, "kind")(broken.open("rb"), LIMITS, claimed_kind=None)


class GreyRamp:
    """A toy format: `RAMP`, width and height, then one grey value per column."""

    endings = (".ramp",)

    def __init__(self, source: bytes | BinaryIO, limits: DecodeLimits, *, claimed_kind: ClipKind | None = None):
        data = source if isinstance(source, bytes) else source.read()
        if claimed_kind == "video":
            raise DecodeError("kind", "is a ramp, and the manifest calls it a video")
        self.width, self.height = data[4], data[5]
        limits.check_size((self.width, self.height), moving=False)
        self.columns = np.frombuffer(data, np.uint8, self.width, 6)
        self.probe = Probe("image", ((self.width, self.height),))

    @staticmethod
    def recognizes(head: bytes) -> bool:
        return head.startswith(b"RAMP")

    def read(self, indices: Sequence[int], size: Size, region: PixelRegion | None = None) -> np.ndarray:
        frame = np.broadcast_to(self.columns[None, :, None], (self.height, self.width, 3)).copy()
        return np.concatenate([resize(frame[None], size, region) for _ in indices])

    def close(self) -> None: ...


def test_a_new_kind_needs_a_file_and_a_line(workspace: JobWorkspace, monkeypatch, capsys):
    """`check`, `plan` and `run --local` read a format that nothing but the registry knows."""
    monkeypatch.setitem(MEDIA_KINDS, "ramp", f"{__name__}:GreyRamp")
    ramp = workspace.folder / "a.ramp"
    ramp.write_bytes(b"RAMP" + bytes([80, 40]) + bytes(range(80)))
    workspace.write_manifest([{"id": "a", "image": "a.ramp", "hint": "h"}, *workspace.draw_images(1)])
    job = str(workspace.write_job_file())
    assert main(["check", job]) == 0
    capsys.readouterr()
    assert main(["plan", job, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["survey"]["failures"] == {}
    assert main(["run", job, "--local"]) == 0
    media = {row["id"]: row["media"][0] for row in workspace.read_answers()}
    assert media.keys() == {"a", "r0"}
    assert (media["a"]["kind"], media["a"]["width"], media["a"]["height"]) == ("image", 80, 40)
    listed = FolderSource(str(workspace.folder)).read_span((0, 2))["path"].to_pylist()
    assert listed[0] == "a.ramp"
