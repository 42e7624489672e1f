"""Train, evaluate and cross-validate a classifier: one plain loop, batched, exact to repeat and to resume.

A data set here is anything with `__len__` and `__getitems__(indices) -> (inputs, targets)`, such as
`datasets.ArrayDataset`: one indexing operation gathers a whole batch. The model maps inputs to logits. Inputs are a
tensor, or a dict of tensors such as the tokens and mask of sentences. A data set that has `lengths` (n,), the length of
each of its inputs, is cut into batches of similar length: padding costs as much as what it pads.

Started several times at once, by `torchrun --nproc_per_node 2` or (on GPUs) `accelerate launch`, a program trains in
several processes: every one draws the same batches, learns from its share of each, and ends with the same weights.
"""

import contextlib
import copy
import functools
import itertools
import json
import math
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
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
from shared_utils.processes import (
    add_gradients,
    count_processes,
    follow_main,
    hear_main,
    join_processes,
    launch,
    pick_place,
)
from shared_utils.spectrograms import mixup
from shared_utils.splits import check_classes, check_fold_classes, split_by_fold

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

    What has one axis, as biases and norms have, is not decayed: shrinking a LayerNorm's gain is no regularisation.
    `lr_scale` maps a parameter's name to the factor on its learning rate, which stands in its group as "lr_scale".
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
    accumulate: int = 1,
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
    num_processes: int = 1,
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
        accumulate: a batch goes through the model in so many parts, whose gradients add up to those of the whole batch:
            less memory, the same step. BatchNorm and dropout see parts. Augmentation and mixing come before the cut.
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
        num_processes: start so many processes and share every batch out among them: threads on the CPU, or a GPU each,
            as long as this process has not used one. Weights and history come back through a checkpoint in a temporary
            folder. 1 where torchrun or accelerate launch has started the processes.
        checkpoint: a file that is written whole after every epoch; `resume_from` such a file (same settings, same data)
            goes on to the same weights as a run that was never interrupted. `accumulate` and the number of processes
            may differ.
        progress, title: show a table of epochs under this title.

    Returns a DataFrame with one row an epoch: epoch, lr, train_loss, train_accuracy (under augmentation and mixing,
    against the heavier label), val_loss, val_accuracy, `<watch>_accuracy`, seconds; epochs without validation hold NaN.
    Its attrs hold best_epoch, interrupted, device and precision. The random numbers come from torch's global generator:
    seed it before building the model (`device.seed_everything`), in the same cell.

    Several processes give the weights and history of one, to float accuracy, but for two things: BatchNorm sees the
    share of each process (the counts of the first are kept), and dropout draws from generators of its own. The random
    state that they leave, to the caller of `num_processes` too (on the CPU), is that of one process without dropout.

    Raises FloatingPointError with epoch, step and learning rate when the loss is no longer finite, RuntimeError with
    the settings to change when a step runs out of memory (the model holds its best weights so far, if there are any).
    Ctrl-C ends the training early with the best weights and the history so far; before the end of the first epoch there
    are none, and it is raised; under torchrun it ends the program.
    """
    given = dict(locals())
    if len(train) < 2 or epochs < 1 or batch_size < 1 or evaluate_every < 1:
        raise ValueError(
            f"Nothing to train: {len(train)} clips, epochs={epochs}, batch_size={batch_size}, "
            f"evaluate_every={evaluate_every}; two clips and 1 of each are the least."
        )
    if monitor not in ("val_accuracy", "val_loss"):
        raise ValueError(f"monitor={monitor!r} is unknown; choose val_accuracy or val_loss.")
    if mixup_alpha and mix is not None:
        raise ValueError(f"Both mixup_alpha={mixup_alpha} and mix would blend the clips of a batch; give one of them.")
    for name, value in {"patience": patience, "max_grad_norm": max_grad_norm}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value} would let nothing be learned; give None to switch it off.")
    if not 1 <= accumulate <= batch_size:
        raise ValueError(f"accumulate={accumulate} does not fit batch_size={batch_size}; give 1 to {batch_size}.")
    n_processes = count_processes()
    if num_processes < 1 or (n_processes > 1 and num_processes not in (1, n_processes)):
        raise ValueError(
            f"num_processes={num_processes} is not possible: give 1 or more, and 1 where torchrun has started the "
            f"processes (here: {n_processes})."
        )
    if num_processes > n_processes:
        return _fit_in_processes(given)
    if mixup_alpha:
        mix = functools.partial(mixup, alpha=mixup_alpha)
    device = pick_place(device)
    precision = pick_precision(device, precision)
    model.to(device)
    if augment is not None:
        augment.to(device).train()
    train, val = put_on_device(train, device), put_on_device(val, device)

    if mix is not None:
        n_classes = _count_classes(model, train, device, views[0])
    optimizer_ = make_optimizer(model, optimizer, lr, weight_decay, lr_scale)
    team = None if n_processes == 1 else join_processes(model, device)
    is_main = team is None or team.is_main_process
    least = 2 if batch_size >= 2 * accumulate * n_processes else 1  # clips a part
    averaged = copy.deepcopy(model) if ema_decay else None
    steps_per_epoch = len(draw_batches(train, batch_size))
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
    state |= {"device": name_device(device), "precision": str(precision).removeprefix("torch.")}

    table = EpochTable(epochs, steps_per_epoch, evaluate_every, progress and is_main, title, done=state["epoch"])
    interrupted = False
    try:
        for epoch in range(state["epoch"] + 1, epochs + 1):
            if patience is not None and state["stale"] >= patience:
                break
            started = time.perf_counter()
            model.train()
            losses = torch.zeros(steps_per_epoch, device=device)
            n_correct = torch.zeros((), device=device)
            for i, indices in enumerate(draw_batches(train, batch_size, shuffle=True)):
                step = (epoch - 1) * steps_per_epoch + i
                step_lr = learning_rate(schedule, step, n_steps, lr, warmup, step_size, steps_per_epoch)
                for group in optimizer_.param_groups:
                    group["lr"] = step_lr * group["lr_scale"]
                with _explain_failure(batch_size, accumulate, n_processes):
                    inputs, targets = move_batch(train.__getitems__(indices), device)
                    if augment is not None:
                        inputs = augment(inputs)
                    if mix is not None:
                        inputs, targets = mix(inputs, F.one_hot(targets, n_classes).float())
                    labels = targets if targets.ndim == 1 else targets.argmax(1)
                    optimizer_.zero_grad(set_to_none=True)
                    for rows, weight in _cut(len(targets), accumulate, least, step, team):
                        with autocast(device, precision):
                            logits = model(_take(inputs, rows))
                        logits = logits.float()
                        loss = weight * F.cross_entropy(logits, targets[rows], label_smoothing=label_smoothing)
                        loss.backward()
                        losses[i] += loss.detach()
                        n_correct += (logits.detach().argmax(1) == labels[rows]).sum()
                    # on a GPU asking every step would wait for it every step: there the end of the epoch finds it, as
                    # it does where other processes expect this one at every step
                    if device.type == "cpu" and team is None and not math.isfinite(losses[i].item()):
                        break
                    if team is not None:
                        add_gradients(model)
                    if max_grad_norm is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
                    optimizer_.step()
                    if averaged is not None:
                        _update_average(averaged, model, min(ema_decay, (1 + step) / (10 + step)))
                table.step(epoch, i + 1)
            if team is not None:
                losses, n_correct = team.reduce((losses, n_correct))
                for counted in filter(None, (model, averaged)):  # BatchNorm has seen other clips in each process
                    follow_main(counted.buffers())
            broken = (~torch.isfinite(losses)).nonzero()
            if len(broken):
                step = (epoch - 1) * steps_per_epoch + int(broken[0])
                step_lr = learning_rate(schedule, step, n_steps, lr, warmup, step_size, steps_per_epoch)
                raise FloatingPointError(
                    f"The loss is {losses[broken[0]].item()} at epoch {epoch}, step {int(broken[0]) + 1} of "
                    f"{steps_per_epoch}, learning rate {step_lr:.2g}: lower lr, raise warmup, or look for NaN in the "
                    f"inputs. {_say_what_is_left(best_weights)}"
                )
            row = {
                "epoch": epoch, "lr": step_lr, "train_loss": losses.mean().item(),
                "train_accuracy": n_correct.item() / len(train), "val_loss": math.nan, "val_accuracy": math.nan,
            }  # fmt: skip
            judged = model if averaged is None else averaged
            if epoch % evaluate_every == 0 or epoch == epochs:
                if val is not None:  # every process does all of it: they need not wait for each other
                    result = evaluate(judged, val, views=views, device=str(device), precision=precision)
                    row |= {"val_loss": result["loss"], "val_accuracy": result["accuracy"]}
                    if math.isnan(result["loss"]):  # no epoch would be better than another
                        raise FloatingPointError(
                            f"The validation loss is NaN after epoch {epoch}: look for NaN in the validation inputs, "
                            f'or set precision to "float32". {_say_what_is_left(best_weights)}'
                        )
                for name, dataset in (watch or {}).items():
                    result = evaluate(judged, dataset, views=views, device=str(device), precision=precision)
                    row[f"{name}_accuracy"] = result["accuracy"]
                row = row if team is None else hear_main(row)
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
                if is_main:
                    _save_checkpoint(checkpoint, model, averaged, optimizer_, best_weights, state, arguments, device)
                if team is not None:
                    team.wait_for_everyone()  # whoever goes on may read it
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if best_weights is not None:
            model.load_state_dict(best_weights)
        elif averaged is not None:
            model.load_state_dict(averaged.state_dict())
        model.eval()
        table.close(state["best_epoch"], interrupted)
    _check_interruption(state, interrupted)
    return make_history(state, interrupted)


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
    averaged over them. `view_correct` (n,) is the share of views that are right alone, `view_accuracy` its mean,
    `first_view_correct` (n,) whether the first of them is. The model is put in evaluation mode, so dropout and
    augmentation are off, and left as it was.
    """
    device = pick_place(device)
    if not isinstance(precision, torch.dtype):
        precision = pick_precision(device, precision)
    if len(dataset) == 0:
        raise ValueError("There is no clip to evaluate: the data set is empty.")
    was_training = model.training
    model.to(device).eval()
    all_targets, all_probabilities, right = [], [], []
    lengths = _lengths(dataset)
    order = torch.arange(len(dataset)) if lengths is None else lengths.argsort(stable=True)
    for indices in order.split(batch_size):
        inputs, targets = move_batch(dataset.__getitems__(indices), device)
        with autocast(device, precision):
            logits = torch.stack([model(view(inputs)).float() for view in views])  # (views, batch, classes)
        right.append(logits.argmax(2) == targets)
        all_probabilities.append(logits.softmax(2).mean(0))
        all_targets.append(targets)
    model.train(was_training)
    back = order.argsort().to(device)
    targets, probabilities = torch.cat(all_targets)[back], torch.cat(all_probabilities)[back]
    right = torch.cat(right, 1)[:, back]  # (views, n)
    view_correct = right.float().mean(0)
    return {
        "targets": targets.cpu().numpy(),
        "probabilities": probabilities.cpu().numpy(),
        "loss": F.nll_loss(probabilities.clamp_min(1e-12).log(), targets).item(),
        "accuracy": (probabilities.argmax(1) == targets).float().mean().item(),
        "view_correct": view_correct.cpu().numpy(),
        "view_accuracy": view_correct.mean().item(),
        "first_view_correct": right[0].cpu().numpy(),
    }


