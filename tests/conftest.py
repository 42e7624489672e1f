"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may look anything up on a network

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background, where Ctrl-C is not heard
    signal.signal(signal.SIGINT, signal.default_int_handler)

# resolved, since it may be a link and the loaders give resolved paths
SHARED_DATA = (Path(__file__).resolve().parents[2] / "shared" / "data").resolve()


def pytest_collection_modifyitems(items: list) -> None:
    """Put tests that run notebooks first: at the end one process would wait a minute or two for the other's last."""
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real recordings that may lie beside the repository; a test that needs it is skipped without."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real recordings beside the repository (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session", autouse=True)
def meta_device_before_transformers() -> None:
    """Enter PyTorch's meta device once, before a checkpoint is loaded.

    PyTorch lists the functions that make tensors at the first `with torch.device(...)` of a process. transformers
    enters it with its own `torch.linspace` in the original's place; were that the first time, linspace would stay on
    the CPU.
    """
    import torch

    with torch.device("meta"):
        torch.empty(0)
