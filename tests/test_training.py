"""The training loop: exact to repeat, to interrupt and to resume; learning rates as PyTorch's own schedulers give."""

import functools
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset

from shared_utils import training
from shared_utils.datasets import ArrayDataset
from shared_utils.device import seed_everything
from shared_utils.spectrograms import (
    AddNoise,
    Gain,
    RandomCrop,
    SpecAugment,
    SpeedPerturb,
    TimeShift,
    between_class,
    mixup,
)
from shared_utils.training import (
    count_multiply_adds,
    count_parameters,
    cross_validate,
    evaluate,
    fit,
    learning_rate,
    make_optimizer,
)


class Net(nn.Module):
    """A model with everything that could go wrong in a resume: BatchNorm counters, dropout, a vector parameter."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(16, n_classes)

    def forward(self, inputs):
        return self.head(self.layers(inputs))


class Jitter(nn.Module):
    """An augmentation that notes how often it ran, and in which mode the model's own modules were."""

    calls = 0

    def forward(self, inputs):
        Jitter.calls += 1
        return inputs + 0.1 * torch.randn_like(inputs)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(66) % 3
    inputs = torch.randn(66, 6, generator=generator) + 1.5 * F.one_hot(targets, 6)
    return inputs, targets


@pytest.fixture
def sets(data):
    inputs, targets = data
    return ArrayDataset(inputs[:45], targets[:45]), ArrayDataset(inputs[45:], targets[45:])


RECIPE = {"batch_size": 8, "lr": 0.01, "mixup_alpha": 0.4, "ema_decay": 0.9, "label_smoothing": 0.1, "device": "cpu"}


def train(sets, epochs=6, seed=0, **changes):
    seed_everything(seed)
    model = Net()
    history = fit(model, *sets, **(RECIPE | {"epochs": epochs, "augment": Jitter(), "progress": False} | changes))
    return model, history


def weights(model):
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