def cross_validate(
    make_model: Callable[[], nn.Module],
    dataset,
    clips: pd.DataFrame,
    *,
    folds: Iterable[int] | None = None,
    seeds: Iterable[int] = (0,),
    val_fold: int | None = None,
    split: Callable | None = None,
    views: Sequence[Callable] = AS_IS,
    trainer: Callable = fit,
    **fit_arguments,
) -> dict:
    """Train a fresh model for every seed and test fold of the official folds, with clips of others for validation.

    Args:
        make_model: builds an untrained model; called right after seeding, so a run depends on its seed and fold alone.
        dataset: all clips, row for row as in `clips`, which has a `fold` column.
        folds: the test folds to visit; all of them by default.
        val_fold: the validation fold of every round; None: the one after the test fold (`splits.split_by_fold`).
        split: function (clips, test fold, seed) -> row numbers (train, val, test) in the place of `split_by_fold`, such
            as lambda clips, fold, seed: splits.cut_validation(clips, fold, 0.15, seed); `val_fold` is NaN then.
        views: see `evaluate`; for validation and test alike.
        trainer: function in the place of `fit`, with its arguments and history, such as dendrites.fit_with_dendrites.
        fit_arguments: passed to it.

    Returns a dict:
        folds: DataFrame, one row a seed and fold: seed, fold, val_fold, n_test, best_epoch, val_accuracy, test_accuracy
            (of the epoch chosen on the validation fold: the honest figure), view_accuracy (the same for a single view,
            before the mean over `views`), best_test_accuracy (of the epoch that is best on the test fold, which is what
            many papers print; for comparison with those only) and seconds.
        predictions: DataFrame, one row a seed and test clip: seed, fold, clip (row of `clips`), target, predicted,
            correct, view_correct (share of the views), first_view_correct, p0, p1, ... (probability a class).
        histories: (seed, fold) -> history of `fit`. model: the first trained model.
    Ctrl-C ends it with the rounds so far, the last with its best weights so far, and all histories say `interrupted`;
    before there are any, it is raised. A round that fails (see `fit`) raises its error, whose `finished` is the dict of
    the rounds before it.

    Raises ValueError, before anything is trained, where a round's training, validation or test clips lack a class, or
    share one, for `clips` of another length than `dataset`, and for a checkpoint of `fit`: it belongs to one round.
    """
    refuse_checkpoint(fit_arguments, "cross-validate")  # a round would begin with a model that knows its test clips
    if len(dataset) != len(clips):
        raise ValueError(f"{len(dataset):,} clips are in the data set and {len(clips):,} in the table; make it anew.")
    if split is not None and val_fold is not None:
        raise ValueError(f"Both split and val_fold={val_fold} would choose the validation clips; give one of them.")
    folds = None if folds is None else list(folds)
    if split is None:
        check_fold_classes(clips, folds, val_fold)
    rounds = list(itertools.product(seeds, sorted(clips["fold"].unique()) if folds is None else folds))
    if not rounds:
        raise ValueError("There is nothing to cross-validate: give one seed and one fold at least.")
    for _, fold in rounds:
        if not re.fullmatch(r"\d+(\.0)?", str(fold)):
            raise ValueError(f"Fold {fold!r} is no whole number; number the folds in the table of clips.")
    if split is None:
        sides = [split_by_fold(clips, fold, val_fold) for _, fold in rounds]
    else:
        sides = [tuple(np.asarray(rows, dtype=np.int64) for rows in split(clips, fold, seed)) for seed, fold in rounds]
        _check_split(clips, rounds, sides)
    n_processes = fit_arguments.get("num_processes", 1)
    if n_processes > 1 == count_processes():
        judge = functools.partial(_evaluate_in_processes, n_processes)
    else:
        judge = evaluate
        dataset = put_on_device(dataset, pick_place(fit_arguments.get("device", "auto")))
    places = {name: fit_arguments[name] for name in ("device", "precision") if name in fit_arguments}
    rows, predictions, histories, first_model, stopped = [], [], {}, None, False

    def collect() -> dict:
        for history in histories.values():
            history.attrs["interrupted"] |= stopped
        whole = pd.concat(predictions, ignore_index=True)
        return {"folds": pd.DataFrame(rows), "predictions": whole, "histories": histories, "model": first_model}

    for number, ((seed, fold), (train, val, test)) in enumerate(zip(rounds, sides, strict=True), 1):
        train_set, val_set, test_set = (Subset(dataset, indices.tolist()) for indices in (train, val, test))
        title = f"test fold {fold}, seed {seed} ({number} of {len(rounds)})"
        watched = {"watch": {"test": test_set}, "views": views, "title": title}
        try:
            seed_everything(seed)
            model = make_model()
            history = trainer(model, train_set, val_set, **watched, **fit_arguments)
            if history.attrs["best_epoch"] == 0:
                raise KeyboardInterrupt(f"stopped before the first validation of {title}")
            result = judge(model, test_set, views=views, **places)
        except KeyboardInterrupt:
            if not rows:
                raise
            print(f"Stopped by hand: {len(rows)} of {len(rounds)} rounds.")
            stopped = True
            break
        except Exception as error:
            if rows:
                error.finished = collect()
                error.add_note(f"{len(rows)} of {len(rounds)} rounds are finished and kept in the error's `finished`.")
            raise
        first_model = model if first_model is None else first_model
        histories[seed, int(fold)] = history
        best = history.set_index("epoch").loc[history.attrs["best_epoch"]]
        rows.append({
            "seed": seed, "fold": int(fold),
            "val_fold": int(clips["fold"].iloc[val[0]]) if split is None else math.nan, "n_test": len(test),
            "best_epoch": int(history.attrs["best_epoch"]), "val_accuracy": best["val_accuracy"],
            "test_accuracy": result["accuracy"], "view_accuracy": result["view_accuracy"],
            "best_test_accuracy": history["test_accuracy"].max(), "seconds": history["seconds"].sum(),
        })  # fmt: skip
        predicted = result["probabilities"].argmax(1)
        predictions.append(pd.DataFrame({
            "seed": seed, "fold": int(fold), "clip": test, "target": result["targets"], "predicted": predicted,
            "correct": predicted == result["targets"], "view_correct": result["view_correct"],
            "first_view_correct": result["first_view_correct"],
            **{f"p{label}": column for label, column in enumerate(result["probabilities"].T)},
        }))  # fmt: skip
        if history.attrs["interrupted"]:
            print(f"Stopped by hand: {number} of {len(rounds)} rounds, the last one shorter than asked.")
            stopped = True
            break
    return collect()


