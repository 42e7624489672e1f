"""Training in parts and in several processes: the numbers of a whole batch and of one process, errors in a sentence."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared_utils import processes, training
from shared_utils.datasets import ArrayDataset
from shared_utils.device import seed_everything
from shared_utils.splits import cut_validation
from shared_utils.training import cross_validate, evaluate, fit

ROOT = Path(__file__).resolve().parents[1]
RECIPE = {"batch_size": 8, "lr": 0.01, "device": "cpu", "precision": "float32", "progress": False}
MIXED = RECIPE | {"mixup_alpha": 0.4, "label_smoothing": 0.1, "ema_decay": 0.9}


class Net(nn.Module):
    """Nothing random and no BatchNorm; a layer is frozen, one unused, and one used for a few clips only."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.unused = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.frozen.requires_grad_(False)
        self.rare, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        is_rare = inputs[:, 0] > 2.5
        if is_rare.any():
            hidden = hidden.index_add(0, is_rare.nonzero()[:, 0], self.rare(inputs[is_rare]))
        return self.head(self.frozen(hidden))


class Noisy(nn.Module):
    """What differs between processes unless care is taken: dropout and the counts of BatchNorm."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, inputs):
        return self.layers(inputs)


class Jitter(nn.Module):
    def forward(self, inputs):
        return inputs + 0.1 * torch.randn_like(inputs)


def make_data():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(66) % 3
    return torch.randn(66, 6, generator=generator) + 1.5 * F.one_hot(targets, 6), targets


def make_sets(kind=ArrayDataset):
    inputs, targets = make_data()
    return kind(inputs[:45], targets[:45]), ArrayDataset(inputs[45:], targets[45:])


def train(make_model=Net, kind=ArrayDataset, seed=0, **changes):
    seed_everything(seed)
    model = make_model()
    train_set, val_set = make_sets(kind)
    return model, fit(model, train_set, val_set, **(MIXED | {"epochs": 4, "augment": Jitter()} | changes))


def make_clips():
    """Five folds in which each class has three sources at least."""
    labels = make_data()[1].numpy()
    clips = pd.DataFrame({"fold": np.arange(66) // 3 % 5 + 1, "label": labels, "source": np.arange(66)})
    return clips.assign(class_name=np.array(["cat", "dog", "owl"])[labels])


def cut(clips, fold, seed):
    return cut_validation(clips, fold, 0.2, seed)


def cross(**changes):
    arguments = {"folds": [2, 5], "split": cut, "epochs": 2, **RECIPE} | changes
    return cross_validate(Net, ArrayDataset(*make_data()), make_clips(), **arguments)


def flatten(model):
    return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])


def assert_same_run(model, history, other_model, other_history):
    torch.testing.assert_close(flatten(model), flatten(other_model), rtol=0, atol=1e-5)
    columns = {"seconds"} & set(history)
    ours, theirs = history.drop(columns=columns), other_history.drop(columns=columns)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=False, rtol=0, atol=1e-5)
    assert history.attrs == other_history.attrs


def judge(model):
    return evaluate(model, make_sets()[1], device="cpu", precision="float32")["loss"]


def find_best(history):
    return history.sort_values(["val_accuracy", "val_loss"], ascending=[False, True])["val_loss"].iloc[0]


@contextlib.contextmanager
def alarm(seconds):
    """Interrupt what hangs: fit then returns a history that says so."""
    earlier = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, earlier)


@pytest.mark.parametrize("accumulate", [2, 3, 8])
def test_the_parts_of_a_batch_teach_what_the_whole_batch_does(accumulate):
    sizes = []

    class Watched(Net):
        def forward(self, inputs):
            if self.training:
                sizes.append(len(inputs))
            return super().forward(inputs)

    whole, whole_history = train()
    model, history = train(Watched, accumulate=accumulate)
    assert_same_run(model, history, whole, whole_history)
    # 45 clips are five batches of 8 and one of 5; parts of two clips and more unless single ones were asked for
    eights, five = {2: ([4, 4], [2, 3]), 3: ([2, 3, 3], [2, 3]), 8: ([1] * 8, [1] * 5)}[accumulate]
    assert sizes == (eights * 5 + five) * 4
    assert not torch.equal(flatten(whole), flatten(train(seed=1)[0]))


class Sentences(torch.utils.data.Dataset):
    """Rows of tokens, padded with zeros to the longest of a batch, as a dict."""

    def __init__(self, lengths):
        self.lengths, self.targets = torch.as_tensor(lengths), torch.arange(len(lengths)) % 2

    def __len__(self):
        return len(self.targets)

    def __getitems__(self, indices):
        indices = torch.as_tensor(indices)
        lengths, targets = self.lengths[indices], self.targets[indices]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return {"tokens": mask * (1 + (torch.arange(mask.shape[1]) + targets[:, None]) % 3), "mask": mask}, targets


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(4, 8), nn.Linear(8, 2)

    def forward(self, inputs):
        mask = inputs["mask"].unsqueeze(2)
        return self.head((self.embedding(inputs["tokens"]) * mask).sum(1) / mask.sum(1))


def test_sentences_are_cut_as_well():
    runs = []
    for accumulate in (1, 3):
        seed_everything(0)
        model = Reader()
        dataset = Sentences(np.random.default_rng(0).integers(1, 9, 41).tolist())
        runs += [model, fit(model, dataset, dataset, epochs=3, accumulate=accumulate, **RECIPE)]
    assert_same_run(*runs)


def test_impossible_parts_and_processes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="accumulate=9 does not fit batch_size=8; give 1 to 8"):
        train(accumulate=9)
    with pytest.raises(ValueError, match="accumulate=0 does not fit batch_size=8"):
        train(accumulate=0)
    with pytest.raises(ValueError, match="BatchNorm cannot learn from one clip, which batch_size=8, accumulate=8 and"):
        train(Noisy, accumulate=8)
    assert len(train(Noisy, accumulate=4)[1]) == 4
    with pytest.raises(ValueError, match="num_processes=0 is not possible: give 1 or more"):
        train(num_processes=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match=r"num_processes=3 is not possible: .* torchrun .* \(here: 2\)"):
        train(num_processes=3)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_step_that_does_not_fit_says_what_to_change(error):
    class Hungry(Net):
        steps = 0

        def forward(self, inputs):
            Hungry.steps += self.training
            if Hungry.steps > 6 * 2 * 2 + 1:  # in the third epoch
                raise error
            return super().forward(inputs)

    models = []

    def make_model():
        models.append(Hungry())
        return models[0]

    expected = (
        "Out of memory in a step with batch_size=8, accumulate=2 and 1 process: lower batch_size, raise accumulate, "
        'shorten the inputs, or set precision to "bfloat16".'
    )
    with pytest.raises(RuntimeError) as caught:
        train(make_model, accumulate=2)
    assert str(caught.value) == expected and caught.value.__cause__ is error
    Hungry.steps = -(10**9)
    assert judge(models[0]) == pytest.approx(find_best(train()[1][:2]), abs=1e-5)


def test_another_error_stays_what_it_is():
    class Wrong(Net):
        def forward(self, inputs):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="^mat1 and mat2 shapes cannot be multiplied$"):
        train(Wrong, mixup_alpha=0)


def test_a_system_that_cannot_fork_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(processes.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    interrupted, failure = processes.launch(lambda: None, 2, str(tmp_path))
    assert not interrupted and str(failure).endswith("which this system has not: set num_processes to 1.")


def test_every_process_takes_the_gpu_of_its_own(monkeypatch):
    assert processes.pick_place("cpu") == torch.device("cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes, "pick_device", torch.device)
    assert processes.pick_place("cpu") == torch.device("cpu")
    assert processes.pick_place("cuda") == processes.pick_place("cuda:0") == torch.device("cuda:1")
    with pytest.raises(ValueError, match="2 processes need a CUDA GPU each, and there are 0"):
        processes.pick_place("mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes need a CUDA GPU each, and there are 1: start fewer"):
        processes.pick_place("cuda")
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(RuntimeError, match="before this one has trained or used the GPU: restart it"):
        processes.pick_place("cuda")
    assert processes.pick_place("cpu") == torch.device("cpu")


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


SCRIPT = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from safetensors.torch import save_file
import test_distributed as tests
from test_distributed import ArrayDataset, Net, Noisy, cross, train

folder, rank = Path(sys.argv[1]), int(__import__("os").environ["RANK"])
assert "accelerate" not in sys.modules
told = {}

def note(name, model, history):
    save_file(model.state_dict(), folder / f"{name}-{rank}.safetensors")
    history.to_csv(folder / f"{name}-{rank}.csv", index=False)
    told[name] = [history.attrs, torch.rand(1).item()]

# another seed in the second process: the main one's weights and random numbers count
note("plain", *train(seed=7 * rank, progress=True, title="plain"))
note("parts", *train(seed=7 * rank, accumulate=2, num_processes=2))
note("noisy", *train(Noisy, seed=7 * rank))

class Broken(ArrayDataset):
    left = 6 * 2 + 3  # the fourth step of the third epoch

    def __getitems__(self, indices):
        Broken.left -= len(indices) < 9
        if Broken.left < 0:
            raise OSError("a clip cannot be read")
        return super().__getitems__(indices)

checkpoint = folder / "checkpoint.safetensors"
try:
    train(kind=Broken, mixup_alpha=0, checkpoint=checkpoint)
except OSError:
    told["broken"] = str(checkpoint.is_file())
note("resumed", *train(seed=3, mixup_alpha=0, resume_from=checkpoint, accumulate=2))
result = cross()
note("cross", result["model"], result["folds"])
result["predictions"].to_csv(folder / f"predictions-{rank}.csv", index=False)
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


def read_run(folder, name, rank, make_model=Net):
    from safetensors.torch import load_file

    model = make_model()
    model.load_state_dict(load_file(folder / f"{name}-{rank}.safetensors"))
    history = pd.read_csv(folder / f"{name}-{rank}.csv")
    return model, history


def test_two_processes_under_torchrun_do_what_one_does(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*command, str(find_free_port()), str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("plain") == 1 and sum(line.startswith("best epoch") for line in lines) == 1  # the main process
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1] and told[0]["broken"] == "True"

    expected = {"plain": train(), "parts": train(accumulate=2)}
    after = torch.rand(1).item()
    assert told[0]["plain"][1] == told[0]["parts"][1] == after  # as many random numbers were drawn
    expected["resumed"] = train(mixup_alpha=0)
    for name, (model, history) in expected.items():
        for rank in (0, 1):
            run = read_run(tmp_path, name, rank)
            run[1].attrs = told[rank][name][0]
            assert_same_run(*run, model, history)
    result = cross()
    for rank in (0, 1):
        model, folds = read_run(tmp_path, "cross", rank)
        folds.attrs = {}
        assert_same_run(model, folds, result["model"], result["folds"])
        predictions = pd.read_csv(tmp_path / f"predictions-{rank}.csv").astype(result["predictions"].dtypes)
        pd.testing.assert_frame_equal(predictions, result["predictions"], check_exact=False, rtol=0, atol=1e-5)

    first, second = (read_run(tmp_path, "noisy", rank, Noisy) for rank in (0, 1))
    assert torch.equal(flatten(first[0]), flatten(second[0]))
    pd.testing.assert_frame_equal(first[1].drop(columns="seconds"), second[1].drop(columns="seconds"))
    alone, history = train(Noisy)
    assert not torch.equal(flatten(alone), flatten(first[0]))
    # other masks and the statistics of half a batch, but the same task
    assert first[1]["train_loss"].iloc[-1] == pytest.approx(history["train_loss"].iloc[-1], abs=0.2)
    assert first[1]["train_loss"].iloc[-1] < first[1]["train_loss"].iloc[0]


def test_processes_started_from_here_bring_weights_history_and_random_state_back():
    threads = torch.get_num_threads()
    whole = train(epochs=2)
    after = torch.rand(1)
    try:
        torch.set_num_threads(4)  # two for each child, whose parent's four are not there
        torch.randn(2_000_000).exp().sum()
        with alarm(500):
            model, history = train(epochs=2, num_processes=2)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(1), after)
    assert_same_run(model, history, *whole)
    assert not model.training and not history.attrs["interrupted"] and "RANK" not in os.environ
    assert not torch.distributed.is_initialized()


def test_a_batch_with_fewer_clips_than_processes_and_a_checkpoint_of_one_goes_on(tmp_path):
    changes = {"batch_size": 43, "mixup_alpha": 0.0}  # 43 and 2 clips: nothing is left for the third process

    class Short(ArrayDataset):
        """Stops the run in its third epoch."""

        epochs = 0

        def __getitems__(self, indices):
            Short.epochs += len(indices) == 43
            if Short.epochs > 2:
                raise KeyboardInterrupt
            return super().__getitems__(indices)

    whole = train(**changes)
    checkpoint = tmp_path / "checkpoint.safetensors"
    _, history = train(kind=Short, checkpoint=checkpoint, **changes)
    assert len(history) == 2
    resumed = train(seed=9, num_processes=3, resume_from=checkpoint, checkpoint=checkpoint, **changes)
    assert_same_run(*resumed, *whole)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


class Failing(ArrayDataset):
    """Fails in the second process, in the third epoch."""

    steps, act = 0, None

    def __getitems__(self, indices):
        if "RANK" in os.environ:
            Failing.steps += len(indices) < 9
            if os.environ["RANK"] == "1" and Failing.steps > 6 * 2 + 2:
                Failing.act()
        return super().__getitems__(indices)


def test_processes_that_never_started_are_not_taken_for_want_of_memory(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no cell may have made an `Accelerator`")

    monkeypatch.setattr("accelerate.notebook_launcher", refuse)
    sentence = "^2 processes could not be started; set num_processes to 1. .no cell may have made an `Accelerator`.$"
    with pytest.raises(RuntimeError, match=sentence):
        train(num_processes=2)


class TwoWordsError(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def fail_with(error):
    raise error


@pytest.mark.parametrize(
    ("act", "error", "sentence"),
    [
        (lambda: fail_with(OSError("clip 7 cannot be read; remove it")), OSError, "^clip 7 cannot be read; remove it$"),
        (lambda: fail_with(TwoWordsError("not", "copied")), RuntimeError, "^TwoWordsError: not copied$"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), RuntimeError, "^One of 2 processes ended without a word, as"),
    ],
    ids=["sentence", "not to be copied", "killed"],
)
def test_an_error_in_a_process_arrives_with_the_best_weights_so_far(monkeypatch, act, error, sentence):
    monkeypatch.setattr(Failing, "act", staticmethod(act))
    models = []

    def make_model():
        models.append(Net())
        return models[0]

    with alarm(500), pytest.raises(error, match=sentence):
        train(make_model, kind=Failing, num_processes=2)
    assert judge(models[0]) == pytest.approx(find_best(train()[1][:2]), abs=1e-5)


def test_ctrl_c_ends_the_processes_and_keeps_what_is_done(monkeypatch):
    monkeypatch.setattr(processes, "_GRACE", 0.2)

    def interrupt():
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(3600)  # which must not be waited for

    monkeypatch.setattr(Failing, "act", staticmethod(interrupt))
    with alarm(500):
        model, history = train(kind=Failing, num_processes=2)
    expected = train()[1]
    assert history.attrs["interrupted"] and len(history) == 2
    np.testing.assert_allclose(history["val_loss"], expected["val_loss"][:2], atol=1e-5)
    assert judge(model) == pytest.approx(find_best(expected[:2]), abs=1e-5)


def test_cross_validation_can_start_processes():
    here, there = cross(folds=[2]), cross(folds=[2], num_processes=2)
    drop = {"columns": "seconds"}
    pd.testing.assert_frame_equal(there["folds"].drop(**drop), here["folds"].drop(**drop), rtol=0, atol=1e-5)
    pd.testing.assert_frame_equal(there["predictions"], here["predictions"], check_exact=False, rtol=0, atol=1e-5)


def test_cross_validation_with_a_split_of_choice(tmp_path):
    clips, (inputs, targets) = make_clips(), make_data()
    marked = inputs.clone()
    marked[:, 5] = torch.arange(66)  # which clip it is
    seen = []

    class Spy(Net):
        def forward(self, inputs):
            seen.append((self.training, set(inputs[:, 5].int().tolist())))
            return super().forward(inputs)

    calls = []

    def noted(clips, fold, seed):
        calls.append((fold, seed))
        return cut(clips, fold, seed)

    arguments = {"split": noted, "epochs": 1, **RECIPE}
    result = cross_validate(Spy, ArrayDataset(marked, targets), clips, folds=[2, 5], seeds=[0, 1], **arguments)
    rounds = [(2, 0), (5, 0), (2, 1), (5, 1)]
    assert calls == rounds  # each asked once
    n_calls = len(seen) // 4
    for number, (fold, seed) in enumerate(rounds):
        train_rows, val_rows, test_rows = cut(clips, fold, seed)
        used = [rows for is_training, rows in seen[n_calls * number : n_calls * (number + 1)] if is_training]
        assert set.union(*used) == set(train_rows)
        found = result["predictions"].query("fold == @fold and seed == @seed")["clip"]
        assert set(found) == set(test_rows) and not set(test_rows) & (set(train_rows) | set(val_rows))
    folds = result["folds"]
    assert list(folds)[:4] == ["seed", "fold", "val_fold", "n_test"] and folds["val_fold"].isna().all()
    folds.to_csv(tmp_path / "folds.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "folds.csv"), folds)


def test_a_split_of_choice_is_checked_before_anything_trains():
    clips = make_clips()

    def make_model():
        raise AssertionError("nothing may be trained")

    def run(split, **changes):
        arguments = {"folds": [1, 2], "epochs": 1, **RECIPE} | changes
        cross_validate(make_model, ArrayDataset(*make_data()), clips, split=split, **arguments)

    def without_owls(clips, fold, seed):
        train_rows, val_rows, test_rows = cut(clips, fold, seed)
        is_owl = clips["class_name"].to_numpy()[val_rows] == "owl"
        return train_rows, val_rows[~is_owl | (fold != 2)], test_rows

    with pytest.raises(ValueError, match="^The validation of test fold 2, seed 0 has no clip of class 'owl'. Training"):
        run(without_owls)

    def leaking(clips, fold, seed):
        train_rows, val_rows, test_rows = cut(clips, fold, seed)
        return train_rows, val_rows, [*test_rows, *train_rows[:3]]

    with pytest.raises(ValueError, match="split puts 3 clips of test fold 1, seed 0 on two sides; give each clip"):
        run(leaking)
    with pytest.raises(ValueError, match="Both split and val_fold=3 would choose the validation clips; give one"):
        run(cut, val_fold=3)


def test_each_process_takes_its_share_with_a_randomness_of_its_own():
    def draw(n_clips, accumulate, least, step, place):
        seed_everything(5)
        team = SimpleNamespace(process_index=place, num_processes=3, device=torch.device("cpu"))
        parts, numbers = [], []
        for rows, weight in training._cut(n_clips, accumulate, least, step, team):
            parts.append((list(range(n_clips))[rows], weight))
            numbers.append(torch.rand(1).item())
        return parts, numbers, torch.rand(1).item()

    runs = {(step, place): draw(32, 2, 2, step, place) for step in (0, 1) for place in range(3)}
    parts = [part for place in range(3) for part in runs[0, place][0]]
    assert [row for rows, _ in parts for row in rows] == list(range(32)) and len(parts) == 6
    assert [weight * 32 for _, weight in parts] == [len(rows) for rows, _ in parts] == [5, 5, 5, 6, 5, 6]
    assert len({number for _, numbers, _ in runs.values() for number in numbers}) == 12  # no two draw the same
    seed_everything(5)
    assert {after for _, _, after in runs.values()} == {torch.rand(1).item()}
    assert [[rows for rows, _ in draw(5, 2, 2, 0, place)[0]] for place in range(3)] == [[[0, 1]], [[2, 3, 4]], []]
    assert [[rows for rows, _ in draw(2, 2, 1, 0, place)[0]] for place in range(3)] == [[[0]], [[1]], []]
