"""Train, evaluate and cross-validate a classifier: one plain loop, batched, exact to repeat and to resume.

A data set here is anything with `__len__` and `__getitems__(indices) -> (inputs, targets)`, such as
`datasets.ArrayDataset`: one indexing operation gathers a whole batch. The model maps inputs to logits. Inputs are a
tensor, or a dict of tensors such as the tokens and mask of sentences. A data set that has `lengths` (n,), the length of
each of its inputs, is cut into batches of similar length: padding costs as much as what it pads.
"""

import copy
import functools
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Subset

from shared_utils.device import (
    autocast,
    name_device,
    pick_device,
    pick_precision,
    resolve_path,
    seed_everything,
    write_whole,
)
from shared_utils.spectrograms import mixup
from shared_utils.splits import check_fold_classes, split_by_fold

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("none", "step", "cosine", "onecycle")
AS_IS = (lambda inputs: inputs,)  # one view: the inputs themselves
_SORTED_TOGETHER = 16  # batches


def learning_rate(
    schedule: str,
    step: int,
    n_steps: int,
    lr: float,
    warmup: float = 0.0,
    step_size: int = 10,
    steps_per_epoch: int = 1,
) -> float:
    """Return the learning rate of optimizer step `step` (0 to `n_steps` - 1).

    "none" is constant; "step" divides by ten every `step_size` epochs (StepLR); "cosine" falls to zero (Loshchilov and
    Hutter 2017); "onecycle" rises from lr / 25 to `lr` during the first 30 % and falls to lr / 250,000 (Smith and Topin
    2018, as torch.optim.lr_scheduler.OneCycleLR). The first three rise linearly during the share `warmup` of all steps.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"Schedule {schedule!r} is unknown; choose one of {', '.join(SCHEDULES)}.")
    if schedule == "onecycle":
        peak = 0.3 * n_steps - 1
        low, high, share = (lr / 25, lr, step / max(peak, 1e-9))
        if step > peak:
            low, high, share = lr / 250_000, lr, 1 - (step - peak) / max(n_steps - 1 - peak, 1e-9)
        return low + (high - low) * 0.5 * (1 - math.cos(math.pi * share))
    n_warmup = round(warmup * n_steps)
    if step < n_warmup:
        return lr * (step + 1) / n_warmup
    if schedule == "none":
        return lr
    if schedule == "step":
        return lr * 0.1 ** (step // steps_per_epoch // step_size)
    return lr * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / max(1, n_steps - n_warmup)))


def make_optimizer(
    model: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    lr_scale: Callable[[str], float] | None = None,
) -> torch.optim.Optimizer:
    """Return Adam, AdamW or SGD (Nesterov momentum 0.9) over the trainable parameters of `model`.

    Biases, norms and other vectors are not decayed: shrinking a LayerNorm's gain is no regularisation. `lr_scale` maps
    a parameter's name to the factor on its learning rate, which stands in its group as "lr_scale".
    """
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if lr_scale is None else float(lr_scale(path))
            members.setdefault((scale, parameter.ndim <= 1), []).append(parameter)
    if not members:
        raise ValueError("The model has no trainable parameter; set requires_grad on those that shall learn.")
    groups = []
    for scale, is_vector in sorted(members):
        decay = 0.0 if is_vector else weight_decay
        group = {"params": members[scale, is_vector], "weight_decay": decay, "lr": lr * scale, "lr_scale": scale}
        groups.append(group)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
    raise ValueError(f"Optimizer {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}.")


def fit(
    model: nn.Module,
    train,
    val=None,
    *,
    epochs: int,
    batch_size: int = 32,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    lr_scale: Callable[[str], float] | None = None,
    schedule: str = "cosine",
    warmup: float = 0.1,
    step_size: int = 10,
    label_smoothing: float = 0.0,
    max_grad_norm: float | None = 1.0,
    augment: nn.Module | None = None,
    mixup_alpha: float = 0.0,
    mix: Callable | None = None,
    ema_decay: float | None = None,
    monitor: str = "val_accuracy",
    patience: int | None = None,
    evaluate_every: int = 1,
    watch: dict | None = None,
    views: Sequence[Callable] = AS_IS,
    device: str = "auto",
    precision: str = "auto",
    checkpoint: str | os.PathLike | None = None,
    resume_from: str | os.PathLike | None = None,
    progress: bool = True,
    title: str = "",
) -> pd.DataFrame:
    """Train `model` in place and return its history; the model ends with a copy of its best validation weights.

    Best is the highest validation accuracy, the lower loss among equals (see `monitor`); without `val` the last epoch.

    Args:
        train, val: data sets (see the module's docstring); targets are class indices.
        epochs, batch_size: passes over `train`, clips a step. A last batch of one clip joins the batch before it.
        optimizer, lr, weight_decay, lr_scale: see `make_optimizer`. schedule, warmup, step_size: see `learning_rate`.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2016).
        max_grad_norm: gradients are scaled down to this norm; None leaves them alone.
        augment: module applied to training inputs on the device, never in evaluation.
        mixup_alpha: Beta parameter of mixup (Zhang et al. 2018) after `augment`; 0 is off.
        mix: function in the place of mixup, from (inputs, one-hot targets) to (inputs, targets (batch, classes)), such
            as functools.partial(spectrograms.between_class, sample_rate=16000); None is off.
        ema_decay: evaluate and keep an exponential moving average of the weights; it follows fast in the first steps.
        monitor: what chooses the best epoch: "val_accuracy", or "val_loss", which is less noisy where validation clips
            are few and the targets soft (label smoothing, mixup), and stops too early where they are not.
        patience: stop after this many evaluations without a better one.
        evaluate_every: validate after every so many epochs, and after the last.
        watch: name -> data set, written to the history as `<name>_accuracy` and never used to choose anything.
        views: see `evaluate`; for validation and `watch`.
        device, precision: see `device.pick_device` and `device.pick_precision`.
        checkpoint: a file that is written whole after every epoch; `resume_from` such a file (same settings, same data)
            goes on to the same weights as a run that was never interrupted.
        progress, title: show a table of epochs under this title.

    Returns a DataFrame with one row an epoch: epoch, lr, train_loss, train_accuracy (under augmentation and mixing,
    against the heavier label), val_loss, val_accuracy, `<watch>_accuracy`, seconds; epochs without validation hold NaN.
    Its attrs hold best_epoch, interrupted, device and precision. The random numbers come from torch's global generator:
    seed it before building the model (`device.seed_everything`), in the same cell.

    Raises FloatingPointError with epoch, step and learning rate when the loss is no longer finite (the model holds its
    best weights so far, if there are any). Ctrl-C ends the training early with the best weights and the history so far.
    """
    if len(train) < 2 or epochs < 1 or batch_size < 1 or evaluate_every < 1:
        raise ValueError(
            f"Nothing to train: {len(train)} clips, epochs={epochs}, batch_size={batch_size}, "
            f"evaluate_every={evaluate_every}; two clips and 1 of each are the least."
        )
    if monitor not in ("val_accuracy", "val_loss"):
        raise ValueError(f"monitor={monitor!r} is unknown; choose val_accuracy or val_loss.")
    if mixup_alpha and mix is not None:
        raise ValueError(f"Both mixup_alpha={mixup_alpha} and mix would blend the clips of a batch; give one of them.")
    if mixup_alpha:
        mix = functools.partial(mixup, alpha=mixup_alpha)
    device = pick_device(device)
    precision = pick_precision(device, precision)
    model.to(device)
    if augment is not None:
        augment.to(device).train()
    train, val = _on_device(train, device), _on_device(val, device)

    if mix is not None:
        n_classes = _count_classes(model, train, device, views[0])
    optimizer_ = make_optimizer(model, optimizer, lr, weight_decay, lr_scale)
    averaged = copy.deepcopy(model) if ema_decay else None
    steps_per_epoch = len(_batches(train, batch_size))
    n_steps = steps_per_epoch * epochs
    state = {"epoch": 0, "rows": [], "best": None, "best_epoch": 0, "stale": 0}
    best_weights = None
    arguments = {  # what a resumed run must share with the interrupted one
        "epochs": epochs, "batch_size": batch_size, "optimizer": optimizer, "lr": lr, "weight_decay": weight_decay,
        "schedule": schedule, "warmup": warmup, "step_size": step_size, "label_smoothing": label_smoothing,
        "max_grad_norm": max_grad_norm, "mixup_alpha": mixup_alpha, "ema_decay": ema_decay, "monitor": monitor,
        "patience": patience, "evaluate_every": evaluate_every, "augment": str(augment), "n_train": len(train),
        "mix": None if mixup_alpha else _describe(mix), "lr_scale": _describe(lr_scale),
    }  # fmt: skip
    if resume_from is not None:
        state, best_weights = _load_checkpoint(resume_from, model, averaged, optimizer_, arguments, device)

    table = _EpochTable(epochs, steps_per_epoch, evaluate_every, progress, title)
    interrupted = False
    try:
        for epoch in range(state["epoch"] + 1, epochs + 1):
            if patience is not None and state["stale"] >= patience:
                break
            started = time.perf_counter()
            model.train()
            losses = torch.zeros(steps_per_epoch, device=device)
            n_correct = torch.zeros((), device=device)
            for i, indices in enumerate(_batches(train, batch_size, shuffle=True)):
                step = (epoch - 1) * steps_per_epoch + i
                step_lr = learning_rate(schedule, step, n_steps, lr, warmup, step_size, steps_per_epoch)
                for group in optimizer_.param_groups:
                    group["lr"] = step_lr * group["lr_scale"]
                inputs, targets = _to(train.__getitems__(indices), device)
                if augment is not None:
                    inputs = augment(inputs)
                if mix is not None:
                    inputs, targets = mix(inputs, F.one_hot(targets, n_classes).float())
                with autocast(device, precision):
                    logits = model(inputs)
                logits = logits.float()
                loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
                losses[i] = loss.detach()
                # on a GPU asking every step would wait for it every step: there the end of the epoch finds it
                if device.type == "cpu" and not math.isfinite(losses[i].item()):
                    break
                optimizer_.zero_grad(set_to_none=True)
                loss.backward()
                if max_grad_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
                optimizer_.step()
                if averaged is not None:
                    _update_average(averaged, model, min(ema_decay, (1 + step) / (10 + step)))
                labels = targets if targets.ndim == 1 else targets.argmax(1)
                n_correct += (logits.detach().argmax(1) == labels).sum()
                table.step(epoch, i + 1)
            broken = (~torch.isfinite(losses)).nonzero()
            if len(broken):
                step = (epoch - 1) * steps_per_epoch + int(broken[0])
                step_lr = learning_rate(schedule, step, n_steps, lr, warmup, step_size, steps_per_epoch)
                rest = "The model holds its best weights so far." if best_weights else "Build the model anew."
                raise FloatingPointError(
                    f"The loss is {losses[broken[0]].item()} at epoch {epoch}, step {int(broken[0]) + 1} of "
                    f"{steps_per_epoch}, learning rate {step_lr:.2g}: lower lr, raise warmup, or look for NaN in the "
                    f"inputs. {rest}"
                )
            row = {
                "epoch": epoch, "lr": step_lr, "train_loss": losses.mean().item(),
                "train_accuracy": n_correct.item() / len(train), "val_loss": math.nan, "val_accuracy": math.nan,
            }  # fmt: skip
            judged = model if averaged is None else averaged
            if epoch % evaluate_every == 0 or epoch == epochs:
                if val is not None:
                    result = evaluate(judged, val, views=views, device=str(device), precision=precision)
                    row |= {"val_loss": result["loss"], "val_accuracy": result["accuracy"]}
                for name, dataset in (watch or {}).items():
                    result = evaluate(judged, dataset, views=views, device=str(device), precision=precision)
                    row[f"{name}_accuracy"] = result["accuracy"]
                score = [row["val_accuracy"], -row["val_loss"]] if monitor == "val_accuracy" else [-row["val_loss"]]
                score = [epoch] if val is None else score
                if state["best"] is None or score > state["best"]:
                    best_weights = {name: tensor.clone() for name, tensor in judged.state_dict().items()}
                    state |= {"best": score, "best_epoch": epoch, "stale": 0}
                else:
                    state["stale"] += 1
            row["seconds"] = time.perf_counter() - started
            state["rows"].append(row)
            state["epoch"] = epoch
            table.row(row, best=state["best_epoch"] == epoch)
            if checkpoint is not None:
                _save_checkpoint(checkpoint, model, averaged, optimizer_, best_weights, state, arguments)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if best_weights is not None:
            model.load_state_dict(best_weights)
        elif averaged is not None:
            model.load_state_dict(averaged.state_dict())
        model.eval()
        table.close(state["best_epoch"], interrupted)
    history = pd.DataFrame(state["rows"])
    history.attrs = {
        "best_epoch": state["best_epoch"], "interrupted": interrupted, "device": name_device(device),
        "precision": str(precision).removeprefix("torch."),
    }  # fmt: skip
    return history


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset,
    *,
    views: Sequence[Callable] = AS_IS,
    batch_size: int = 64,
    device: str = "auto",
    precision: str | torch.dtype = "auto",
) -> dict:
    """Return targets (n,), probabilities (n, classes), loss (mean cross-entropy) and accuracy of `model` on `dataset`.

    `views` are functions from inputs to inputs, such as shifts in time or the windows of a clip; the probabilities are
    averaged over them. `view_correct` (n,) is the share of views that are right alone, `view_accuracy` its mean. The
    model is put in evaluation mode, so dropout and augmentation are off, and left as it was.
    """
    device = pick_device(device)
    if not isinstance(precision, torch.dtype):
        precision = pick_precision(device, precision)
    if len(dataset) == 0:
        raise ValueError("There is no clip to evaluate: the data set is empty.")
    was_training = model.training
    model.to(device).eval()
    all_targets, all_probabilities, view_correct = [], [], []
    lengths = _lengths(dataset)
    order = torch.arange(len(dataset)) if lengths is None else lengths.argsort(stable=True)
    for indices in order.split(batch_size):
        inputs, targets = _to(dataset.__getitems__(indices), device)
        with autocast(device, precision):
            logits = torch.stack([model(view(inputs)).float() for view in views])  # (views, batch, classes)
        view_correct.append((logits.argmax(2) == targets).float().mean(0))
        all_probabilities.append(logits.softmax(2).mean(0))
        all_targets.append(targets)
    model.train(was_training)
    back = order.argsort().to(device)
    targets, probabilities = torch.cat(all_targets)[back], torch.cat(all_probabilities)[back]
    view_correct = torch.cat(view_correct)[back]
    return {
        "targets": targets.cpu().numpy(),
        "probabilities": probabilities.cpu().numpy(),
        "loss": F.nll_loss(probabilities.clamp_min(1e-12).log(), targets).item(),
        "accuracy": (probabilities.argmax(1) == targets).float().mean().item(),
        "view_correct": view_correct.cpu().numpy(),
        "view_accuracy": view_correct.mean().item(),
    }


def cross_validate(
    make_model: Callable[[], nn.Module],
    dataset,
    clips: pd.DataFrame,
    *,
    folds: Iterable[int] | None = None,
    seeds: Iterable[int] = (0,),
    val_fold: int | None = None,
    views: Sequence[Callable] = AS_IS,
    **fit_arguments,
) -> dict:
    """Train a fresh model for every seed and test fold of the official folds, with another fold for validation.

    Args:
        make_model: builds an untrained model; called right after seeding, so a run depends on its seed and fold alone.
        dataset: all clips, row for row as in `clips`, which has a `fold` column.
        folds: the test folds to visit; all of them by default.
        val_fold: the validation fold of every round; None: the one after the test fold (`splits.split_by_fold`).
        views: see `evaluate`; for validation and test alike.
        fit_arguments: passed to `fit`.

    Returns a dict:
        folds: DataFrame, one row a seed and fold: seed, fold, val_fold, n_test, best_epoch, val_accuracy, test_accuracy
            (of the epoch chosen on the validation fold: the honest figure), view_accuracy (the same for a single view,
            before the mean over `views`), best_test_accuracy (of the epoch that is best on the test fold, which is what
            many papers print; for comparison with those only) and seconds.
        predictions: DataFrame, one row a seed and test clip: seed, fold, clip (row of `clips`), target, predicted,
            correct, view_correct (share of the views), p0, p1, ... (probability a class).
        histories: (seed, fold) -> history of `fit`. model: the first trained model.
    Ctrl-C ends it with the rounds so far, the last with its best weights so far; before there are any, it is raised.
    Raises ValueError, before anything is trained, where a round's training, validation or test clips lack a class.
    """
    folds = None if folds is None else list(folds)
    check_fold_classes(clips, folds, val_fold)
    rounds = list(itertools.product(seeds, sorted(clips["fold"].unique()) if folds is None else folds))
    if not rounds:
        raise ValueError("There is nothing to cross-validate: give one seed and one fold at least.")
    dataset = _on_device(dataset, pick_device(fit_arguments.get("device", "auto")))
    places = {name: fit_arguments[name] for name in ("device", "precision") if name in fit_arguments}
    rows, predictions, histories, first_model = [], [], {}, None
    for number, (seed, fold) in enumerate(rounds, 1):
        train, val, test = split_by_fold(clips, fold, val_fold)
        train_set, val_set, test_set = (Subset(dataset, indices.tolist()) for indices in (train, val, test))
        seed_everything(seed)
        model = make_model()
        title = f"test fold {fold}, seed {seed} ({number} of {len(rounds)})"
        history = fit(model, train_set, val_set, watch={"test": test_set}, views=views, title=title, **fit_arguments)
        if history.attrs["best_epoch"] == 0:  # stopped by hand before the first validation
            if rows:
                break
            raise KeyboardInterrupt(f"stopped before the first validation of {title}")
        first_model = model if first_model is None else first_model
        histories[seed, int(fold)] = history
        result = evaluate(model, test_set, views=views, **places)
        best = history.set_index("epoch").loc[history.attrs["best_epoch"]]
        rows.append({
            "seed": seed, "fold": int(fold), "val_fold": int(clips["fold"].iloc[val[0]]), "n_test": len(test),
            "best_epoch": int(history.attrs["best_epoch"]), "val_accuracy": best["val_accuracy"],
            "test_accuracy": result["accuracy"], "view_accuracy": result["view_accuracy"],
            "best_test_accuracy": history["test_accuracy"].max(), "seconds": history["seconds"].sum(),
        })  # fmt: skip
        predicted = result["probabilities"].argmax(1)
        predictions.append(pd.DataFrame({
            "seed": seed, "fold": int(fold), "clip": test, "target": result["targets"], "predicted": predicted,
            "correct": predicted == result["targets"], "view_correct": result["view_correct"],
            **{f"p{label}": column for label, column in enumerate(result["probabilities"].T)},
        }))  # fmt: skip
        if history.attrs["interrupted"]:
            print(f"Stopped by hand: {number} of {len(rounds)} rounds, the last one shorter than asked.")
            break
    return {
        "folds": pd.DataFrame(rows),
        "predictions": pd.concat(predictions, ignore_index=True),
        "histories": histories,
        "model": first_model,
    }


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters `model` has, and how many of them are trainable."""
    return (
        sum(parameter.numel() for parameter in model.parameters()),
        sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
    )


