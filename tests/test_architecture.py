"""The rules that hold the house up, each as a test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

ROOT = Path(__file__).parents[1]
HOUSE = sorted(path for folder in ("pipeline", "schemas") for path in (ROOT / folder).rglob("*.py"))
LONGEST = 300
BOUNDARIES = {  # the only places that may catch anything
    "pipeline/media/decoder_process.py",  # a decoder's own process
    "pipeline/schema/schema_loader.py",  # a user's schema code
    "pipeline/schema/validate.py",  # a user's schema code
    "pipeline/prepare.py",  # one row's surprise is that row's
}
TOP = {"pyproject.toml", "pipeline", "jobs", "schemas", "tests", "infra"}
TOP |= {"README.md", "LICENSE", "Makefile", "CHANGELOG.md"}
BARE = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "torchvision"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def tracked(*patterns: str) -> list[str]:
    """`git ls-files --stage`: mode, hash, stage, path."""
    done = subprocess.run(["git", "ls-files", "--stage", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Catches anything, and does not pass it on as it was."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(each is None or ast.unparse(each).endswith(("BaseException", "Exception")) for each in caught)
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def test_modules_are_small():
    long = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in HOUSE}
    assert {name: lines for name, lines in long.items() if lines > LONGEST} == {}


def test_ray_is_imported_in_run_only():
    assert [
        name for path in HOUSE if "ray" in imported(path) and not (name := name_of(path)).startswith("pipeline/run/")
    ] == []


def test_only_the_boundaries_catch_anything():
    found = {
        name_of(path)
        for path in HOUSE
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    }
    assert found <= BOUNDARIES


def test_the_map_names_every_module():
    named = set(re.findall(r"^    (\S+\.py)  ", pipeline.__doc__ or "", re.MULTILINE))
    there = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        body = tree(path).body
        if path.name != "__init__.py" or any(not isinstance(node, ast.Expr) for node in body):
            there.add(path.relative_to(ROOT / "pipeline").as_posix())
    assert there - named == set(), "add a line to the docstring of pipeline/__init__.py"


def test_the_top_of_the_repository_stays_short():
    tops = {line.split("\t", 1)[1].partition("/")[0] for line in tracked()}
    assert {name for name in tops if not name.startswith(".")} - TOP == set()


def test_media_families_and_engines_import_on_a_bare_machine():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in ("model", "media")
        for path in sorted((ROOT / "pipeline" / folder).rglob("*.py"))
    ]
    done = subprocess.run([sys.executable, "-c", BARE, *modules], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jobs_can_be_executed():
    for line in tracked("jobs/*.yaml"):
        mode, path = line.split(" ", 1)[0], line.split("\t", 1)[1]
        first = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0]
        assert first == "#!/usr/bin/env -S python -m pipeline run", path
        assert mode == "100755", f"{path}: git update-index --chmod=+x {path}"


def test_every_promise_of_the_readme_names_a_test_that_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    there = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    assert len(named) >= 10
    assert named <= there


def test_checking_a_job_of_our_own_engine_does_not_import_torch(tmp_path):
    program = """
import sys
from pipeline import jobfile
from pipeline.manifest.chunks import files
from pipeline.run import brief, drive
job = jobfile.load("jobs/demo/caption.yaml", changes=[f"input.manifest={sys.argv[1]}", "input.keep=[]"])
assert brief.problems(brief.work(job, files(job)), files(job)) == []
assert not {"torch", "transformers", "ray", "pandas"} & set(sys.modules), "the start of every command pays for it"
"""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "media": "a.png"}\n')
    done = subprocess.run([sys.executable, "-c", program, str(manifest)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
