"""The package perforatedai as a second way to grow dendrites: in a process of its own, with `Dendritic` coming back.

The package leaves the program, opens a debugger, and asks questions on the terminal where it is not content; its wheel
asks for libraries that would replace PyTorch. So `make perforatedai` puts it into a folder that only that process sees.
"""

import builtins
import math
import multiprocessing
import os
import pdb
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from shared_utils.dendrites import Dendritic, find_dendritic, make_dendritic, without_dendrites
from shared_utils.device import ROOT, autocast, name_device, pick_device, pick_precision, resolve_path, write_whole
from shared_utils.training import (
    AS_IS,
    EpochTable,
    draw_batches,
    evaluate,
    make_history,
    make_optimizer,
    move_batch,
    put_on_device,
)

PERFORATEDAI = ROOT / ".perforatedai"  # where `make perforatedai` puts the package, apart from all others
_TOO_LATE = (
    "perforatedai works in a process of its own, which on a machine with a GPU can only be started before this one has "
    'trained or used the GPU: restart it, and go straight to this training or set device to "cpu".'
)


def fit_with_perforatedai(
    model: nn.Module,
    train,
    val,
    *,
    layers: Sequence[str],
    max_dendrites: int,
    folder: str | os.PathLike,
    epochs: int,
    patience: int | None = None,
    batch_size: int = 32,
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    max_grad_norm: float | None = 1.0,
    augment: nn.Module | None = None,
    watch: dict | None = None,
    views: Sequence[Callable] = AS_IS,
    device: str = "auto",
    precision: str = "auto",
    progress: bool = True,
    title: str = "",
) -> pd.DataFrame:
    """Let the package perforatedai (`make perforatedai`) grow and train dendrites; they come back as `Dendritic`.

    The package exits the program and asks questions on the terminal where it is not content, and writes into the
    working directory. So it works in a process of its own, in `folder`; what it says is in `perforatedai.log` there.

    Args:
        model: as it was before `make_dendritic`; `layers`: names as there. All weights of such a layer must learn: the
            package leaves dendrites of frozen ones as they were drawn.
        max_dendrites: sets to keep at most. The package decides on that: a set that does not raise the best validation
            accuracy is drawn anew once, and the second in a row is the end.
        folder: of the run; a relative one counts from the repository's root.
        epochs: of a phase at most; with `patience`, a phase ends after so many without a better validation accuracy.
        lr: at which each phase starts; after half of `patience` without a better accuracy, it falls to a tenth
            (ReduceLROnPlateau; the package's search for a rate to start at is off). The optimizer is AdamW.
        batch_size, weight_decay, label_smoothing, max_grad_norm, augment, watch, views: of `fit`.
        device, precision, progress, title: of `fit`.

    Returns a history as `fit_with_dendrites` does. The model has its layers wrapped as by `make_dendritic` and the
    weights that the package found best; random numbers go on where it left them.

    Raises ModuleNotFoundError where the package is missing, RuntimeError where it gave up, with its last words, and
    where a process cannot be forked: on Windows, and with a GPU once this process has trained. After an error or Ctrl-C
    the model is as it was.
    """
    given = dict(locals())
    if not (PERFORATEDAI / "perforatedai").is_dir():
        raise ModuleNotFoundError("The package perforatedai is not installed: run make perforatedai.")
    if "fork" not in multiprocessing.get_all_start_methods():
        raise RuntimeError("perforatedai works in a forked process, which this system has not; use fit_with_dendrites.")
    if torch.cuda.is_initialized():
        raise RuntimeError(_TOO_LATE)
    if not layers or len(train) < 2 or not val or epochs < 1 or batch_size < 1 or max_dendrites < 0:
        raise ValueError(
            f"Nothing to train: {len(layers)} layers, {len(train)} clips, {len(val or ())} for validation, epochs="
            f"{epochs}, batch_size={batch_size}, max_dendrites={max_dendrites}; 1, 2, 1, 1, 1 and 0 are the least."
        )
    if any(isinstance(module, Dendritic) for module in model.modules()):
        raise ValueError("The model has layers for dendrites already; give it as it was before make_dendritic.")
    folder = resolve_path(folder)
    for name in ("layers", "folder", "progress", "title"):
        del given[name]
    given["result"] = folder / f"perforatedai-{uuid.uuid4().hex}.safetensors"  # of its own: two may train at once
    rows, end = [], {}
    table = EpochTable(epochs * (max_dendrites + 1), 1, 1, progress, title)

    def hear(message: dict) -> None:
        if "epoch" not in message:
            end.update(message)
            return
        is_best = message.pop("is_best")
        rows.append(message)
        table.row(message, is_best)

    wrapped = make_dendritic(model, layers)
    try:
        for name in wrapped:
            if not all(parameter.requires_grad for parameter in model.get_submodule(name).parameters()):
                raise ValueError(
                    f"Not all of {name} learns, and perforatedai would leave that part of a dendrite as it is drawn: "
                    "choose other layers, or use fit_with_dendrites."
                )
        _work_apart(lambda send: _train_in_package(send, **given), hear, folder)
        model.load_state_dict(load_file(given["result"]))
        os.replace(given["result"], folder / "perforatedai.safetensors")
        torch.set_rng_state(torch.from_numpy(end.pop("random")))
    except BaseException:
        for name in wrapped:
            model.set_submodule(name, model.get_submodule(name).base_layer)
        raise
    model.eval()
    table.close(end["best_epoch"], interrupted=False)
    history = make_history({"rows": rows} | end, interrupted=False)
    history.attrs["dendrites"] = end["dendrites"]
    return history


