"""The set-up: one list of dependencies, pins that agree, a Makefile that trusts nothing half-made, light rooms."""

import ast
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    "device", "processes", "audio", "spectrograms", "splits", "demo_sentences", "demo_data", "datasets", "metrics",
    "training", "slides", "plotting", "sources", "runs", "sweeps", "tracking", "comparison", "finetuning", "dendrites",
    "perforated", "app", "notebooks",
]
HEAVY = [
    "librosa", "sklearn", "transformers", "datasets", "peft", "matplotlib", "IPython", "papermill", "pptx", "gradio",
]  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read_pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    assert all(str(requirement.specifier).startswith("==") for requirement in requirements)
    return {canonicalize_name(requirement.name): str(requirement.specifier)[2:] for requirement in requirements}


def all_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *extras["dev"], *extras["offline"], *extras["app"]]
    return [Requirement(text) for text in texts]


def test_every_dependency_is_pinned_within_its_range():
    pins = read_pins()
    for dependency in all_dependencies():
        assert dependency.specifier.contains(pins[canonicalize_name(dependency.name)]), dependency


def test_what_the_dependencies_need_is_pinned_too():
    pins, seen, waiting = read_pins(), set(), [(dependency, "") for dependency in all_dependencies()]
    if importlib.util.find_spec("gradio") is None:  # it comes with `make app`; then what it needs is checked as well
        waiting = [(dependency, extra) for dependency, extra in waiting if dependency.name != "gradio"]
    while waiting:
        dependency, extra = waiting.pop()
        name = canonicalize_name(dependency.name)
        if (dependency.marker and not dependency.marker.evaluate({"extra": extra})) or (name, extra) in seen:
            continue
        seen.add((name, extra))
        if name.startswith(("nvidia-", "cuda-", "triton")):  # torch names their exact versions
            continue
        assert name in pins, f"{name} is needed and not in constraints.txt"
        needs = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        waiting += [(need, wanted) for need in needs for wanted in {"", *dependency.extras}]
    assert len(seen) > 100


def test_the_conda_environment_has_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip" and python.split("=")[1] + ".0" in SpecifierSet(PROJECT["requires-python"])
    pins = read_pins()
    names = [Requirement(text).name for text in PROJECT["dependencies"]]
    assert packages["pip"] == [
        "-c constraints.txt", "-e .[dev,offline]", *(f"{name}=={pins[canonicalize_name(name)]}" for name in names)
    ]


def test_plain_make_only_explains_and_ci_calls_make_test():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = makefile.split(".PHONY:")[1].split()
    assert all(f"make {target} " in shown for target in targets if target != "help")
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


# Stands in for Python: makes a .venv with itself inside, and installs only where a file called `online` lies.
FAKE_PYTHON = f"""#!/bin/sh
case "$1 $2" in
  "-m venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip") echo installed >> log; test -e online ;;
  "-m pytest") echo tested ;;
  "-m shared_utils.app") echo shown ;;
  "-m shared_utils.notebooks") shift 2; for word in "$@"; do echo "<$word>"; done ;;
  *) exec {sys.executable} "$@" ;;
esac
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(FAKE_PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", "PYTHON=./python", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_set_up_happens_once_and_a_half_finished_one_is_not_trusted(clone):
    assert make(clone, "test").returncode != 0  # no network: the packages are not there
    assert not (clone / ".venv" / ".installed").exists()
    (clone / ".venv" / "half-written").touch()
    (clone / "online").touch()
    second = make(clone, "test")
    assert second.returncode == 0 and "Setting up .venv" in second.stdout and second.stdout.endswith("tested\n")
    assert not (clone / ".venv" / "half-written").exists()
    assert make(clone, "test").stdout == "tested\n"
    assert (clone / "log").read_text().split() == ["installed"] * 2

    stamp = (clone / ".venv" / ".installed").stat().st_mtime
    os.utime(clone / "constraints.txt", (stamp + 1, stamp + 1))
    assert "Setting up" in make(clone, "test").stdout


def test_what_the_page_needs_is_got_once_and_without_a_network_it_says_so(clone):
    (clone / "online").touch()
    make(clone, "test")
    (clone / "online").unlink()
    offline = make(clone, "app")
    assert offline.returncode != 0 and "shown" not in offline.stdout and not (clone / ".venv" / ".app").exists()
    assert offline.stdout.splitlines()[-1] == (
        "Gradio cannot be had, which needs a network this once; pip says why in .venv/app.log."
    )
    (clone / "online").touch()
    assert make(clone, "app").stdout.endswith("shown\n")
    assert make(clone, "app").stdout == "shown\n"
    assert (clone / "log").read_text().split() == ["installed"] * 3


def test_make_hands_settings_over_as_they_are(clone):
    (clone / "online").touch()
    settings = "EPOCHS=3 FOLDS=[1, 2] NAME='two words'"
    shown = make(clone, "notebooks", "ONLY=tiny", "DATA_DIR=my data", f"SET={settings}").stdout.splitlines()
    assert shown[-7:] == ["<run>", "<--only>", "<tiny>", "<--data-dir>", "<my data>", "<--set>", f"<{settings}>"]
    shown = make(clone, "slides", "THEME=dark").stdout.splitlines()
    assert shown[-5:] == ["<slides>", "<--only>", "<>", "<--theme>", "<dark>"]


@pytest.mark.parametrize("version, accepted", [("3, 10", False), ("3, 11", True), ("3, 13", True), ("3, 14", False)])
def test_other_versions_of_python_are_refused_in_words(clone, version, accepted):
    pretend = f'test "$1" = -c && set -- -c "import sys; sys.version_info = ({version}); $2"; exec'
    (clone / "python").write_text(FAKE_PYTHON.replace("exec", pretend))
    (clone / "online").touch()
    result = make(clone, "test")
    assert (result.returncode == 0) == accepted
    assert ("Python 3.11, 3.12 or 3.13 is needed" in result.stdout) != accepted
    assert (clone / ".venv").exists() == accepted


def imports_of(path: Path) -> set[str]:
    """Return the modules of shared_utils that the file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "shared_utils":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared_utils."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("shared_utils.")}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: write imports in full"
    return found


def test_rooms_know_only_the_rooms_above_them():
    for path in (ROOT / "shared_utils").glob("*.py"):
        if path.stem != "__init__":
            above = ROOMS[: ROOMS.index(path.stem)]
            assert imports_of(path) <= set(above), f"{path.name} imports a room that is not above it"


def test_imports_are_light_and_change_nothing():
    rooms = [room for room in ROOMS if (ROOT / "shared_utils" / f"{room}.py").is_file() and room != "plotting"]
    code = f"""
import importlib, random, sys
import numpy, torch
def states():
    generators = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return generators, torch.get_num_threads()
before = states()
for room in {rooms}:
    importlib.import_module("shared_utils." + room)
print(*[name for name in {HEAVY} if name in sys.modules])
import matplotlib
settings = dict(matplotlib.rcParams)
if {(ROOT / "shared_utils" / "plotting.py").is_file()}:
    import shared_utils.plotting
assert dict(matplotlib.rcParams) == settings, "a room changed the settings of matplotlib"
assert states() == before, "a room changed a random state or the number of threads"
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "", f"imported at once: {result.stdout}"
