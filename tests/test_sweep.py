"""Sweeps: nothing is computed twice, nothing is lost, and a changed model is computed anew."""

import json
import linecache
import math
import os
import signal
import sys
import types

import numpy as np
import pandas as pd
import pytest

from shared_utils import sweeps
from shared_utils.sources import function_sources
from shared_utils.sweeps import sweep

CELLS = {
    "constants": "import math\nimport os\nimport torch\nfrom torch import nn\n"
    "from shared_utils.spectrograms import Gain\n"
    "WIDTH = 3\nAUGMENT = nn.Sequential(Gain(6))\nWAVEFORMS = torch.zeros(1, 5)\nWORDS = {'yes', 'no', 'up', 'down'}",
    "helper": "def score(lr):\n    return WIDTH * lr",
    "model": "class Net(nn.Module):\n    def forward(self, x):\n        return x + 1",
    "models": "MODELS = {'net': Net, 'scaled': lambda: Net()}",
    "plain": "import types\nfrom pathlib import Path\nfrom torch import log_softmax, softmax\n"
    "PLAIN = (nn.ReLU, torch.float32, Path('a'), math.inf, types.SimpleNamespace(w=3), log_softmax)\n",
    "closures": "def scale_by(k):\n    return lambda x: k * x\nTWO = scale_by(2), scale_by(3)",
    "train": "def train(lr, optimizer='adam'):\n"
    "    with open(LOG, 'a') as log:\n"
    "        log.write(f'{lr} {optimizer} {os.getpid()} {torch.get_num_threads()}\\n')\n"
    "    if lr > 1:\n        raise FloatingPointError('the loss is nan')\n"
    "    MODELS['net']()(AUGMENT(WAVEFORMS))\n"
    "    len(PLAIN), TWO[1](lr)\n"
    "    return {'accuracy': score(lr), 'note': optimizer, 'nothing': math.nan, 'n': len(WORDS)}",
}


@pytest.fixture
def cell(tmp_path):
    """Return a function that executes a cell as a kernel does, in a notebook that has executed all of CELLS."""
    namespace = {"__name__": "__main__", "LOG": str(tmp_path / "log")}
    files = []

    def execute(source: str):
        files.append(f"<cell {len(files)} {tmp_path.name}>")
        linecache.cache[files[-1]] = (len(source), None, source.splitlines(keepends=True), files[-1])
        exec(compile(source, files[-1], "exec"), namespace)
        return namespace.get("train")

    for source in CELLS.values():
        execute(source)
    yield execute
    for file in files:
        linecache.cache.pop(file, None)


@pytest.fixture
def computed(tmp_path):
    """Return a function that says what has been computed since it was last asked: [lr, optimizer, process, threads]."""

    def read() -> list[list[str]]:
        path = tmp_path / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return read


GRID = {"lr": [0.1, 0.2], "optimizer": ["adam", "sgd"]}


def settings_of(lines: list[list[str]]) -> list[str]:
    return [" ".join(line[:2]) for line in lines]


