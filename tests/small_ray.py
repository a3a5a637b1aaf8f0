"""A Ray session of two CPUs for tests, in a folder of its own, that takes no code from others."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from pipeline.cluster.ray_session import omit_unused_services, require_random_token


@contextmanager
def start_small_ray(runtime_env: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """Yields the folder, which is deleted at the end."""
    folder = Path(tempfile.mkdtemp(prefix="vl"))
    with pytest.MonkeyPatch.context() as patch, require_random_token():
        patch.delenv("RAY_ADDRESS", raising=False)
        with omit_unused_services():
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=200 * 10**6,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env=runtime_env and dict(runtime_env),
                _temp_dir=str(folder / "ray"),
            )
        try:
            yield folder
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
