"""The rules that keep the code readable, each as a test."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import PIL.Image
import pytest

import pipeline
from tests.media.sample_media import write_video

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for folder in ("pipeline", "schemas") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
ROOMS = (  # a room imports only rooms that stand before it
    "types",
    "errors",
    "json_values",
    "retry_policy",
    "watchdog",
    "step_timer",
    "registry",
    "command_text",
    "job",
    "schema",
    "fetch",
    "manifest",
    "media",
    "model",
    "context",
    "prepare",
    "output",
    "truth",
    "answer",
    "run",
    "export",
    "cluster",
    "inspect",
    "builtin",
    "new_job",
    "python_api",
    "command_line",
    "__main__",
)
MAX_LINES = 300
BROAD_HANDLERS = {  # the only modules that may catch every exception
    "pipeline/media/decoder_process.py",  # the decoder's own process
    "pipeline/schema/schema.py",  # a user's schema code
    "pipeline/schema/validate.py",  # a user's schema code
    "pipeline/prepare.py",  # an unexpected error costs one row
    "pipeline/answer.py",  # an unexpected error costs one row
}
SHARED_MODULE_NAMES = {"__init__", "__main__", "base"}
TOP_LEVEL = {"pyproject.toml", "pipeline", "jobs", "schemas", "tests", "infra"}
TOP_LEVEL |= {"vlbatch.py", "README.md", "REFERENCE.md", "LICENSE", "Makefile", "CHANGELOG.md"}
IMPORT_WITHOUT_RAY = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "torchvision"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_tracked_files(*patterns: str) -> list[str]:
    """Lines of `git ls-files --stage`: mode, hash, stage, path."""
    done = subprocess.run(["git", "ls-files", "--stage", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def list_imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions and for type checking only."""
    known = {dotted_name(module) for module in MODULES}
    names: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in known else node.module)
    return names


def room_of(module: str) -> str:
    return module.split(".")[1] if module.startswith("pipeline.") else ""


def is_broad(handler: ast.ExceptHandler) -> bool:
    """Whether a handler catches every exception and does not raise it again."""
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    broad = any(each is None or ast.unparse(each).endswith(("BaseException", "Exception")) for each in caught)
    last = handler.body[-1]
    return broad and not (isinstance(last, ast.Raise) and last.exc is None)


def test_modules_are_short():
    modules = [path for path in MODULES if path != ROOT / "pipeline" / "__init__.py"]  # a line for each module
    lengths = {relative_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def test_no_test_imports_another_test():
    imports = [f"{path.name} imports {name}" for path in TESTS for name in list_imports(path) if ".test_" in name]
    assert imports == []


def test_names_of_tests_fit_on_a_line():
    names = [name for path in TESTS for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)]
    assert [name for name in names if len(name) >= 80] == []


def test_every_room_has_a_place_in_the_order():
    assert {room_of(dotted_name(path)) for path in MODULES} - {""} == set(ROOMS)


