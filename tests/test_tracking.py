"""Experiment trackers: every number arrives, none leaves this machine, and a tracker that fails costs nothing else."""

import importlib
import json
import struct
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from shared_utils import device
from shared_utils.tracking import TRACKERS, check_tracker, track_curves

PYPROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())
PACKAGES = [tracker for tracker in TRACKERS if tracker != "none"]
SETTINGS = {"LR": np.float32(0.5), "EPOCHS": 4, "HEADS": (1, 2), "MIXUP": True, "NAME": "fünf", "PATIENCE": None}
KEPT = {"LR": 0.5, "EPOCHS": 4, "HEADS": "(1, 2)", "MIXUP": True, "NAME": "fünf", "PATIENCE": "None"}
TAGS = {
    "lr": "lr", "train_loss": "train/loss", "train_accuracy": "train/accuracy", "val_loss": "val/loss",
    "val_accuracy": "val/accuracy", "test_clip_accuracy": "test_clip/accuracy", "seconds": "seconds",
}  # fmt: skip


def make_history(seed: int) -> pd.DataFrame:
    """A history as training.fit makes it: validated every second epoch, one column of `watch`."""
    history = pd.DataFrame(np.random.default_rng(seed).random((4, len(TAGS))), columns=list(TAGS))
    history.loc[[0, 2], ["val_loss", "val_accuracy", "test_clip_accuracy"]] = np.nan
    history.insert(0, "epoch", [1, 2, 3, 4])
    return history


CURVES = {"CNN, test fold 1, seed 0": make_history(0), "heads: 2/4": make_history(1), "heads? 2/4": make_history(2)}


def expect(history: pd.DataFrame) -> dict[str, dict[int, float]]:
    """Return tag -> epoch -> value, as any tracker shall have it."""
    return {tag: history.set_index("epoch")[column].dropna().to_dict() for column, tag in TAGS.items()}


def by_tag(rows: list[tuple[int, dict]]) -> dict[str, dict[int, float]]:
    tags = {tag for _, values in rows for tag in values}
    return {tag: {step: values[tag] for step, values in rows if tag in values} for tag in tags}


@pytest.fixture(autouse=True)
def tracking(tmp_path, monkeypatch) -> Path:
    """The folder that trackers write to; home and working directory are others, and must stay empty."""
    for name in ("home", "cwd", "root"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(device, "ROOT", tmp_path / "root")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path / "cwd")
    yield tmp_path / "root" / "tracking"
    assert not list((tmp_path / "cwd").iterdir()) and not list((tmp_path / "home").iterdir())
    assert not list((tmp_path / "root" / "tracking").glob(".*")), "an unfinished folder was left behind"


# ---- the choice, before any training


def test_none_writes_nothing(tracking):
    check_tracker("none")
    assert track_curves("none", "cnn1d", CURVES, SETTINGS) is None
    assert not tracking.exists()


@pytest.mark.parametrize("function", [check_tracker, lambda tracker: track_curves(tracker, "cnn1d", CURVES, {})])
def test_an_unknown_tracker_is_refused_with_the_choices(function):
    with pytest.raises(ValueError, match="'mlflow' is unknown; choose one of none, tensorboard, trackio, wandb"):
        function("mlflow")


@pytest.mark.parametrize("tracker", PACKAGES)
@pytest.mark.parametrize("function", [check_tracker, lambda tracker: track_curves(tracker, "cnn1d", CURVES, {})])
def test_a_missing_package_is_named_with_its_extra(tracker, function, monkeypatch, tracking):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(ImportError, match=rf'tracker="{tracker}" .*: pip install -e "\.\[{tracker}\]"$'):
        function(tracker)
    assert not tracking.exists()
    assert PYPROJECT["project"]["optional-dependencies"][tracker][0].startswith(f"{tracker}>=")


def test_a_folder_called_wandb_is_not_taken_for_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match="not installed"):
        check_tracker("wandb")


# ---- TensorBoard


