"""Dendrites of the package perforatedai: what it does stays in its own process and folder, and comes back converted."""

import copy
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from shared_utils import perforated
from shared_utils.datasets import ArrayDataset
from shared_utils.dendrites import Dendritic, count_dendrites, find_dendritic, make_dendritic, without_dendrites
from shared_utils.device import seed_everything
from shared_utils.perforated import fit_with_perforatedai
from shared_utils.training import evaluate

needs_package = pytest.mark.skipif(
    not (perforated.PERFORATEDAI / "perforatedai").is_dir(), reason="make perforatedai has not been run"
)
HOW = {"epochs": 4, "patience": 3, "batch_size": 16, "lr": 0.03, "device": "cpu", "precision": "float32"}
HOW |= {"max_dendrites": 2, "progress": False}


class Points(ArrayDataset):
    """Two classes in a plane, in opposite quarters each."""

    def __init__(self, n: int, seed: int):
        points = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
        super().__init__(points, (points.prod(1) > 0).long())


TRAIN, VAL = Points(256, 0), Points(200, 1)


@pytest.fixture(autouse=True)
def no_gpu_in_use(monkeypatch):
    """Where there is a GPU other tests of this process may have used it, and then nothing here would start."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def make_model() -> nn.Sequential:
    class Local(nn.Sequential):  # as in a notebook: no other process could find it by its name
        pass

    seed_everything(0)
    return Local(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Return a function that puts a package of the given code in the place of perforatedai."""

    def write(code: str) -> None:
        package = tmp_path / "packages" / "perforatedai"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
        monkeypatch.setattr(perforated, "PERFORATEDAI", package.parent)

    return write


def test_without_the_package_one_sentence_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(perforated, "PERFORATEDAI", tmp_path)
    with pytest.raises(ModuleNotFoundError, match="make perforatedai"):
        fit_with_perforatedai(make_model(), TRAIN, VAL, layers=["0"], folder=tmp_path / "run", **HOW)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "code, how, last",
    [
        ("import sys; print('Not content.'); sys.exit(0)", "exit code 0", "Not content."),
        ("print('A form.'); input('Press Enter')", "exit code 1", "Press Enter"),
        ("import pdb; print('Never used.\\n-----'); pdb.set_trace()", "exit code 1", "Never used."),
        ("print('Stop.'); breakpoint()", "exit code 1", "Stop."),
        ("import sys; print('heard', repr(sys.stdin.read())); sys.exit(3)", "exit code 3", "heard ''"),
        ("import subprocess; subprocess.run(['sh', '-c', 'read x || echo silence; exit']); exit(4)", "4", "silence"),
        ("import os; os._exit(1)", "exit code 1", "nothing"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9", "nothing"),
        ("raise ValueError('no such setting')", "exit code 1", "ValueError: no such setting"),
    ],
)
def test_what_ends_the_package_ends_nothing_else(pretend, here, tmp_path, code, how, last):
    pretend("open('left.txt', 'w').close()\n" + code)
    model, folder = make_model(), tmp_path / "run"
    before, path, random = copy.deepcopy(model.state_dict()), list(sys.path), torch.get_rng_state()
    with pytest.raises(RuntimeError) as caught:
        fit_with_perforatedai(model, TRAIN, VAL, layers=["0"], folder=folder, **HOW)
    said = str(caught.value)
    assert how in said and said.endswith(f"its last words in {folder / 'perforatedai.log'} are: {last}")
    assert "\n" not in said
    assert Path.cwd() == here and not list(here.iterdir())
    assert {file.name for file in folder.iterdir()} == {"perforatedai.log", "left.txt"}
    assert sys.path == path and "perforatedai" not in sys.modules and not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), random)
    assert type(model[0]) is nn.Linear and model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_ctrl_c_ends_the_process_of_the_package(pretend, tmp_path):
    pretend("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    model, log = make_model(), tmp_path / "run" / "perforatedai.log"

    def interrupt():
        end = time.monotonic() + 120
        while time.monotonic() < end and not (log.is_file() and log.read_text().endswith("\n")):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fit_with_perforatedai(model, TRAIN, VAL, layers=["0"], folder=log.parent, **HOW)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)
    assert type(model[0]) is nn.Linear


