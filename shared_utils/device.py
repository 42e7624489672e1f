"""Pick the device, its precision, the number of threads and the seed; find the repository, write its files whole."""

import contextlib
import os
import platform
import random
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


def resolve_path(path: str | os.PathLike) -> Path:
    """Return `path` as an absolute path; a relative one counts from the repository's root.

    Notebooks run from their own folder in JupyterLab and from the root under make and papermill; this makes both read
    the same files.
    """
    return ROOT.joinpath(Path(path).expanduser()).resolve()


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it gets its name at the end, or is removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # it is not there any more, or the error before this one says what is wrong
            temporary.unlink()


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device called `name` ("cuda", "cuda:1", "mps", "cpu"), or the fastest one here for "auto".

    Raises ValueError if that device is not on this machine.
    """
    # Asked through the driver, or asking alone would keep processes that are forked later from using the GPU.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if name == "auto":
        return torch.device(available[0])
    kind, _, index = str(name).partition(":")
    if kind not in available or (index and not (index.isdigit() and int(index) < max(1, torch.cuda.device_count()))):
        raise ValueError(f"Device '{name}' is not on this machine; choose one of {', '.join(['auto', *available])}.")
    return torch.device(name)


def pick_precision(device: torch.device, name: str = "auto") -> torch.dtype:
    """Return the type in which a model multiplies: torch.float32 or torch.bfloat16.

    "auto" takes bfloat16 only where the hardware multiplies it natively: there it is about twice as fast; elsewhere it
    is emulated and slower. Weights, optimizer state, loss and front-end stay in float32 (see `autocast`).
    """
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in types:
        return types[name]
    if name != "auto":
        raise ValueError(f"Precision {name!r} is unknown; choose one of auto, float32, bfloat16.")
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        native = capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def name_device(device: torch.device) -> str:
    """Return what a reader of results wants to know of a device: "NVIDIA H100", or "cpu, x86_64, 2 cores"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {os.cpu_count()} cores"


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Return the context in which a model's forward pass runs in `dtype`; for float32 it changes nothing."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def set_threads(n: int | None = None) -> int:
    """Use `n` CPU threads, or as many as this process may run on (OMP_NUM_THREADS wins over that); return the number.

    PyTorch counts the cores of the machine; in a container or beside a second run that is too many, and threads that
    wait for each other make a small model several times slower.
    """
    if n is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        n = int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or cores or 1)
    if n < 1:
        raise ValueError(f"{n} threads cannot compute anything; give 1 or more.")
    torch.set_num_threads(n)
    return n


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device; a cell that starts with this gives the same numbers again.

    cuDNN is told to repeat itself as well. What still differs in the last digits on a GPU are operations that PyTorch
    has no repeatable kernel for; on a CPU nothing does, with the same number of threads.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def name_error(error: BaseException) -> str:
    """Return the name of an error and the first line of what it says, if it says anything."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