def test_all_combinations_in_order_and_never_twice(cell, computed, tmp_path, capsys):
    train = cell("pass")
    first = sweep(train, GRID, name="words", folder=tmp_path)
    assert list(first) == ["lr", "optimizer", "accuracy", "note", "nothing", "n", "seconds"]
    assert first["lr"].tolist() == [0.1, 0.1, 0.2, 0.2] and first["optimizer"].tolist() == ["adam", "sgd"] * 2
    np.testing.assert_allclose(first["accuracy"], [0.3, 0.3, 0.6, 0.6])
    assert first["note"].tolist() == ["adam", "sgd"] * 2 and first["nothing"].isna().all()
    assert settings_of(computed()) == ["0.1 adam", "0.1 sgd", "0.2 adam", "0.2 sgd"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and printed[0].startswith("1 of 4  lr=0.1, optimizer=adam: accuracy 0.3, ")
    assert printed[3].endswith(" 0 s left")

    again = sweep(train, GRID, name="words", folder=tmp_path)
    pd.testing.assert_frame_equal(again, first)
    assert computed() == [] and capsys.readouterr().out.startswith("4 of 4 runs are there already, in ")
    more = sweep(train, [{"lr": 0.4}, {"lr": 0.2, "optimizer": "sgd"}, {"lr": 0.4}], name="words", folder=tmp_path)
    assert settings_of(computed()) == ["0.4 adam"]
    np.testing.assert_allclose(more["accuracy"], [1.2, 0.6, 1.2])
    assert more["optimizer"].tolist() == [None, "sgd", None]


@pytest.mark.parametrize(
    ("source", "anew"),
    [
        ("WIDTH = 4", True),  # a constant that a helper of train uses
        ("AUGMENT = nn.Sequential(Gain(3))", True),
        ("WORDS = {'yes', 'no', 'up', 'left'}", True),
        (CELLS["helper"] + " + 0", True),
        (CELLS["model"].replace("+ 1", "+ 2") + "\n" + CELLS["models"], True),  # only a dict holds this class
        (CELLS["models"].replace("Net()", "Net().eval()"), True),  # a lambda in a dict
        (CELLS["train"].replace("adam", "adamw"), True),
        ("PLAIN = (nn.GELU, torch.float32, Path('a'), math.inf, types.SimpleNamespace(w=3), log_softmax)", True),
        ("PLAIN = (nn.ReLU, torch.bfloat16, Path('a'), math.inf, types.SimpleNamespace(w=3), log_softmax)", True),
        ("PLAIN = (nn.ReLU, torch.float32, Path('b'), math.inf, types.SimpleNamespace(w=3), log_softmax)", True),
        ("PLAIN = (nn.ReLU, torch.float32, Path('a'), -math.inf, types.SimpleNamespace(w=3), log_softmax)", True),
        ("PLAIN = (nn.ReLU, torch.float32, Path('a'), math.inf, types.SimpleNamespace(w=4), log_softmax)", True),
        ("PLAIN = (nn.ReLU, torch.float32, Path('a'), math.inf, types.SimpleNamespace(w=3), softmax)", True),
        ("TWO = scale_by(2), scale_by(4)", True),  # closures of one function, of which only the second differs
        (CELLS["plain"] + CELLS["closures"], False),
        ("WORDS = set(sorted(WORDS, reverse=True))", False),
        ("WAVEFORMS = torch.ones(1, 5)", False),  # data has its own argument
        ("AUGMENT.eval()", False),
        ("OTHER = 5\ndef unused():\n    return OTHER", False),
        ("\n".join(CELLS.values()), False),  # every cell again
    ],
)
def test_what_the_run_uses_of_the_notebook_decides_whether_it_is_computed_anew(cell, computed, tmp_path, source, anew):
    grid = {"lr": [0.1]}
    sweep(cell("pass"), grid, name="words", folder=tmp_path)
    assert len(computed()) == 1
    sweep(cell(source), grid, name="words", folder=tmp_path)
    assert len(computed()) == anew
    sweep(cell("pass"), grid, name="words", folder=tmp_path)
    assert computed() == []


MIXER = "class Mixer:\n    def __init__(self, p):\n        self.p = p\n"
MIXER += "    def __call__(self, x):\n        return x + self.p\n"
MIXER += "    def twice(self, x):\n        return self(2 * x)\n"
APPLY = "class Apply(nn.Module):\n    def __init__(self, f):\n        super().__init__()\n        self.f = f\n"
APPLY += "    def forward(self, x):\n        return self.f(x)\n\n\ndef double(x):\n    return 2 * x\n\n\n"
SLOTTED = "class Slotted:\n    __slots__ = ('p',)\n    def __init__(self, p):\n        self.p = p\n"
SLOTTED += "    def __call__(self, x):\n        return x + self.p\n"


@pytest.mark.parametrize(
    ("first", "then", "values"),
    [
        (MIXER + "USED = Mixer(2)", "USED = Mixer(3)", (3, 4)),
        (MIXER + "USED = Mixer(2)", MIXER.replace("+ self", "- self") + "USED = Mixer(2)", (3, -1)),
        (MIXER + "USED = Mixer(2).twice", "USED = Mixer(3).twice", (4, 5)),
        (MIXER + "USED = Mixer(2).twice", MIXER.replace("2 * x", "x") + "USED = Mixer(2).twice", (4, 3)),
        (SLOTTED + "USED = Slotted(2)", "USED = Slotted(3)", (3, 4)),
        ("import argparse\nP = argparse.Namespace(p=2)\ndef USED(x):\n    return x + P.p", "P.p = 3", (3, 4)),
        (APPLY + "USED = Apply(double)", "def double(x):\n    return 3 * x\nUSED = Apply(double)", (2, 3)),
        (APPLY + "USED = Apply(lambda x: x + USED.p)\nUSED.p = np.int64(3)", "USED.p = np.int64(4)", (4, 5)),
        ("class Plain:\n    p = 2\n\n\nPLAIN = Plain()\ndef USED(x):\n    return x + PLAIN.p", "Plain.p = 3", (3, 4)),
    ],
)  # fmt: skip
def test_objects_of_the_notebook_decide_as_well(cell, tmp_path, first, then, values):
    cell("import numpy as np\n" + first)
    train = "def train(x):\n    return {'value': int(USED(x))}"
    assert sweep(cell(train), {"x": [1]}, name="words", folder=tmp_path)["value"].tolist() == [values[0]]
    cell(then)
    assert sweep(cell(train), {"x": [1]}, name="words", folder=tmp_path)["value"].tolist() == [values[1]]
    assert len(list((tmp_path / "words" / "sweep").iterdir())) == 2
    sweep(cell(train), {"x": [1]}, name="words", folder=tmp_path)
    assert len(list((tmp_path / "words" / "sweep").iterdir())) == 2


def test_objects_that_know_each_other_are_looked_at_once(cell, tmp_path):
    cell("class Node:\n    def __init__(self, n):\n        self.n, self.others = n, []\n\n\n"
         "NODES = [Node(n) for n in range(12)]\nfor node in NODES:\n    node.others = [*NODES]\n"
         "CHAIN = None\nfor n in range(500):\n    last = Node(n)\n    last.others, CHAIN = [CHAIN], last")  # fmt: skip
    train = cell("def train(x):\n    return {'value': x + sum(node.n for node in NODES) + len(CHAIN.others)}")
    assert sweep(train, {"x": [1]}, name="words", folder=tmp_path)["value"].tolist() == [68]
    assert len(function_sources(train)) < 700
    sweep(train, {"x": [1]}, name="words", folder=tmp_path)
    cell("NODES[7].n = 8")
    assert sweep(train, {"x": [1]}, name="words", folder=tmp_path)["value"].tolist() == [69]
    assert len(list((tmp_path / "words" / "sweep").iterdir())) == 2


def test_what_a_library_counts_changes_no_run(cell, tmp_path):
    cell("from joblib import Parallel\n\nPARALLEL = Parallel(1)")
    train = cell("def train(x):\n    PARALLEL.n_uses = x\n    return {'value': len(PARALLEL([])) + x}")
    for _ in range(2):
        assert sweep(train, {"x": [1]}, name="words", folder=tmp_path)["value"].tolist() == [1]
    assert len(list((tmp_path / "words" / "sweep").iterdir())) == 1


def test_the_order_in_which_settings_are_written_changes_nothing(cell, computed, tmp_path):
    train = cell("pass")
    first = sweep(train, GRID, name="words", folder=tmp_path)
    assert len(computed()) == 4
    again = sweep(train, dict(reversed(GRID.items())), name="words", folder=tmp_path)
    assert computed() == [] and list(again)[:2] == ["optimizer", "lr"]
    assert again["optimizer"].tolist() == ["adam", "adam", "sgd", "sgd"]
    np.testing.assert_allclose(again["accuracy"], [0.3, 0.6, 0.3, 0.6])
    pd.testing.assert_frame_equal(again.sort_values(["lr", "optimizer"], ignore_index=True)[list(first)], first)
    train = cell("def train(recipe):\n    return {'lr': recipe['lr']}")
    for recipe in ({"lr": 1, "epochs": 2}, {"epochs": 2, "lr": 1}, {"epochs": 1, "lr": 2}):
        sweep(train, [{"recipe": recipe}], name="nested", folder=tmp_path)
    assert len(list((tmp_path / "nested" / "sweep").iterdir())) == 2


def test_none_and_infinity_are_different_settings(cell, tmp_path):
    train = cell("def train(limit):\n    return {'limited': limit is not None}")
    limits = [None, math.inf, -math.inf, np.float32("nan")]
    table = sweep(train, {"limit": limits}, name="limits", folder=tmp_path)
    assert table["limited"].tolist() == [False, True, True, True]
    kept = [json.loads(path.read_text())["settings"] for path in (tmp_path / "limits" / "sweep").iterdir()]
    assert sorted(str(settings["limit"]) for settings in kept) == ["-inf", "None", "inf", "nan"]
    ranges = [(0, None), (0, math.inf), (0, -math.inf), np.array([0, np.nan]), np.array([0.0, 1.0])]
    for _ in range(2):
        table = sweep(train, {"limit": ranges}, name="ranges", folder=tmp_path)
        assert len(table) == len(list((tmp_path / "ranges" / "sweep").iterdir())) == 5


def test_other_data_and_other_names_are_other_runs(cell, computed, tmp_path):
    train, grid = cell("pass"), {"lr": [0.1]}
    for name, data in (("a", "v0.01, 300 clips"), ("a", "v0.02, 4890 clips"), ("b", "v0.01, 300 clips")):
        sweep(train, grid, name=name, data=data, folder=tmp_path)
        assert len(computed()) == 1
    sweep(train, grid, name="a", data="v0.01, 300 clips", folder=tmp_path)
    assert computed() == []
    record = json.loads(next((tmp_path / "b" / "sweep").iterdir()).read_text())
    assert record["settings"] == {"lr": 0.1} and record["data"] == "v0.01, 300 clips"
    assert record["result"]["n"] == 4 and set(record["versions"]) >= {"torch", "python"}


def test_a_run_that_fails_is_told_and_tried_again_and_the_others_go_on(cell, computed, tmp_path):
    train = cell("pass")
    table = sweep(train, {"lr": [0.1, 2.0, 0.3]}, name="words", folder=tmp_path)
    assert table["error"].tolist() == [None, "FloatingPointError: the loss is nan", None]
    np.testing.assert_allclose(table["accuracy"], [0.3, np.nan, 0.9])
    computed()
    sweep(train, {"lr": [0.1, 2.0, 0.3]}, name="words", folder=tmp_path)
    assert settings_of(computed()) == ["2.0 adam"]


def test_a_failure_without_text_is_told_by_its_name(cell, tmp_path):
    table = sweep(cell("def train(lr):\n    assert lr > 1"), {"lr": [1]}, name="words", folder=tmp_path)
    assert table["error"].tolist() == ["AssertionError"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [1]", "returned a list; a dict of numbers and texts is needed"),
        ("return {'lr': 1}", "returned lr, the name of a setting"),
        ("return {'model': object()}", "the result model is a object"),
    ],
)
def test_a_result_that_cannot_be_kept_is_an_error_of_its_run(cell, tmp_path, body, message):
    table = sweep(cell(f"def train(lr):\n    {body}"), {"lr": [1]}, name="words", folder=tmp_path)
    assert message in table["error"][0] and not (tmp_path / "words").exists()