@pytest.mark.parametrize("schedule", ["step", "cosine", "onecycle"])
def test_learning_rate_equals_pytorch_schedulers(schedule):
    n_steps, steps_per_epoch = 120, 4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = {
        "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 10 * steps_per_epoch, 0.1),
        "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps),
        "onecycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, n_steps, cycle_momentum=False),
    }[schedule]()
    theirs = []
    for _ in range(n_steps):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(theirs) < n_steps:
            scheduler.step()
    ours = [learning_rate(schedule, step, n_steps, 0.1, steps_per_epoch=steps_per_epoch) for step in range(n_steps)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_warmup_rises_to_the_full_rate_and_unknown_names_are_refused():
    rates = [learning_rate("none", step, 100, 0.2, warmup=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.02) and rates[9] == pytest.approx(0.2) and set(rates[10:]) == {0.2}
    with pytest.raises(ValueError, match="'linear' is unknown; choose one of none, step, cosine, onecycle"):
        learning_rate("linear", 0, 10, 0.1)
    with pytest.raises(ValueError, match="'lion' is unknown; choose one of adam, adamw, sgd"):
        make_optimizer(Net(), "lion", 0.1, 0.0)


def test_an_unknown_schedule_is_refused_before_the_first_step(sets):
    with pytest.raises(ValueError, match="'cosin' is unknown"):
        train(sets, schedule="cosin")


def test_vectors_are_not_decayed():
    decayed, spared = make_optimizer(Net(), "adamw", 0.1, 0.05).param_groups
    assert decayed["weight_decay"] == 0.05 and sum(p.numel() for p in decayed["params"]) == 6 * 16 + 16 * 3
    assert spared["weight_decay"] == 0 and sum(p.numel() for p in spared["params"]) == 16 + 32 + 3


def test_the_same_seed_gives_the_same_run_and_another_seed_another(sets):
    first, first_history = train(sets)
    again, again_history = train(sets)
    other, _ = train(sets, seed=1)
    assert torch.equal(weights(first), weights(again))
    pd.testing.assert_frame_equal(first_history.drop(columns="seconds"), again_history.drop(columns="seconds"))
    assert not torch.equal(weights(first), weights(other))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_resumed_run_ends_with_the_same_weights(sets, tmp_path, optimizer):
    whole, whole_history = train(sets, optimizer=optimizer)

    class Interrupted(ArrayDataset):
        left = 6 * 3 + 2  # the third step of the fourth epoch is never reached

        def __getitems__(self, indices):
            if len(indices) == 8 or len(indices) == 5:
                Interrupted.left -= 1
            if Interrupted.left < 0:
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    train_set, val_set = sets
    seed_everything(0)
    stopped = Net()
    checkpoint = tmp_path / "checkpoint.safetensors"
    arguments = RECIPE | {"epochs": 6, "optimizer": optimizer, "augment": Jitter(), "progress": False}
    inputs, targets = train_set.__getitems__(range(45))
    history = fit(stopped, Interrupted(inputs, targets), val_set, checkpoint=checkpoint, **arguments)
    assert history.attrs["interrupted"] and len(history) == 3
    assert evaluate(stopped, val_set, device="cpu")["accuracy"] == history["val_accuracy"].max()  # usable as it is

    seed_everything(99)  # neither the seed nor the fresh weights matter: the checkpoint holds both
    resumed = Net()
    resumed_history = fit(resumed, train_set, val_set, resume_from=checkpoint, **arguments)
    assert torch.equal(weights(resumed), weights(whole))
    pd.testing.assert_frame_equal(resumed_history.drop(columns="seconds"), whole_history.drop(columns="seconds"))


def test_a_checkpoint_of_other_settings_or_a_damaged_one_is_refused(sets, tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    train(sets, epochs=2, checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"other settings: epochs \(was 2, is 3\); resume with the same ones"):
        train(sets, epochs=3, resume_from=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(ValueError, match="is no checkpoint of fit"):
        train(sets, epochs=2, resume_from=checkpoint)
    with pytest.raises(FileNotFoundError, match="leave resume_from out"):
        train(sets, epochs=2, resume_from=tmp_path / "nothing.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]  # no temporary file is left


@pytest.mark.parametrize(
    "one, other",
    [
        (Gain(6), Gain(60)),
        (TimeShift(0.1, 100), TimeShift(0.1, 100, wrap=False)),
        (AddNoise(snr_db=(5, 30)), AddNoise(snr_db=(5, 20))),
        (AddNoise(torch.ones(9)), AddNoise()),
        (SpeedPerturb(0.1), SpeedPerturb(0.2)),
        (nn.Sequential(SpecAugment(1, 2, 1, 3)), nn.Sequential(SpecAugment(1, 2, 1, 4))),
    ],
)
def test_a_checkpoint_of_another_augmentation_is_refused(sets, tmp_path, one, other):
    checkpoint = tmp_path / "checkpoint.safetensors"
    asis = nn.Identity()  # the checkpoint notes what an augmentation is called with, not what it does
    asis.extra_repr = lambda: repr(one)
    train(sets, epochs=1, augment=asis, checkpoint=checkpoint)
    asis.extra_repr = lambda: repr(other)
    with pytest.raises(ValueError, match="other settings: augment "):
        train(sets, epochs=1, augment=asis, resume_from=checkpoint)


def test_mix_takes_the_place_of_mixup(sets):
    by_alpha, alpha_history = train(sets)
    by_function, history = train(sets, mixup_alpha=0.0, mix=functools.partial(mixup, alpha=0.4))
    assert torch.equal(weights(by_alpha), weights(by_function))
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), alpha_history.drop(columns="seconds"))
    seen = []

    def swap(inputs, targets):
        seen.append((inputs, targets))
        return inputs, targets.roll(1, 1)  # each clip is taught as the class after its own

    model, _ = train([sets[0]], mixup_alpha=0.0, mix=swap, epochs=12)
    inputs, targets = seen[0]
    assert len(seen) == 12 * 6 and inputs.shape == (8, 6) and targets.shape == (8, 3)
    assert targets.dtype == torch.float32 and targets.sum(1).tolist() == [1] * 8 and targets.unique().tolist() == [0, 1]
    result = evaluate(model, sets[1], device="cpu")
    assert (result["probabilities"].argmax(1) == (result["targets"] + 1) % 3).mean() > 0.6
    with pytest.raises(ValueError, match="mixup_alpha=0.4 and mix would blend the clips of a batch; give one of them"):
        train(sets, mix=swap)


def test_a_resumed_run_shares_its_mix(sets, tmp_path):
    left = 99

    def blend(inputs, targets):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return between_class(inputs, targets)

    checkpoint = tmp_path / "checkpoint.safetensors"
    whole, _ = train(sets, epochs=3, mixup_alpha=0.0, mix=blend)
    left = 6 + 2  # the third step of the second epoch is never reached
    stopped, history = train(sets, epochs=3, mixup_alpha=0.0, mix=blend, checkpoint=checkpoint)
    assert len(history) == 1
    left = 99
    resumed, history = train(sets, epochs=3, seed=9, mixup_alpha=0.0, mix=blend, resume_from=checkpoint)
    assert len(history) == 3 and torch.equal(weights(resumed), weights(whole))
    assert not torch.equal(weights(stopped), weights(whole))
    with pytest.raises(ValueError, match=r"other settings: mix \(was .*blend, is None\); resume with the same ones"):
        train(sets, epochs=3, mixup_alpha=0.0, resume_from=checkpoint)

    by_rate = [functools.partial(between_class, sample_rate=rate) for rate in (16000, 16000, 8000)]
    train(sets, epochs=1, mixup_alpha=0.0, mix=by_rate[0], checkpoint=checkpoint)
    train(sets, epochs=1, mixup_alpha=0.0, mix=by_rate[1], resume_from=checkpoint)
    with pytest.raises(
        ValueError, match=r"mix \(was between_class\(sample_rate=16000\), is between_class\(.*=8000\)\);"
    ):
        train(sets, epochs=1, mixup_alpha=0.0, mix=by_rate[2], resume_from=checkpoint)


def test_a_model_of_crops_is_mixed_and_judged_by_its_views(data):
    inputs, targets = data
    longer = torch.cat(
        [inputs, inputs], dim=1
    )  # (clips, 12), of which Net takes 6: every crop in steps of 6 is the clip
    views = [lambda inputs: inputs[:, :6], lambda inputs: inputs[:, 6:]]
    seed_everything(0)
    model, train_set, val_set = Net(), ArrayDataset(longer[:45], targets[:45]), ArrayDataset(longer[45:], targets[45:])
    arguments = RECIPE | {"mixup_alpha": 0.0, "mix": between_class, "augment": RandomCrop(6, step=6), "views": views}
    history = fit(model, train_set, val_set, epochs=15, progress=False, **arguments)
    assert history["val_accuracy"].max() > 0.7


def test_the_model_ends_with_a_copy_of_its_best_weights(sets):
    model, history = train(sets, epochs=15, lr=0.3, schedule="none", ema_decay=None)  # a rate that makes it wander
    best = history.loc[history["epoch"] == history.attrs["best_epoch"]].iloc[0]
    result = evaluate(model, sets[1], device="cpu")
    assert best["val_accuracy"] == history["val_accuracy"].max() > history["val_accuracy"].min()
    assert result["accuracy"] == best["val_accuracy"] and result["loss"] == pytest.approx(best["val_loss"], rel=1e-5)


def test_the_loss_can_choose_the_epoch(sets):
    model, history = train(sets, epochs=15, lr=0.3, schedule="none", ema_decay=None, monitor="val_loss")
    assert history.attrs["best_epoch"] == history["epoch"][history["val_loss"].idxmin()]
    assert evaluate(model, sets[1], device="cpu")["loss"] == pytest.approx(history["val_loss"].min(), rel=1e-5)
    with pytest.raises(ValueError, match="monitor='loss' is unknown"):
        train(sets, monitor="loss")


def test_the_average_is_the_exponential_moving_average_of_the_weights(sets):
    seed_everything(0)
    model = nn.Linear(6, 3)
    twin = nn.Linear(6, 3)
    twin.load_state_dict(model.state_dict())
    seed_everything(1)
    fit(model, sets[0], epochs=2, batch_size=45, optimizer="sgd", lr=0.1, weight_decay=0, schedule="none", warmup=0,
        max_grad_norm=None, ema_decay=0.5, device="cpu", precision="float32", progress=False)  # fmt: skip
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    average = twin.weight.detach().clone()
    inputs, targets = sets[0].__getitems__(range(45))
    for step in range(2):
        F.cross_entropy(twin(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        average = average.lerp(twin.weight.detach(), 1 - min(0.5, (1 + step) / (10 + step)))
    torch.testing.assert_close(model.weight.detach(), average)


def test_tied_weights_are_averaged_once(sets):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.second.weight = self.first.weight

        def forward(self, inputs):
            return self.head(self.second(self.first(inputs)))

    averaged, model = Tied(), Tied()
    before = averaged.first.weight.detach().clone()
    training._update_average(averaged, model, 0.9)
    torch.testing.assert_close(averaged.first.weight.detach(), before.lerp(model.first.weight.detach(), 0.1))
    assert averaged.second.weight is averaged.first.weight


def test_augmentation_runs_once_a_training_step_and_never_in_evaluation(sets):
    Jitter.calls = 0
    model, _ = train(sets, epochs=3)
    assert Jitter.calls == 3 * math.ceil(45 / 8)
    evaluate(model, sets[1], device="cpu")
    assert Jitter.calls == 3 * math.ceil(45 / 8)


def test_a_last_batch_of_one_clip_joins_the_batch_before(data):
    inputs, targets = data
    sizes = []

    class Watched(ArrayDataset):
        def __getitems__(self, indices):
            sizes.append(len(indices))
            return super().__getitems__(indices)

    fit(Net(), Watched(inputs[:33], targets[:33]), epochs=1, batch_size=16, device="cpu", progress=False)
    assert sizes == [16, 17]


def test_a_loss_that_is_no_number_stops_with_epoch_step_and_rate(sets, data):
    inputs, targets = data
    broken = inputs.clone()
    broken[7, 0] = math.nan
    seed_everything(0)
    with pytest.raises(FloatingPointError, match=r"nan at epoch 1, step [1-6] of 6, learning rate \S+: lower lr"):
        fit(Net(), ArrayDataset(broken[:45], targets[:45]), epochs=2, batch_size=8, device="cpu", progress=False)


def test_a_validation_loss_that_is_no_number_stops_too(sets, data):
    inputs, targets = data
    broken = inputs[45:].clone()
    broken[3, 0] = math.nan
    for monitor in ("val_loss", "val_accuracy"):
        with pytest.raises(FloatingPointError, match="validation loss is NaN after epoch 1: .* Build the model anew"):
            train((sets[0], ArrayDataset(broken, targets[45:])), monitor=monitor)


def test_early_stopping_and_rare_validation(sets):
    _, history = train(sets, epochs=40, patience=3, lr=1e-7)
    assert len(history) < 40 and len(history) == history.attrs["best_epoch"] + 3
    _, history = train(sets, epochs=7, evaluate_every=3)
    assert history["val_accuracy"].notna().tolist() == [False, False, True, False, False, True, True]


def test_evaluate_averages_probabilities_over_views_and_leaves_the_mode_alone(sets):
    model, _ = train(sets, epochs=2)
    model.train()
    views = [lambda inputs: inputs, lambda inputs: inputs.flip(1)]
    result = evaluate(model, sets[1], views=views, batch_size=4, device="cpu", precision="float32")
    assert model.training
    model.eval()
    inputs, targets = sets[1].__getitems__(range(21))
    expected = (model(inputs).softmax(1) + model(inputs.flip(1)).softmax(1)).detach() / 2
    np.testing.assert_allclose(result["probabilities"], expected, atol=1e-6)
    assert result["accuracy"] == pytest.approx((expected.argmax(1) == targets).float().mean().item())
    assert result["loss"] == pytest.approx(F.nll_loss(expected.log(), targets).item(), rel=1e-5)


def test_single_views_are_counted_beside_their_mean(sets):
    model, _ = train(sets, epochs=2)
    views = [lambda inputs: inputs, lambda inputs: inputs.flip(1), lambda inputs: inputs.roll(2, 1)]
    result = evaluate(model, sets[1], views=views, batch_size=4, device="cpu", precision="float32")
    inputs, targets = sets[1].__getitems__(range(21))
    with torch.no_grad():
        right = torch.stack([model(view(inputs)).argmax(1) == targets for view in views]).float()  # (views, clips)
    np.testing.assert_allclose(result["view_correct"], right.mean(0), atol=1e-6)
    assert result["view_accuracy"] == pytest.approx(right.mean().item()) and 0 < right.mean() < 1
    assert result["view_accuracy"] != pytest.approx(result["accuracy"], abs=0.01)
    alone = evaluate(model, sets[1], device="cpu", precision="float32")
    assert alone["view_accuracy"] == alone["accuracy"] == pytest.approx(right[0].mean().item())


def test_too_little_data_is_one_clear_sentence(data):
    inputs, targets = data
    with pytest.raises(ValueError, match="Nothing to train: 1 clips"):
        fit(Net(), ArrayDataset(inputs[:1], targets[:1]), epochs=1, progress=False)
    with pytest.raises(ValueError, match="the data set is empty"):
        evaluate(Net(), ArrayDataset(inputs[:0], targets[:0]), device="cpu")
    frozen = Net().requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        fit(frozen, ArrayDataset(inputs, targets), epochs=1, progress=False)


def test_cross_validation_keeps_the_folds_apart_and_runs_independent(data):
    inputs, targets = data
    folds = torch.arange(66) // 3 % 5 + 1
    marked = inputs.clone()
    marked[:, 5] = folds  # a column that tells which fold a clip comes from
    clips = pd.DataFrame({"fold": folds.numpy(), "label": targets.numpy(), "source": np.arange(66).astype(str)})
    seen = []

    class Spy(Net):
        def forward(self, inputs):
            if self.training:
                seen.append(set(inputs[:, 5].int().tolist()))
            return super().forward(inputs)

    arguments = {"epochs": 2, "batch_size": 16, "lr": 0.01, "device": "cpu", "progress": False}
    result = cross_validate(Spy, ArrayDataset(marked, targets), clips, folds=[2, 5], seeds=[0, 1], **arguments)
    table = result["folds"]
    assert table[["seed", "fold", "val_fold"]].values.tolist() == [[0, 2, 3], [0, 5, 1], [1, 2, 3], [1, 5, 1]]
    assert table["n_test"].tolist() == [(folds == 2).sum(), (folds == 5).sum()] * 2
    half = len(seen) // 4
    assert set.union(*seen[:half]) == {1, 4, 5} and set.union(*seen[half : 2 * half]) == {2, 3, 4}
    predictions = result["predictions"]
    assert (clips["fold"].to_numpy()[predictions["clip"]] == predictions["fold"]).all()
    assert (predictions["target"] == clips["label"].to_numpy()[predictions["clip"]]).all()
    means = predictions.groupby(["seed", "fold"])["correct"].mean().to_numpy()
    np.testing.assert_allclose(means, table["test_accuracy"])
    assert (table["best_test_accuracy"] >= table["test_accuracy"]).all()
    for row in table.itertuples():  # what the table says is what the history says of the chosen epoch
        history = result["histories"][row.seed, row.fold].set_index("epoch")
        assert row.test_accuracy == history["test_accuracy"][row.best_epoch]
        assert row.val_accuracy == history["val_accuracy"].max()

    alone = cross_validate(Spy, ArrayDataset(marked, targets), clips, folds=[5], seeds=[1], **arguments)
    expected = table.iloc[3:].reset_index(drop=True).drop(columns="seconds")
    pd.testing.assert_frame_equal(alone["folds"].drop(columns="seconds"), expected)


def test_folds_are_numbers(data):
    inputs, targets = data
    clips = pd.DataFrame({"fold": np.array(["A", "B", "C"])[torch.arange(66) // 3 % 3], "label": targets.numpy()})
    clips["source"] = np.arange(66).astype(str)
    started = []
    with pytest.raises(ValueError, match="Fold 'A' is no whole number; number the folds"):
        cross_validate(
            lambda: started.append(1), ArrayDataset(inputs, targets), clips, epochs=1, device="cpu",
            split=lambda clips, fold, seed: (np.arange(20), np.arange(20, 40), np.arange(40, 66)),
        )  # fmt: skip
    assert not started


def test_the_device_may_be_one_that_was_picked(sets):
    model, history = train(sets, epochs=1, device=torch.device("cpu"))
    assert len(history) == 1 and evaluate(model, sets[1], device=torch.device("cpu"))["accuracy"] > 0


def test_cross_validation_trains_with_another_function(data):
    """It gets what fit gets, and its history counts."""
    inputs, targets = data
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1, "label": targets.numpy()})
    arguments = {"epochs": 2, "batch_size": 16, "lr": 0.01, "device": "cpu", "progress": False}
    usual = cross_validate(Net, ArrayDataset(inputs, targets), clips, folds=[2], **arguments)
    given = {}

    def trainer(model, train, val, *, extra, **others):
        given.update(others, extra=extra, sizes=(len(train), len(val)))
        history = fit(model, train, val, **others)
        history.attrs["best_epoch"] = 1
        return history

    result = cross_validate(Net, ArrayDataset(inputs, targets), clips, folds=[2], trainer=trainer, extra=7, **arguments)
    assert given["extra"] == 7 and given["epochs"] == 2 and set(given["watch"]) == {"test"}
    assert sum(given["sizes"]) + result["folds"]["n_test"][0] == 66
    assert result["folds"]["best_epoch"].tolist() == [1]
    pd.testing.assert_frame_equal(
        result["histories"][0, 2].drop(columns="seconds"), usual["histories"][0, 2].drop(columns="seconds")
    )


def test_cross_validation_tells_the_accuracy_of_single_views(data):
    inputs, targets = data
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1, "label": targets.numpy()})
    dataset = ArrayDataset(inputs, targets)
    views = [lambda inputs: inputs, lambda inputs: inputs.roll(1, 1)]  # the second one moves what tells the classes
    arguments = {"epochs": 4, "batch_size": 16, "lr": 0.01, "device": "cpu", "precision": "float32", "progress": False}
    result = cross_validate(Net, dataset, clips, folds=[2, 5], views=views, **arguments)
    folds, predictions = result["folds"], result["predictions"]
    means = predictions.groupby("fold")[["correct", "view_correct"]].mean()
    np.testing.assert_allclose(folds["test_accuracy"], means["correct"], atol=1e-6)
    np.testing.assert_allclose(folds["view_accuracy"], means["view_correct"], atol=1e-6)
    assert set(predictions["view_correct"]) == {0, 0.5, 1}
    rows = np.flatnonzero(clips["fold"] == 2)  # the returned model is that of the first round
    both = [evaluate(result["model"], dataset, views=[view], device="cpu", precision="float32") for view in views]
    right = [(part["probabilities"].argmax(1) == part["targets"])[rows].mean() for part in both]
    assert right[0] > right[1] + 0.1 and folds["view_accuracy"][0] == pytest.approx(np.mean(right))


def test_cross_validation_with_a_validation_fold_of_choice(data):
    inputs, targets = data
    folds = torch.arange(66) // 3 % 5 + 1
    marked = inputs.clone()
    marked[:, 5] = folds
    clips = pd.DataFrame({"fold": folds.numpy(), "label": targets.numpy()})
    seen = []

    class Spy(Net):
        def forward(self, inputs):
            seen.append((self.training, set(inputs[:, 5].int().tolist())))
            return super().forward(inputs)

    arguments = {"epochs": 1, "batch_size": 64, "device": "cpu", "progress": False}
    for val_fold in (2, 3, 4, 5):
        seen.clear()
        result = cross_validate(Spy, ArrayDataset(marked, targets), clips, folds=[1], val_fold=val_fold, **arguments)
        assert seen[0] == (True, {2, 3, 4, 5} - {val_fold}) and seen[1] == (False, {val_fold})
        assert set.union(*(fold for _, fold in seen[2:])) == {1}
        assert result["folds"][["fold", "val_fold"]].values.tolist() == [[1, val_fold]]
    seen.clear()
    with pytest.raises(ValueError, match="both 3; no epoch may be chosen on the test clips"):
        cross_validate(Spy, ArrayDataset(marked, targets), clips, folds=[1, 3], val_fold=3, **arguments)
    with pytest.raises(ValueError, match="no column 'fold'"):
        cross_validate(Spy, ArrayDataset(marked, targets), clips.drop(columns="fold"), **arguments)
    assert not seen  # the first round would have been possible


def test_an_interrupted_cross_validation_keeps_what_is_done(data):
    inputs, targets = data
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1})
    arguments = {"epochs": 2, "batch_size": 16, "device": "cpu", "progress": False}

    class Impatient(ArrayDataset):
        left = 0

        def __getitems__(self, indices):
            Impatient.left -= 1
            if Impatient.left == 0:
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    whole = cross_validate(Net, ArrayDataset(inputs, targets), clips, **arguments)
    Impatient.left = 21  # in the second round: each takes 2 x (3 steps, 1 validation, 1 watch) and the test
    part = cross_validate(Net, Impatient(inputs, targets), clips, **arguments)
    n_done = len(part["folds"])
    assert 1 <= n_done < 5 and part["folds"]["test_accuracy"][0] == whole["folds"]["test_accuracy"][0]
    assert [history.attrs["interrupted"] for history in part["histories"].values()] == [True] * n_done
    Impatient.left = 1
    with pytest.raises(KeyboardInterrupt, match="before the end of the first epoch"):
        cross_validate(Net, Impatient(inputs, targets), clips, **arguments)
    Impatient.left = 5  # the second of three epochs, of which only the last is validated
    with pytest.raises(KeyboardInterrupt, match="before the first validation of test fold 1, seed 0"):
        cross_validate(Net, Impatient(inputs, targets), clips, **arguments | {"epochs": 3, "evaluate_every": 3})
    with pytest.raises(ValueError, match="nothing to cross-validate"):
        cross_validate(Net, ArrayDataset(inputs, targets), clips, seeds=[], **arguments)


@pytest.mark.parametrize("where", ["make_model", "evaluate"])
def test_ctrl_c_between_two_trainings_keeps_the_rounds_before(data, monkeypatch, capsys, where):
    n_calls = 0

    def stop_at(number, function):
        def call(*arguments, **settings):
            nonlocal n_calls
            n_calls += 1
            if n_calls == number:
                raise KeyboardInterrupt
            return function(*arguments, **settings)

        return call

    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1})
    arguments = {"epochs": 1, "batch_size": 16, "device": "cpu", "progress": False}
    whole = cross_validate(Net, ArrayDataset(*data), clips, **arguments)
    make_model = Net
    if where == "make_model":
        make_model = stop_at(3, Net)
    else:  # a round evaluates validation clips, test clips as watched, and test clips
        monkeypatch.setattr(training, "evaluate", stop_at(9, training.evaluate))
    part = cross_validate(make_model, ArrayDataset(*data), clips, **arguments)
    assert part["folds"]["test_accuracy"].tolist() == whole["folds"]["test_accuracy"].tolist()[:2]
    assert list(part["histories"]) == [(0, 1), (0, 2)] and len(part["predictions"]) < len(whole["predictions"]) / 2
    assert [history.attrs["interrupted"] for history in part["histories"].values()] == [True, True]
    assert not any(history.attrs["interrupted"] for history in whole["histories"].values())
    assert "Stopped by hand: 2 of 5 rounds." in capsys.readouterr().out