def read_events(run: Path) -> tuple[dict[str, dict[int, float]], dict]:
    """Return tag -> step -> value, and the settings."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(set(steps)) == len(steps)
        curves[tag] = dict(zip(steps, (event.value for event in events.Scalars(tag)), strict=True))
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return curves, {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_tensorboard_has_every_number_at_its_epoch(tracking, capfd):
    folder = track_curves("tensorboard", "cnn1d", CURVES, SETTINGS)
    assert folder == tracking / "tensorboard"
    (stamp,) = (folder / "cnn1d").iterdir()
    # the last two names differ only in characters that folders cannot have
    names = ["CNN, test fold 1, seed 0", "heads_ 2_4", "heads_ 2_4 2"]
    assert sorted(path.name for path in stamp.iterdir()) == names
    for name, history in zip(names, CURVES.values(), strict=True):
        curves, settings = read_events(stamp / name)
        single = {tag: {epoch: np.float32(value) for epoch, value in v.items()} for tag, v in expect(history).items()}
        assert curves == single and settings == KEPT
        assert list(curves["val/loss"]) == [2, 4]
    assert capfd.readouterr() == ("", "")  # a notebook may hold no output on stderr


def test_a_second_call_makes_runs_of_its_own():
    first = track_curves("tensorboard", "cnn1d", {"CNN": make_history(0)}, SETTINGS)
    second = track_curves("tensorboard", "cnn1d", {"CNN": make_history(1)}, {"LR": 0.1})
    found = [read_events(run.parent) for run in sorted(second.rglob("events.*"))]
    assert first == second and len(found) == 2
    assert sorted(settings["LR"] for _, settings in found) == [0.1, 0.5]
    losses = {tuple(curves["train/loss"].values()) for curves, _ in found}
    assert losses == {tuple(np.float32(make_history(seed)["train_loss"])) for seed in (0, 1)}


def test_names_cannot_lead_out_of_the_folder(tracking):
    track_curves("tensorboard", "../../up", {"../../curve": make_history(0), "..": make_history(1)}, {})
    assert {path.name for path in tracking.parent.iterdir()} == {"tracking"}
    assert sorted(path.parent.name for path in tracking.rglob("events.*")) == ["_.._curve", "curve"]


def test_tensorboard_that_breaks_in_the_middle_loses_no_other_curve(tracking, monkeypatch, capsys):
    write, second = SummaryWriter.add_scalar, make_history(1)["train_loss"][2]

    def break_once(writer, tag, value, step):
        if value == second:
            raise OSError("No space left on device")
        write(writer, tag, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", break_once)
    before = {name: history.copy() for name, history in CURVES.items()}
    assert track_curves("tensorboard", "cnn1d", CURVES, SETTINGS) == tracking / "tensorboard"
    said = capsys.readouterr().out
    assert said.startswith(
        "tensorboard has not taken 1 of 3 curves, first heads: 2/4: OSError: No space left on device."
    )
    assert said.count("\n") == 1
    left = {run.parent.name: read_events(run.parent)[0] for run in tracking.rglob("events.*")}
    assert left.keys() == {"CNN, test fold 1, seed 0", "heads_ 2_4"}
    assert left["heads_ 2_4"]["train/loss"][4] == np.float32(CURVES["heads? 2/4"]["train_loss"][3])
    for name, history in CURVES.items():
        pd.testing.assert_frame_equal(history, before[name])


def test_nothing_written_gives_none_and_a_sentence(tracking, monkeypatch, capsys):
    odd = make_history(0).assign(val_loss="much")
    assert track_curves("tensorboard", "cnn1d", {"odd": odd}, {}) is None
    assert track_curves("tensorboard", "cnn1d", {}, {}) is None
    assert track_curves("tensorboard", "cnn1d", {"odd": odd, "CNN": make_history(0)}, {}) == tracking / "tensorboard"
    assert len(list(tracking.rglob("events.*"))) == 1
    monkeypatch.setattr(device, "ROOT", Path(sys.executable))  # no folder can be made in a file
    assert track_curves("tensorboard", "cnn1d", CURVES, {}) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", first")[0].removeprefix("tensorboard has not taken ") for line in lines] == [
        "1 of 1 curves", "1 of 2 curves", "3 of 3 curves",
    ]  # fmt: skip
    assert "odd: TypeError: " in lines[0] and "NotADirectoryError" in lines[2]


# ---- trackio and wandb: what they are asked for, by packages that stand in for them

STAND_IN = """
import json, os, pathlib, sys, time, warnings
print("a banner"), print("a warning", file=sys.stderr)
MADE = []

class Run:
    def log(self, values, step):
        MADE[-1]["rows"].append([step, values])
        if len(MADE) == 2 and step == 3:
            TROUBLE
    def finish(self):
        MADE[-1]["finished"] = True
        pathlib.Path(os.environ["SHOWN"]).write_text(json.dumps(MADE))