def test_ctrl_c_keeps_what_is_finished_and_the_same_call_goes_on(cell, computed, tmp_path, capsys):
    # training.fit ends early when it is interrupted, and returns: such a run is not a finished one
    train = cell(
        "import signal\ndef train(lr):\n    with open(LOG, 'a') as log:\n        log.write(f'{lr} -\\n')\n"
        "    try:\n        if os.path.exists(LOG + '.stop') and lr == 0.2:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n            math.sqrt(lr)\n"
        "    except KeyboardInterrupt:\n        return {'accuracy': -1}\n    return {'accuracy': lr}"
    )
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "log.stop").touch()
    table = sweep(train, {"lr": [0.1, 0.2, 0.3]}, name="words", folder=tmp_path)
    assert table["accuracy"].tolist() == [0.1] and signal.getsignal(signal.SIGINT) is before
    assert "Stopped by hand: 1 of 3 runs are finished" in capsys.readouterr().out
    (tmp_path / "log.stop").unlink()
    computed()
    table = sweep(train, {"lr": [0.1, 0.2, 0.3]}, name="words", folder=tmp_path)
    assert table["accuracy"].tolist() == [0.1, 0.2, 0.3] and settings_of(computed()) == ["0.2 -", "0.3 -"]


def test_a_damaged_file_is_named_and_its_run_computed_anew(cell, computed, tmp_path, capsys):
    train = cell("pass")
    sweep(train, {"lr": [0.1]}, name="words", folder=tmp_path)
    (file,) = (tmp_path / "words" / "sweep").iterdir()
    file.write_text(file.read_text()[:40])
    computed()
    table = sweep(train, {"lr": [0.1]}, name="words", folder=tmp_path)
    assert len(computed()) == 1 and table["accuracy"][0] == pytest.approx(0.3)
    assert f"{file} is damaged" in capsys.readouterr().out
    assert json.loads(file.read_text())["result"]["note"] == "adam"
    assert list(file.parent.iterdir()) == [file]  # no temporary file