def test_where_no_process_can_be_forked_one_sentence_says_so(pretend, tmp_path, monkeypatch):
    pretend("raise RuntimeError('Unable to handle the threading of autograd in fork-based multiprocessing')")
    given = {"layers": ["0"], "folder": tmp_path / "run"} | HOW
    with pytest.raises(RuntimeError, match="restart it, and go straight to this training"):
        fit_with_perforatedai(make_model(), TRAIN, VAL, **given)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="restart it, and go straight"):
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        fit_with_perforatedai(make_model(), TRAIN, VAL, **given)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="use fit_with_dendrites"):
        patch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
        fit_with_perforatedai(make_model(), TRAIN, VAL, **given)


def test_bad_input_is_refused_in_words(pretend, tmp_path):
    pretend("raise ValueError('must not be reached')")
    given = {"layers": ["0"], "folder": tmp_path / "run"} | HOW
    model = make_model()
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"max_dendrites": -1}, {"layers": []}):
        with pytest.raises(ValueError, match="Nothing to train"):
            fit_with_perforatedai(model, TRAIN, VAL, **given | wrong)
    with pytest.raises(ValueError, match="0 for validation"):
        fit_with_perforatedai(model, TRAIN, None, **given)
    with pytest.raises(ValueError, match="no layer 'fc'; there are 0, 2"):
        fit_with_perforatedai(model, TRAIN, VAL, **given | {"layers": ["fc"]})
    model[2].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="Not all of 2 learns"):
        fit_with_perforatedai(model, TRAIN, VAL, **given | {"layers": ["2"]})
    assert type(model[2]) is nn.Linear and not (tmp_path / "run").exists()
    model.register_module("spare", nn.Linear(2, 2))
    model.forward = lambda inputs: model[2](model[0](inputs))
    with pytest.raises(RuntimeError, match="ValueError: The model does not call spare"):
        fit_with_perforatedai(model, TRAIN, VAL, **given | {"layers": ["spare"]})
    make_dendritic(model, ["0"])
    with pytest.raises(ValueError, match="as it was before make_dendritic"):
        fit_with_perforatedai(model, TRAIN, VAL, **given | {"layers": ["2"]})


class Mixed(nn.Module):
    """A convolution, a linear layer on tokens and one on vectors."""

    def __init__(self):
        super().__init__()
        self.conv, self.token, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, images):  # (batch, 1, 6, 6)
        return self.head(torch.tanh(self.token(self.conv(images).flatten(2).transpose(1, 2))).mean(1))


@needs_package
def test_forward_is_that_of_the_package_with_the_same_weights(tmp_path):
    seed_everything(0)
    model, images, found = Mixed(), torch.randn(5, 1, 6, 6), []
    make_dendritic(model, ["conv", "token", "head"])
    layers = find_dendritic(model)

    def note(net) -> dict:
        outputs = {}
        for name in layers:
            keep = lambda module, given, output, name=name: outputs.update({name: output.detach().numpy()})  # noqa: E731
            net.get_submodule(name).register_forward_hook(keep)
        net.eval()(images)
        return outputs

    def work(send):
        axes = perforated._count_axes(model, layers, images)
        with without_dendrites(model):
            net, tracker = perforated._perforate(model, layers, axes, torch.device("cpu"), 3, 5)
            for _ in range(3):
                net(images).square().sum().backward()  # tells the package how many channels there are
                tracker.set_dendrite_training()
                tracker.set_neuron_training()
            with torch.no_grad():
                for parameter in net.parameters():
                    parameter.normal_()
            state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
            n_theirs = sum(parameter.numel() for parameter in net.parameters())
            send({"axes": axes, "state": state, "outputs": note(net), "n": n_theirs})

    perforated._work_apart(work, found.append, tmp_path)
    (found,) = found
    assert found["axes"] == {"conv": 4, "token": 3, "head": 2}
    state = {name: torch.from_numpy(array) for name, array in found["state"].items()}
    model.load_state_dict(perforated._convert(state, layers))
    assert count_dendrites(model) == 3
    for name, output in note(model).items():
        assert abs(output - found["outputs"][name]).max() < 1e-6
    full = model(images)
    with torch.no_grad():
        model.conv.dendrites[2].cascade[0].zero_()
    assert (model(images) - full).abs().max() > 1e-3  # so the cascade counts
    # three branches, three top weights and 1 + 2 cascade weights a channel beside each layer
    n_layers = sum(parameter.numel() for parameter in Mixed().parameters())
    n_ours = sum(parameter.numel() for parameter in model.parameters())
    assert n_ours == 4 * n_layers + (3 + 3) * (4 + 5 + 3)
    # the package: a copy of each layer, the top weights of one and of two dendrites, the cascade of a candidate
    assert found["n"] == n_ours + n_layers + (1 + 2 + 2) * (4 + 5 + 3)