def test_a_round_that_fails_leaves_the_rounds_before_it(data):
    inputs, targets = data
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1})
    arguments = {"epochs": 1, "batch_size": 16, "device": "cpu", "progress": False}
    whole = cross_validate(Net, ArrayDataset(inputs, targets), clips, **arguments)
    n_built = 0

    def build():
        nonlocal n_built
        n_built += 1
        model = Net()
        if n_built == 3:
            nn.init.constant_(model.head.weight, math.nan)
        return model

    with pytest.raises(FloatingPointError, match="loss is nan") as caught:
        cross_validate(build, ArrayDataset(inputs, targets), clips, **arguments)
    assert caught.value.__notes__ == ["2 of 5 rounds are finished and kept in the error's `finished`."]
    pd.testing.assert_frame_equal(
        caught.value.finished["folds"].drop(columns="seconds"), whole["folds"].drop(columns="seconds")[:2]
    )
    assert not any(history.attrs["interrupted"] for history in caught.value.finished["histories"].values())
    n_built = 0

    class Gone(ArrayDataset):
        def __getitems__(self, indices):
            if n_built == 2:
                raise OSError("the disk is gone")
            return super().__getitems__(indices)

    with pytest.raises(OSError, match="the disk is gone") as caught:
        cross_validate(build, Gone(inputs, targets), clips, **arguments)
    assert len(caught.value.finished["folds"]) == 1
    n_built = 2
    with pytest.raises(FloatingPointError) as caught:
        cross_validate(build, ArrayDataset(inputs, targets), clips, **arguments)
    assert not hasattr(caught.value, "finished")


