"""The runner on tiny notebooks: settings, failures, the table, published results, slides and fresh outputs."""

import importlib.metadata
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from shared_utils import device, notebooks, plotting, training

SETTINGS = """
SEED = 0  # any whole number
RATES = [0.5]  # several
DATA_DIR = "data"  # a folder
FAST = True  # or False
""".strip()

# What a notebook of this project leaves behind: figures, and a run folder with a headline and rows of results.
WORK = """
import json
from pathlib import Path
root = Path.cwd().parent
figures, run = root / "figures" / "tiny", root / "models" / "tiny" / f"20260101-00000{SEED}-0123abcd"
figures.mkdir(parents=True, exist_ok=True)
run.mkdir(parents=True, exist_ok=True)
for ending in ("png", "svg", "pdf"):
    (figures / f"01_curve.{ending}").write_text(str(SEED))
demo, headline = DATA_DIR == "data", f"test accuracy {RATES[0] * 100:.1f} %"
rows = [{"data": "ESC-10", "model": "b", "metric": "accuracy", "mean": 0.1 + 0.2, "extra": 1},
        {"data": "ESC-10", "model": "a", "metric": "accuracy", "mean": RATES[0], "device": "abacus"}]
(run / "results.json").write_text(json.dumps(rows))
(run / "weights.safetensors").write_text(f"weights {SEED}")
record = {"headline": headline, "data": {"demo": demo}, "device": "cuda", "versions": {"torch": "2.11.0"}}
(run / "run.json").write_text(json.dumps(record | {"publish_as": "tiny_weights"}))
print("saved in", run)
"""