def test_processes_compute_the_same_with_their_share_of_threads(cell, computed, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps.torch, "get_num_threads", lambda: 6)
    grid = {"lr": [0.1, 2.0, 0.3], "optimizer": ["adam"]}
    table = sweep(cell("pass"), grid, name="words", folder=tmp_path, executor="processes", n_workers=2)
    lines = computed()
    assert sorted(settings_of(lines)) == ["0.1 adam", "0.3 adam", "2.0 adam"]
    assert str(os.getpid()) not in {line[2] for line in lines} and {line[3] for line in lines} == {"3"}
    assert table["error"].tolist() == [None, "FloatingPointError: the loss is nan", None]
    np.testing.assert_allclose(table["accuracy"], [0.3, np.nan, 0.9])
    serial = sweep(cell("pass"), grid, name="words", folder=tmp_path)
    assert settings_of(computed()) == ["2.0 adam"]
    pd.testing.assert_frame_equal(serial.drop(columns="seconds"), table.drop(columns="seconds"))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_process_that_dies_is_an_error_of_its_run_alone(cell, tmp_path, n_workers):
    train = cell("def train(lr):\n    if lr in (2, 5):\n        os._exit(1)\n    return {'accuracy': lr}")
    grid = {"lr": list(range(6))}
    table = sweep(train, grid, name="words", folder=tmp_path, executor="processes", n_workers=n_workers)
    died = "the process of this run has died"
    assert {lr: error[: len(died)] for lr, error in table["error"].items() if error} == {2: died, 5: died}
    np.testing.assert_allclose(table["accuracy"], [0, 1, np.nan, 3, 4, np.nan])