def _check_split(clips: pd.DataFrame, rounds: list[tuple], sides: list[tuple]) -> None:
    """Raise ValueError where a side of a round lacks a class (`label`) of `clips`, or two sides share a clip."""
    named = {}
    for (seed, fold), rows in zip(rounds, sides, strict=True):
        where = f"of test fold {fold}, seed {seed}"
        n_shared = sum(map(len, rows)) - len(np.unique(np.concatenate(rows)))
        if n_shared:
            raise ValueError(f"split puts {n_shared} clips {where} on two sides; give each clip one side.")
        for side, indices in zip(("training", "validation", "test"), rows, strict=True):
            named[f"the {side} {where}"] = indices
    check_classes(clips, named, "let split take more clips of these classes, or leave the classes out")


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


def count_step_bytes(
    model: nn.Module, inputs, targets: torch.Tensor, *, device: str = "auto", precision: str = "auto"
) -> dict[str, int]:
    """Take one training step with AdamW on a batch of `fit`'s kind and return the bytes that it keeps; `model` changes.

    Keys: parameters; gradients; optimizer, the two moments of what learns; activations, what the forward pass keeps for
    the backward pass, each storage counted once and parameters left out, autocast's copies of weights included; all,
    their sum. Not all of it lies there at once: gradients come as activations go. On a GPU there is "peak" as well: the
    most bytes that PyTorch had allocated at any time of the step, whatever else lies there included.
    """
    device = pick_device(device)
    precision = pick_precision(device, precision)
    model.to(device).train()
    inputs, targets = move_batch((inputs, targets), device)
    optimizer = make_optimizer(model, "adamw", 1e-6, 0.0)
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def take_step() -> None:
        optimizer.zero_grad(set_to_none=True)  # as in `fit`: no gradients lie beside the activations of a forward pass
        with autocast(device, precision):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()

    if device.type == "cuda":
        take_step()  # the moments lie there in all steps but the first
        torch.cuda.reset_peak_memory_stats(device)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        take_step()
    parameters = list(model.parameters())
    for parameter in parameters:
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    counted = {
        "parameters": sum(parameter.nbytes for parameter in parameters),
        "gradients": sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
        "optimizer": sum(state.nbytes for state in states),
        "activations": sum(kept.values()),
    }
    counted["all"] = sum(counted.values())
    return counted | ({"peak": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})