def _work_apart(work: Callable, hear: Callable, folder: Path) -> None:
    """Call `work(send)` in a forked process with a log in place of a terminal, and `hear` with whatever it sends.

    Raises RuntimeError where it did not come to its end, however it ended: asked something, it exits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "perforatedai.log"
    log.write_bytes(b"")
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def begin():
        receiver.close()  # else this process would go on sending where the parent is gone
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        words = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(words, 1)
        os.dup2(words, 2)
        sys.stdin = open(0, closefd=False)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        builtins.input = pdb.set_trace = sys.breakpointhook = refuse  # a notebook would ask in the browser
        sys.path.append(str(PERFORATEDAI))
        work(sender.send)
        sender.send(None)

    def refuse(*question, **_):
        print(*question)
        sys.exit(1)

    def start():
        try:
            process.start()
        except BaseException as error:
            failures.append(error)

    process, failures = context.Process(target=begin, daemon=True), []
    try:
        fresh = threading.Thread(target=start)  # a child inherits the state of OpenMP in the thread that forks
        fresh.start()
        fresh.join()
        if failures:
            raise failures[0]
        sender.close()
        while (message := receiver.recv()) is not None:
            hear(message)
        process.join()
        return
    except EOFError:
        process.join()
    finally:
        if process.pid:
            process.kill()
            process.join()
        receiver.close()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if any(map(str.isalnum, line))), "nothing")
    if "fork-based multiprocessing" in last or "forked subprocess" in last:
        raise RuntimeError(_TOO_LATE)
    code = process.exitcode
    how = f"with exit code {code}" if code >= 0 else f"by signal {-code}, as when the system has no memory left"
    raise RuntimeError(f"perforatedai ended early, {how}, and its last words in {log} are: {last[:500]}")


def _train_in_package(
    send, result, *, model, train, val, max_dendrites, epochs, patience, batch_size, lr, weight_decay, label_smoothing,
    max_grad_norm, augment, watch, views, device, precision,
) -> None:  # fmt: skip
    """Train in the process of the package, whose settings and tracker exist once a process; send rows and the end."""
    device = pick_device(device)
    precision = pick_precision(device, precision)
    model.to(device).train()
    if augment is not None:
        augment.to(device).train()
    train, val = put_on_device(train, device), put_on_device(val, device)
    watch = {name: put_on_device(others, device) for name, others in (watch or {}).items()}
    how = {"views": views, "device": str(device), "precision": precision}
    inputs, _ = move_batch(val.__getitems__(draw_batches(val, batch_size)[0]), device)
    layers = find_dendritic(model)
    axes = _count_axes(model, layers, inputs)
    patience = epochs if patience is None else patience
    with without_dendrites(model):
        net, tracker = _perforate(model, layers, axes, device, max_dendrites, patience)
        best_file = Path(tracker.save_name, "best_model.pt")

        def make():
            groups = make_optimizer(net, "adamw", lr, weight_decay).param_groups
            plateau = {"mode": "max", "patience": patience // 2}
            return tracker.setup_optimizer(net, {"params": groups}, plateau)[0]

        optimizer, phase, epoch, first, best, is_done = make(), 0, 0, 1, None, False
        while not is_done:
            started, epoch = time.perf_counter(), epoch + 1
            net.train()
            losses, n_correct = [], 0
            for indices in draw_batches(train, batch_size, shuffle=True):
                clips, targets = move_batch(train.__getitems__(indices), device)
                if augment is not None:
                    clips = augment(clips)
                optimizer.zero_grad(set_to_none=True)
                with autocast(device, precision):
                    logits = net(clips)
                loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
                loss.backward()
                if max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(net.parameters(), max_grad_norm)
                optimizer.step()
                losses.append(loss.detach())
                n_correct += (logits.detach().argmax(1) == targets).sum()
            found = evaluate(net, val, **how)
            row = {
                "epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "train_loss": torch.stack(losses).mean().item(),
                "train_accuracy": n_correct.item() / len(train), "val_loss": found["loss"],
                "val_accuracy": found["accuracy"], "seconds": 0.0, "phase": phase,
                "dendrites": _count_in_package(net, layers),
            }  # fmt: skip
            row |= {f"{name}_accuracy": evaluate(net, others, **how)["accuracy"] for name, others in watch.items()}
            if not math.isfinite(row["train_loss"]):
                raise FloatingPointError(f"The loss is {row['train_loss']} at epoch {epoch}: lower lr.")
            net, is_new, is_done = tracker.add_validation_score(
                found["accuracy"], net, force_switch=epoch - first + 1 == epochs
            )
            is_best = best_file.stat().st_mtime_ns != 0  # written in this epoch
            os.utime(best_file, ns=(0, 0))
            best = row if is_best else best
            row["seconds"] = time.perf_counter() - started
            send(row | {"is_best": is_best})
            if is_new and not is_done:
                phase, first, optimizer = phase + 1, epoch + 1, make()
        found = evaluate(net, val, **how)
        if not math.isclose(found["loss"], best["val_loss"], rel_tol=1e-3, abs_tol=1e-5):
            raise RuntimeError(f"The best epoch had a loss of {best['val_loss']}, its weights have {found['loss']}.")
        best_file.touch()
        with torch.no_grad():
            theirs = net.eval()(inputs)
        weights, n_kept = _convert(net.state_dict(), layers), _count_in_package(net, layers)
        del net.tracker_string  # which the package has registered
    model.load_state_dict(weights)
    with torch.no_grad():
        difference = (model.eval()(inputs) - theirs).abs().max().item()
    if not difference <= 1e-5 * max(1.0, theirs.abs().max().item()):
        raise RuntimeError(f"The outputs of Dendritic differ from those of the package by {difference:.2g}.")
    with write_whole(result) as temporary:
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()}, temporary)
    send({
        "best_epoch": best["epoch"], "dendrites": n_kept, "device": name_device(device),
        "precision": str(precision).removeprefix("torch."), "random": torch.get_rng_state().numpy(),
    })  # fmt: skip


def _count_axes(model: nn.Module, layers: dict[str, Dendritic], inputs) -> dict[str, int]:
    """Return how many axes the output of each layer has."""
    axes = {}
    hooks = [
        layer.register_forward_hook(lambda module, given, output, name=name: axes.update({name: output.dim()}))
        for name, layer in layers.items()
    ]
    with torch.no_grad():
        model.eval()(inputs)
    for hook in hooks:
        hook.remove()
    unused = [name for name in layers if name not in axes]
    if unused:
        raise ValueError(f"The model does not call {unused[0]}, so it cannot have dendrites.")
    return axes


def _perforate(model: nn.Module, layers: dict, axes: dict, device: torch.device, max_dendrites: int, patience: int):
    """Return the model with the package's modules in the place of `layers`, and the package's tracker."""
    from perforatedai import globals_perforatedai as package
    from perforatedai import utils_perforatedai as tools

    settings = package.pc
    settings.set_device(device)
    settings.set_configuration_confirmed(True)  # else it opens a form on the terminal
    settings.set_unwrapped_modules_confirmed(True)  # else it opens a debugger at each layer that it is not to touch
    settings.set_testing_dendrite_capacity(False)  # else it grows every epoch, three times, and stops
    settings.set_test_saves(False)
    settings.set_find_best_lr(False)
    settings.set_max_dendrites(max_dendrites)
    settings.set_n_epochs_to_switch(patience)
    settings.set_module_names_to_perforate([])  # else all linear layers and convolutions
    settings.set_module_names_to_not_save([])  # else it would not bring back what is called base_model
    settings.set_module_ids_to_perforate([f".{name}" for name in layers])
    # A fresh name: it would take old settings from a folder of the same name, over those above.
    name = f"perforatedai_{uuid.uuid4().hex[:8]}"
    net = tools.perforate_model(model, save_name=name, maximizing_score=True, making_graphs=False)
    for layer in tools.get_pai_modules(net, 0):
        name = layer.name.removeprefix(".")
        dimensions = [-1] * axes[name]
        dimensions[layers[name].channel_dim] = 0
        layer.set_this_output_dimensions(dimensions)
    package.pai_tracker.set_optimizer(torch.optim.AdamW)
    package.pai_tracker.set_scheduler(torch.optim.lr_scheduler.ReduceLROnPlateau)
    return net.to(device), package.pai_tracker


def _count_in_package(net: nn.Module, layers: dict) -> int:
    return max(net.get_submodule(name).dendrite_modules_added for name in layers)


def _convert(state: dict, layers: Iterable[str]) -> dict:
    """Return a state of the package under the names of `Dendritic`, without what no forward pass reads.

    That is a copy of each layer (`parent_module`), the tracker, and all matrices of top weights but the newest.
    """
    starts = tuple(f"{name}." for name in layers)
    converted = {key: tensor for key, tensor in state.items() if not key.startswith(starts) and key != "tracker_string"}
    for start in starts:
        own = {key.removeprefix(start): tensor for key, tensor in state.items() if key.startswith(start)}
        for key, tensor in own.items():
            if key.startswith("main_module."):
                converted[f"{start}base_layer.{key.removeprefix('main_module.')}"] = tensor
            elif key.startswith("dendrite_module.layers."):
                number, _, rest = key.removeprefix("dendrite_module.layers.").partition(".")
                converted[f"{start}dendrites.{number}.branch.{rest}"] = tensor
        n = sum(key.startswith("dendrites_to_top.") for key in own)
        for number in range(n):
            top = own[f"dendrites_to_top.{n - 1}"]  # (n, channels)
            cascade = own[f"dendrite_module.dendrites_to_dendrites.{number}"] if number else top[:0]
            converted |= {f"{start}dendrites.{number}.top": top[number], f"{start}dendrites.{number}.cascade": cascade}
    return converted
