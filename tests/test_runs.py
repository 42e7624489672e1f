"""Run folders: a model written in a notebook predicts in a new process, and nothing is lost or half-written."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from torch import nn

from shared_utils import runs
from shared_utils.audio import decode, find_loudest, read_audio, start_at_loudest
from shared_utils.device import write_whole
from shared_utils.runs import compare_runs, find_run, load_histories, load_run, predict_files, save_run
from shared_utils.sources import model_source
from shared_utils.spectrograms import KaldiFbank, LogMel

WIDTH = 6
NOISE = torch.ones(3)
scale = lambda x: 2 * x  # noqa: E731


class Layer(nn.Module):
    def __init__(self, width: int = WIDTH):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return F.gelu(self.linear(x))


class Classifier(nn.Module):
    """Mean over the frames of a spec, a layer, a head that is tied to it, and weights that are not contiguous."""

    def __init__(self, n_mels, n_classes):
        super().__init__()
        self.first = nn.Linear(n_mels, WIDTH)
        self.layer = Layer()
        self.tied = nn.Linear(WIDTH, WIDTH)
        self.tied.weight = self.layer.linear.weight
        self.head = nn.Linear(WIDTH, n_classes)
        self.head.weight = nn.Parameter(torch.randn(WIDTH, n_classes).T)
        self.dropout = nn.Dropout(0.5)

    def forward(self, specs):  # (batch, frames, mels)
        return self.head(self.tied(self.layer(self.dropout(self.first(specs.mean(1))))))


class UsesTensor(Classifier):
    def forward(self, specs):
        return super().forward(specs) + NOISE


class UsesLambda(Classifier):
    def forward(self, specs):
        return scale(super().forward(specs))


class UsesNothingKnown(Classifier):
    def forward(self, specs):
        return unknown(specs)  # noqa: F821


CLASSES = ["dog", "rain", "sea_waves"]
FRONT_END = {"sample_rate": 16000, "n_mels": 32, "max_length": 100}
PREPROCESSING = {"sample_rate": 16000, "seconds": 1.0, "padding": "repeat", "front_end": "KaldiFbank",
                 "front_end_arguments": FRONT_END}  # fmt: skip


def make_history() -> pd.DataFrame:
    losses = [1 / 3, 0.1 + 0.2, 1.1e-17]
    history = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": losses, "val_accuracy": [0.5, np.nan, 0.7]})
    history.attrs = {"best_epoch": 3, "interrupted": False}
    return history


@pytest.fixture
def save(tmp_path):
    """Save a run with small things that a test may replace."""

    def save_one(**changes):
        torch.manual_seed(0)
        model = changes.pop("model") if "model" in changes else Classifier(32, 3)
        arguments = {
            "settings": {"EPOCHS": 3, "LR": np.float64(1e-3), "FOLDS": (1, 2)}, "class_names": CLASSES,
            "preprocessing": PREPROCESSING, "history": make_history(), "metrics": {"test_accuracy": np.float32(0.75)},
            "headline": "test accuracy 75.0 %", "data": {"data_set": "everyday sounds", "demo": True},
            "model_arguments": {"n_mels": 32, "n_classes": 3}, "folder": tmp_path,
        } | changes  # fmt: skip
        return save_run("tiny", model, **arguments)

    return save_one


@pytest.fixture
def recordings(tmp_path):
    """A short tone, and stereo noise at 44.1 kHz under a name that is not ASCII."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(np.arange(5000) / 5), 16000)
    soundfile.write(tmp_path / "häuser.flac", 0.1 * rng.normal(size=(60_000, 2)), 44100)
    return [tmp_path / "tone.wav", tmp_path / "häuser.flac"]


def tiny(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "tiny").iterdir())


# ---- the real thing: a notebook, a folder, a new process