@torch.no_grad()
def count_multiply_adds(model: nn.Module, inputs: torch.Tensor) -> int:
    """Return the multiply-adds of `model` for one clip, the first of `inputs` (batch, ...).

    Counted are matrix products, convolutions, attention and recurrent layers, as torch.utils.flop_counter does (its
    operations halved), so the mel filters and cosine transform of a front-end inside the model are in the number;
    Fourier transforms and what works value by value (norms, activations) are not.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    recurrent = {name: module for name, module in model.named_modules() if isinstance(module, nn.RNNBase)}
    steps = dict.fromkeys(recurrent, 0)

    def note(name: str):
        def hook(module, arguments, outputs):
            output = outputs[0]
            output = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
            steps[name] += output.numel() // output.shape[-1]

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in recurrent.items()]
    was_training, fast = model.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # fused layers of torch.nn that the counter does not know
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # attention as two products
            model(inputs[:1])
    finally:
        model.train(was_training)
        torch.backends.mha.set_fastpath_enabled(fast)
        for hook in hooks:
            hook.remove()
    total = counter.get_total_flops() // 2
    by_module = counter.get_flop_counts()
    for name, module in recurrent.items():
        # Which of their products the counter sees depends on the device, so it is replaced: each weight once a step.
        seen = by_module.get(".".join(filter(None, [type(model).__name__, name])), {})
        weights = sum(weight.numel() for weight in module.parameters() if weight.ndim == 2)
        total += steps[name] * weights - sum(seen.values()) // 2
    return total


def _batches(dataset, batch_size: int, shuffle: bool = False) -> list[torch.Tensor]:
    """Split the rows of a data set into batches; a last batch of one joins its neighbour: BatchNorm cannot train on it.

    With lengths, some batches' worth of shuffled rows at a time are sorted by them, and the batches shuffled again.
    """
    n = len(dataset)
    order = torch.randperm(n) if shuffle else torch.arange(n)
    lengths = _lengths(dataset) if shuffle else None
    if lengths is not None:
        # four buffers at least: sorted all at once, a small data set would give the same batches every epoch
        buffer = batch_size * max(1, min(_SORTED_TOGETHER, n // (4 * batch_size)))
        order = torch.cat([rows[lengths[rows].argsort(stable=True)] for rows in order.split(buffer)])
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches if lengths is None else [batches[i] for i in torch.randperm(len(batches))]


def _lengths(dataset) -> torch.Tensor | None:
    """Return the length of each input (n,) on the CPU, None where the data set does not say; a Subset passes it on."""
    if isinstance(dataset, Subset):
        lengths = _lengths(dataset.dataset)
        return None if lengths is None else lengths[torch.as_tensor(dataset.indices)]
    lengths = getattr(dataset, "lengths", None)
    return None if lengths is None else torch.as_tensor(lengths).cpu()


@torch.no_grad()
def _count_classes(model: nn.Module, dataset, device: torch.device, view: Callable) -> int:
    """Ask the model itself, as `evaluate` does: the data set may lack a class."""
    inputs = view(_to(dataset.__getitems__(torch.arange(2)), device)[0])
    if isinstance(inputs, dict):
        raise ValueError("Sentences cannot be blended as sounds can: leave mixup_alpha at 0 and mix at None.")
    return model.eval()(inputs).shape[1]


def _describe(function: Callable | None) -> str | None:
    """Return the name of a function, that of a `functools.partial` with the arguments it fixes."""
    if isinstance(function, functools.partial):
        fixed = [repr(value) for value in function.args]
        fixed += [f"{name}={value!r}" for name, value in function.keywords.items()]
        return f"{_describe(function.func)}({', '.join(fixed)})"
    if function is None or isinstance(function, nn.Module):
        return None if function is None else str(function)
    name = getattr(function, "__qualname__", type(function).__name__)
    code = getattr(function, "__code__", None)
    return f"{name}, line {code.co_firstlineno}" if code and "<lambda>" in name else name  # all lambdas share a name


def _to(batch, device: torch.device):
    """Move a tensor, or all those in a dict or tuple."""
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_to(value, device) for value in batch)
    return batch.to(device, non_blocking=True)


def _on_device(dataset, device: torch.device):
    """Put the whole data set on a GPU where it can be, so that a batch is gathered there instead of copied."""
    return dataset.to(device) if device.type == "cuda" and hasattr(dataset, "to") else dataset


@torch.no_grad()
def _update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average towards the model; counters and other integers are copied."""
    floats, news = [], []
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            floats.append(old)
            news.append(new)
        else:
            old.copy_(new)
    torch._foreach_lerp_(floats, news, 1 - decay)  # one call for all tensors instead of a call each