@pytest.mark.parametrize("name", ["patience", "max_grad_norm"])
def test_what_would_let_nothing_be_learned_is_refused(sets, name):
    with pytest.raises(ValueError, match=f"{name}=0 would let nothing be learned; give None to switch it off"):
        train(sets, **{name: 0})


def test_ctrl_c_before_there_is_an_epoch_is_raised(sets):
    train_set, val_set = sets

    class Interrupted(ArrayDataset):
        def __getitems__(self, indices):
            if len(indices) > 2:  # two clips tell the number of classes before the training begins
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    with pytest.raises(KeyboardInterrupt, match="before the end of the first epoch; there is nothing to keep"):
        train((Interrupted(*train_set.__getitems__(range(45))), val_set))


def test_a_cross_validation_takes_no_checkpoint_and_no_other_table(data, tmp_path):
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1})
    arguments = {"epochs": 1, "batch_size": 16, "device": "cpu", "progress": False}
    for name in ("checkpoint", "resume_from"):
        with pytest.raises(ValueError, match=f"{name} belongs to one call of fit; cross-validate without it"):
            cross_validate(Net, ArrayDataset(*data), clips, **arguments | {name: tmp_path / "c.safetensors"})
    with pytest.raises(ValueError, match="66 clips are in the data set and 65 in the table"):
        cross_validate(Net, ArrayDataset(*data), clips[:65], **arguments)