@needs_package
def test_a_training_by_the_package_comes_back_as_our_own(here, tmp_path):
    path, runs = list(sys.path), []
    for name in ("first", "second"):
        model = make_model()
        how = HOW | {"layers": ["0", "2"], "folder": tmp_path / name, "watch": {"same": VAL}}
        history = fit_with_perforatedai(model, TRAIN, VAL, **how)
        runs.append((model, history, torch.rand(1).item()))
    (model, history, drawn), (again, repeated, drawn_again) = runs
    assert sys.path == path and not [module for module in sys.modules if module.startswith("perforatedai")]
    assert not list(here.iterdir())

    columns = "epoch lr train_loss train_accuracy val_loss val_accuracy seconds phase dendrites"
    assert list(history) == [*columns.split(), "same_accuracy"]
    assert history["same_accuracy"].equals(history["val_accuracy"].rename("same_accuracy"))
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    assert (history.groupby("phase").size() <= HOW["epochs"]).all() and history["phase"].is_monotonic_increasing
    assert history.query("phase == 0")["dendrites"].eq(0).all() and history.query("phase == 1")["dendrites"].eq(1).all()
    assert set(history.attrs) == {"best_epoch", "device", "precision", "interrupted", "dendrites"}
    best = history.set_index("epoch").loc[history.attrs["best_epoch"]]
    assert history.attrs["dendrites"] == best["dendrites"] == count_dendrites(model) >= 1
    assert all(isinstance(model[i], Dendritic) and model[i].dendrites[0].top.abs().max() > 0 for i in (0, 2))
    result = evaluate(model, VAL, device="cpu", precision="float32")
    assert result["accuracy"] == best["val_accuracy"] > VAL.targets.float().mean()
    assert math.isclose(result["loss"], best["val_loss"], rel_tol=1e-5)

    files = {file.name: file for file in (tmp_path / "first").iterdir()}
    (package,) = files.keys() - {"perforatedai.log", "perforatedai.safetensors"}
    theirs = perforated._convert(load_file(files[package] / "best_model.pt"), ["0", "2"])
    for state in (theirs, load_file(files["perforatedai.safetensors"]), again.state_dict()):
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert repeated.drop(columns="seconds").equals(history.drop(columns="seconds")) and drawn == drawn_again


@needs_package
def test_a_conversion_that_changes_outputs_is_caught(tmp_path, monkeypatch):
    convert = perforated._convert
    monkeypatch.setattr(perforated, "_convert", lambda *given: convert(*given) | {"1.bias": torch.full((2,), 0.1)})
    seed_everything(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    with pytest.raises(RuntimeError, match="The outputs of Dendritic differ from those of the package by 0"):
        fit_with_perforatedai(model, TRAIN, VAL, layers=["0"], folder=tmp_path, **HOW | {"epochs": 1})
    assert type(model[0]) is nn.Linear and not (tmp_path / "perforatedai.safetensors").exists()
