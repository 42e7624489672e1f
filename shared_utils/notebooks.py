"""Run the notebooks from the command line: as they are, with other settings, or to publish what they find.

    python -m shared_utils.notebooks run      [--only NAME] [--data-dir DIR] [--set "EPOCHS=3 SEED=1"]
    python -m shared_utils.notebooks results  [--only NAME] --data-dir DIR
    python -m shared_utils.notebooks slides   [--only NAME] [--theme dark]
    python -m shared_utils.notebooks compare  [--only NAME]
    python -m shared_utils.notebooks name     RUN NAME
    python -m shared_utils.notebooks delete   RUN
    python -m shared_utils.notebooks refresh  [--only NAME]
    python -m shared_utils.notebooks badges   OWNER/NAME

`run` keeps executed copies in executed/. `results` runs notebooks with the settings in <task>/results/settings.json and
puts rows and figures beside that file, and the weights that a notebook wants to publish into models/. `slides` makes a
.pptx of each notebook's figures, and one of all of them. `compare` writes figures/compare.html, on which all saved
runs stand side by side; `name` and `delete` do that to a run, given by its folder or the last part of it. `refresh`
writes the outputs of a default run on the demo data into the committed notebooks. `badges` lets each notebook be opened
in Colab from its repository on GitHub. The Makefile calls the first four and the last.
"""

import argparse
import ast
import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shared_utils.device import ROOT, write_whole

TASKS = ("toy_transformer_sentiment", "audio_spectrogram_transformer", "speech_commands_transformer")
RESULT_KEYS = (
    "notebook", "data", "protocol", "model", "metric", "mean", "sd", "seeds", "low", "high", "n_test", "parameters",
    "seconds", "device", "command", "versions",
)
_WIDGET = "application/vnd.jupyter.widget-view+json"
_FETCH = """import importlib.metadata
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.isdir("shared_utils"):
    if not os.path.isdir("{name}/shared_utils"):  # after "Restart session" the files are there already
        subprocess.run(["git", "clone", "--depth", "1", "https://github.com/{repository}"], check=True)
    os.chdir("{name}")
    with open("keep.txt", "w") as file:  # the wheels that fit Colab's accelerator: pip may not replace them
        for package in ("torch", "torchvision", "torchaudio"):
            if importlib.util.find_spec(package):
                print(f"{{package}}=={{importlib.metadata.version(package)}}", file=file)
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-c", "keep.txt", "-e", "."], check=True)"""
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


# ---- which notebooks, with which settings


def find_notebooks(only: str = "") -> list[Path]:
    """Return the notebooks of the task folders that have a `parameters` cell, or just the one called `only`.

    Raises FileNotFoundError if there is none of that name.
    """
    found = [path for task in TASKS for path in sorted((ROOT / task).glob("[!.]*.ipynb")) if _has_settings(path)]
    chosen = [path for path in found if not only or path.stem == Path(only).stem]
    if not chosen:
        names = ", ".join(path.stem for path in found) or "no notebook with a `parameters` cell"
        raise FileNotFoundError(f"There is no notebook called {only!r}; there is: {names}.")
    return chosen


def read_settings(text: str) -> dict[str, object]:
    """Return the settings in a text such as `EPOCHS=3 FOLDS=[1, 2] MODEL=conv`; a bare word is a string.

    A comma behind a value is taken for one between settings, and 1e2 for a whole number.

    Raises ValueError for a part that is not NAME=value or whose value is half a Python literal.
    """
    settings, pieces = {}, re.split(r"(\s+(?=[A-Za-z_]\w*=))", text.strip()) if text.strip() else []
    while pieces:
        for n in range(1, len(pieces) + 1, 2):  # a text in quotes may hold what looks like the next setting
            part = "".join(pieces[:n])
            name, equals, value = (piece.strip().removesuffix(",") for piece in part.partition("="))
            if not equals or not name.isidentifier():
                raise ValueError(f"{part!r} is no setting; write NAME=value, several with a space between: A=3 B=1")
            settings[name] = _literal(value)
            if isinstance(settings[name], float) and "e" in value and settings[name].is_integer():
                settings[name] = int(settings[name])
            if settings[name] != value or not re.search(r"[\s\[\](){}'\"]", value):
                break
        else:
            _, _, value = pieces[0].partition("=")
            raise ValueError(
                f"The value of {name} cannot be read: {value}; write a number, a word or a Python literal: a text with "
                "a space stands in quotes."
            )
        del pieces[: n + 1]
    return settings