def test_batches_go_to_other_devices_than_cuda_before_they_are_gone(monkeypatch):
    given = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, **how: given.append((str(device), how)) or tensor)
    for device in ("cuda", "mps", "cpu"):
        training.move_batch((torch.zeros(1), {"tokens": torch.zeros(1)}), torch.device(device))
    assert [how["non_blocking"] for _, how in given] == [True, True, False, False, False, False]


def test_parameters_are_counted():
    model = Net()
    model.head.requires_grad_(False)
    assert count_parameters(model) == (6 * 16 + 16 + 32 + 16 * 3 + 3, 6 * 16 + 16 + 32)


class Attention(nn.Module):
    def forward(self, inputs):  # (batch, tokens, width)
        return F.scaled_dot_product_attention(inputs, inputs, inputs)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head(self.layer(inputs)[0][..., :5])


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(7, 5), (11, 7), 11 * 7 * 5),
        (nn.Conv2d(2, 6, (3, 5), stride=2, padding=(1, 2)), (2, 8, 20), 4 * 10 * 6 * 2 * 15),
        (nn.Conv1d(4, 8, 3, groups=2), (4, 12), 10 * 8 * 2 * 3),
        (Attention(), (9, 16), 2 * 9 * 9 * 16),
        (nn.MultiheadAttention(16, 4, batch_first=True), None, 9 * 16 * 16 * 4 + 2 * 9 * 9 * 16),
        (nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (9, 16), 9 * 16 * (4 * 16 + 64) + 2 * 9 * 9 * 16),
        (Recurrent(nn.GRU(6, 5, batch_first=True)), (13, 6), 13 * (3 * 5 * (6 + 5) + 15)),
        (nn.GRU(6, 5, batch_first=True), (13, 6), 13 * 3 * 5 * (6 + 5)),
        (
            Recurrent(nn.GRU(6, 5, num_layers=2, bidirectional=True, batch_first=True)),
            (13, 6),
            13 * (2 * 3 * 5 * (6 + 5) + 2 * 3 * 5 * (10 + 5) + 15),
        ),
        (Recurrent(nn.LSTM(6, 5, batch_first=True)), (13, 6), 13 * (4 * 5 * (6 + 5) + 15)),
    ],
    ids=["linear", "conv2d", "conv1d", "attention", "multihead", "encoder", "gru", "bare gru", "bigru", "lstm"],
)
def test_multiply_adds_equal_those_counted_by_hand(model, shape, expected):
    if shape is None:  # takes queries, keys and values
        model, shape = SelfAttention(model), (9, 16)
    model.train()
    assert count_multiply_adds(model, torch.randn(4, *shape)) == expected
    assert model.training and torch.backends.mha.get_fastpath_enabled()
    assert not any(module._forward_hooks for module in model.modules())


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.Module):
        super().__init__()
        self.attention = attention

    def forward(self, inputs):
        return self.attention(inputs, inputs, inputs, need_weights=False)[0]


