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


def run_script(script: Path) -> str | None:
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
    report = json.loads(lines[-1])
    parts = [format_values(report["ratios"]), format_values(dict(list(report["figures"].items())[:FIGURES]))]
    return f"| `{script.name}` | {' | '.join(parts)} | {time.monotonic() - started:.0f} |"


def format_values(values: Mapping[str, float]) -> str:
    return "; ".join(
        f"{name} {value:,.3g}" if abs(value) < 100 else f"{name} {value:,.0f}" for name, value in values.items()
    )


def main() -> int:
    scripts = [path.name for path in sorted(HERE.glob("*.py")) if '"--quick"' in path.read_text()]
    scripts.remove(Path(__file__).name)
    lines_by_script, failures, started = dict[str, str | None](), [], time.monotonic()
    for name in sys.argv[1:] or scripts:
        try:
            lines_by_script[name] = run_script(HERE / name)
        except RuntimeError as failure:
            failures.append(str(failure))
            print(f"== {failure}", flush=True)
    before, _, rest_of_file = README.read_text().partition(START)
    old_table, _, after = rest_of_file.partition(END)
    old_lines = {line.split("`")[1]: line for line in old_table.splitlines() if line.startswith("| `")}
    lines = [lines_by_script.get(name) or old_lines.get(name) for name in scripts]
    table = ["| script | ratios | figures | seconds |", "| --- | --- | --- | --- |", *filter(None, lines)]
    README.write_text("\n".join([before + START, *table, END + after]))
    print("\n".join([*failures, f"{README.name} rewritten after {time.monotonic() - started:.0f} s"]))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