def check_settings(path: Path, settings: dict[str, object]) -> None:
    """Raise ValueError where a setting is none of the notebook at `path`, or no number or list where that needs one."""
    import papermill

    known = papermill.inspect_notebook(path)
    for name, value in settings.items():
        if name not in known:
            raise ValueError(f"{name} is no setting of {path.stem}; its settings are: {', '.join(known)}.")
        default = _literal(known[name]["default"])
        kinds = (bool | int | float | None, list)  # of a number, None may be the way to say "all"
        if any(isinstance(default, kind) and not isinstance(value, kind) for kind in kinds if default is not None):
            raise ValueError(f"{name}={value} cannot be right: in {path.stem} it is a value such as {default}.")


def source_hash(notebook: dict) -> str:
    """Return the SHA-256 of a notebook's code cells: what `refresh` stores to tell fresh outputs from stale ones."""
    cells = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(["".join(cell) for cell in cells]).encode()).hexdigest()


def load_definitions(path: Path) -> dict[str, object]:
    """Execute the imports, classes and functions of a notebook, and nothing else of it; return them by name.

    Models live in the notebooks: this is how a test or a benchmark gets at one without training it.
    """
    definitions = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    names: dict[str, object] = {"__name__": path.stem}
    for cell in _read_json(path)["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            tree.body = [node for node in tree.body if isinstance(node, definitions)]
            exec(compile(tree, path.name, "exec"), names)
    return names


# ---- run one notebook


def run_notebook(path: Path, settings: dict[str, object], output: Path, root: Path | None = None) -> dict:
    """Execute the notebook at `path` with papermill into `output`, with one live line; a failure is shown, not raised.

    `root` is the folder with figures/ and models/ (default: the repository). Returns a dict: notebook, status ("ok" or
    "failed in cell k"), seconds, headline, figures and runs (the files and folders that this run wrote).
    """
    import papermill

    root = root or ROOT
    figures, runs = root / "figures" / path.stem, root / "models" / path.stem
    before = {**_times(figures, "*.*"), **_times(runs, "*/run.json")}
    progress = {"cell": 0, "node": {"source": ""}, "cells": _count_cells(path) + bool(settings)}

    def note_cell(cell: dict, cell_index: int) -> None:
        progress.update(cell=progress["cell"] + 1, node=cell)

    output.parent.mkdir(parents=True, exist_ok=True)
    start, error, status = time.monotonic(), "", "ok"
    with _live_line(path.stem, progress), _package_of(root):
        try:
            papermill.execute_notebook(
                path, output, parameters=settings, kernel_name="python3", cwd=path.parent, progress_bar=False,
                on_cell_execute=note_cell, extra_arguments=["--log-level=CRITICAL"],  # a kernel's log breaks the line
            )
        except Exception as exception:  # whatever stops one notebook must not stop the others
            status = f"failed in cell {progress['cell']}"
            error = "\n".join(getattr(exception, "traceback", [])) or f"{type(exception).__name__}: {exception}"
    seconds = time.monotonic() - start
    new_figures = _changed(_times(figures, "*.*"), before)
    new_runs = [file.parent for file in _changed(_times(runs, "*/run.json"), before)]
    headline = _read_headline(new_runs[-1]) if new_runs else "-"
    print(f"{path.stem}: {status}, {seconds:.0f} s" + (f", {headline}" if new_runs else ""), flush=True)
    if error:
        first_line = (progress["node"]["source"].strip().splitlines() or ["(before the first cell)"])[0]
        shown = error if sys.stdout.isatty() else _ANSI.sub("", error)
        print(f"\n{path.name}, cell {progress['cell']} of {progress['cells']}: {first_line}\n\n{shown}\n", flush=True)
    return {
        "notebook": path.stem, "status": status, "seconds": seconds, "headline": headline, "figures": new_figures,
        "runs": new_runs,
    }


@contextlib.contextmanager
def _package_of(root: Path) -> Iterator[None]:
    """Let kernels import the package that lies in `root`, whatever copy of the repository is installed."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *([before] if before else [])])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


@contextlib.contextmanager
def _live_line(name: str, progress: dict) -> Iterator[None]:
    """Show `name, cell k of n, seconds` and how far its training is while the body runs, rewritten in place.

    Where the output is no terminal, name and number of cells are printed, once.
    """
    if not sys.stdout.isatty():
        print(f"{name}: {progress['cells']} cells ...", flush=True)
        yield
        return
    start, done = time.monotonic(), threading.Event()

    def show() -> None:
        while not done.wait(0.2):
            line = f"{name}  cell {progress['cell']} of {progress['cells']}  {time.monotonic() - start:.0f} s"
            line += _last_bar(progress["node"].get("outputs", []))
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\x1b[K", end="", flush=True)


def _last_bar(outputs: list[dict]) -> str:
    """Return title and bar of the training under way (training.EpochTable) with two spaces before them, or ""."""
    text = outputs[-1].get("data", {}).get("text/plain", "") if outputs else ""
    lines = text.splitlines()
    if not lines or lines[-1][:1] not in {"█", "·"}:
        return ""
    title = "" if lines[0].startswith(" ") else f"{lines[0]}: "  # without one the heads of the columns come first
    return "  " + title + lines[-1].lstrip("█· ")


def _print_results(results: list[dict]) -> None:
    """Print notebook, status, seconds, headline and number of figures, a notebook a line."""
    rows = [("notebook", "status", "seconds", "headline", "figures")]
    for result in results:
        pictures = sum(file.suffix == ".png" for file in result["figures"])
        rows.append(
            (result["notebook"], result["status"], f"{result['seconds']:.0f}", result["headline"], str(pictures))
        )
    _print_table(rows)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


# ---- the commands; each returns the number of notebooks that failed


def run(only: str = "", data_dir: str = "", settings: str = "") -> int:
    """Run the notebooks into executed/ and print a table; every setting is checked before the first one starts."""
    notebooks, values = find_notebooks(only), {**read_settings(settings), **_data_setting(data_dir)}
    for path in notebooks:
        check_settings(path, values)
    plan = [(path, values) for path in notebooks]
    return _report(plan, lambda path, values: run_notebook(path, values, ROOT / "executed" / path.name))


def publish(only: str = "", data_dir: str = "") -> int:
    """Run notebooks with their published settings; merge their rows into results.json and copy their figures beside it.

    The settings stand in <task>/results/settings.json: {"notebook": {"EPOCHS": 300}}. Rows come from the results.json
    of the run folders that the notebook saves, figures lose their numbers (06_roc.png becomes roc.png), and a run
    folder whose run.json has a name in "publish_as" is copied to models/<that name>/. Nothing is published from demo
    data, nor from a notebook that failed.

    Each notebook runs in a copy of the repository, so that other runs at the same time, or a change of the code, do not
    mix in. Its run folders, executed/<notebook>_results.ipynb and, beside that, <notebook>_figures with the deck and
    the tables are kept, however it ends.
    """
    if not data_dir:
        raise ValueError("Published results come from real data: name its folder, DATA_DIR=path/to/data.")
    data, plan = _data_setting(data_dir), []
    for task in TASKS:
        file = ROOT / task / "results" / "settings.json"
        published = _read_json(file) if file.is_file() else {}
        missing = [name for name in published if not (ROOT / task / f"{name}.ipynb").is_file()]
        if missing:
            raise ValueError(f"{file.relative_to(ROOT)} names {missing[0]}, but {task} has no such notebook.")
        plan += [(ROOT / task / f"{name}.ipynb", values | data) for name, values in published.items()]
    names = ", ".join(path.stem for path, _ in plan) or "no notebook"
    plan = [(path, values) for path, values in plan if not only or path.stem == Path(only).stem]
    if not plan:
        raise ValueError(f"No results/settings.json names {only or 'a notebook'}; there are settings for: {names}.")
    for path, values in plan:
        check_settings(path, values)

    return _report(plan, lambda path, values: _run_and_publish(path, values, data_dir))


def make_slides(only: str = "", theme: str = "") -> int:
    """Make the .pptx of each notebook that has figures, and one of all of them; or that of the notebook called `only`.

    `theme` is "light", also where it is empty, or "dark". Prints where the decks lie.
    """
    from shared_utils.plotting import FigureBook
    from shared_utils.slides import write_deck

    listed = _listed_in_readme()
    names = {file.parent.name for file in (ROOT / "figures").glob("*/figures.json")}
    names = [name for name in listed if name in names] + sorted(names - set(listed))
    chosen = [name for name in names if not only or name == Path(only).stem]
    if not chosen:
        raise FileNotFoundError(f"There are no figures of {only or 'any notebook'}; `make notebooks` draws them.")
    theme, books = theme or "light", [FigureBook(name) for name in chosen]
    for book in [book for book in books if not only and not book.contents()["items"]]:
        print(f"Left out: {book.folder} holds no figure.")
        books.remove(book)
    if not books:
        raise FileNotFoundError("There are no figures of any notebook; `make notebooks` draws them.")
    headlines = [_find_headline(book.notebook_name) for book in books]
    for book, headline in zip(books, headlines, strict=True):
        print(book.deck(theme, headline))
    if not only:
        title, contents = "Transformers for audio and text", [book.contents() for book in books]
        print(write_deck(ROOT / "figures" / "all_notebooks.pptx", contents, headlines, title, theme))
    return 0


def compare(only: str = "") -> int:
    """Write the page that compares all saved runs, or those of one notebook; print where it lies and a short table."""
    from shared_utils.comparison import write_page

    path, table = write_page(only)
    print(path)
    if len(table):
        _print_table([tuple(table), *(tuple(map(str, row)) for row in table.itertuples(index=False))])
    return 0


def _name_run(run: str, name: str) -> int:
    from shared_utils.runs import name_run

    print(f"{name_run(run, name)} is called {' '.join(name.split())!r} now.")
    return 0


def _delete_run(run: str) -> int:
    from shared_utils.runs import delete_run

    print(f"{delete_run(run)} is deleted.")
    return 0


def refresh(only: str = "") -> int:
    """Write the outputs of a default run on the demo data into the committed notebooks; their sources stay as they are.

    The run happens in a temporary copy that has no real data and no earlier runs, so that everybody gets the same.
    """
    n_failed = 0
    for path in find_notebooks(only):
        with _private_copy() as copy:
            executed = copy / "executed.ipynb"
            result = run_notebook(copy / path.relative_to(ROOT), {}, executed, root=copy)
            if result["status"] == "ok":
                _write_outputs(path, executed, copy)
            else:
                n_failed += 1
    return n_failed


def add_badges(repository: str) -> int:
    """Let every notebook be opened in Colab alone: a badge, and a first cell that fetches the package there.

    `repository` is OWNER/NAME on GitHub, or its address. Elsewhere the cell does nothing, so the outputs stay. A second
    call, with another address, replaces the first.
    """
    import nbformat

    found = re.fullmatch(r"(?:https://github\.com/)?([\w.-]+)/([\w.-]+?)(?:\.git|/)?", repository.strip())
    if not found:
        raise ValueError(f"{repository!r} is no repository on GitHub; for example: REPOSITORY=owner/name")
    repository = "/".join(found.groups())
    for path in find_notebooks():
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if "colab" not in cell.metadata.get("tags", [])]
        where = f"https://colab.research.google.com/github/{repository}/blob/main/{path.relative_to(ROOT).as_posix()}"
        badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({where})"
        told = f"{badge}\n\nIn Colab the next cell fetches the package and what it needs; elsewhere it does nothing."
        fetch = _FETCH.format(repository=repository, name=found[2])
        cells[1:1] = [
            nbformat.v4.new_markdown_cell(told, id="colab-badge", metadata={"tags": ["colab"]}),
            nbformat.v4.new_code_cell(fetch, id="colab-fetch", metadata={"tags": ["colab"]}),
        ]
        for count, cell in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
            cell.execution_count = count
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
        notebook.cells = cells
        notebook.metadata["source_hash"] = source_hash(notebook)
        _write_text(path, nbformat.writes(notebook) + "\n")
        print(f"{path.relative_to(ROOT)}: {where}")
    return 0


def copy_repository(folder: Path) -> Path:
    """Copy code, notebooks and published weights into `folder` and return it; the demo data is shared through a link.

    With the copy in PYTHONPATH, notebooks read and write there and nowhere else.
    """
    folder = folder.resolve()
    unwanted = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("shared_utils", *TASKS):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    runs = [path.stem for task in TASKS for path in (ROOT / task).glob("*.ipynb")]
    if (ROOT / "models").is_dir():
        shutil.copytree(ROOT / "models", folder / "models", ignore=shutil.ignore_patterns(*runs))
    demo = ROOT / "data" / "demo"
    demo.mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir()
    try:
        (folder / "data" / "demo").symlink_to(demo, target_is_directory=True)
    except OSError:  # Windows wants a privilege for it
        shutil.copytree(demo, folder / "data" / "demo")
    return folder


# ---- helpers


def _report(plan: list[tuple[Path, dict]], execute: Callable[[Path, dict], dict]) -> int:
    """Execute each notebook of `plan`, print the table even when the user stops, return the number of failures."""
    results = []
    try:
        for path, values in plan:
            results.append(execute(path, values))
    except KeyboardInterrupt:
        print(f"Stopped; {len(plan) - len(results)} of {len(plan)} notebooks did not finish.")
    _print_results(results)
    return len(plan) - sum(result["status"] == "ok" for result in results)


@contextlib.contextmanager
def _private_copy(parent: Path | None = None) -> Iterator[Path]:
    """Give a temporary copy of the repository to run notebooks in: their ROOT is the copy."""
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield copy_repository(Path(folder))


def _run_and_publish(path: Path, values: dict, data_dir: str) -> dict:
    """Run a notebook in a copy of the repository, keep its runs, publish what it found; return its result."""
    executed = ROOT / "executed"
    executed.mkdir(exist_ok=True)
    with _private_copy(executed) as copy:  # on this disk and git-ignored: what a crash leaves can be found there
        output = copy / "executed.ipynb"
        try:
            result = run_notebook(copy / path.relative_to(ROOT), values, output, root=copy)
        finally:
            runs = _keep_runs(copy, path.stem)
            if output.is_file():
                text = output.read_text(encoding="utf-8").replace(str(copy), str(ROOT))
                _write_text(executed / f"{path.stem}_results.ipynb", text)
            drawn = copy / "figures" / path.stem
            if drawn.is_dir():  # not into the repository's figures/, where those of other settings lie
                with _replace_folder(executed / f"{path.stem}_figures") as new:
                    shutil.copytree(drawn, new, dirs_exist_ok=True)
        if result["status"] == "ok":
            try:
                print(_publish_result(path, result | {"runs": runs}, data_dir))
            except ValueError as error:
                print(f"{path.stem}: {error}")
                result["status"] = "not published"
    return result


def _keep_runs(copy: Path, name: str) -> list[Path]:
    """Move the run folders that notebook `name` made in `copy` into the repository's models/; return where they are."""
    kept = []
    for run in sorted(file.parent for file in (copy / "models" / name).glob("*/run.json")):
        target = ROOT / "models" / name / run.name
        while target.exists():  # another process saved the same settings in the same second: take the next one
            created, _, digest = target.name.rpartition("-")
            later = datetime.datetime.strptime(created, "%Y%m%d-%H%M%S") + datetime.timedelta(seconds=1)
            target = target.with_name(f"{later:%Y%m%d-%H%M%S}-{digest}")
        target.parent.mkdir(parents=True, exist_ok=True)
        kept.append(Path(shutil.move(run, target)))
    return kept


def _publish_result(path: Path, result: dict, data_dir: str) -> str:
    """Merge the rows of one run into results.json, copy its figures and weights, and return one sentence about it."""
    rows, weights = [], {}
    for folder in result["runs"]:
        record = _read_json(folder / "run.json")
        if _is_demo(record) or "demo data" in (record.get("headline") or ""):
            raise ValueError("nothing published, because this run used demo data; is the data set in DATA_DIR?")
        if (folder / "results.json").is_file():
            made_with = {key: record[key] for key in ("device", "versions")}
            rows += [{**made_with, **row} for row in _read_json(folder / "results.json")]
        name = record.get("publish_as")
        if name is not None:
            target = ROOT / "models" / str(name)
            is_taken = target in weights or (target.exists() and not (target / "run.json").is_file())
            if is_taken or not re.fullmatch(r"\w[\w-]*", str(name)):
                raise ValueError(f"nothing published, because publish_as={name!r} is taken or no plain folder name.")
            weights[target] = folder
    if not rows:
        raise ValueError("nothing published, because its run folders hold no results.json.")

    with contextlib.suppress(ValueError):  # on another drive: there is no way from here
        data_dir = Path(os.path.relpath(Path(data_dir).expanduser(), ROOT)).as_posix()
    command = f"make results ONLY={path.stem} DATA_DIR={data_dir}"
    rows = [{**row, "notebook": path.stem, "command": command} for row in rows]
    n_rows = len(rows)
    target = path.parent / "results" / "results.json"
    if target.is_file():
        rows += [row for row in _read_json(target) if row["notebook"] != path.stem]
    rows = [{key: _round(row[key]) for key in sorted(row, key=_column)} for row in rows]
    rows.sort(key=lambda row: [str(row.get(key, "")) for key in RESULT_KEYS[:5]])

    for published, folder in weights.items():
        with _replace_folder(published) as new:
            shutil.copytree(folder, new, dirs_exist_ok=True)
    pictures = [file for file in result["figures"] if file.suffix in (".png", ".svg")]
    with _replace_folder(target.parent / path.stem) as new:
        for file in pictures:  # a number tells only in which order a notebook drew them: no link may depend on it
            shutil.copy2(file, new / re.sub(r"^\d+_", "", file.name))
    _write_text(target, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    write_results_table(path.parent)
    places = [f"{n_rows} rows in {target.relative_to(ROOT)}", f"{len(pictures)} figure files beside it"]
    places += [f"weights in {published.relative_to(ROOT)}" for published in weights]
    return f"{path.stem}: {', '.join(places)}"


def results_table(rows: list[dict]) -> str:
    """Return the rows of a results.json as Markdown: a table for each data set, protocol and metric, and the commands.

    The rows of a table, whatever notebook they come from, were measured in the same way; the best stands first, as does
    the protocol with the most test clips.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in sorted(rows, key=lambda row: -row["mean"]):
        groups.setdefault((row["data"], row["protocol"], row["metric"]), []).append(row)
    lines = []
    for data, protocol, metric in sorted(groups, key=lambda key: (key[0], -groups[key][0]["n_test"], key[1:])):
        members = groups[data, protocol, metric]
        head = ["model", f"{metric} (%)", "95 % interval", "seeds", "tested on", "trained parameters"]
        head += ["minutes a model", "from"]
        lines += [f"**{data}**, {protocol}:", "", f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
        for row in members:
            spread = f" ± {100 * row['sd']:.1f}" if row.get("sd") is not None else ""
            cells = [
                row["model"], f"{100 * row['mean']:.1f}{spread}", f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
                f"{row['seeds']:.0f}", f"{row['n_test']:,.0f}",
                f"{row['parameters']:,.0f}" if row.get("parameters") else "",
                f"{row['seconds'] / 60:.1f}" if row.get("seconds") else "", row["notebook"],
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    commands = sorted({f"`{row['command']}` ({row['device']})" for row in rows})
    return "\n".join([*lines, f"Made with {', '.join(commands)}."])


def write_results_table(task: Path) -> None:
    """Put the table of <task>/results/results.json between the marks in <task>/README.md, where it has them."""
    readme = task / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, start, rest = text.partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- /results -->")
    if end:
        table = results_table(_read_json(task / "results" / "results.json"))
        _write_text(readme, f"{before}{start}{table}\n{end}{after}")


def _write_outputs(path: Path, executed: Path, copy: Path) -> None:
    """Put the outputs of `executed` (run in `copy`) into the notebook at `path`, without traces of this machine."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    results = [cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"]
    for cell, result in zip([cell for cell in notebook.cells if cell.cell_type == "code"], results, strict=True):
        outputs = [output for output in result.outputs if _WIDGET not in output.get("data", {})]
        outputs = [output for output in outputs if output.get("name") != "stderr"]
        text = json.dumps(outputs, ensure_ascii=False)
        for folder in (copy, ROOT):
            text = text.replace(f"{folder}/", "").replace(str(folder), ".")
        cell.outputs = [nbformat.from_dict(output) for output in json.loads(text)]
        cell.execution_count = result.execution_count
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    notebook.metadata.update(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        source_hash=source_hash(notebook),
    )
    _write_text(path, nbformat.writes(notebook) + "\n")


def _data_setting(data_dir: str) -> dict[str, object]:
    """Return DATA_DIR as a setting: absolute, because the user's folder is not the notebook's."""
    folder = Path(os.path.abspath(Path(data_dir).expanduser()))
    if data_dir and not folder.is_dir():
        raise FileNotFoundError(f"DATA_DIR={data_dir} is not a folder; leave it out to use data/ and the demo data.")
    return {"DATA_DIR": str(folder)} if data_dir else {}


def _literal(text: str) -> object:
    """Return the value of a Python literal, or the text itself; backslashes of Windows' paths need not be doubled."""

    def double(path: re.Match) -> str:
        return path[0] if "\\\\" in path[0] else path[0].replace("\\", "\\\\")

    text = re.sub(r"""(['"])[A-Za-z]:\\[^'"]*\1""", double, text)
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _has_settings(path: Path) -> bool:
    return any("parameters" in cell["metadata"].get("tags", []) for cell in _read_json(path)["cells"])


def _count_cells(path: Path) -> int:
    sources = ["".join(cell["source"]) for cell in _read_json(path)["cells"] if cell["cell_type"] == "code"]
    return sum(bool(source.strip()) for source in sources)


def _read_headline(run: Path) -> str:
    """Return what a run says about itself; a number from demo data is never shown without the word."""
    record = _read_json(run / "run.json")
    headline = record.get("headline") or "-"
    return f"{headline}, demo data" if _is_demo(record) and "demo data" not in headline else headline


def _find_headline(name: str) -> str:
    """Return the headline of a notebook's latest run with the settings and the kind of data of its figures, or ""."""

    def plain(value: object) -> object:  # a run's settings have been JSON, those of figures are texts
        value = _literal(str(value))
        return list(value) if isinstance(value, tuple) else value

    items = _read_json(ROOT / "figures" / name / "figures.json")
    shown = [(key, plain(value)) for item in items for key, value in item["settings"].items()]
    for file in sorted((ROOT / "models" / name).glob("[!.]*/run.json"), reverse=True):
        try:
            record = _read_json(file)
            settings = {key: plain(value) for key, value in record["settings"].items()}
        except (ValueError, OSError, KeyError, TypeError, AttributeError):  # `make compare` says what is wrong with it
            continue
        same_data = any(("demo data" in item["mark"]) == _is_demo(record) for item in items)
        if same_data and all(key in settings and settings[key] == value for key, value in shown):
            return _read_headline(file.parent)
    return ""


def _listed_in_readme() -> list[str]:
    """Return the names of the notebooks in the order of README.md's table."""
    readme = ROOT / "README.md"
    names = re.findall(r"(?m)^\| \[(\w+)\]\(", readme.read_text(encoding="utf-8")) if readme.is_file() else []
    return list(dict.fromkeys(names))


def _is_demo(record: dict) -> bool:
    return bool((record.get("data") or {}).get("demo"))


def _times(folder: Path, pattern: str) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in folder.glob(pattern)}