class Sentences(torch.utils.data.Dataset):
    """Rows of tokens from 1 up, padded with zeros to the longest of a batch, as a dict; it notes the batches."""

    def __init__(self, lengths):
        generator = torch.Generator().manual_seed(0)
        self.lengths, self.batches = torch.as_tensor(lengths), []
        self.targets = torch.arange(len(lengths)) % 2
        self.rows = [
            torch.randint(1, 6, (n,), generator=generator) + 5 * target
            for n, target in zip(lengths, self.targets, strict=True)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitems__(self, indices):
        self.batches.append([int(index) for index in indices])
        tokens = nn.utils.rnn.pad_sequence([self.rows[int(index)] for index in indices], batch_first=True)
        return {"tokens": tokens, "mask": tokens > 0}, self.targets[torch.as_tensor(indices)]


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 2)

    def forward(self, inputs):
        mask = inputs["mask"].unsqueeze(2)
        return self.head((self.embedding(inputs["tokens"]) * mask).sum(1) / mask.sum(1))


def read(dataset, val=None, seed=0, **changes):
    seed_everything(seed)
    model = Reader()
    arguments = {"epochs": 2, "batch_size": 8, "lr": 0.05, "device": "cpu", "precision": "float32", "progress": False}
    return model, fit(model, dataset, val, **arguments | changes)