class _EpochTable:
    """Progress: a table of epochs that stays and one plain bar that goes; text only, so a saved notebook keeps it."""

    def __init__(self, epochs: int, steps_per_epoch: int, evaluate_every: int, visible: bool, title: str):
        self.epochs, self.steps_per_epoch, self.visible = epochs, steps_per_epoch, visible
        self.lines = [title] if title else []
        self.lines += [f"{'epoch':>7} {'lr':>9} {'train loss':>11} {'train acc':>10} {'val loss':>9} {'val acc':>8}"]
        # twenty rows say as much as three hundred
        self.every = evaluate_every * math.ceil(epochs / 20 / evaluate_every)
        self.started = self.shown = time.perf_counter()
        self.handle, self.terminal = None, sys.stderr.isatty()
        if visible and "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
            from IPython.display import display

            self.handle = display(self._text(), display_id=True)
        elif visible:
            print(*self.lines, sep="\n")

    def step(self, epoch: int, step: int) -> None:
        now = time.perf_counter()
        if not self.visible or now - self.shown < 1:
            return
        self.shown = now
        share = (epoch - 1 + step / self.steps_per_epoch) / self.epochs
        left = (now - self.started) / share * (1 - share)
        bar = "█" * round(30 * share) + "·" * (30 - round(30 * share))
        bar = f"{bar} epoch {epoch} of {self.epochs}, {left // 60:.0f} min {left % 60:02.0f} s left"
        if self.handle is not None:
            self.handle.update(self._text(bar))
        elif self.terminal:
            print(f"\r{bar}\033[K", end="", file=sys.stderr, flush=True)

    def row(self, row: dict, best: bool) -> None:
        epoch = row["epoch"]
        if epoch % self.every and epoch not in (1, self.epochs):
            return
        val = f"{row['val_loss']:>9.3f} {row['val_accuracy']:>8.3f}" if not math.isnan(row["val_loss"]) else ""
        line = f"{epoch:>7} {row['lr']:>9.2e} {row['train_loss']:>11.3f} {row['train_accuracy']:>10.3f} {val}"
        self.lines.append(line + (" *" if best else ""))
        if self.visible and self.handle is None:
            print("\r\033[K" * self.terminal + self.lines[-1], flush=True)

    def close(self, best_epoch: int, interrupted: bool) -> None:
        if not self.visible:
            return
        self.lines.append(f"best epoch: {best_epoch}" + (" (stopped by hand)" if interrupted else ""))
        if self.handle is not None:
            self.handle.update(self._text())
        else:
            print("\r\033[K" * self.terminal + self.lines[-1], flush=True)

    def _text(self, bar: str = ""):
        from IPython.display import Pretty

        return Pretty("\n".join([*self.lines, bar] if bar else self.lines))