def test_imports_only_go_down():
    position = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{module} imports {target}"
        for path in MODULES
        if (room := room_of(module := dotted_name(path)))
        for target in sorted(list_imports(path))
        if room_of(target) and position[room_of(target)] > position[room]
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {dotted_name(path): {name for name in list_imports(path) if room_of(name)} for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_cluster_room_imports_ray():
    importers = {
        relative_name(path) for path in MODULES if any(re.match(r"ray\b", name) for name in list_imports(path))
    }
    assert {name for name in importers if not name.startswith("pipeline/cluster/")} == set()


def test_no_class_name_is_defined_twice():
    places = defaultdict(list)
    for path in MODULES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(relative_name(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_no_module_name_is_used_twice():
    places = defaultdict(list)
    for path in MODULES:
        if path.is_relative_to(ROOT / "pipeline") and path.stem not in SHARED_MODULE_NAMES:
            places[path.stem].append(relative_name(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}


def test_only_named_modules_catch_every_exception():
    found = {
        relative_name(path)
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node)
    }
    assert found <= BROAD_HANDLERS


def test_the_map_names_every_module():
    mapped = set(re.findall(r"^    (\S+\.py)  ", pipeline.__doc__ or "", re.MULTILINE))
    existing = {
        path.relative_to(ROOT / "pipeline").as_posix()
        for path in (ROOT / "pipeline").rglob("*.py")
        if path.name != "__init__.py" or any(not isinstance(node, ast.Expr) for node in parse(path).body)
    }
    assert existing - mapped == set(), "add a line to the docstring of pipeline/__init__.py"
    assert {name for name in mapped if not (ROOT / "pipeline" / name).exists()} == set(), "the map names missing files"


def test_every_module_says_what_it_does():
    silent = [relative_name(path) for path in MODULES if parse(path).body and not ast.get_docstring(parse(path))]
    assert silent == []


def test_the_top_of_the_repository_stays_short():
    names = {line.split("\t", 1)[1].partition("/")[0] for line in list_tracked_files()}
    assert {name for name in names if not name.startswith(".")} - TOP_LEVEL == set()


def test_media_and_model_import_without_ray():
    modules = [
        dotted_name(path)
        for folder in ("model", "media")
        for path in sorted((ROOT / "pipeline" / folder).rglob("*.py"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_WITHOUT_RAY, *modules], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_job_files_are_executable():
    for line in list_tracked_files("jobs/*.yaml"):
        mode, path = line.split(" ", 1)[0], line.split("\t", 1)[1]
        first_line = (ROOT / path).read_text(encoding="utf-8").partition("\n")[0]
        assert first_line == "#!/usr/bin/env -S python -m pipeline run", path
        assert mode == "100755", f"{path}: git update-index --chmod=+x {path}"


def test_every_test_that_the_reference_names_exists():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "REFERENCE.md").read_text()))
    texts = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    existing = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    existing |= {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) >= 10
    assert named - existing == set()


def run_program(program: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_checking_a_job_of_our_own_engine_does_not_import_torch(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "media": "a.png"}\n')
    program = """
import sys
from pipeline.__main__ import main
code = main(["check", "jobs/demo/caption.yaml", "--set", f"input.manifest={sys.argv[1]}", "--set", "input.keep=[]"])
assert code == 0, code
assert not {"torch", "transformers", "ray", "pandas"} & set(sys.modules), "the start of every command pays for it"
"""
    run_program(program, str(manifest))


@pytest.mark.process
def test_planning_and_starting_a_job_import_no_torch(tmp_path):
    """Nor does the decoder's process, which `plan` starts for headers that are not read in its own."""
    media = tmp_path / "media"
    media.mkdir()
    write_video(media / "a.mp4")
    for name in ("a.png", "a.gif", "a.pdf"):
        PIL.Image.new("RGB", (64, 64)).save(media / name)
    program = """
import sys
from pathlib import Path
from pipeline.__main__ import main
from pipeline.media import decoder_client
maps = []
class Client(decoder_client.DecoderClient):
    def close(self):
        maps.append(Path(f"/proc/{self.process.pid}/maps").read_text())
        super().close()
from pipeline.media import header_decoder
header_decoder.DecoderClient = Client
media, job = sys.argv[1:]
assert main(["init", "caption", "--manifest", media, "--model", "builtin:tiny", "--gpus", "0", "--to", job]) == 0
assert main(["plan", job]) == 0
assert not {"torch", "transformers", "ray"} & set(sys.modules), "the start of both commands pays for it"
assert maps
assert not any("libtorch" in text for text in maps)
"""
    run_program(program, str(media), str(tmp_path / "job.yaml"))


def test_a_driver_and_the_workers_of_a_cluster_do_not_import_torch():
    """Only decoders and the engines that need it do. It takes two seconds."""
    program = """
import sys
import vlbatch
from pipeline.cluster import ray_runner, workers
from pipeline.run import local
assert not {"torch", "transformers", "pandas"} & set(sys.modules)
"""
    run_program(program)


def test_the_command_line_imports_no_library():
    """Help and completion start at once."""
    program = """
import sys
import pipeline.command_line.parser
outside = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"pipeline", "__main__"}
assert not {"numpy", "pyarrow", "pydantic", "fsspec", "yaml", "rich"} & outside, outside
"""
    run_program(program)