CELLS = [
    "import math\nimport numpy as np, pandas as pd, torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
    "from shared_utils.audio import decode, start_at_loudest\nfrom shared_utils.runs import save_run\n"
    "from shared_utils.spectrograms import LogMel",
    "WIDTHS = {'hidden': 5}\nn_mels = 16\n"
    "batch = torch.zeros(3)  # a global of the name of a local variable of the model",
    "def pool(x: torch.Tensor) -> torch.Tensor:\n    return x.mean(2) / math.sqrt(2)",
    "class Block(nn.Module):\n    # the width is a constant of another cell\n"
    "    def __init__(self, n_in, width=WIDTHS['hidden']):\n        super().__init__()\n"
    "        self.linear = nn.Linear(n_in, width)\n\n    def forward(self, x):\n        return F.relu(self.linear(x))",
    "%time pass\nclass Net(nn.Module):\n    def __init__(self, n_mels, n_classes):\n        super().__init__()\n"
    "        self.front_end = LogMel(sample_rate=16000, n_mels=n_mels)\n        self.block = Block(n_mels)\n"
    "        self.head = nn.Linear(WIDTHS['hidden'], n_classes)\n\n"
    "    @torch.no_grad()\n    def explain(self, batch):\n        return Net.forward(self, batch)\n\n"
    "    def forward(self, waveforms):\n        batch = pool(self.front_end(waveforms))\n"
    "        return self.head(self.block(batch / 10))",
    "torch.manual_seed(1)\nmodel = Net(n_mels, 2)\nhistory = pd.DataFrame({'epoch': [1], 'val_accuracy': [0.5]})\n"
    "preprocessing = {'sample_rate': 16000, 'seconds': 0.5, 'front_end': None}\n"
    "folder = save_run('tiny', model, {'SEED': 1}, ['a', 'b'], preprocessing, history, {'accuracy': 0.5}, '50 %',\n"
    "                  model_arguments={'n_mels': 16, 'n_classes': 2}, folder=FOLDER)\n"
    "files = pd.DataFrame({'path': FILES})\nfiles = start_at_loudest(files, 0.5)\n"
    "waveforms = decode(files, 16000, 0.5, cache_dir=FOLDER, progress=False)\n"
    "with torch.no_grad():\n    probabilities = model.eval()(torch.from_numpy(np.array(waveforms))).softmax(1)\n"
    "np.save(FOLDER + '/expected.npy', probabilities.numpy())",
]


def test_a_model_from_a_notebook_predicts_files_in_a_new_process(tmp_path, recordings):
    values = f"FOLDER = {str(tmp_path)!r}\nFILES = {[str(path) for path in recordings]!r}"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in [values, *CELLS]])
    NotebookClient(notebook, kernel_name="python3").execute()
    moved = tmp_path / "elsewhere"
    shutil.move(next((tmp_path / "tiny").iterdir()), moved)
    code = (
        "import sys; from shared_utils.runs import load_run, predict_files; folder, *files = sys.argv[1:]\n"
        "table = predict_files(load_run(folder), files, device='cpu'); table.to_json(folder + '/prediction.json')"
    )
    subprocess.run([sys.executable, "-c", code, str(moved), *map(str, recordings)], check=True, cwd=tmp_path)
    table = pd.read_json(moved / "prediction.json")
    expected = np.load(tmp_path / "expected.npy")
    np.testing.assert_allclose(table[["a", "b"]], expected, atol=1e-6)
    assert abs(expected[0] - expected[1]).max() > 0.01  # the two files are told apart, so order and content count
    assert table["predicted"].tolist() == [["a", "b"][label] for label in expected.argmax(1)]
    source = (moved / "model.py").read_text()
    assert "# the width is a constant of another cell" in source and "WIDTHS = {'hidden': 5}" in source
    assert "batch = " not in source.split("class ")[0]


# ---- what a folder holds