def draw_batches(dataset, batch_size: int, shuffle: bool = False) -> list[torch.Tensor]:
    """Return batches, tensors of row numbers; a last one of a single row joins its neighbour for BatchNorm's sake.

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
    inputs = view(move_batch(dataset.__getitems__(torch.arange(2)), device)[0])
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


def _take(inputs, rows: slice):
    """Return some rows of a tensor, or of all those in a dict or tuple."""
    if isinstance(inputs, dict):
        return {name: _take(value, rows) for name, value in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(_take(value, rows) for value in inputs)
    return inputs[rows]


def move_batch(batch, device: torch.device):
    """Move a tensor, or all those in a dict or tuple."""
    if isinstance(batch, dict):
        return {name: move_batch(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(move_batch(value, device) for value in batch)
    # elsewhere than on CUDA the copy may begin when the batch, which nothing else holds, is gone
    return batch.to(device, non_blocking=device.type == "cuda")


def put_on_device(dataset, device: torch.device):
    """Put the whole data set on a GPU where it can be, so that a batch is gathered there instead of copied."""
    return dataset.to(device) if device.type == "cuda" and hasattr(dataset, "to") else dataset


def refuse_checkpoint(fit_arguments: dict, what: str) -> None:
    """Raise ValueError where what calls `fit` several times is given the checkpoint of one call."""
    for name in ("checkpoint", "resume_from"):
        if fit_arguments.get(name) is not None:
            raise ValueError(f"{name} belongs to one call of fit; {what} without it.")


def _check_interruption(state: dict, interrupted: bool) -> None:
    """Let a loop over models stop where one of them has learnt nothing, instead of taking it for trained."""
    if interrupted and not state["rows"]:
        raise KeyboardInterrupt("stopped before the end of the first epoch; there is nothing to keep")


def make_history(state: dict, interrupted: bool) -> pd.DataFrame:
    """Return the history that `fit` gives: `rows` of the state, one an epoch, the other entries in its attrs."""
    history = pd.DataFrame(state["rows"])
    history.attrs = {name: state[name] for name in ("best_epoch", "device", "precision")} | {"interrupted": interrupted}
    return history


@contextlib.contextmanager
def _explain_failure(batch_size: int, accumulate: int, n_processes: int) -> Iterator[None]:
    """Say which settings to change where a step does not fit into memory, or leaves BatchNorm a single clip."""
    settings = f"batch_size={batch_size}, accumulate={accumulate} and {n_processes} process{'es' * (n_processes > 1)}"
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise RuntimeError(
            f"Out of memory in a step with {settings}: lower batch_size, raise accumulate, shorten the inputs, or set "
            'precision to "bfloat16".'
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"BatchNorm cannot learn from one clip, which {settings} leave it: raise batch_size, or lower accumulate "
            "or the number of processes."
        ) from error


def _say_what_is_left(best_weights: dict | None) -> str:
    return "The model holds its best weights so far." if best_weights else "Build the model anew."


def _split(rows: slice, n_parts: int, least: int) -> list[slice]:
    """Split some rows evenly, into fewer parts where one would have less than `least` of them."""
    n = rows.stop - rows.start
    n_parts = max(1, min(n_parts, n // least))
    return [slice(rows.start + n * k // n_parts, rows.start + n * (k + 1) // n_parts) for k in range(n_parts)]


def _cut(n_clips: int, accumulate: int, least: int, step: int, team) -> Iterator[tuple[slice, float]]:
    """Yield the parts of a batch that this process learns from: their rows and their weight in the mean of the batch.

    Of a batch with fewer clips than processes some get none.
    """
    if team is None:
        for rows in _split(slice(0, n_clips), accumulate, least):
            yield rows, (rows.stop - rows.start) / n_clips
        return
    place = team.process_index
    share = _split(slice(0, n_clips), team.num_processes, least)[place : place + 1]
    with torch.random.fork_rng([team.device] if team.device.type == "cuda" else []):
        # dropout takes as many numbers as the share has clips: drawn apart, it leaves the processes the same state
        torch.manual_seed(hash((torch.initial_seed(), step, place)) % 2**63)
        for rows in itertools.chain.from_iterable(_split(rows, accumulate, least) for rows in share):
            yield rows, (rows.stop - rows.start) / n_clips


def _fit_in_processes(given: dict) -> pd.DataFrame:
    """Run `fit` in forked processes; weights, history and random state come back in the checkpoint of the main one."""
    model = given["model"]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = resolve_path(given["checkpoint"] or Path(folder, "checkpoint.safetensors"))
        earlier = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else None
        arguments = given | {"num_processes": 1, "checkpoint": checkpoint}
        interrupted, failure = launch(lambda: fit(**arguments), given["num_processes"], folder)
        is_new = checkpoint.is_file() and checkpoint.stat().st_mtime_ns != earlier
        state = {"rows": [], "best_epoch": 0, "device": "", "precision": ""}
        # without a new one, nothing came after the one to resume
        source = checkpoint if is_new else given["resume_from"] if failure is None else None
        if source is not None:
            tensors, saved, _ = _read_checkpoint(resolve_path(source))
            state |= saved
            weights = _pick_part(tensors, "best.") or _pick_part(tensors, "averaged.") or _pick_part(tensors, "model.")
            model.load_state_dict(weights)
            torch.set_rng_state(tensors["random.cpu"])
        model.eval()
    if failure is not None:
        raise failure
    _check_interruption(state, interrupted)
    return make_history(state, interrupted)


def _evaluate_in_processes(n_processes: int, *arguments, **settings) -> dict:
    """Call `evaluate` away from this process: once it has used a GPU, it can start no more processes that use one."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result")

        def work():
            found = evaluate(*arguments, **settings)
            if os.environ["RANK"] == "0":
                result.write_bytes(pickle.dumps(found))

        interrupted, failure = launch(work, n_processes, folder)
        if interrupted or failure is not None:
            raise failure or KeyboardInterrupt
        return pickle.loads(result.read_bytes())