def _save_checkpoint(path, model, averaged, optimizer, best_weights, state, arguments) -> None:
    """Write everything a resumed run needs as one safetensors file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if averaged is not None:
        tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    if best_weights is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in best_weights.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with write_whole(resolve_path(path)) as temporary:
        save_file(tensors, temporary, {"state": json.dumps(state), "arguments": json.dumps(arguments)})


def _load_checkpoint(path, model, averaged, optimizer, arguments, device) -> tuple[dict, dict | None]:
    path = resolve_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; leave resume_from out to start from the beginning.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        state = json.loads(metadata["state"])
        saved = json.loads(metadata["arguments"])
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of fit ({error}); leave resume_from out to start anew.") from error
    changed = [f"{name} (was {saved.get(name)}, is {new})" for name, new in arguments.items() if saved.get(name) != new]
    if changed:
        raise ValueError(f"{path} was made with other settings: {', '.join(changed)}; resume with the same ones.")

    def part(prefix: str) -> dict:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    try:
        model.load_state_dict(part("model."))
        if averaged is not None:
            averaged.load_state_dict(part("averaged."))
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}") from error
    moments: dict = {}
    for name, tensor in part("optimizer.").items():
        index, name = name.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    best = {name: tensor.to(device) for name, tensor in part("best.").items()}
    return state, best or None