def test_run_folder_holds_everything(save, tmp_path):
    folder = save(results=[{"model": "Classifier", "mean": np.float64(0.75), "sd": float("nan"), "seeds": 1}])
    assert sorted(path.name for path in folder.iterdir()) == [
        "history.csv", "model.py", "results.json", "run.json", "weights.safetensors",
    ]  # fmt: skip
    assert tiny(tmp_path) == [folder.name] and runs._RUN_NAME.fullmatch(folder.name)
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"] == {"EPOCHS": 3, "LR": 0.001, "FOLDS": [1, 2]}
    assert record["metrics"] == {"test_accuracy": 0.75} and record["headline"] == "test accuracy 75.0 %"
    assert record["data"] == {"data_set": "everyday sounds", "demo": True}
    assert record["model"] == {"class": "Classifier", "arguments": {"n_mels": 32, "n_classes": 3}}
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] and record["device"].startswith("cpu")
    rows = json.loads((folder / "results.json").read_text())
    assert rows == [{"model": "Classifier", "mean": 0.75, "sd": None, "seeds": 1}]
    assert "results.json" not in [path.name for path in save().iterdir()]


def test_loaded_run_equals_the_saved_one(save):
    model = Classifier(32, 3)
    run = load_run(save(model=model))
    pd.testing.assert_frame_equal(run.history, make_history(), check_exact=True)
    assert run.history.attrs["best_epoch"] == 3
    assert run.class_names == CLASSES and run.preprocessing == PREPROCESSING and not run.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], tensor), name
    assert run.model.tied.weight is run.model.layer.linear.weight
    specs = torch.randn(4, 10, 32)
    assert torch.equal(run.model(specs), model.eval()(specs))


def test_loaded_run_can_be_saved_again(save):
    first = load_run(save())
    again = load_run(save(model=first.model))
    specs = torch.randn(2, 10, 32)
    assert torch.equal(first.model(specs), again.model(specs))


def test_prediction_is_what_the_model_says_of_the_front_ends_specs(save, recordings, tmp_path, capsys):
    run = load_run(save())
    table = predict_files(run, recordings, device="cpu", batch_size=1)
    assert "1 of 2 recordings are longer than 1 s: their loudest parts are heard." in capsys.readouterr().out
    start = find_loudest(read_audio(recordings[1])[0], 44100) / 44100
    assert start > 0
    clips = pd.DataFrame({"path": recordings, "clip_start": [0, start]})
    waveforms = decode(clips, 16000, 1.0, "repeat", cache_dir=tmp_path, progress=False)
    with torch.no_grad():
        expected = run.model(KaldiFbank(**FRONT_END)(torch.from_numpy(np.array(waveforms)))).softmax(1)
    assert list(table) == ["path", *CLASSES, "predicted"] and table["path"].tolist() == [str(p) for p in recordings]
    np.testing.assert_allclose(table[CLASSES], expected, atol=1e-6)
    single = predict_files(run, str(recordings[1]), device="cpu")
    np.testing.assert_allclose(single[CLASSES], expected[1:], atol=1e-6)


class TakesWaveforms(nn.Module):
    """A model whose first layer is the front-end."""

    def __init__(self, n_mels, n_classes):
        super().__init__()
        self.front_end = LogMel(n_mels=n_mels)
        self.head = nn.Linear(n_mels, n_classes)

    def forward(self, waveforms):
        return self.head(self.front_end(waveforms).mean(2) / 20)


def test_a_model_with_its_front_end_inside_needs_only_rate_and_length(save, recordings, tmp_path):
    torch.manual_seed(0)
    model = TakesWaveforms(32, 3)
    run = load_run(save(model=model, preprocessing={"sample_rate": 16000, "seconds": 1.0}))
    assert "filters" not in "".join(run.model.state_dict())  # tables of the front-end are no weights
    table = predict_files(run, recordings, device="cpu")
    clips = start_at_loudest(pd.DataFrame({"path": recordings}), 1.0)
    waveforms = decode(clips, 16000, 1.0, cache_dir=tmp_path, progress=False)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(np.array(waveforms))).softmax(1)
    np.testing.assert_allclose(table[CLASSES], expected, atol=1e-6)
    assert abs(expected[0] - expected[1]).max() > 0.01