def test_what_a_process_cannot_read_is_no_want_of_memory(cell, tmp_path, monkeypatch):
    ghost = types.ModuleType("ghost")
    monkeypatch.setitem(sys.modules, "ghost", ghost)
    exec("class Ghost:\n    pass", vars(ghost))
    cell("from ghost import Ghost\n\nHAUNTED = [Ghost()]")
    train = cell("def train(lr):\n    return {'accuracy': lr * len(HAUNTED)}")
    table = sweep(train, {"lr": [1, 2, 3]}, name="words", folder=tmp_path, executor="processes", n_workers=2)
    error = "a process could not read what train uses (ModuleNotFoundError: No module named 'ghost'); use the executor "
    assert table["error"].tolist() == [f"{error}serial"] * 3


def test_processes_can_go_on_from_a_loaded_run(cell, tmp_path):
    cell("class Net(nn.Linear):\n    def forward(self, x):\n        return super().forward(x) + 1\n\n\nnet = Net(2, 3)")
    cell("import pandas as pd\nfrom shared_utils.runs import load_run, save_run\n"
         "args, none = {'in_features': 2, 'out_features': 3}, pd.DataFrame({'epoch': [1]})\n"
         "run = save_run('net', net, {}, list('abc'), {'sample_rate': 1}, none, {}, '', model_arguments=args,\n"
         f"               folder={str(tmp_path)!r})\nSTART = load_run(run).model")  # fmt: skip
    train = cell("def train(scale):\n    return {'value': START(scale * torch.ones(1, 2)).sum().item()}")
    here = sweep(train, {"scale": [1, 2]}, name="here", folder=tmp_path)
    there = sweep(train, {"scale": [1, 2]}, name="there", folder=tmp_path, executor="processes")
    np.testing.assert_allclose(there["value"], here["value"], rtol=1e-6)


