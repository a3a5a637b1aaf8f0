"""A row that ends its process: everyone else is answered, and it is one error row that says what happened."""

from __future__ import annotations

import shutil
import tempfile

import pytest
import ray

from pipeline.errors import StoppedError
from pipeline.run import cluster
from tests.run.hostile import DEADLINE_S


@pytest.fixture(scope="module")
def hostile():
    """A Ray in whose workers some rows do harm."""
    folder = tempfile.mkdtemp(prefix="vl")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(cluster, "stop", lambda: None)
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 10**6,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"worker_process_setup_hook": "tests.run.hostile.install"},
            _temp_dir=folder,
        )
        yield
        ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.usefixtures("hostile")
@pytest.mark.parametrize(
    ("name", "stage", "said"),
    [
        ("engine-segfault", "generate", "Fatal Python error: Segmentation fault"),
        ("engine-hang", "generate", "a step of the engine took more than 3 s"),
        ("engine-memory", "generate", "most likely for want of memory"),
        ("prepare-segfault", "decode", "Fatal Python error: Segmentation fault"),
        ("prepare-hang", "decode", "preparing a row took more than 20 s"),
        ("prepare-memory", "decode", "most likely for want of memory"),
    ],
)
def test_of_500_rows_the_one_that_ends_its_process_is_an_error_and_499_are_answered(desk, name, stage, said):
    rows = desk.draw(500)
    rows[217]["id"] = name
    desk.manifest(rows)
    assert desk.run(here=False, output={"chunk_rows": 64}, limits={"deadline_s": DEADLINE_S}) == 3
    assert desk.ids() == sorted(row["id"] for row in rows if row["id"] != name)
    (letter,) = desk.errors()
    assert (letter["id"], letter["stage"], letter["kind"], letter["attempts"]) == (name, stage, "worker_died", 3)
    assert said in letter["message"]


@pytest.mark.usefixtures("hostile")
def test_an_engine_that_ends_its_process_whenever_it_starts_stops_the_run_and_says_so(desk):
    desk.manifest(desk.draw(4))
    with pytest.raises(StoppedError, match=r"(?s)died while they started.*most likely for want of memory"):
        desk.run(here=False, engine={"default": "memory"})