def _changed(now: dict[Path, int], before: dict[Path, int]) -> list[Path]:
    """Return the files that are new or newer than `before`, oldest first."""
    return sorted((file for file in now if before.get(file) != now[file]), key=lambda file: (now[file], file))


def _column(key: str) -> tuple[int, str]:
    return (RESULT_KEYS.index(key) if key in RESULT_KEYS else len(RESULT_KEYS), key)


def _round(value: object) -> object:
    """Return a number with six digits; a whole one, such as a count, keeps all of its own."""
    return float(f"{value:.6g}") if isinstance(value, float) and not value.is_integer() else value


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def _write_text(path: Path, text: str) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _replace_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it takes the place of `target` at the end, or of nothing after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as folder:
        new, old = Path(folder) / "new", Path(folder) / "old"
        new.mkdir()
        yield new
        if target.exists():  # a folder that has files in it cannot be replaced in one step
            os.replace(target, old)
        os.replace(new, target)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; return the exit status: 0, 1 if a notebook failed, 2 if the request was wrong."""
    parser = argparse.ArgumentParser(prog="python -m shared_utils.notebooks", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("name", "delete"):
        command = commands.add_parser(name)
        command.add_argument("run", metavar="RUN", help="the folder of a run, or the last part of it")
        if name == "name":
            command.add_argument("name", metavar="NAME", help="what it is called from now on, up to 40 characters")
    commands.add_parser("badges").add_argument("repository", metavar="OWNER/NAME", help="the repository on GitHub")
    for name in ("run", "results", "slides", "compare", "refresh"):
        command = commands.add_parser(name)
        command.add_argument("--only", default="", help="the name of one notebook")
        if name in ("run", "results"):
            command.add_argument("--data-dir", default="", help="the folder with the data sets")
        if name == "slides":
            command.add_argument("--theme", default="", help="light or dark")
        if name == "run":
            command.add_argument("--set", default="", dest="settings", help='settings, such as "EPOCHS=3 SEED=1"')
    options = vars(parser.parse_args(arguments))
    actions = {"run": run, "results": publish, "slides": make_slides, "refresh": refresh}
    actions |= {"compare": compare, "name": _name_run, "delete": _delete_run, "badges": add_badges}
    action = actions[options.pop("command")]
    try:
        return int(action(**options) > 0)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