def test_prediction_names_what_it_cannot_read(save, recordings, tmp_path):
    run = load_run(save())
    (tmp_path / "notes.wav").write_text("no sound")
    with pytest.raises(ValueError, match=r"(?s)notes\.wav.*gone\.wav"):
        predict_files(run, [*recordings, tmp_path / "notes.wav", tmp_path / "gone.wav"], device="cpu")
    run.preprocessing = {"front_end": None}
    with pytest.raises(ValueError, match="no sample_rate and seconds"):
        predict_files(run, recordings)
    run.preprocessing = PREPROCESSING | {"front_end": "os.system"}
    with pytest.raises(ValueError, match="Front-end 'os.system' is unknown"):
        predict_files(run, recordings)


def test_saving_and_loading_draw_no_random_numbers(save):
    folder, model, history = save(), Classifier(32, 3), make_history()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_run(folder)
    save_run("tiny", model, {}, CLASSES, {}, history, {}, "", model_arguments={"n_mels": 32, "n_classes": 3},
             folder=folder.parent.parent)  # fmt: skip
    assert torch.equal(torch.rand(3), expected)


# ---- names, comparison


def test_newest_run_of_a_notebook(save, tmp_path):
    first = save()
    second, third = save(headline="second"), save(headline="third")  # the same settings, maybe in the same second
    assert len({first, second, third}) == 3
    assert load_run("tiny", folder=tmp_path).headline == "third"
    shutil.copytree(second, tmp_path / "published")
    assert load_run(tmp_path / "published").headline == "second"
    with pytest.raises(FileNotFoundError, match="There is no run of_nothing"):
        load_run("of_nothing", folder=tmp_path)


PREDICTIONS = pd.DataFrame({
    "seed": [0, 0], "fold": [1, 1], "clip": [7, 2], "target": [1, 0], "predicted": [1, 2], "correct": [True, False],
    "dog": [1 / 3, 0.25], "rain": [0.5, 1e-7],
})  # fmt: skip


def test_predictions_and_results_come_back(save):
    results = [{"model": "tiny", "mean": 0.1 + 0.2, "seeds": 3, "sd": None}]
    run = load_run(save(predictions=PREDICTIONS, results=results))
    assert run.results == results
    pd.testing.assert_frame_equal(run.predictions, PREDICTIONS, rtol=1e-3)  # four digits are kept
    keys = ["seed", "fold", "clip", "target", "predicted", "correct"]
    pd.testing.assert_frame_equal(run.predictions[keys], PREDICTIONS[keys])
    without = load_run(save())
    assert without.predictions is None and without.results == []


def test_speakers_keep_their_names(save):
    run = save(predictions=PREDICTIONS.assign(source=["007", "NA"]))
    assert load_run(run).predictions["source"].tolist() == ["007", "NA"]


def test_the_newest_run_on_the_same_data_and_classes_is_found(save, tmp_path):
    real, demo = {"data_set": "ESC-10", "demo": False}, {"data_set": "ESC-10", "demo": True}
    assert find_run("tiny", real, CLASSES, tmp_path) is None
    save(data=real, predictions=PREDICTIONS, headline="first")
    wanted = save(data=real, predictions=PREDICTIONS.assign(clip=[3, 4]))
    save(data=demo, predictions=PREDICTIONS)
    save(data=real, predictions=PREDICTIONS, class_names=["dog", "rain", "sea"])
    save(data=real)  # kept no predictions
    save(data=None, predictions=PREDICTIONS)
    run = find_run("tiny", real, CLASSES, tmp_path)
    assert run.folder == wanted and run.predictions["clip"].tolist() == [3, 4]
    assert find_run("tiny", demo, CLASSES, tmp_path).data == demo
    assert find_run("tiny", {"data_set": "ESC-50", "demo": False}, CLASSES, tmp_path) is None
    assert find_run("tiny", real, CLASSES[::-1], tmp_path) is None  # its numbers would stand for other classes
    assert find_run("other", real, CLASSES, tmp_path) is None


