"""Several processes that train one model: start them, give all the same weights, and add up their gradients.

A program that torchrun or `accelerate launch` starts several times at once consists of such processes too.
"""

import contextlib
import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from shared_utils.device import pick_device

_TOO_LATE = (
    "On a machine with a GPU, processes can only be started before this one has trained or used the GPU: restart it "
    "and go straight to this training, or start a script with torchrun."
)
_GRACE = 3  # seconds that interrupted processes have to end by themselves


def count_processes() -> int:
    """Return how many processes run this program together, as torchrun and accelerate tell each of them."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def pick_place(name: str) -> torch.device:
    """Return `pick_device(name)`, or the GPU that belongs to this one of several processes."""
    if count_processes() > 1 and name != "cpu" and torch.cuda._is_in_bad_fork() and torch.cuda.device_count():
        raise RuntimeError(_TOO_LATE)  # "auto" would quietly take the CPU
    device = pick_device(name)
    if count_processes() == 1 or device.type == "cpu":
        return device
    n_here = torch.cuda.device_count() if device.type == "cuda" else 0
    if int(os.environ["LOCAL_RANK"]) >= n_here:
        raise ValueError(
            f"{count_processes()} processes need a CUDA GPU each, and there are {n_here}: start fewer, or set device "
            'to "cpu".'
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def join_processes(model: nn.Module, device: torch.device):
    """Return the `accelerate.Accelerator` that knows the other processes; all get weights and random state of the main.

    The gradients are added by `add_gradients`, not by DistributedDataParallel: that needs a share for every process
    and a use for every parameter, or searches the graph for unused ones in every step and warns when there are none.
    """
    from accelerate import Accelerator
    from accelerate.utils import synchronize_rng_states

    team = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    follow_main(itertools.chain(model.parameters(), model.buffers()))
    synchronize_rng_states(["torch", "cuda"] if device.type == "cuda" else ["torch"])
    return team


@torch.no_grad()
def follow_main(tensors: Iterable[torch.Tensor]) -> None:
    """Give the tensors the values that they have in the main process."""
    for tensor in tensors:
        value = tensor.detach().contiguous().clone()
        torch.distributed.broadcast(value, 0)
        if not torch.equal(value, tensor):  # a constant may be an expanded tensor, which cannot be written to
            tensor.copy_(value)


@torch.no_grad()
def add_gradients(model: nn.Module) -> None:
    """Add up the gradients of all processes in one exchange; a parameter that none of them used keeps no gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_used = [float(parameter.grad is not None) for parameter in parameters]
    flat = [torch.tensor(is_used, device=parameters[0].device)]
    flat += [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat(flat)
    torch.distributed.all_reduce(flat)
    used, *gradients = flat.split([len(parameters), *(parameter.numel() for parameter in parameters)])
    if not all(is_used):
        is_used = used.tolist()
    for parameter, gradient, is_known in zip(parameters, gradients, is_used, strict=True):
        parameter.grad = gradient.view_as(parameter).to(parameter.dtype) if is_known else None


def hear_main(row: dict) -> dict:
    """Return the row of the main process, so that all take the same decisions if a last digit differs."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([row])[0]


def launch(work: Callable[[], object], n_processes: int, folder: str) -> tuple[bool, BaseException | None]:
    """Call `work` in forked processes; return whether Ctrl-C ended them, and the error of the first that failed.

    `work` brings its results back in files. This process must not have used a GPU. `folder` is an empty one.
    """
    from accelerate import notebook_launcher

    n_threads = max(1, torch.get_num_threads() // n_processes)
    reason, done = Path(folder, "reason"), threading.Event()
    failures, interrupted = [], False

    def begin():
        try:
            if count_processes() == 1:
                raise RuntimeError("accelerate starts no processes here, as in Colab: set num_processes to 1.")
            sys.stdout = stdout
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["OMP_NUM_THREADS"] = str(n_threads)
            torch.set_num_threads(n_threads)
            work()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
        except BaseException as error:
            # the first failure is the cause of the others, which miss the process that failed
            with contextlib.suppress(FileExistsError), open(reason, "xb") as file:
                file.write(_pack(error))
            raise SystemExit(1) from error

    def start():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        try:
            with _silence_launcher():
                notebook_launcher(begin, num_processes=n_processes, use_port=str(port))
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    if "fork" not in multiprocessing.get_all_start_methods():
        return False, RuntimeError("Several processes need fork, which this system has not: set num_processes to 1.")
    stdout, others = sys.stdout, set(multiprocessing.active_children())
    # Forked from a fresh thread, which has never computed anything: a child inherits the state of OpenMP in the thread
    # that forks, and would wait forever for threads of its parent. And Ctrl-C stays with this thread.
    threading.Thread(target=start).start()
    try:
        done.wait()
    except KeyboardInterrupt:
        interrupted = True
        done.wait(_GRACE)  # a terminal or a notebook interrupts them as well
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        done.wait()
    if not failures or interrupted:
        return interrupted, None
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    error = pickle.loads(reason.read_bytes()) if reason.is_file() else failures[0]
    if "forked subprocess" in str(error) or "fork-based multiprocessing" in str(error):
        error = RuntimeError(_TOO_LATE)
    elif not reason.is_file() and not isinstance(error, ChildFailedError):
        error = RuntimeError(f"{n_processes} processes could not be started; set num_processes to 1. ({error})")
    elif not reason.is_file() or "gloo" in str(error) or isinstance(error, torch.distributed.DistError):
        error = RuntimeError(
            f"One of {n_processes} processes ended without a word, as when the system has no memory left: lower "
            f"batch_size or num_processes. ({error})"
        )
    return False, error


@contextlib.contextmanager
def _silence_launcher() -> Iterator[None]:
    """Keep what accelerate and PyTorch print of processes back: GPUs where there are none, an error in many lines."""
    names = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
    loggers = [logger for logger in map(logging.getLogger, names) if not logger.disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger in loggers:
            logger.disabled = False


def _pack(error: BaseException) -> bytes:
    """Return a copy of an error for another process; one that cannot be copied becomes a RuntimeError that names it."""
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
        return packed
    except Exception:
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
