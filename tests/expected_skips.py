"""The skips that a full run may have: what this kind of machine cannot run. Any other skip fails `make test-all`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

EXPECTED_SKIPS = {  # the reason, and at most how many tests it may skip
    "no GPU": 7,
    "set KUBERAY_CRDS to a folder with KubeRay's ray.io_*.yaml.gz (ray-operator/config/crd/bases)": 20,
}


def find_unexpected_skips(reasons: Iterable[str]) -> list[str]:
    """One line for each reason that skips more tests than expected."""
    return [
        f"{count} tests skipped, {EXPECTED_SKIPS.get(reason, 0)} expected: {reason}"
        for reason, count in Counter(reasons).items()
        if count > EXPECTED_SKIPS.get(reason, 0)
    ]