def write_notebook(path: Path, *sources: str) -> Path:
    """Write a notebook: a heading, the settings, then one code cell for each of `sources`."""
    cells = [new_markdown_cell("# Tiny"), new_code_cell(SETTINGS, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    """An empty repository in a temporary folder; commands are called from a folder inside it."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    (tmp_path / "shared_utils").mkdir()
    (tmp_path / "recordings").mkdir()
    monkeypatch.chdir(tmp_path / "recordings")
    return tmp_path


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", {}),
        ("EPOCHS=3 SEED=1", {"EPOCHS": 3, "SEED": 1}),
        ("EPOCHS=3, DEVICE=cpu, FOLDS=[1, 2], SEED=1", {"EPOCHS": 3, "DEVICE": "cpu", "FOLDS": [1, 2], "SEED": 1}),
        ("EPOCHS=1e2 LR=1e-3 SECONDS=2.0", {"EPOCHS": 100, "LR": 0.001, "SECONDS": 2.0}),
        ("  LR=1e-3   FOLDS=[1, 2] MODEL=conv ", {"LR": 0.001, "FOLDS": [1, 2], "MODEL": "conv"}),
        ("CLIP=../my/dog-1.wav NAMES=('a', 'b c')", {"CLIP": "../my/dog-1.wav", "NAMES": ("a", "b c")}),
        ("TEXT='lr=3 or B=4' SEED=1", {"TEXT": "lr=3 or B=4", "SEED": 1}),
        ('FOLDER="my words/of 3" WORDS=["a b=1", "c"]', {"FOLDER": "my words/of 3", "WORDS": ["a b=1", "c"]}),
        ("NAME='two words' OTHER=False", {"NAME": "two words", "OTHER": False}),
        (r"FILE='C:\temp\Users\my new.xlsx' SEED=1", {"FILE": r"C:\temp\Users\my new.xlsx", "SEED": 1}),
        (r"FILES=['C:\temp\a b.wav', 'd:\\new\\b.wav']", {"FILES": [r"C:\temp\a b.wav", r"d:\new\b.wav"]}),
        (r"TEXT='a\tb'", {"TEXT": "a\tb"}),
        (r"FOLDER=C:\temp\words", {"FOLDER": r"C:\temp\words"}),
    ],
)
def test_settings_are_read_as_python_literals(text, expected):
    assert notebooks.read_settings(text) == expected


@pytest.mark.parametrize("text", ["EPOCHS 3", "SEED=1 FOLDS=[1,2", "NAME=two words", "3=4", "NAME=two words B=2"])
def test_settings_that_cannot_be_read_are_named(text):
    with pytest.raises(ValueError, match="EPOCHS 3|FOLDS|NAME|3=4"):
        notebooks.read_settings(text)


def test_run_refuses_wrong_requests_before_anything_runs(house, capsys):
    write_notebook(house / notebooks.TASKS[1] / "tiny.ipynb", "x = 1")
    write_notebook(house / notebooks.TASKS[2] / "other.ipynb", "x = 1")
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), house / notebooks.TASKS[1] / "scratch.ipynb")
    assert [path.stem for path in notebooks.find_notebooks()] == ["tiny", "other"]  # scratch has no settings
    for arguments, words in [
        (["run", "--set", "EPOCHS=3"], "EPOCHS is no setting of tiny; its settings are: SEED, RATES, DATA_DIR, FAST"),
        (["run", "--set", "SEED=one"], "SEED=one cannot be right"),
        (["run", "--set", "SEED=1,5"], "SEED=(1, 5) cannot be right"),
        (["run", "--set", "FAST=false"], "FAST=false cannot be right"),
        (["run", "--set", "RATES=0.5"], "RATES=0.5 cannot be right"),
        (["run", "--only", "tinny"], "no notebook called 'tinny'; there is: tiny, other"),
        (["run", "--data-dir", "nowhere"], "DATA_DIR=nowhere is not a folder"),
        (["results"], "name its folder"),
        (["results", "--data-dir", "."], "No results/settings.json names a notebook"),
        (["slides"], "There are no figures of any notebook"),
    ]:
        assert notebooks.main(arguments) == 2, arguments
        assert words in capsys.readouterr().err, arguments
    assert not (house / "executed").exists()


def test_run_goes_on_after_a_failure_and_tells_where_it_was(house, capsys):
    toy, spectrograms, _ = (house / task for task in notebooks.TASKS)
    write_notebook(toy / "broken.ipynb", "before = 1", "# sums\ntotal = before + 'a'", "after = 1")
    write_notebook(spectrograms / "tiny.ipynb", "assert (SEED, RATES, FAST) == (7, [0.25, 1], True)", WORK)
    assert notebooks.main(["run", "--set", "SEED=7 RATES=[0.25, 1]", "--data-dir", "../recordings"]) == 1
    shown = capsys.readouterr().out
    assert "broken.ipynb, cell 4 of 5: # sums" in shown  # the settings given are a cell as well
    assert "TypeError: unsupported operand type(s) for +: 'int' and 'str'" in shown and "\x1b" not in shown
    table = [line.split("  ") for line in shown.splitlines()[-3:]]
    table = [[field.strip() for field in line if field.strip()] for line in table]
    assert table[0] == ["notebook", "status", "seconds", "headline", "figures"]
    assert table[1][:2] + table[1][3:] == ["broken", "failed in cell 4", "-", "0"]
    assert table[2][:2] + table[2][3:] == ["tiny", "ok", "test accuracy 25.0 %", "1"]

    executed = nbformat.read(house / "executed" / "broken.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in executed.cells for output in cell.get("outputs", []))
    executed = nbformat.read(house / "executed" / "tiny.ipynb", as_version=4)
    assert f'DATA_DIR = "{house / "recordings"}"' in executed.cells[2].source  # seen from the user's folder
    assert [folder.name for folder in (house / "models").iterdir()] == ["tiny"]  # no weights published


def test_a_kernel_that_dies_is_one_failed_notebook(house, capsys):
    path = write_notebook(house / notebooks.TASKS[0] / "tiny.ipynb", WORK, "import os\nos._exit(9)")
    result = notebooks.run_notebook(path, {}, house / "executed" / "tiny.ipynb")
    assert result["status"] == "failed in cell 3"
    assert result["headline"] == "test accuracy 50.0 %, demo data" and len(result["figures"]) == 3  # kept even then
    assert "DeadKernelError" in capsys.readouterr().out


# What another run of the same notebook does in the repository while a published one is under way.
OTHER_RUN = """
import sys
assert str(root) in sys.path and Path(DATA_DIR).is_absolute()
for name, text in [("figures/tiny/02_other.png", "other"), ("models/tiny/20250101-000000-0123abcd/run.json", "{{}}")]:
    file = Path({house!r}) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def published(house) -> Path:
    """The results folder of a notebook before it is published again, with rows, figures and weights of last time."""
    notebook = house / notebooks.TASKS[1] / "tiny.ipynb"
    write_notebook(notebook, WORK, OTHER_RUN.format(house=str(house)))
    results = notebook.parent / "results"
    (results / "tiny").mkdir(parents=True)
    (results / "tiny" / "old_name.png").write_text("old")
    (results / "settings.json").write_text('{"tiny": {"SEED": 3, "RATES": [0.875]}}')
    earlier = [{"notebook": "tiny", "mean": 0.1}, {"notebook": "a", "mean": 0.2}]
    (results / "results.json").write_text(json.dumps(earlier))
    (house / "models" / "tiny_weights").mkdir(parents=True)
    for name in ("run.json", "weights.safetensors", "old_file"):
        (house / "models" / "tiny_weights" / name).write_text("old")
    return results


def test_results_replace_the_rows_figures_and_weights_of_their_notebook(house, published):
    assert notebooks.main(["results", "--data-dir", "../recordings"]) == 0
    other, a, b = json.loads((published / "results.json").read_text())
    assert other == {"notebook": "a", "mean": 0.2}
    assert (a["model"], a["mean"], a["device"]) == ("a", 0.875, "abacus")  # what the row says itself is kept
    assert (b["model"], b["mean"], b["device"], b["extra"]) == ("b", 0.3, "cuda", 1)
    assert a["command"] == "make results ONLY=tiny DATA_DIR=recordings"
    assert a["versions"] == b["versions"] == {"torch": "2.11.0"}
    assert list(b) == ["notebook", "data", "model", "metric", "mean", "device", "command", "versions", "extra"]
    assert names_in(published) == ["results.json", "settings.json", "tiny"]
    assert names_in(published / "tiny") == ["curve.png", "curve.svg"]  # no old name, number, or other run's figure
    assert (published / "tiny" / "curve.svg").read_text() == "3"

    runs, weights = house / "models" / "tiny", house / "models" / "tiny_weights"
    assert names_in(house / "models") == ["tiny", "tiny_weights"]
    assert names_in(runs) == ["20250101-000000-0123abcd", "20260101-000003-0123abcd"]
    assert names_in(weights) == ["results.json", "run.json", "weights.safetensors"]
    for name in names_in(weights):
        assert (weights / name).read_bytes() == (runs / "20260101-000003-0123abcd" / name).read_bytes()
    assert (weights / "weights.safetensors").read_text() == "weights 3"

    assert names_in(house / "executed") == ["tiny_figures", "tiny_results.ipynb"]  # the copy of the repository is gone
    assert {"01_curve.png", "01_curve.svg"} <= set(names_in(house / "executed" / "tiny_figures"))
    executed = nbformat.read(house / "executed" / "tiny_results.ipynb", as_version=4)
    assert executed.cells[3].outputs[0].text == f"saved in {runs / '20260101-000003-0123abcd'}\n"
    assert names_in(house / "figures" / "tiny") == ["02_other.png"] and os.environ["PYTHONPATH"] == ""


@pytest.mark.parametrize(
    "change, status, words",
    [
        (("DATA_DIR ==", "DATA_DIR !="), "not published", "nothing published, because this run used demo data"),
        (("tiny_weights", "tiny"), "not published", "publish_as='tiny' is taken or no plain folder name"),
        (("tiny_weights", "../tiny_weights"), "not published", "'../tiny_weights' is taken or no plain folder name"),
        (("[(\\\"figures", "1 / 0, [(\\\"figures"), "failed in cell 4", "ZeroDivisionError"),
    ],
)
def test_a_run_that_may_not_be_published_is_kept(house, published, capsys, change, status, words):
    path = house / notebooks.TASKS[1] / "tiny.ipynb"
    assert change[0] in path.read_text()
    path.write_text(path.read_text().replace(*change))
    taken = house / "models" / "tiny" / "20260101-000003-0123abcd"
    taken.mkdir(parents=True)
    (taken / "run.json").write_text("somebody's")
    files = [file for file in [*published.rglob("*"), *(house / "models").rglob("*")] if file.is_file()]
    before = {file: file.read_bytes() for file in files}

    assert notebooks.main(["results", "--data-dir", "../recordings"]) == 1
    shown = capsys.readouterr().out
    assert words in shown and status in shown.splitlines()[-1]
    assert {file: file.read_bytes() for file in files} == before
    assert names_in(published / "tiny") == ["old_name.png"]
    assert (house / "models" / "tiny" / "20260101-000004-0123abcd" / "weights.safetensors").read_text() == "weights 3"
    assert names_in(house / "executed") == ["tiny_figures", "tiny_results.ipynb"]


def test_the_table_in_a_readme_is_made_from_the_results(tmp_path):
    row = {
        "notebook": "tiny", "data": "ESC-10", "protocol": "five folds", "model": "small", "mean": 0.8125, "sd": 0.0104,
        "metric": "accuracy", "seeds": 3, "low": 0.761, "high": 0.8596, "n_test": 400, "parameters": 934570,
        "seconds": 90.0, "command": "make results ONLY=tiny", "device": "abacus",
    }  # fmt: skip
    floor = row | {"model": "floor", "mean": 0.9, "sd": None, "seeds": 1, "parameters": None, "seconds": None}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text(json.dumps([row, floor]))
    (tmp_path / "README.md").write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    notebooks.write_results_table(tmp_path)
    assert (tmp_path / "README.md").read_text().splitlines() == [
        "before", "<!-- results -->", "**ESC-10**, five folds:", "",
        "| model | accuracy (%) | 95 % interval | seeds | tested on | trained parameters | minutes a model | from |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| floor | 90.0 | 76.1 to 86.0 | 1 | 400 |  |  | tiny |",
        "| small | 81.2 ± 1.0 | 76.1 to 86.0 | 3 | 400 | 934,570 | 1.5 | tiny |",
        "", "Made with `make results ONLY=tiny` (abacus).", "<!-- /results -->", "after",
    ]  # fmt: skip
    other = row | {"notebook": "large", "mean": 0.85}
    few = row | {"protocol": "another", "n_test": 80}
    lines = notebooks.results_table([row, few, floor | {"metric": "macro F1"}, other]).splitlines()
    heads = [line for line in lines if line.startswith("**")]
    assert heads == ["**ESC-10**, five folds:", "**ESC-10**, five folds:", "**ESC-10**, another:"]
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert [(line[1], line[-1]) for line in cells if line[0] in ("model", "small", "floor")] == [
        ("accuracy (%)", "from"), ("85.0 ± 1.0", "large"), ("81.2 ± 1.0", "tiny"),
        ("macro F1 (%)", "from"), ("90.0", "tiny"), ("accuracy (%)", "from"), ("81.2 ± 1.0", "tiny"),
    ]  # fmt: skip


@pytest.mark.parametrize("task", notebooks.TASKS)
def test_the_numbers_in_each_readme_are_those_of_its_results(task):
    results = notebooks.ROOT / task / "results" / "results.json"
    if not results.is_file():
        pytest.skip(f"{task} has no published results yet")
    assert notebooks.results_table(json.loads(results.read_text())) in (results.parents[1] / "README.md").read_text()


def test_headlines_of_the_first_readme_are_those_of_the_results():
    """The first number and its interval are one row of that notebook's results; others are rows of it, or published."""
    published = {"87.2", "95.7", "58.0"}  # EnvNet and people on ESC-10; a public notebook on 40 sentences
    found = 0
    for line in (notebooks.ROOT / "README.md").read_text().splitlines():
        notebook = re.match(r"\| \[(\w+)\]\((\w+)/\1\.ipynb\)", line)
        headline = line.split(" | ")[4] if notebook else ""
        if not re.search(r"\d", headline):
            continue
        table = pd.read_json(notebooks.ROOT / notebook[2] / "results" / "results.json")
        table = table[table["notebook"] == notebook[1]]
        rows = (100 * table[["mean", "low", "high"]]).map("{:.1f}".format).to_numpy().tolist()
        mean, sd, low, high = re.match(r"([\d.]+)(?: ± ([\d.]+))? % \(([\d.]+) to ([\d.]+)\)", headline).groups()
        assert [mean, low, high] in rows, headline
        assert sd is None or float(sd) == round(100 * table["sd"].iloc[rows.index([mean, low, high])], 1), headline
        others = set(re.findall(r"\d+\.\d", headline)) - {sd}
        assert others <= published.union(*rows), headline
        found += 1
    assert found >= 5


def test_refresh_writes_outputs_without_traces_of_the_machine(house):
    path = write_notebook(
        house / notebooks.TASKS[1] / "tiny.ipynb",
        "import sys, warnings\nfrom pathlib import Path\nprint(Path.cwd().parent / 'data', Path.cwd().parent)",
        "warnings.warn('only here')\nprint('progress', file=sys.stderr)\nSEED + 41",
        "from IPython.display import display\n"
        "display({'application/vnd.jupyter.widget-view+json': {'model_id': '1'}, 'text/plain': 'Box()'}, raw=True)",
        "list((Path.cwd().parent / 'models').iterdir())",
    )
    (house / "models" / "tiny").mkdir(parents=True)  # somebody's run: no default run may see it
    before = nbformat.read(path, as_version=4)
    assert notebooks.main(["refresh"]) == 0

    notebook = nbformat.read(path, as_version=4)
    assert [(cell.id, cell.source) for cell in notebook.cells] == [(cell.id, cell.source) for cell in before.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5]
    assert code[1].outputs[0].text == "data .\n"
    assert [output.data["text/plain"] for output in code[2].outputs] == ["41"]
    assert code[3].outputs == [] and code[4].outputs[0].data["text/plain"] == "[]"
    assert str(house) not in path.read_text() and "papermill" not in path.read_text()
    assert notebook.metadata.source_hash == notebooks.source_hash(notebook)
    assert notebook.metadata.source_hash == notebooks.source_hash(json.loads(path.read_text()))
    first = path.read_bytes()
    assert notebooks.main(["refresh"]) == 0
    assert path.read_bytes() == first
    code[2].source += " "
    assert notebook.metadata.source_hash != notebooks.source_hash(notebook)


def test_badges_open_each_notebook_in_colab_and_change_nothing_else(house, capsys, monkeypatch):
    path = write_notebook(house / notebooks.TASKS[1] / "tiny.ipynb", "SEED + 41", "SEED + 42")
    assert notebooks.main(["refresh"]) == 0
    before = nbformat.read(path, as_version=4)
    assert notebooks.main(["badges", "https://github.com/somebody/old.git"]) == 0
    assert notebooks.main(["badges", "somebody/audio.text"]) == 0

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    badge, fetch = notebook.cells[1:3]
    assert [badge.cell_type, fetch.cell_type] == ["markdown", "code"]
    link = f"https://colab.research.google.com/github/somebody/audio.text/blob/main/{notebooks.TASKS[1]}/tiny.ipynb"
    assert f"({link})" in badge.source and link in capsys.readouterr().out
    assert [cell.source for cell in notebook.cells[:1] + notebook.cells[3:]] == [cell.source for cell in before.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert [output.execution_count for cell in code for output in cell.outputs] == [3, 4]
    assert notebook.metadata.source_hash == notebooks.source_hash(notebook)

    called = []
    monkeypatch.setattr("subprocess.run", lambda command, check: called.append(command))
    monkeypatch.setattr("os.chdir", called.append)
    exec(fetch.source, {})
    assert called == []  # no Colab
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    exec(fetch.source, {})
    assert called[0][-1] == "https://github.com/somebody/audio.text" and called[1] == "audio.text"
    assert called[2][2:] == ["pip", "install", "-q", "-c", "keep.txt", "-e", "."]
    kept = Path("keep.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in kept if "vision" not in line] == ["torch", "torchaudio"]
    assert f"torch=={importlib.metadata.version('torch')}" in kept

    called.clear()  # "Restart session" keeps the files and forgets the folder
    Path("audio.text/shared_utils").mkdir(parents=True)
    exec(fetch.source, {})
    assert called[0] == "audio.text" and "pip" in called[1]


def test_a_notebook_imports_the_package_that_lies_beside_it(house, monkeypatch, capsys):
    (house / "shared_utils" / "__init__.py").write_text("HERE = 'the house'")
    monkeypatch.setenv("PYTHONPATH", str(house / "recordings"))
    write_notebook(house / notebooks.TASKS[1] / "tiny.ipynb", "import shared_utils\nprint(shared_utils.HERE)")
    assert notebooks.main(["run"]) == 0
    cells = nbformat.read(house / "executed" / "tiny.ipynb", as_version=4).cells
    assert cells[-1].outputs[0].text == "the house\n"
    assert os.environ["PYTHONPATH"] == str(house / "recordings")


def test_what_the_system_refuses_is_one_sentence(house, monkeypatch, capsys):
    def refuse(only):
        raise PermissionError(13, "Permission denied", "compare.html")

    monkeypatch.setattr(notebooks, "compare", refuse)
    assert notebooks.main(["compare"]) == 2
    assert capsys.readouterr().err == "[Errno 13] Permission denied: 'compare.html'\n"


def test_badges_want_a_repository(house, capsys):
    for wrong in ("", "name", "https://gitlab.com/a/b", "a/b/c"):
        assert notebooks.main(["badges", wrong]) == 2
        assert f"{wrong!r} is no repository on GitHub; for example: REPOSITORY=owner/name" in capsys.readouterr().err


def test_slides_are_made_of_every_notebook_in_the_order_of_the_readme(house, monkeypatch, capsys):
    from pptx import Presentation

    monkeypatch.setattr(device, "ROOT", house)
    write_notebook(house / notebooks.TASKS[1] / "tiny.ipynb", "x = 1")
    (house / "README.md").write_text("| [zebra](a/zebra.ipynb) | |\n| [tiny](a/tiny.ipynb) | |\n")
    history = pd.DataFrame({"epoch": [1, 2], "train_loss": [2.0, 1.0], "val_loss": [2.0, 1.5]})
    history = history.assign(train_accuracy=[0.5, 0.75], val_accuracy=[0.25, 0.5])
    settings = {"SEED": 3, "FOLDS": (1, 2), "SUBSET": None}
    for name in ("other", "tiny", "zebra"):
        book = plotting.FigureBook(name, "ESC-10", demo=True, settings=settings)
        if name == "tiny":
            book.save("curves", plotting.plot_learning_curves({"one run": history}), caption="Two epochs")
        book.table("history", history, caption="The same in numbers")
    (house / "figures" / "benchmarks").mkdir()  # figures that are nobody's book
    (house / "figures" / "benchmarks" / "front_end.png").touch()
    runs = {  # of all that fit settings and data of the figures, the last counts
        "20260101-000000": ({**settings, "SEED": 2}, True), "20260102-000000": (settings, True),
        "20260103-000000": (settings | {"more": 1}, True), "20260104-000000": (settings, False),
        "20260105-000000": ({**settings, "SEED": 2}, True),
    }  # fmt: skip
    for number, (name, (values, demo)) in enumerate(runs.items()):
        folder = house / "models" / "tiny" / f"{name}-0123abcd"
        folder.mkdir(parents=True)
        record = {"settings": values, "headline": f"accuracy 0.{number}", "data": {"demo": demo}}
        (folder / "run.json").write_text(json.dumps(record))

    def titles(path: Path) -> list[list[str]]:
        frames = [[shape for shape in slide.shapes if shape.has_text_frame] for slide in Presentation(path).slides]
        return [[text for shape in shapes for text in shape.text_frame.text.splitlines()] for shapes in frames]

    data = "ESC-10 · demo data"
    table = ["History", "The same in numbers", data]
    tiny = [["Tiny", "Accuracy 0.2, demo data", data], ["Curves", "Two epochs"], table]
    assert notebooks.main(["slides", "--only", "tiny"]) == 0
    assert capsys.readouterr().out.split() == [str(house / "figures" / "tiny" / "tiny.pptx")]
    assert titles(house / "figures" / "tiny" / "tiny.pptx") == tiny
    for theme, ending in (("", ""), ("dark", "_dark")):
        assert notebooks.main(["slides", "--theme", theme]) == 0
        decks = [f"{name}/{name}{ending}.pptx" for name in ("zebra", "tiny", "other")]
        decks = [str(house / "figures" / name) for name in (*decks, f"all_notebooks{ending}.pptx")]
        assert capsys.readouterr().out.splitlines() == decks
        assert titles(decks[-1]) == [
            ["Transformers for audio and text", "Zebra", "Tiny", "Other"], ["Zebra", data], table, *tiny,
            ["Other", data], table,
        ]  # fmt: skip
    # neither a notebook whose figures were deleted nor a damaged run keeps the others from their slides
    (house / "figures" / "empty").mkdir()
    (house / "figures" / "empty" / "figures.json").write_text("[]")
    for name, text in (("20260106-000000-0123abcd", "{"), ("20260107-000000-0123abcd", "{}")):
        (house / "models" / "tiny" / name).mkdir()
        (house / "models" / "tiny" / name / "run.json").write_text(text)
    assert notebooks.main(["slides", "--theme", "dark"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"Left out: {house / 'figures' / 'empty'} holds no figure.", *decks]
    notes = [slide.notes_slide.notes_text_frame.text for slide in Presentation(decks[-1]).slides]
    assert notes[4].splitlines() == ["curves", "Two epochs", data, "SEED = 3 · FOLDS = (1, 2) · SUBSET = None"]
    assert notebooks.main(["slides", "--only", "benchmarks"]) == 2
    assert "There are no figures of benchmarks" in capsys.readouterr().err
    assert notebooks.main(["slides", "--theme", "blue"]) == 2
    assert "The theme of slides is \"light\" or \"dark\", not 'blue'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path):
    (tmp_path / "results.json").write_text("old")
    with pytest.raises(UnicodeEncodeError):
        notebooks._write_text(tmp_path / "results.json", "\ud800")
    assert names_in(tmp_path) == ["results.json"] and (tmp_path / "results.json").read_text() == "old"


@pytest.mark.parametrize("title", ["", "test fold 1, seed 0 (2 of 9)"])
def test_the_live_line_tells_how_far_a_training_is(title):
    table = training.EpochTable(4, 10, 1, visible=False, title=title)

    def output(bar):
        return {"output_type": "display_data", "data": {"text/plain": table._text(bar).data}}

    said = "epoch 3 of 4, best 1 (val acc 0.250), 0 min 45 s left"
    under_way = output("█" * 19 + "·" * 11 + " " + said)
    assert notebooks._last_bar([output(""), under_way]) == f"  {title}: {said}" if title else f"  {said}"
    assert notebooks._last_bar([under_way, output("")]) == ""  # done
    assert notebooks._last_bar([]) == notebooks._last_bar([{"output_type": "stream", "text": "█"}]) == ""
