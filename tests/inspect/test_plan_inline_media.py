"""A plan reads no more media of a manifest that holds them than it surveys, and only so many bytes."""

from __future__ import annotations

import io
import math
import tarfile

import pytest

from pipeline.inspect import plan as planning
from pipeline.inspect.plan import plan_job, survey
from pipeline.job.spec import Job
from pipeline.manifest.sources import webdataset
from tests.media.sample_media import draw_pixels, encode_image

pytestmark = pytest.mark.process


@pytest.fixture
def tar_job(workspace):
    """Forty pictures in a tar, eight a chunk."""
    with tarfile.open(workspace.folder / "m.tar", "w") as tar:
        for number in range(40):
            data = encode_image(draw_pixels(60, 40, seed=number))
            header = tarfile.TarInfo(f"{number:02}.png")
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    manifest = {"manifest": str(workspace.folder / "m.tar"), "id": "path", "media": "media", "keep": []}
    return Job.model_validate(workspace.build_job(input=manifest, output={"chunk_rows": 8}))


@pytest.fixture
def members_read(monkeypatch):
    read_member, names = webdataset.read_member, []

    def record(file, member):
        names.append(member.name)
        return read_member(file, member)

    monkeypatch.setattr(webdataset, "read_member", record)
    return names


@pytest.mark.parametrize(("sample_rows", "surveyed"), [(8, 8), (16, 16), (17, 24), (1000, 40), (None, 40)])
def test_media_that_are_read_are_surveyed(tar_job, members_read, sample_rows, surveyed):
    said = plan_job(tar_job, sample_rows=sample_rows)
    assert (said.survey.rows, said.rows_left) == (surveyed, 40)
    assert len(members_read) == len(set(members_read)) == surveyed


@pytest.mark.parametrize(("max_bytes", "surveyed"), [(1, 8), (math.inf, 40)])
def test_a_sample_ends_at_a_number_of_bytes(tar_job, members_read, monkeypatch, max_bytes, surveyed):
    monkeypatch.setattr(planning, "MAX_INLINE_BYTES", max_bytes)
    monkeypatch.setattr(survey, "BATCH_ROWS", 8)
    assert plan_job(tar_job, sample_rows=1000).survey.rows == surveyed
    assert plan_job(tar_job, sample_rows=None).survey.rows == 40