LENGTHS = np.random.default_rng(0).integers(1, 40, 400).tolist()


def test_batches_hold_sentences_of_similar_length_in_random_order():
    dataset = Sentences(LENGTHS)
    model, history = read(dataset)
    first, second = dataset.batches[:50], dataset.batches[50:]
    assert len(first) == len(second) == 50 and {len(batch) for batch in first + second} == {8}
    for epoch in (first, second):
        assert sorted(row for batch in epoch for row in batch) == list(range(400))
        lengths = torch.tensor(LENGTHS)[torch.tensor(epoch)]  # (batches, 8)
        padded = (lengths.amax(1) * 8).sum() / lengths.sum()
        assert padded < 1.25  # of 12 batches of 8 sorted together; in random batches it is 1.75
        steps = lengths.float().mean(1).diff()
        assert 10 < (steps > 0).sum() < 39  # neither from short to long nor back
    assert {frozenset(batch) for batch in first}.isdisjoint({frozenset(batch) for batch in second})
    again = Sentences(LENGTHS)
    same, same_history = read(again)
    assert again.batches == dataset.batches and torch.equal(weights(model), weights(same))
    pd.testing.assert_frame_equal(same_history.drop(columns="seconds"), history.drop(columns="seconds"))
    assert history["train_accuracy"].iloc[-1] > 0.9


