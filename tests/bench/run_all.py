"""Runs every benchmark shortened and rewrites the table of measured figures in tests/bench/README.md.

    PYTHONPATH=. .venv/bin/python tests/bench/run_all.py [engine.py ...]      only these

Scripts run one after another, each in a process of its own. A script that fails is named. A script that fails or is
skipped keeps its line in the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
START, END = "<!-- measured: make bench writes from here -->", "<!-- to here -->"
FIGURES = 8  # per script in the table; its own output has all


def measured(script: Path) -> str | None:
    """Run a script and return its line of the table; None if it cannot run here."""
    print(f"== {script.name}", flush=True)
    started, lines = time.monotonic(), []
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, str(script), "--quick"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode or not lines:
        raise RuntimeError(f"{script.name} ended with {running.returncode}")
    if lines[-1].startswith("skipped"):
        return None
    said = json.loads(lines[-1])
    parts = [shown(said["ratios"]), shown(dict(list(said["figures"].items())[:FIGURES]))]
    return f"| `{script.name}` | {' | '.join(parts)} | {time.monotonic() - started:.0f} |"


def shown(values: Mapping[str, float]) -> str:
    return "; ".join(
        f"{name} {value:,.3g}" if abs(value) < 100 else f"{name} {value:,.0f}" for name, value in values.items()
    )


def main() -> int:
    scripts = [path.name for path in sorted(HERE.glob("*.py")) if '"--quick"' in path.read_text()]
    scripts.remove(Path(__file__).name)
    found, failed, started = dict[str, str | None](), [], time.monotonic()
    for name in sys.argv[1:] or scripts:
        try:
            found[name] = measured(HERE / name)
        except RuntimeError as failure:
            failed.append(str(failure))
            print(f"== {failure}", flush=True)
    before, _, rest = README.read_text().partition(START)
    old, _, after = rest.partition(END)
    kept = {line.split("`")[1]: line for line in old.splitlines() if line.startswith("| `")}
    lines = [found.get(name) or kept.get(name) for name in scripts]
    table = ["| script | ratios | figures | seconds |", "| --- | --- | --- | --- |", *filter(None, lines)]
    README.write_text("\n".join([before + START, *table, END + after]))
    print("\n".join([*failed, f"{README.name} rewritten after {time.monotonic() - started:.0f} s"]))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