def test_what_holds_itself_and_slots_can_be_swept(cell, tmp_path):
    cell(
        "import types\nfrom dataclasses import dataclass\n\nHOLDER = types.SimpleNamespace(w=1)\nHOLDER.own = HOLDER\n"
    )
    cell("@dataclass(slots=True)\nclass Settings:\n    width: int\n\n\nSLOTS = Settings(3)\n")
    cell("def pair():\n    def a(n):\n        return n and b(n - 1)\n\n    def b(n):\n        return n and a(n - 1)\n\n"
         "    return a\n\n\nCALL = pair()\n")  # fmt: skip
    source = "def train(lr):\n    return {'accuracy': lr + HOLDER.w + SLOTS.width + CALL(3)}"
    assert sweep(cell(source), {"lr": [1]}, name="words", folder=tmp_path)["accuracy"].tolist() == [5]
    cell("SLOTS.width = 4")
    assert sweep(cell(source), {"lr": [1]}, name="words", folder=tmp_path)["accuracy"].tolist() == [6]


def test_ray(cell, computed, tmp_path):
    pytest.importorskip("ray")
    grid = {"lr": [0.1, 2.0, 0.3], "optimizer": ["adam"]}
    table = sweep(cell("pass"), grid, name="words", folder=tmp_path, executor="ray")
    assert table["error"].tolist() == [None, "FloatingPointError: the loss is nan", None]
    np.testing.assert_allclose(table["accuracy"], [0.3, np.nan, 0.9])
    assert str(os.getpid()) not in {line[2] for line in computed()}


class FakeRay(types.SimpleNamespace):
    """Ray's functions, of nodes with these CPUs and GPUs, of which the last is dead; runs go one by one, in here."""

    class RayError(Exception):
        pass

    def __init__(self, *resources: dict):
        self.asked, self.most = [], 0
        alive = [index < len(resources) - 1 for index in range(len(resources))]
        nodes = [{"Alive": up, "Resources": has} for up, has in zip(alive, resources, strict=True)]
        super().__init__(
            nodes=lambda: nodes, is_initialized=lambda: True, put=lambda value: value, get=lambda task: task(),
            exceptions=types.SimpleNamespace(RayError=self.RayError), cancel=lambda task, force: None,
        )  # fmt: skip

    def remote(self, **resources):
        self.asked.append((resources["num_cpus"], resources["num_gpus"]))
        return lambda run: types.SimpleNamespace(remote=lambda *arguments: lambda: run(*arguments))

    def wait(self, tasks: list, num_returns: int):
        self.most = max(self.most, len(tasks))
        return tasks[:num_returns], tasks[num_returns:]