def test_published_weights_stand_in_where_the_notebook_has_no_run_on_the_data(save, tmp_path):
    real, demo = {"data_set": "ESC-10", "demo": False}, {"data_set": "ESC-10", "demo": True}
    published = tmp_path / "words"
    shutil.copytree(save(data=real, predictions=PREDICTIONS), published)
    shutil.rmtree(tmp_path / "tiny")
    assert find_run("tiny", real, CLASSES, tmp_path).folder == published
    assert find_run("tiny", demo, CLASSES, tmp_path) is None
    assert find_run("tiny", real, CLASSES[::-1], tmp_path) is None
    assert find_run("other", real, CLASSES, tmp_path) is None  # the weights of another notebook
    save(data=demo, predictions=PREDICTIONS)
    assert find_run("tiny", real, CLASSES, tmp_path).folder == published
    own = save(data=real, predictions=PREDICTIONS)
    assert find_run("tiny", real, CLASSES, tmp_path).folder == own


def test_a_damaged_run_does_not_hide_an_older_one(save, tmp_path, capsys):
    data = {"data_set": "everyday sounds", "demo": True}
    wanted, broken = save(predictions=PREDICTIONS), save(predictions=PREDICTIONS)
    (broken / "run.json").write_text("{")
    assert find_run("tiny", data, CLASSES, tmp_path).folder == wanted
    assert f"Left out: {broken / 'run.json'} is damaged" in capsys.readouterr().out
    without = save(predictions=PREDICTIONS)
    (without / "weights.safetensors").unlink()
    assert find_run("tiny", data, CLASSES, tmp_path).folder == wanted
    assert f"Left out: {without} has no weights.safetensors" in capsys.readouterr().out


