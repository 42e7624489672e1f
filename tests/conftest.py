"""Fixtures that several test files share."""

import ast
import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may look anything up on a network

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real recordings that may lie beside the repository; a test that needs it is skipped without."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real recordings beside the repository (../shared/data)")
    return SHARED_DATA


def notebook_definitions(path: Path) -> dict:
    """Run the imports, classes and functions of a notebook, and nothing else of it; return its names."""
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    names: dict = {"__name__": path.stem}
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        kept = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
        tree.body = [node for node in tree.body if isinstance(node, kept)]
        exec(compile(tree, path.name, "exec"), names)
    return names