def init(**arguments):
    names = [name for name in os.environ if name.startswith(("WANDB_", "TRACKIO_"))]
    MADE.append({"rows": [], "arguments": arguments, "names": names, "stdin": sys.stdin.read(), "cwd": os.getcwd()})
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a package in the place of a tracker that has some trouble in the third epoch of its second run."""

    def make(tracker: str, trouble: str = "pass"):
        folder = tmp_path / "packages"
        folder.mkdir()
        (folder / f"{tracker}.py").write_text(STAND_IN.replace("TROUBLE", trouble))
        monkeypatch.delitem(sys.modules, tracker, raising=False)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("SHOWN", str(folder / "shown.json"))
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB_API_KEY", "secret")
        monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
        return folder / "shown.json"

    return make


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_trackers_get_every_number_and_no_way_out(tracker, stand_in, tracking, capfd):
    shown = stand_in(tracker)
    assert track_curves(tracker, "my project/1", CURVES, SETTINGS) == tracking / tracker
    made = json.loads(shown.read_text())
    for (name, history), run in zip(CURVES.items(), made, strict=True):
        assert by_tag(run["rows"]) == expect(history) and run["finished"]
        arguments = run["arguments"]
        assert arguments["name"].startswith(f"{name} 2") and arguments["config"] == KEPT
        assert arguments["project"] == "my_project_1" and run["stdin"] == ""
        assert not {"WANDB_MODE", "WANDB_API_KEY", "TRACKIO_SPACE_ID"} & set(run["names"])
        assert Path(run["cwd"]).parent == tracking and not Path(run["cwd"]).exists()
        assert not {"space_id", "server_url"} & arguments.keys()
        assert arguments.get("mode") == ("offline" if tracker == "wandb" else None)
    assert track_curves(tracker, "my project/1", CURVES, SETTINGS) == tracking / tracker
    again = json.loads(shown.read_text())
    assert not {run["arguments"]["name"] for run in made} & {run["arguments"]["name"] for run in again}
    assert capfd.readouterr() == ("", "")
    assert tracker not in sys.modules


@pytest.mark.parametrize(
    "trouble, n_lost, reason",
    [
        ("raise OSError('disk full\\nmore')", 1, "OSError: disk full."),
        ("warnings.warn('log() failed: disk full')", 1, "log() failed: disk full."),
        ("os._exit(3)", 2, "a warning."),
        ("sys.exit('no key')", 2, "no key."),
        ("time.sleep(60)", 2, "no answer within 150 s."),
    ],
)
def test_a_tracker_in_trouble_keeps_what_it_has_and_raises_nothing(
    trouble, n_lost, reason, stand_in, tracking, monkeypatch, capfd
):
    shown = stand_in("trackio", trouble)
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **named: run(*arguments, **named | {"timeout": 1.5}))
    assert track_curves("trackio", "cnn1d", CURVES, SETTINGS) == tracking / "trackio"
    said = capfd.readouterr()
    assert said.err == "" and said.out.count("\n") == 1
    assert said.out.startswith(f"trackio has not taken {n_lost} of 3 curves, first heads: 2/4: {reason} The training")
    made = json.loads(shown.read_text())
    assert by_tag(made[0]["rows"]) == expect(CURVES["CNN, test fold 1, seed 0"])
    if n_lost == 1:
        assert by_tag(made[2]["rows"]) == expect(CURVES["heads? 2/4"]) and all(run["finished"] for run in made)


def test_a_tracker_that_cannot_be_imported_is_a_sentence_too(stand_in, capfd):
    stand_in("wandb", "pass\nraise RuntimeError('broken installation')\nif True:\n  if True:\n    if True: pass")
    assert track_curves("wandb", "cnn1d", CURVES, SETTINGS) is None
    said = capfd.readouterr()
    assert said.err == "" and "3 of 3 curves" in said.out and "RuntimeError: broken installation" in said.out


# ---- trackio and wandb themselves, where they are installed

READ_TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([
    [run.name, run.config, [
        [row["step"], {tag: value for tag, value in row.items() if tag not in ("step", "timestamp")}]
        for row in SQLiteStorage.get_logs("cnn1d", run.name, run_id=run.id)
    ]] for run in trackio.Api().runs("cnn1d")
]))
"""


def test_trackio_has_every_number_at_its_epoch(tracking, monkeypatch, capfd):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/space")
    for _ in range(2):
        assert track_curves("trackio", "cnn1d", CURVES, SETTINGS) == tracking / "trackio"
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("TRACKIO_DIR", str(tracking / "trackio"))
    python = partial(subprocess.run, check=True, capture_output=True, text=True)
    found = json.loads(python([sys.executable, "-c", READ_TRACKIO]).stdout)
    assert len(found) == len({name for name, _, _ in found}) == 6
    for name, config, rows in found:
        assert by_tag(rows) == expect(CURVES[name.rpartition(" ")[0]])
        assert {key: value for key, value in config.items() if not key.startswith("_")} == KEPT


def read_wandb(path: Path) -> list:
    """Return the records of an offline file: LevelDB's log format, 32 KiB blocks of (checksum, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, part, records = path.read_bytes(), 7, b"", []
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        part += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(part))
            part = b""
    return records


def test_wandb_has_every_number_at_its_epoch_and_asks_for_no_key(tracking, monkeypatch, capfd):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    for _ in range(2):
        assert track_curves("wandb", "cnn1d", CURVES, SETTINGS) == tracking / "wandb"
    assert capfd.readouterr() == ("", "")
    assert all(path.name.startswith("offline-run-") for path in (tracking / "wandb").iterdir())
    names = []
    for path in (tracking / "wandb").glob("offline-run-*/run-*.wandb"):
        records = read_wandb(path)
        (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
        assert run.project == "cnn1d" and config == KEPT
        rows = []
        for record in records:
            if record.WhichOneof("record_type") == "history":
                values = {item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                rows.append((values["_step"], {tag: values[tag] for tag in values if not tag.startswith("_")}))
        assert by_tag(rows) == expect(CURVES[run.display_name.rpartition(" ")[0]])
        names.append(run.display_name)
    assert len(names) == len(set(names)) == 6