@pytest.mark.parametrize(
    ("n_workers", "nodes", "asked", "n_threads"),
    [
        (1, [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 64.0}], (4, 0), "4"),  # not six, which no living node has
        (2, [{"CPU": 5.0}, {"CPU": 64.0}], (2, 0), "2"),  # whole ones
        (8, [{"CPU": 4.0}, {}], (0.5, 0), "1"),
        (1, [{"CPU": 16.0}, {"CPU": 3.0, "GPU": 2.0}, {}], (3, 1), "3"),  # where the GPUs are
        (2, [{"CPU": 16.0}, {"CPU": 3.0, "GPU": 1.0}, {}], (3, 0.5), "3"),
    ],
)
def test_ray_is_never_asked_for_more_than_a_node_has(
    cell, computed, tmp_path, monkeypatch, n_workers, nodes, asked, n_threads
):
    ray = FakeRay(*nodes)
    monkeypatch.setitem(sys.modules, "ray", ray)
    get_n = "get_num_threads"
    monkeypatch.setattr(sweeps, "set_threads", lambda n: monkeypatch.setattr(sweeps.torch, get_n, lambda: n))
    grid = {"lr": [0.1, 0.2, 0.3], "optimizer": ["adam"]}
    table = sweep(cell("pass"), grid, name="words", folder=tmp_path, executor="ray", n_workers=n_workers)
    np.testing.assert_allclose(table["accuracy"], [0.3, 0.6, 0.9])
    assert ray.asked == [asked] and ray.most == min(n_workers, 3)
    assert {line[3] for line in computed()} == {n_threads}


@pytest.mark.parametrize(("text", "shown"), [("", "RayError"), ("gone\nfar", "RayError: gone")])
def test_an_error_of_ray_is_one_of_its_run_and_may_say_nothing(cell, tmp_path, monkeypatch, text, shown):
    def get(task):
        raise FakeRay.RayError(text)

    ray = FakeRay({"CPU": 2.0}, {})
    ray.get = get
    monkeypatch.setitem(sys.modules, "ray", ray)
    table = sweep(cell("pass"), {"lr": [0.1, 0.2]}, name="words", folder=tmp_path, executor="ray")
    assert table["error"].tolist() == [shown, shown]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "holds no run"),
        ([], "holds no run"),
        ({"lr": []}, "holds no run"),
        ({"lr": 0.1}, r"has lr=0.1; give a list of values, \[0.1\] for one"),
        ({"optimizer": "adam"}, "has optimizer='adam'; give a list"),
        ([{"lr": 0.1}, {"learning_rate": 0.1}], "train does not take the settings {'learning_rate': 0.1}"),
        ({"lr": [object()]}, r"settings\['lr'\] is a object"),
        ({"lr": [0.1], "seconds": [1]}, "A setting cannot be called seconds"),
        ([{"lr": 0.1}, {"lr": 0.1, "error": 1}], "A setting cannot be called error"),
    ],
)
def test_a_grid_that_is_none_starts_nothing(cell, computed, tmp_path, grid, message):
    with pytest.raises(ValueError, match=message):
        sweep(cell("pass"), grid, name="words", folder=tmp_path)
    assert computed() == []


def test_what_cannot_run_is_refused_in_words(cell, tmp_path, monkeypatch):
    train = cell("pass")
    with pytest.raises(ValueError, match="Executor 'threads' is unknown; choose one of serial, processes, ray"):
        sweep(train, {"lr": [1]}, name="words", folder=tmp_path, executor="threads")
    with pytest.raises(ValueError, match="0 workers cannot compute"):
        sweep(train, {"lr": [1]}, name="words", folder=tmp_path, n_workers=0)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r'needs Ray: pip install -e "\.\[cluster\]"'):
        sweep(train, {"lr": [0.1]}, name="words", folder=tmp_path, executor="ray")
    namespace = {"__name__": "__main__"}
    exec("def train(lr):\n    return {}", namespace)
    with pytest.raises(ValueError, match="The source of train is not to be found"):
        sweep(namespace["train"], {"lr": [1]}, name="words", folder=tmp_path)
