"""Every committed notebook: its form, a run with small settings on the demo data, and reruns in one kernel."""

import ast
import json
import re
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import soundfile

from shared_utils import notebooks
from shared_utils.device import ROOT

NOTEBOOKS = [path for task in notebooks.TASKS for path in sorted((ROOT / task).glob("*.ipynb"))]
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])

# Settings that make each notebook short; what it does stays the same. The rerun test runs on the CPU, where numbers are
# exact, and leaves out what it would only repeat.
SMALL = {
    "audio_transformer_pipeline": {"EPOCHS": 1, "N_SHIFTS": 2},
    "cnn_transformer": {
        "EPOCHS": 1, "ABLATION_CLIPS": 32, "PROBE_STEPS": 2, "EARLY_STEPS": 0, "SWEEP_EPOCHS": 1,
        "SWEEP_OPTIMIZERS": ["adamw"], "SWEEP_RATES": [0.001], "STREAM_WORDS": 10,
    },
    "gru_baselines": {"EPOCHS": 1, "EPOCHS_2D": 0},
    "data_and_features": {"EPOCHS": 2},
    "cnn1d_scratch_transformer": {  # three windows a clip
        "SECONDS": 1.5, "WINDOW_SECONDS": 0.25, "HOP_SECONDS": 0.5, "HEADS": [1, 2], "D_MODEL": 16, "N_LAYERS": 1,
        "REFERENCE_D_MODEL": 20, "PROBE_D_MODEL": 20, "PROBE_STEPS": 2, "PROBE_CLIPS": 4, "VAL_FOLDS": [3],
        "EPOCHS_CNN": 1, "EPOCHS_HEADS": 1, "EPOCHS_BEST": 1, "BATCH_SIZE": 40,
    },
    "ast_dendrite_finetuning": {"FAMILIES": ["LoRA", "CNN14", "AST"], "EPOCHS": 1, "WIDTH_CNN": 2},
    "fine_tune_toy_model": {
        "N_TRAIN": 8, "N_SEEDS": 2, "EPOCHS_PLAIN": 1, "EPOCHS": 1, "EPOCHS_PAIRS": 1, "CURVE_SIZES": [4],
        "CURVE_SEEDS": 1,
    },
    "ast_lora_finetuning": {  # 25 patches a clip
        "SECONDS": 0.6, "MAX_LENGTH": 60, "EPOCHS": 1, "RANKS": [1], "SHOTS": [1], "SHOT_EPOCHS": 1, "N_PROMPTS": 2,
        "PRETRAIN_EPOCHS": 1, "HIDDEN_SIZE": 64, "N_LAYERS": 2,
        "METHODS": ["full fine-tuning", "from scratch", "linear probe", "LoRA", "Conformer adapter", "deep prompts"],
    },
}  # fmt: skip
SMALL_RERUN = {
    "audio_transformer_pipeline": {"EPOCHS": 2, "N_SEEDS_OTHER": 0, "DEVICE": "cpu"},
    "cnn_transformer": SMALL["cnn_transformer"] | {"DEVICE": "cpu"},
    "gru_baselines": SMALL["gru_baselines"] | {"N_SEEDS": 1, "DEVICE": "cpu"},
    "data_and_features": {"EPOCHS": 2, "DEVICE": "cpu"},
    "fine_tune_toy_model": SMALL["fine_tune_toy_model"] | {"N_SEEDS": 1, "CURVE_SIZES": [], "DEVICE": "cpu"},
    "inference_toy_model": {"SENTENCE": "Not a dull film.", "DEVICE": "cpu"},
    "cnn1d_scratch_transformer": SMALL["cnn1d_scratch_transformer"]
    | {"SECONDS": 0.5, "WINDOW_SECONDS": 0.1, "HOP_SECONDS": 0.2, "HEADS": [2], "REFERENCE_EPOCHS": 0, "VAL_FOLDS": []}
    | {"PROBE_CLIPS": 2, "DEVICE": "cpu"},
    "ast_lora_finetuning": SMALL["ast_lora_finetuning"]
    | {"METHODS": ["full fine-tuning", "LoRA"], "PRETRAIN_EPOCHS": 0, "DEVICE": "cpu"},
    "ast_dendrite_finetuning": {"FAMILIES": ["AST"], "EPOCHS": 1, "DEVICE": "cpu"},
}