def test_a_small_data_set_keeps_its_random_batches():
    dataset = Sentences(LENGTHS[:40])
    read(dataset, epochs=6)
    epochs = [dataset.batches[5 * epoch : 5 * epoch + 5] for epoch in range(6)]
    assert all(sorted(row for batch in epoch for row in batch) == list(range(40)) for epoch in epochs)
    assert len({frozenset(batch) for epoch in epochs for batch in epoch}) > 25
    dataset = Sentences(LENGTHS[:41])
    read(dataset, epochs=1)
    assert sorted(len(batch) for batch in dataset.batches) == [8, 8, 8, 8, 9]


def test_a_part_of_a_data_set_passes_its_lengths_on_and_evaluation_its_rows():
    dataset = Sentences(LENGTHS)
    rows = np.random.default_rng(1).permutation(400)[:150].tolist()
    model, history = read(Subset(dataset, rows), Subset(Subset(dataset, rows), range(100)), epochs=1)
    dataset.batches.clear()
    result = evaluate(model, Subset(dataset, rows), batch_size=16, device="cpu", precision="float32")
    seen = [LENGTHS[row] for batch in dataset.batches for row in batch]
    assert seen == sorted(LENGTHS[row] for row in rows)
    with torch.no_grad():
        expected = torch.cat([model(dataset.__getitems__([row])[0]).softmax(1) for row in rows])
    np.testing.assert_allclose(result["probabilities"], expected, atol=1e-6)
    assert result["targets"].tolist() == [row % 2 for row in rows]
    right = expected.argmax(1).numpy() == result["targets"]
    assert result["view_correct"].tolist() == right.astype(float).tolist() and 0 < right.sum()
    views = [lambda inputs: inputs, lambda inputs: inputs | {"tokens": (inputs["tokens"] + 5) % 11}]
    both = evaluate(model, Subset(dataset, rows), views=views, device="cpu", precision="float32")
    assert both["probabilities"].shape == (150, 2) and not np.allclose(both["probabilities"], expected, atol=1e-3)


def test_sentences_are_not_blended():
    with pytest.raises(ValueError, match="Sentences cannot be blended as sounds can: leave mixup_alpha at 0"):
        read(Sentences(LENGTHS[:40]), mixup_alpha=0.2)


def test_parts_of_a_model_learn_at_rates_of_their_own(sets, tmp_path):
    def head_first(name):
        return 10.0 if name.startswith("head") else 0.0 if "layers.0" in name else 1.0

    groups = make_optimizer(Net(), "adamw", 0.1, 0.05, head_first).param_groups
    found = {(group["lr_scale"], group["weight_decay"]): sum(p.numel() for p in group["params"]) for group in groups}
    assert found == {(0, 0.05): 96, (0, 0): 16, (1, 0): 32, (10, 0.05): 48, (10, 0): 3}
    assert [group["lr"] for group in groups] == [0.1 * group["lr_scale"] for group in groups]

    seed_everything(0)
    before = Net().state_dict()
    model, _ = train(sets, epochs=1, optimizer="sgd", lr=1e-3, ema_decay=None, lr_scale=head_first)
    assert torch.equal(model.layers[0].weight, before["layers.0.weight"])
    slow, _ = train(sets, epochs=1, optimizer="sgd", lr=1e-3, ema_decay=None)
    moved = [(net.head.weight - before["head.weight"]).norm().item() for net in (model, slow)]
    assert 5 < moved[0] / moved[1] < 12
    same, _ = train(sets, epochs=3, lr_scale=lambda name: 1.0)
    assert torch.equal(weights(same), weights(train(sets, epochs=3)[0]))

    checkpoint = tmp_path / "checkpoint.safetensors"
    train(sets, epochs=1, lr_scale=head_first, checkpoint=checkpoint)
    with pytest.raises(
        ValueError, match=r"other settings: lr_scale \(was .*head_first, is None\); resume with the same"
    ):
        train(sets, epochs=1, resume_from=checkpoint)


def test_the_bar_says_how_far_it_is_what_is_best_and_how_long_it_takes(monkeypatch, capsys):
    clock = {"now": 0.0}
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    table = training.EpochTable(4, 10, 1, visible=True, title="test fold 1, seed 0 (2 of 9)")

    def bar(epoch, step, now):
        clock["now"] = now
        table.step(epoch, step)
        return capsys.readouterr().err.removeprefix("\r").removesuffix("\033[K")

    assert bar(1, 4, 30.0) == "███" + "·" * 27 + " epoch 1 of 4, 4 min 30 s left"  # a tenth took 30 s
    row = {"epoch": 1, "lr": 1e-3, "train_loss": 2.0, "train_accuracy": 0.2, "val_loss": 1.9, "val_accuracy": 0.25}
    table.row(row, best=True)
    table.row(row | {"epoch": 2, "val_accuracy": 0.2}, best=False)
    printed = capsys.readouterr()
    assert printed.err == 2 * "\r\033[K" and "\033" not in printed.out  # which may be a file
    assert [line.split()[0] for line in printed.out.splitlines()] == ["1", "2"] and printed.out.count("*") == 1
    assert bar(3, 5, 75.0) == "█" * 19 + "·" * 11 + " epoch 3 of 4, best 1 (val acc 0.250), 0 min 45 s left"
    assert bar(3, 6, 75.5) == ""  # once a second at most
    table = training.EpochTable(100, 10, 1, visible=True, title="", done=90)  # resumed at 75.5 s
    assert bar(91, 5, 105.5).endswith(" epoch 91 of 100, 9 min 30 s left")  # half an epoch took 30 s