@torch.no_grad()
def _update_average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average towards the model; counters and other integers are copied."""
    floats, news, seen = [], [], set()
    for old, new in zip(averaged.state_dict().values(), model.state_dict().values(), strict=True):
        if old.dtype.is_floating_point:
            if (old.data_ptr(), old.shape) not in seen or old.data_ptr() == 0:  # tied weights have two names
                floats.append(old)
                news.append(new)
            seen.add((old.data_ptr(), old.shape))
        else:
            old.copy_(new)
    torch._foreach_lerp_(floats, news, 1 - decay)  # one call for all tensors instead of a call each


class EpochTable:
    """Progress: a table of epochs that stays and one plain bar that goes; text only, so a saved notebook keeps it."""

    def __init__(
        self, epochs: int, steps_per_epoch: int, evaluate_every: int, visible: bool, title: str, done: int = 0
    ):
        self.epochs, self.steps_per_epoch, self.visible = epochs, steps_per_epoch, visible
        self.share_before = done / epochs  # of a resumed training: the time for that was not measured here
        self.lines = [title] if title else []
        self.lines += [f"{'epoch':>7} {'lr':>9} {'train loss':>11} {'train acc':>10} {'val loss':>9} {'val acc':>8}"]
        # twenty rows say as much as three hundred
        self.every = evaluate_every * math.ceil(epochs / 20 / evaluate_every)
        self.started = self.shown = time.perf_counter()
        self.best = ""
        self.handle, self.terminal = None, sys.stderr.isatty()
        is_notebook = count_processes() == 1 and "IPython" in sys.modules  # which only hears the text of its processes
        if visible and is_notebook and sys.modules["IPython"].get_ipython() is not None:
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
        left = (now - self.started) / (share - self.share_before) * (1 - share)
        bar = "█" * round(30 * share) + "·" * (30 - round(30 * share))
        bar = f"{bar} epoch {epoch} of {self.epochs}{self.best}, {left // 60:.0f} min {left % 60:02.0f} s left"
        if self.handle is not None:
            self.handle.update(self._text(bar))
        elif self.terminal:
            print(f"\r{bar}\033[K", end="", file=sys.stderr, flush=True)

    def row(self, row: dict, best: bool) -> None:
        epoch = row["epoch"]
        if best and not math.isnan(row["val_accuracy"]):
            self.best = f", best {epoch} (val acc {row['val_accuracy']:.3f})"
        if epoch % self.every and epoch not in (1, self.epochs):
            return
        val = f"{row['val_loss']:>9.3f} {row['val_accuracy']:>8.3f}" if not math.isnan(row["val_loss"]) else ""
        line = f"{epoch:>7} {row['lr']:>9.2e} {row['train_loss']:>11.3f} {row['train_accuracy']:>10.3f} {val}"
        self.lines.append(line + (" *" if best else ""))
        if self.visible and self.handle is None:
            self._print_last()

    def close(self, best_epoch: int, interrupted: bool) -> None:
        if not self.visible:
            return
        self.lines.append(f"best epoch: {best_epoch}" + (" (stopped by hand)" if interrupted else ""))
        if self.handle is not None:
            self.handle.update(self._text())
        else:
            self._print_last()

    def _print_last(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)  # the bar's own stream: the other may be a file
        print(self.lines[-1], flush=True)

    def _text(self, bar: str = ""):
        from IPython.display import Pretty

        return Pretty("\n".join([*self.lines, bar] if bar else self.lines))


def _save_checkpoint(path, model, averaged, optimizer, best_weights, state, arguments, device) -> None:
    """Write everything a resumed run needs as one safetensors file."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    if averaged is not None:
        tensors |= {f"averaged.{name}": tensor for name, tensor in averaged.state_dict().items()}
    if best_weights is not None:
        tensors |= {f"best.{name}": tensor for name, tensor in best_weights.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if device.type != "cpu":  # dropout and augmentation draw from the generator of their device
        backend, place = _generator_of(device)
        tensors[f"random.{device.type}"] = backend.get_rng_state(*place)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with write_whole(resolve_path(path)) as temporary:
        save_file(tensors, temporary, {"state": json.dumps(state), "arguments": json.dumps(arguments)})


def _read_checkpoint(path: Path) -> tuple[dict, dict, dict]:
    """Return the tensors, the state and the arguments of a run."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}; leave resume_from out to start from the beginning.")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return tensors, json.loads(metadata["state"]), json.loads(metadata["arguments"])
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint of fit ({error}); leave resume_from out to start anew.") from error


def _generator_of(device: torch.device) -> tuple:
    """Return the module whose get_rng_state and set_rng_state are those of the device, and what to call them with."""
    return (torch.mps, ()) if device.type == "mps" else (torch.cuda, (device,))


def _pick_part(tensors: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _load_checkpoint(path, model, averaged, optimizer, arguments, device) -> tuple[dict, dict | None]:
    path = resolve_path(path)
    tensors, state, saved = _read_checkpoint(path)
    changed = [f"{name} (was {saved.get(name)}, is {new})" for name, new in arguments.items() if saved.get(name) != new]
    if changed:
        raise ValueError(f"{path} was made with other settings: {', '.join(changed)}; resume with the same ones.")

    try:
        model.load_state_dict(_pick_part(tensors, "model."))
        if averaged is not None:
            averaged.load_state_dict(_pick_part(tensors, "averaged."))
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to another model: {error}") from error
    moments: dict = {}
    for name, tensor in _pick_part(tensors, "optimizer.").items():
        index, name = name.split(".", 1)
        moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(tensors["random.cpu"])
    if device.type != "cpu" and f"random.{device.type}" in tensors:
        backend, place = _generator_of(device)
        backend.set_rng_state(tensors[f"random.{device.type}"], *place)
    best = {name: tensor.to(device) for name, tensor in _pick_part(tensors, "best.").items()}
    return state, best or None