FORBIDDEN = {
    "installs packages": r"[!%]\s*(pip|conda)\b",
    "needs CUDA": r"\.cuda\(|\.to\(['\"]cuda",
    "holds an absolute path": r"['\"](/[\w.-]+/|~/|[A-Za-z]:\\)",
    "hides warnings": r"\bfilterwarnings\b|\bsimplefilter\b",
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def settings_cell(notebook: nbformat.NotebookNode) -> int:
    """Return the index of the one cell tagged `parameters`."""
    (index,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    return index


def is_training(notebook: nbformat.NotebookNode) -> bool:
    """Say whether a notebook saves runs of its own; the others use what those have saved."""
    return any("save_run(" in cell.source for cell in code_cells(notebook))


def change_settings(notebook: nbformat.NotebookNode, settings: dict) -> None:
    """Edit the settings as a user does, line by line."""
    cell = notebook.cells[settings_cell(notebook)]
    for name, value in settings.items():
        cell.source, n_changed = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}".replace("\\", r"\\"), cell.source)
        assert n_changed == 1, f"{name} is no setting"


@every_notebook
def test_settings_are_one_cell_of_literals(path):
    notebook = read(path)
    names = []
    for line in notebook.cells[settings_cell(notebook)].source.splitlines():
        match = re.fullmatch(r"([A-Z][A-Z0-9_]*) = (.+?) +# \S.*", line)
        assert match, f"not `NAME = literal  # comment`: {line}"
        ast.literal_eval(match[2])
        names.append(match[1])
    assert len(names) == len(set(names))
    assert {*SMALL.get(path.stem, {}), *SMALL_RERUN.get(path.stem, {})} <= set(names)


@every_notebook
def test_cells_are_short_and_each_is_introduced(path):
    cells = read(path).cells
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell.cell_type == "code":
            limit = 60 if re.search(r"(?m)^class ", cell.source) else 40
            assert cell.source.count("\n") < limit, f"longer than {limit} lines: {cell.source[:80]}"
            assert before and before.cell_type == "markdown", f"no sentence before: {cell.source[:80]}"


@every_notebook
def test_sources_run_anywhere(path):
    for cell in code_cells(read(path)):
        for what, pattern in FORBIDDEN.items():
            assert not re.search(pattern, cell.source), f"{what}: {re.search(pattern, cell.source)[0]}"
        assigned = re.findall(r"(?m)^([A-Z][A-Z0-9_]+) = ", cell.source)
        assert "parameters" in cell.metadata.get("tags", []) or not assigned, f"a setting outside its cell: {assigned}"


@every_notebook
def test_outputs_are_fresh_and_free_of_traces(path):
    notebook = read(path)
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert notebook.metadata.kernelspec.name == "python3"  # papermill and make start this one
    refresh = f"python -m shared_utils.notebooks refresh --only {path.stem}"
    assert notebook.metadata.get("source_hash") == notebooks.source_hash(notebook), f"stale outputs; run {refresh}"
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    for cell in notebook.cells:
        assert not {"papermill", "execution"} & set(cell.metadata)
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr"
            shown = {"text/plain": output.get("text", ""), **output.get("data", {})}
            assert "application/vnd.jupyter.widget-view+json" not in shown
            text = re.sub(r"base64,[\w+/=]+", "", "".join(shown[kind] for kind in shown if kind.startswith("text/")))
            for folder in ("/home", "/Users", ROOT, Path.home(), tempfile.gettempdir()):
                assert f"{folder}/" not in text, f"a path of one machine: {text[:200]}"


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """A copy of the repository into which kernels write, so that a test leaves no figures and runs behind."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return notebooks.copy_repository(tmp_path)


@every_notebook
def test_runs_on_the_demo_data(path, copy, capsys):
    here = copy / path.relative_to(ROOT)
    result = notebooks.run_notebook(here, SMALL.get(path.stem, {}), copy / "executed" / path.name, root=copy)
    assert result["status"] == "ok", capsys.readouterr().out
    assert any(file.suffix == ".png" for file in result["figures"])
    if is_training(read(path)):
        assert "demo data" in result["headline"] and len(result["runs"]) >= 1
    else:
        assert (result["headline"], result["runs"]) == ("-", [])


@every_notebook
def test_rerun_in_one_kernel_gives_the_same_history(path, copy):
    """One that trains nothing has no history; its answers stay the same, and are others for another sentence."""
    from nbclient import NotebookClient

    notebook = read(path)
    start, end = settings_cell(notebook), len(notebook.cells)
    small = {"SEED": 0, **SMALL_RERUN.get(path.stem, {})}
    name, other = "history", {"SEED": small["SEED"] + 1}
    if not is_training(notebook):
        name, other = "answers", {"SENTENCE": "Never dull."}
    made = 1 + max(i for i in range(end) if re.search(rf"(?m)^{name} = ", notebook.cells[i].source))
    show = f"print({name}.drop(columns='seconds', errors='ignore').to_json(double_precision=15))"
    notebook.cells.append(nbformat.v4.new_code_cell(show))
    folder = {"metadata": {"path": str((copy / path.relative_to(ROOT)).parent)}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder)

    def run_cells(first: int, last: int, settings: dict) -> str:
        change_settings(notebook, settings)
        for index in [*range(first, last), end]:
            client.execute_cell(notebook.cells[index], index)
        return "".join(output.text for output in notebook.cells[end].outputs)  # the kernel may send it in parts

    with client.setup_kernel():
        first = run_cells(0, end, small)
        assert len(first) > 100 and run_cells(start, end, small) == first
        assert run_cells(start, made, other) != first
        assert run_cells(start, made, small) == first


@pytest.mark.parametrize("name", ["cnn_transformer", "gru_baselines"])
def test_words_of_one_s_own(name, copy, capsys):
    """A folder with one sub-folder a word, and the speaker in front of the first _ of a file's name."""
    rng = np.random.default_rng(0)
    folder = copy / "data" / "my_words"
    for label, word in enumerate(("haus", "baum", "wasser")):
        (folder / word).mkdir(parents=True)
        for speaker in range(6):  # the fewest with which two test
            for take in range(4):  # a tone of the word's own pitch in noise
                tone = np.sin(2 * np.pi * 300 * (label + 1) * np.arange(14000) / 16000) + rng.normal(0, 0.3, 14000)
                soundfile.write(folder / word / f"speaker{speaker}_{take}.wav", 0.2 * tone, 16000)
    path = ROOT / "speech_commands_transformer" / f"{name}.ipynb"
    settings = {**SMALL[name], "FOLDER": str(folder), "SPEEDS": [0.9, 1.1]}
    result = notebooks.run_notebook(copy / path.relative_to(ROOT), settings, copy / "executed" / path.name, root=copy)
    assert result["status"] == "ok", capsys.readouterr().out
    assert "demo data" not in result["headline"]
    (run,) = result["runs"]
    assert json.loads((run / "run.json").read_text())["class_names"] == ["baum", "haus", "wasser"]
    sides = pd.read_csv(run / "predictions.csv")
    assert set(sides["source"]) <= {f"speaker{speaker}" for speaker in range(6)} and sides["source"].nunique() == 2
    assert sides["file"].str.fullmatch(r"(haus|baum|wasser)/speaker\d_\d\.wav").all()
    assert [row["model"] for row in json.loads((run / "results.json").read_text())][1].endswith(", heard once")