def test_comparison_shows_only_the_settings_that_differ(save, tmp_path, capsys):
    save()
    save(settings={"EPOCHS": 3, "LR": 1e-2, "FOLDS": [1, 2], "STEM": "conv"}, metrics={"f1": 0.5, "note": "x"})
    real = {"data_set": "ESC-10", "demo": False}
    broken = save(settings={"EPOCHS": 9}, metrics={"test_accuracy": 0.8}, data=real)
    table = compare_runs("tiny", folder=tmp_path)
    settings = {"EPOCHS", "LR", "FOLDS", "STEM"}
    assert list(table)[:4] == ["created", "data", "epochs", "test_accuracy"]
    assert set(table) == {"created", "data", "epochs", "test_accuracy", "f1"} | settings
    (broken / "run.json").write_text("{")
    table = compare_runs("tiny", folder=tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("Left out: ") and "run.json is damaged" in printed and printed.count("\n") == 1
    assert set(table) == {"created", "data", "epochs", "test_accuracy", "f1", "LR", "STEM"}
    assert table["LR"].tolist() == [0.01, 0.001] and table["epochs"].tolist() == [3, 3]
    assert table["data"].tolist() == ["everyday sounds (demo data)"] * 2
    assert compare_runs("nothing", folder=tmp_path).empty


def test_a_run_that_was_stopped_by_hand_says_so(save, tmp_path):
    stopped = make_history()
    stopped.attrs["interrupted"] = True
    results = [{"metric": "test_accuracy", "value": 0.75, "protocol": "folds 1, 2"}]
    run = save(history=stopped, results=results)
    assert [row["protocol"] for row in load_run(save(results=results)).results] == ["folds 1, 2"]
    assert json.loads((run / "run.json").read_text())["interrupted"] is True
    assert [row["protocol"] for row in load_run(run).results] == ["folds 1, 2; stopped by hand"]
    assert compare_runs("tiny", folder=tmp_path)["epochs"].tolist() == [3, "3, stopped"]


def test_histories_are_named_after_what_differs(save, tmp_path):
    for epochs in (3, 4, 5):
        save(settings={"EPOCHS": epochs, "SEED": 0})
    histories = load_histories("tiny", last=2, folder=tmp_path)
    assert list(histories) == ["EPOCHS=5", "EPOCHS=4"]
    assert all("SEED" not in name for name in histories)
    for settings in ({"EPOCHS": 3, "SEED": 1}, {"EPOCHS": 3, "SEED": 0}, {"EPOCHS": 3, "SEED": 0, "NEW": 2}):
        save(settings=settings)
    names = ["NEW=2", "usual settings", "SEED=1", "EPOCHS=5", "EPOCHS=4"]  # not what most of them have
    assert list(load_histories("tiny", last=5, folder=tmp_path)) == names
    pd.testing.assert_frame_equal(next(iter(histories.values())), make_history())
    assert next(iter(histories.values())).attrs["best_epoch"] == 3


# ---- what is refused


@pytest.mark.parametrize("name", ["run.json", "history.csv", "model.py", "weights.safetensors"])
def test_missing_file_is_named(save, name):
    folder = save()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {name}"):
        load_run(folder)


def test_damaged_files_are_named(save):
    folder = save()
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-8])
    with pytest.raises(ValueError, match="weights.safetensors does not fit Classifier"):
        load_run(folder)
    (folder / "weights.safetensors").write_bytes(weights)
    record = json.loads((folder / "run.json").read_text())
    other = record | {"model": {"class": "Classifier", "arguments": {"n_mels": 16, "n_classes": 3}}}
    (folder / "run.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="does not fit Classifier .* mismatch for first.weight"):
        load_run(folder)
    (folder / "run.json").write_text(json.dumps({name: record[name] for name in record if name != "class_names"}))
    with pytest.raises(ValueError, match="run.json lacks class_names"):
        load_run(folder)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "model.py").write_text("import no_such_package")
    with pytest.raises(ValueError, match="model.py cannot build Classifier.*No module named 'no_such_package'"):
        load_run(folder)
    (folder / "history.csv").write_text("")
    with pytest.raises(ValueError, match="history.csv is damaged"):
        load_run(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"F": F}}, r"settings\['F'\] is a module"),
        ({"metrics": {"curve": {"a": {1, 2}}}}, r"metrics\['curve'\]\['a'\] is a set"),
        ({"model": UsesTensor(32, 3)}, "cannot hold NOISE, a Tensor that UsesTensor uses: make it an argument"),
        ({"model": UsesLambda(32, 3)}, "cannot hold scale, a function that UsesLambda uses"),
        ({"model": UsesNothingKnown(32, 3)}, "UsesNothingKnown: it uses unknown, which is not defined"),
        ({"model": nn.Sequential(nn.Linear(2, 2))}, "Nothing saved.*cannot build Sequential"),
        ({"model_arguments": {"n_mels": 16, "n_classes": 3}}, "Nothing saved.*does not fit Classifier"),
        ({"model_arguments": {}}, "Nothing saved.*missing 2 required positional arguments"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(save, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        save(**changes)
    assert not (tmp_path / "tiny").exists() or tiny(tmp_path) == []


def test_a_model_that_would_be_built_otherwise_is_not_saved(save, tmp_path, capsys):
    model = Classifier(32, 3)
    model.layer.linear.in_features = 9
    with pytest.raises(ValueError, match=r"that learned: layer\.linear\.in_features was 9 and would be 6\. A set"):
        save(model=model)
    assert tiny(tmp_path) == []
    model.layer.linear.in_features, model.layer.scale = 6, 2  # set afterwards: nothing in model.py knows of it
    save(model=model.train())
    assert capsys.readouterr().out == ""


class Counting(Classifier):
    def __init__(self, n_mels, n_classes, layers=(1, 2), drop=0.1):
        super().__init__(n_mels, n_classes)
        self.layers, self.drop, self.n_steps = layers, drop, 0
        self.pool = nn.MaxPool2d((2, 2))


@pytest.mark.parametrize(("name", "value", "was"), [("n_steps", 7, 0), ("drop", 0.2, 0.1)])
def test_what_a_model_counts_or_schedules_in_training_is_noticed_and_saved(save, capsys, name, value, was):
    model = Counting(32, 3, layers=(3, (4, 5)))
    arguments = {"n_mels": 32, "n_classes": 3, "layers": (3, (4, 5))}
    save(model=model, model_arguments=arguments)  # where they are lists
    assert capsys.readouterr().out == ""
    setattr(model, name, value)
    assert getattr(load_run(save(model=model, model_arguments=arguments)).model, name) == was
    said = f"what will be loaded: {name} was {value} and would be {was}. Has a setting changed since?"
    assert capsys.readouterr().out.startswith(f"Saved, but the model differs from {said}")
    model.layers = [6]
    with pytest.raises(ValueError, match=r"layers was \[6\] and would be \[3, \[4, 5\]\]"):
        save(model=model, model_arguments=arguments)


def test_full_disk_leaves_nothing_behind(save, tmp_path, monkeypatch):
    kept = save()

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(runs, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        save()
    assert tiny(tmp_path) == [kept.name]


# ---- model.py

MODULE = '''
from __future__ import annotations
import functools
import math as m
import torch
import torch.nn.functional as F
from collections.abc import Callable
from torch import Tensor, float32, nn
from torch.nn import Linear as Dense

SIZES = (4, 2)
UNUSED = print
RATE = 0.5


def decorate(function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args):
        return function(*args) + m.log(2)
    return wrapped


class Base(nn.Module):
    rates = [RATE * size for size in SIZES]

    def forward(self, x: Tensor) -> Later:
        return self.finish(Helper(2)(x))


class Model(Base):
    def __init__(self):
        super().__init__()
        self.dense = Dense(*SIZES, dtype=float32)

    @decorate
    def finish(self, x):
        return F.relu(self.dense(x))


class Helper(Base):
    """Uses Base when it is defined, and Base uses it when it is called."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return Model.__name__ and x * self.factor


class Later:
    pass
'''


def test_source_has_everything_in_an_order_that_runs(tmp_path):
    (tmp_path / "written.py").write_text(MODULE)
    spec = importlib.util.spec_from_file_location("written", tmp_path / "written.py")
    sys.modules["written"] = written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    source = model_source(written.Model, "tiny")
    copied: dict = {"__name__": "copied"}
    exec(compile(source, "model.py", "exec"), copied)
    torch.manual_seed(0)
    expected = written.Model()
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    torch.manual_seed(0)
    assert torch.equal(copied["Model"]()(x), expected(x))
    assert copied["Base"].rates == [2.0, 1.0]
    head = source.split("\n\n\n")[0].splitlines()
    assert head[2:] == [
        "from __future__ import annotations", "", "import functools", "import math as m",
        "import torch.nn.functional as F", "from collections.abc import Callable", "from torch import Tensor",
        "from torch import float32", "from torch import nn", "from torch.nn.modules.linear import Linear as Dense", "",
        "RATE = 0.5", "SIZES = (4, 2)",
    ]  # fmt: skip
    assert "UNUSED" not in source
    del sys.modules["written"]


def test_class_of_a_package_is_imported():
    assert model_source(nn.Transformer) == "from torch.nn.modules.transformer import Transformer\n"


def test_compiled_model_is_saved_as_what_is_inside(save):
    compiled = types.SimpleNamespace(_orig_mod=Classifier(32, 3))  # torch.compile's wrapper, without its four seconds
    assert type(load_run(save(model=compiled)).model).__name__ == "Classifier"


def test_class_that_needs_a_functions_variables_is_refused(save):
    inner_width = 3

    class Inner(Classifier):
        def forward(self, specs):
            return super().forward(specs)[:, :inner_width]

    with pytest.raises(ValueError, match="cannot hold Inner: it uses inner_width, which is not defined"):
        save(model=Inner(32, 3))


# ---- one file


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "report.v1.json"
    with write_whole(path) as temporary:
        temporary.write_text("old")
        assert temporary.parent == path.parent and temporary.suffix == ".json" and not path.exists()
    assert path.read_text() == "old"
    for error in (OSError("No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), write_whole(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with write_whole(path) as first, write_whole(path) as second:  # two writers do not meet
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]


def test_two_processes_may_save_at_once(save, tmp_path, monkeypatch):
    replace = os.replace
    first = save()

    def another_was_faster(source, target):
        monkeypatch.setattr(os, "replace", replace)
        shutil.copytree(first, target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", another_was_faster)
    second = save(settings={"EPOCHS": 7})
    assert second.exists() and len(tiny(tmp_path)) == 3
