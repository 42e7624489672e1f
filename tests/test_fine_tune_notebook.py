"""The parts of fine_tune_toy_model: contrastive loss, adapters, draws of sentences, nine methods that start anew."""

import ast
import contextlib
import copy
import importlib.util
import inspect
import itertools
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from test_finetuning import BAD, GOOD, VOCABULARY, make_checkpoint
from torch import nn

from shared_utils import datasets, training
from shared_utils.datasets import load_sst2
from shared_utils.device import ROOT, seed_everything
from shared_utils.finetuning import TextClassifier, TextDataset, load_encoder
from shared_utils.notebooks import load_definitions
from shared_utils.runs import load_run, save_run
from shared_utils.training import count_parameters, evaluate, learning_rate

NOTEBOOK = ROOT / "toy_transformer_sentiment" / "fine_tune_toy_model.ipynb"
SETTINGS = {
    "FILE": "", "MAX_LENGTH": 32, "DEVICE": "cpu", "BATCH_SIZE": 8, "EPOCHS_PLAIN": 2, "EPOCHS": 3, "LR": 3e-3,
    "LR_LORA": 3e-2, "LORA_RANK": 2, "REINIT_LAYERS": 1, "EPOCHS_PAIRS": 4, "BATCH_PAIRS": 64, "LR_PAIRS": 1e-2,
    "LR_PAIRS_LORA": 2e-2,
    "TEMPERATURE": 0.1,
}  # fmt: skip


WORDS = {"bad": 0, "fine": 1, "dull": 0, "warm": 1, "slow": 0, "funny": 1}


def make_table(templates: list[str]) -> pd.DataFrame:
    rows = [(template.replace("_", word), label) for template in templates for word, label in WORDS.items()]
    return pd.DataFrame(rows, columns=["text", "label"])


TRAIN = make_table(["a _ film", "the cast , _"])
TEST = make_table(["_ , just _", "a _ cast and a _ film", "all _"])
DESCRIBED = pd.DataFrame([("bad all the way", 0), ("not just dull", 0), ("fine all the way", 1), ("warm", 1)])
DESCRIBED.columns = ["text", "label"]


def read_statements() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    found = []
    for source in sources:
        for node in ast.parse(source).body:
            first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
            found.append("\n".join(source.splitlines()[first - 1 : node.end_lineno]))
    return found


def execute(notebook: dict, *starts: str) -> None:
    """Execute the notebook's statements that begin like this, in its order; each must be there once."""
    found = [text for text in read_statements() if text.startswith(starts)]
    assert len(found) == len(starts), (starts, found)
    exec("\n".join(found), notebook)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small encoder that knows a little of what it shall learn, as a pretrained one does."""
    folder = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small", pooling="mean")
    weights = load_file(folder / "model.safetensors")
    direction = 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(5))
    for word, label in WORDS.items():
        weights["embeddings.word_embeddings.weight"][VOCABULARY.index(word)] += (2 * label - 1) * direction
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_encoder(str(checkpoint))[0]


@pytest.fixture(scope="module")
def definitions() -> dict:
    return load_definitions(NOTEBOOK)


@pytest.fixture
def notebook(checkpoint, tokenizer, monkeypatch) -> dict:
    """The notebook's functions over a small encoder and sentences that every method can learn."""
    monkeypatch.setattr(training, "pick_precision", lambda *_: torch.float32)  # the same numbers on every machine
    names = load_definitions(NOTEBOOK)
    names |= SETTINGS | {"tokenizer": tokenizer, "used_name": str(checkpoint), "class_names": ["negative", "positive"]}
    names |= {"device": torch.device("cpu"), "precision": torch.float32, "described": DESCRIBED}
    return use_test(names, TEST)


def use_test(names: dict, table: pd.DataFrame) -> dict:
    names["test"], names["labels"] = table, table["label"].to_numpy()
    names["test_set"] = TextDataset(table["text"].tolist(), names["labels"], names["tokenizer"], 32)
    execute(names, "untrained = ", "untrained_vectors = ")
    return names


def make_encoder(kind: str, checkpoint: Path) -> nn.Module:
    """Return a BERT, or a DistilBERT of the same size, with no zero or one left where norms and biases begin."""
    if kind == "Bert":
        return load_encoder(str(checkpoint))[1]
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    model = DistilBertModel(DistilBertConfig(vocab_size=len(VOCABULARY), dim=16, n_layers=2, n_heads=2, hidden_dim=32))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def read_parameters(encoder: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of an encoder's own parameters, by the names that they have without adapters."""
    named = [(name.replace(".base_layer.", "."), p) for name, p in encoder.named_parameters() if "lora_" not in name]
    return {name: parameter.detach().clone() for name, parameter in named}


def find_changed(encoder: nn.Module, before: dict[str, torch.Tensor], atol: float = 0.0) -> set[str]:
    now = read_parameters(encoder)
    assert now.keys() == before.keys()
    return {name for name, values in now.items() if (values - before[name]).abs().max() > atol}


# the contrastive loss


def loss_by_hand(vectors: torch.Tensor, targets: list[int], temperature: float) -> float:
    """L_out of Khosla et al. (2020), equation 2, in two loops; a sentence without a partner adds nothing."""
    rows = vectors.tolist()
    total = 0.0
    for i, row in enumerate(rows):
        scores = [sum(a * b for a, b in zip(row, other, strict=True)) / temperature for other in rows]
        others = sum(math.exp(score) for a, score in enumerate(scores) if a != i)
        partners = [p for p in range(len(rows)) if p != i and targets[p] == targets[i]]
        if partners:
            total -= sum(math.log(math.exp(scores[p]) / others) for p in partners) / len(partners)
    return total / len(rows)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize(
    "targets", [[0, 1, 0, 1, 1, 0, 1], [0, 0, 1, 2, 2, 2, 3], [0, 0], [0, 1], [0, 1, 2, 3], [1, 1, 1, 0]]
)
def test_the_contrastive_loss_is_equation_2(definitions, targets, temperature):
    torch.manual_seed(0)
    raw = torch.randn(len(targets), 5, dtype=torch.float64, requires_grad=True)
    vectors = F.normalize(raw, dim=1)
    loss = definitions["contrastive_loss"](vectors, torch.tensor(targets), temperature)
    assert loss.item() == pytest.approx(loss_by_hand(vectors, targets, temperature), abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, raw)
    assert gradient.isfinite().all()
    has_partner = len(set(targets)) < len(targets) > 2  # of two alike sentences each is the only other one
    assert (gradient.abs().max() > 1e-4) == has_partner and (loss.item() > 1e-3) == has_partner


def test_the_contrastive_loss_wants_classes_apart(definitions):
    ends = torch.eye(3).repeat_interleave(2, 0)  # three pairs of equal vectors, at right angles
    loss = definitions["contrastive_loss"]
    assert loss(ends, torch.tensor([0, 0, 1, 1, 2, 2]), 0.5).item() == pytest.approx(math.log1p(4 * math.exp(-2)))
    mixed = loss(ends, torch.tensor([0, 1, 1, 2, 2, 0]), 0.5).item()
    assert mixed == pytest.approx(math.log(math.exp(2) + 4))
    half = torch.tensor([0, 0, 1, 2, 1, 2])
    assert loss(ends, half, 0.5).item() == pytest.approx((mixed * 2 + math.log1p(4 * math.exp(-2))) / 3)


# adapters


@pytest.mark.parametrize("kind", ["Bert", "DistilBert"])
@pytest.mark.parametrize("rank", [1, 3])
def test_adapters_are_on_every_linear_layer_but_the_pooler(definitions, tokenizer, checkpoint, kind, rank):
    encoder = make_encoder(kind, checkpoint)
    linear = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    sizes = {name: (m.in_features, m.out_features) for name, m in linear.items() if "pooler" not in name}
    assert len(sizes) == 12 and len(linear) == (13 if kind == "Bert" else 12)
    inputs = TextDataset(GOOD + BAD, None, tokenizer, 32).__getitems__(range(10))[0]
    if kind == "DistilBert":
        del inputs["token_type_ids"]
    before, weights = encoder(**inputs).last_hidden_state, read_parameters(encoder)
    definitions["add_lora"](encoder, rank)
    torch.testing.assert_close(encoder(**inputs).last_hidden_state, before, rtol=0, atol=1e-6)
    assert find_changed(encoder, weights) == set()

    learning = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    shapes = {name: tuple(p.shape) for name, p in learning.items()}
    assert shapes == {
        f"{name}.lora_{side}.default.weight": (rank, n_in) if side == "A" else (n_out, rank)
        for name, (n_in, n_out) in sizes.items()
        for side in "AB"
    }
    assert count_parameters(encoder)[1] == sum(rank * (n_in + n_out) for n_in, n_out in sizes.values())

    seed_everything(0)
    for parameter in learning.values():
        parameter.data += torch.randn_like(parameter)
    assert (encoder(**inputs).last_hidden_state - before).abs().max() > 0.01
    name = "encoder.layer.0.intermediate.dense" if kind == "Bert" else "transformer.layer.0.ffn.lin1"
    states = torch.randn(4, 16)
    down, up = (learning[f"{name}.lora_{side}.default.weight"] for side in "AB")
    expected = F.linear(states, weights[f"{name}.weight"], weights[f"{name}.bias"]) + 2 * states @ down.T @ up.T
    torch.testing.assert_close(encoder.get_submodule(name)(states), expected, rtol=0, atol=1e-4)


# the model of contrastive training


@pytest.fixture
def module(notebook, tmp_path, monkeypatch):
    """The notebook's classes and functions in a file: like a kernel, and unlike exec, a file keeps their source."""
    parts = [text for text in read_statements() if text.startswith(("import ", "from ", "def ", "class ", "@"))]
    path = tmp_path / "notebook_in_a_file.py"
    path.write_text("\n\n".join(parts), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, loaded)
    spec.loader.exec_module(loaded)
    own = {name: value for name, value in notebook.items() if name not in vars(loaded)}
    vars(loaded).update(own)
    return loaded


@pytest.mark.parametrize("rank", [0, 2])
def test_vectors_have_length_1_and_words_do_not_learn(notebook, checkpoint, rank):
    seed_everything(0)
    model = notebook["ContrastiveClassifier"](str(checkpoint), 3, rank=rank).eval()
    inputs, _ = notebook["test_set"].__getitems__(range(len(TEST)))
    vectors = model.embed(inputs)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(TEST)), rtol=0, atol=1e-6)
    plain = TextClassifier(str(checkpoint), 3).eval().embed(inputs)
    torch.testing.assert_close(vectors, plain / plain.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    torch.testing.assert_close(model(inputs), model.head(vectors), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.train().dropout(vectors), vectors, rtol=0, atol=0)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    words = "encoder.embeddings.word_embeddings.weight"
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    if rank:
        assert all("lora_" in name for name in learning - {"head.weight", "head.bias"}) and words in frozen
        assert count_parameters(model)[1] == 2 * (2 * rank * (4 * 32 + 2 * 48)) // 2 + 3 * 16 + 3
    else:
        assert frozen == {words}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_contrastive_run_is_saved_and_loaded(module, checkpoint, tmp_path, rank):
    probabilities, model, history = module.contrast(TRAIN, 0, rank=rank, lr=3e-2 if rank else None)
    arguments = {"pretrained": str(checkpoint), "n_classes": 2, "rank": rank}
    folder = save_run(
        "text", model, {"SEED": 0}, ["negative", "positive"], {"max_length": 32}, history, {}, "-",
        model_arguments=arguments, folder=tmp_path / "models",
    )  # fmt: skip
    loaded = load_run(folder).model
    inputs, _ = module.test_set.__getitems__(range(len(TEST)))
    with torch.no_grad():
        logits = loaded(inputs)
        assert torch.equal(logits, model(inputs))
    np.testing.assert_allclose(logits.softmax(1), probabilities, atol=1e-5)
    names, weights = set(model.state_dict()), folder / "weights.safetensors"
    adapters = {name for name in names if "lora_" in name}
    if rank:
        assert names == adapters | {"head.weight", "head.bias"} and len(adapters) == 24
        assert weights.stat().st_size < 12_000 < (checkpoint / "model.safetensors").stat().st_size / 2
        assert all(model.state_dict()[name].any() for name in adapters)  # half of them begin with zeros
    else:
        assert not adapters and "encoder.embeddings.word_embeddings.weight" not in names


@pytest.mark.parametrize("n_classes", [2, 3, 4])
def test_the_head_gives_what_logistic_regression_gives(definitions, checkpoint, n_classes):
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 16)), np.arange(60) % n_classes
    vectors = vectors + np.eye(16)[labels] * 2
    head = LogisticRegression(C=10, max_iter=1000).fit(vectors, labels)
    model = definitions["ContrastiveClassifier"](str(checkpoint), n_classes)
    definitions["copy_head"](model, head)
    new = rng.normal(size=(40, 16)).astype(np.float32)
    with torch.no_grad():
        copied = model.head(torch.from_numpy(new)).softmax(1)
    expected = head.predict_proba(new)
    assert expected.std(0).min() > 0.1 and abs(expected[:, 0] - expected[:, 1]).max() > 0.5
    np.testing.assert_allclose(copied, expected, atol=1e-6)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.head.parameters())


# vectors of sentences


def test_neither_order_nor_company_changes_a_vector(notebook):
    words = ["fine", "and a slow film", "not", ", just", "bad cast all the way", "warm"]
    texts = [" ".join(parts) for n in (1, 2, 3) for parts in itertools.permutations(words, n)][:150]
    model, tokenizer = notebook["untrained"], notebook["tokenizer"]
    model.train()  # as training leaves it: encoding must not drop anything
    together = notebook["encode"](model, TextDataset(texts, None, tokenizer, 32))
    assert together.shape == (150, 16) and together.dtype == np.float32 and together.std(0).min() > 1e-3
    order = np.random.default_rng(0).permutation(150)
    shuffled = notebook["encode"](model, TextDataset([texts[row] for row in order], None, tokenizer, 32))
    np.testing.assert_allclose(shuffled, together[order], rtol=0, atol=1e-5)
    alone = [notebook["encode"](model, TextDataset([text], None, tokenizer, 32))[0] for text in texts[::7]]
    np.testing.assert_allclose(alone, together[::7], rtol=0, atol=1e-5)
    with torch.no_grad():  # without TextDataset: nothing is padded or sorted
        plain = [F.normalize(model.embed(tokenizer(text, return_tensors="pt")))[0].numpy() for text in texts[::7]]
    np.testing.assert_allclose(alone, plain, rtol=0, atol=1e-5)


# layers drawn anew


@pytest.mark.parametrize("kind, path", [("Bert", "encoder.layer."), ("DistilBert", "transformer.layer.")])
def test_only_the_top_layers_are_drawn_anew(definitions, checkpoint, kind, path):
    for n_layers in (0, 1, 2):
        encoder = make_encoder(kind, checkpoint)
        before = read_parameters(encoder)
        seed_everything(n_layers)
        definitions["draw_anew"](encoder, n_layers)
        tops = tuple(f"{path}{1 - k}." for k in range(n_layers))
        expected = {name for name in before if name.startswith(tops)}
        assert find_changed(encoder, before) == expected and len(expected) == 16 * n_layers
        now = read_parameters(encoder)
        norms = {name for name in expected if "norm" in name.lower()}
        assert len(norms) == 4 * n_layers
        assert all((now[name] == (1 if name.endswith("weight") else 0)).all() for name in norms)
        assert not any(now[name].any() for name in expected - norms if name.endswith("bias"))
        weights = [now[name].flatten() for name in expected - norms if name.endswith("weight")]
        if n_layers:
            assert torch.cat(weights).std().item() == pytest.approx(encoder.config.initializer_range, rel=0.1)
    for n_layers in (3, -1):
        encoder = make_encoder(kind, checkpoint)
        before = read_parameters(encoder)
        with pytest.raises(ValueError, match=f"REINIT_LAYERS = {n_layers}: this encoder has 2 layers"):
            definitions["draw_anew"](encoder, n_layers)
        assert find_changed(encoder, before) == set()


# draws of sentences


def write_file(path: Path, sizes: dict[str, int]) -> Path:
    rows = [(f"{name} opinion number {k} here", name) for name, size in sizes.items() for k in range(size)]
    pd.DataFrame(rows, columns=["text", "label"]).sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


@pytest.fixture
def own_table(notebook, tmp_path):
    def read(**sizes) -> dict:
        notebook["FILE"] = str(write_file(tmp_path / "my_reviews.csv", sizes))
        execute(notebook, "if FILE:\n    own", "class_names = ")
        return notebook

    return read


@pytest.mark.parametrize("names", [("bad", "good"), ("bad", "good", "so so")])
def test_draws_of_an_own_table_are_balanced_and_nested(own_table, names):
    k = len(names)
    notebook = own_table(**dict.fromkeys(names, 40))
    draw, first, test = notebook["draw"], notebook["first"], notebook["test"]
    assert notebook["class_names"] == list(names) and len(test) == 20 * k and test["in_file"].all()
    pool = set(first["text"][first["split"] == "train"])
    assert len(pool) == 20 * k and not pool & set(test["text"])
    for seed in range(3):
        small, large = draw(8 * k, seed), draw(16 * k, seed)
        assert small["label"].value_counts().to_dict() == dict.fromkeys(range(k), 8)
        assert large["label"].value_counts().to_dict() == dict.fromkeys(range(k), 16)
        assert set(small["text"]) < set(large["text"]) <= pool and large["text"].is_unique
        assert all(text.startswith(name) for text, name in large[["text", "class_name"]].to_numpy())
        assert [names[label] for label in large["label"]] == large["class_name"].tolist()
        assert draw(8 * k, seed)["text"].tolist() == small["text"].tolist()
    draws = [set(draw(8 * k, seed)["text"]) for seed in range(3)]
    assert all(a != b for a, b in itertools.combinations(draws, 2))


def test_sentences_of_an_own_table_that_stand_in_training_ones_are_not_tested(notebook, tmp_path, capsys):
    rows = [(f"{name} opinion number {k} here{more}", name) for name in ("bad", "good") for k in range(20)
            for more in ("", " , again")]  # fmt: skip
    notebook["FILE"] = str(tmp_path / "my_reviews.csv")
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(notebook["FILE"], index=False)
    execute(notebook, "if FILE:\n    own", "class_names = ")
    first, test = notebook["first"], notebook["test"]
    halves = [set(first["text"][first["split"] == split].str.removesuffix(" , again")) for split in ("train", "test")]
    assert set(test["text"].str.removesuffix(" , again")) == halves[1] - halves[0]
    left_out = (first["split"] == "test").sum() - len(test)
    assert 0 < left_out < 40 and f"Left out {left_out} test sentences" in capsys.readouterr().out
    assert test.index.tolist() == list(range(len(test))) and test.attrs == {"data_set": "my_reviews", "demo": False}


def test_an_own_table_with_too_few_rows_is_named(own_table):
    notebook = own_table(bad=30, good=16)
    assert len(notebook["draw"](16, 0)) == 16
    with pytest.raises(ValueError, match="The training half of .*my_reviews.csv has no 18 sentences, as many of each"):
        notebook["draw"](18, 0)
    with pytest.raises(ValueError, match="CURVE_SIZES need one sentence a class: 2 or more"):
        notebook["draw"](1, 0)


def test_numbers_of_sentences_are_rounded_down_to_as_many_of_each_class(own_table):
    notebook = own_table(bad=30, good=30, fair=30) | {"N_TRAIN": 40, "CURVE_SIZES": [8, 16, 9]}
    execute(notebook, "n_train, *sizes")
    assert (notebook["n_train"], notebook["sizes"]) == (39, [6, 15, 9])
    assert [len(notebook["draw"](size, 0)) for size in notebook["sizes"]] == notebook["sizes"]


def test_without_a_file_it_is_a_draw_of_sst2(notebook, tmp_path, monkeypatch, capsys):
    for module in ("datasets", "demo_data"):  # the draws are written there, and not among a user's own
        monkeypatch.setattr(f"shared_utils.{module}.resolve_path", lambda path: (tmp_path / path).resolve())
    notebook |= {"DATA_DIR": str(tmp_path / "nothing"), "kind": "demo", "N_TEST": 20}
    assert datasets.resolve_path("data") == tmp_path / "data"
    drawn = {(n, seed): notebook["draw"](n, seed) for n, seed in ((8, 0), (16, 0), (8, 3))}
    assert capsys.readouterr().out == ""
    folders = {file.parent.name for file in tmp_path.rglob("training.xlsx")}
    assert folders == {"8-20-seed0", "16-20-seed0", "8-20-seed3"}
    for (n, seed), found in drawn.items():
        table = load_sst2(tmp_path / "nothing", n, 20, seed=seed, source="demo", folder=tmp_path / f"{n} {seed}")
        pd.testing.assert_frame_equal(found, table[table["split"] == "train"])
        assert found["label"].value_counts().to_dict() == {0: n // 2, 1: n // 2}
    assert set(drawn[8, 0]["text"]) < set(drawn[16, 0]["text"]) and set(drawn[8, 0]["text"]) != set(drawn[8, 3]["text"])


def test_a_corrected_sentence_is_tested_once_and_a_deleted_one_not_at_all(notebook, tmp_path, monkeypatch):
    place = {True: tmp_path, False: ROOT}
    monkeypatch.setattr(datasets, "resolve_path", lambda path: place["processed" in str(path)] / path)
    names = {"DATA_DIR": str(tmp_path), "N_TRAIN": 8, "N_TEST": 20, "SEED": 0, "SOURCE": "demo", "FILE": ""}
    notebook |= names | {"load_sst2": load_sst2, "contextlib": contextlib, "tempfile": tempfile}
    execute(notebook, "if FILE:\n    own = ")
    before, attrs = notebook["test"], notebook["first"].attrs
    (sheet,) = tmp_path.rglob("8-20-seed0/test.xlsx")
    book = openpyxl.load_workbook(sheet)
    old, gone = (book.worksheets[0].cell(row, 1).value for row in (2, 3))
    book.worksheets[0].cell(2, 1).value = "a sentence that was never drawn"
    book.worksheets[0].delete_rows(3)
    book.save(sheet)
    execute(notebook, "if FILE:\n    own = ")
    after = notebook["test"]
    assert {old, gone} < set(before["text"]) and not {old, gone} & set(after["text"])
    assert "a sentence that was never drawn" in after["text"].tolist() and len(after) == len(before) - 1
    assert (before["in_file"].sum(), after["in_file"].sum()) == (20, 19)
    assert (attrs["data_set"], notebook["first"].attrs["data_set"]) == ("review sentences", "review sentences, edited")


# descriptions


def test_descriptions_are_labelled_by_the_names_of_the_classes(notebook, capsys):
    execute(notebook, "descriptions = ", "described = ")
    descriptions, described = notebook["descriptions"], notebook["described"]
    assert described["text"].tolist() == [*descriptions["negative"], *descriptions["positive"]]
    assert described["label"].tolist() == [0] * 12 + [1] * 12 and described["text"].is_unique
    notebook["class_names"] = ["negative", "neutral", "so_so"]
    execute(notebook, "described = ")
    rest = list(notebook["described"].iloc[12:].itertuples(index=False, name=None))
    assert rest == [("neutral", 1), ("this is neutral .", 1), ("so so", 2), ("this is so so .", 2)]
    execute(notebook, "unknown = ", "if unknown:", "used = ")
    assert capsys.readouterr().out.startswith("neutral, so_so: described by the name alone. ")
    assert notebook["used"] == {"negative": descriptions["negative"], "neutral": ["neutral", "this is neutral ."],
                                "so_so": ["so so", "this is so so ."]}  # fmt: skip


# contrastive training


def test_contrastive_training_repeats_and_learns(notebook, checkpoint):
    notebook |= {"EPOCHS_PAIRS": 8}
    probabilities, model, history = notebook["contrast"](TRAIN, 0)
    again, _, again_history = notebook["contrast"](TRAIN, 0)
    other, _, other_history = notebook["contrast"](TRAIN, 1)
    np.testing.assert_array_equal(probabilities, again)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again_history.drop(columns="seconds"))
    assert abs(probabilities - other).max() > 1e-3 and history["train_loss"][0] != other_history["train_loss"][0]

    assert probabilities.shape == (len(TEST), 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(probabilities.argmax(1), TEST["label"])
    result = evaluate(model, notebook["test_set"], device="cpu")
    np.testing.assert_allclose(result["probabilities"], probabilities, atol=1e-5)
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    lowest = math.log(5)  # each sentence as near to the five others of its class, and far from the rest
    assert history["train_loss"][0] > lowest + 0.2 and lowest < history["train_loss"].tail(3).mean() < lowest + 0.1
    assert history["train_accuracy"].iloc[-1] == 1.0 and history["val_loss"].isna().all()
    np.testing.assert_allclose(history["lr"], [learning_rate("cosine", step, 8, 1e-2, warmup=0.1) for step in range(8)])

    changed = find_changed(model.encoder, read_parameters(load_encoder(str(checkpoint))[1]))
    everything = {name for name, _ in model.encoder.named_parameters()}
    still = {name for name in everything if "pooler" in name} | {"embeddings.word_embeddings.weight"}
    assert changed == everything - still


def test_contrastive_training_of_adapters_leaves_the_encoder(notebook, checkpoint):
    before = read_parameters(load_encoder(str(checkpoint))[1])
    probabilities, model, history = notebook["contrast"](TRAIN, 0, rank=2, lr=3e-2)
    assert find_changed(model.encoder, before) == set()
    assert all(p.any() for name, p in model.encoder.named_parameters() if "lora_B" in name)
    assert history["train_loss"].iloc[-1] < history["train_loss"][0] - 0.05
    np.testing.assert_allclose(history["lr"], [learning_rate("cosine", step, 4, 3e-2, warmup=0.1) for step in range(4)])
    np.testing.assert_array_equal(probabilities, notebook["contrast"](TRAIN, 0, rank=2, lr=3e-2)[0])


def test_a_step_takes_a_batch_of_sentences_and_the_rate_falls_over_all_of_them(notebook):
    notebook |= {"EPOCHS_PAIRS": 2, "BATCH_PAIRS": 5}
    seen, original, rates = [], notebook["contrastive_loss"], []
    notebook["contrastive_loss"] = lambda *given: seen.append(given[1:]) or original(*given)
    notebook["learning_rate"] = lambda *given, **named: rates.append((given, named)) or learning_rate(*given, **named)
    notebook["contrast"](TRAIN, 0)  # 12 sentences
    assert [len(targets) for targets, _ in seen] == [5, 5, 2] * 2 and {temperature for _, temperature in seen} == {0.1}
    for epoch in (seen[:3], seen[3:]):
        assert torch.cat([targets for targets, _ in epoch]).sum() == 6  # every sentence once
    assert [given for given, _ in rates] == [("cosine", step, 6, 1e-2) for step in range(6)]


def test_training_accuracy_is_that_of_the_nearest_neighbour(notebook):
    notebook |= {"EPOCHS_PAIRS": 1, "LR_PAIRS": 0.0}
    train, seen = pd.concat([TRAIN, TEST.assign(label=1 - TEST["label"])]).iloc[:20], []
    original = notebook["contrastive_loss"]
    notebook["contrastive_loss"] = lambda *given: seen.append(given[:2]) or original(*given)
    accuracy = notebook["contrast"](train, 0)[2]["train_accuracy"][0]
    ((vectors, targets),) = seen
    distances = torch.cdist(vectors.detach(), vectors.detach()) + 9 * torch.eye(20)
    assert accuracy == pytest.approx((targets[distances.argmin(1)] == targets).float().mean().item())
    assert 0 < accuracy < 1


def test_a_last_batch_of_one_sentence_is_left_out(notebook):
    notebook |= {"BATCH_PAIRS": 11, "EPOCHS_PAIRS": 3}
    sizes, original = [], notebook["contrastive_loss"]
    notebook["contrastive_loss"] = lambda *given: sizes.append(len(given[0])) or original(*given)
    probabilities, model, history = notebook["contrast"](TRAIN, 0)  # 12 sentences
    assert sizes == [11, 11, 11] and len(history) == 3
    assert np.isfinite(probabilities).all() and all(p.isfinite().all() for p in model.parameters())


def test_a_step_goes_down_the_gradient_of_its_own_batch(notebook):
    notebook |= {"EPOCHS_PAIRS": 3, "TEMPERATURE": 0.02}  # gradients that are clipped, at first
    make_optimizer, original = notebook["make_optimizer"], notebook["contrastive_loss"]
    expected, norms, rates = {}, [], []

    def spy_on_steps(model, *given, **named):
        optimizer = make_optimizer(model, *given, **named)
        expected["parameters"] = [p for p in model.encoder.parameters() if p.requires_grad]
        optimizer.register_step_pre_hook(compare)
        return optimizer

    def spy_on_loss(*given):
        loss = original(*given)
        how = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        expected["gradients"] = torch.autograd.grad(loss, expected["parameters"], **how)
        return loss

    def compare(optimizer, *_):
        rates.append({group["lr"] for group in optimizer.param_groups})
        norm = torch.cat([gradient.flatten() for gradient in expected["gradients"]]).norm().item()
        norms.append(norm)
        for parameter, gradient in zip(expected["parameters"], expected["gradients"], strict=True):
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(found, gradient / max(norm, 1), rtol=1e-3, atol=1e-6)

    notebook |= {"make_optimizer": spy_on_steps, "contrastive_loss": spy_on_loss}
    notebook["contrast"](TRAIN, 0)
    assert len(norms) == 3 and max(norms) > 1.5
    assert rates == [{learning_rate("cosine", step, 3, 1e-2, warmup=0.1)} for step in range(3)]


@pytest.mark.parametrize("with_descriptions", [False, True])
def test_descriptions_join_the_training_sentences_and_nothing_else(notebook, with_descriptions):
    learned, original = [], notebook["as_dataset"]
    notebook["as_dataset"] = lambda train: learned.append(train[["text", "label"]].copy()) or original(train)
    notebook["EPOCHS_PAIRS"] = 1
    before = TRAIN.copy(), DESCRIBED.copy()
    probabilities = notebook["contrast"](TRAIN, 0, with_descriptions)[0]
    expected = pd.concat([TRAIN, DESCRIBED]) if with_descriptions else TRAIN
    assert len(learned) == 1
    pd.testing.assert_frame_equal(learned[0], expected)
    assert TRAIN.equals(before[0]) and DESCRIBED.equals(before[1])
    assert abs(probabilities - notebook["contrast"](TRAIN, 0, not with_descriptions)[0]).max() > 1e-3


def test_contrastive_training_takes_three_classes(notebook):
    notebook["class_names"] = ["bad", "good", "so so"]
    third = pd.DataFrame({"text": ["all , all", "all the way , all", "the way , all", "all all"], "label": [2] * 4})
    probabilities, model, _ = notebook["contrast"](pd.concat([TRAIN, third]), 0)
    assert probabilities.shape == (len(TEST), 3)
    result = evaluate(model, notebook["test_set"], device="cpu")
    np.testing.assert_allclose(result["probabilities"], probabilities, atol=1e-5)


# fine-tuning


def test_lora_leaves_every_weight_of_the_encoder(notebook, checkpoint):
    before = read_parameters(load_encoder(str(checkpoint))[1])
    recipe = {"lora": True, "epochs": 3, "lr": 3e-2, "warmup": 0.1}
    probabilities, model, history = notebook["fine_tune"](TRAIN, 0, **recipe)
    assert find_changed(model.encoder, before) == set()
    assert all(p.any() for name, p in model.encoder.named_parameters() if "lora_B" in name)
    assert count_parameters(model)[1] == 2 * 2 * (4 * 32 + 2 * 48) + 2 * 16 + 2  # rank 2, two layers, the head
    assert history["train_loss"].iloc[-1] < history["train_loss"][0] and history["epoch"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(probabilities, notebook["fine_tune"](TRAIN, 0, **recipe)[0])
    assert abs(probabilities - notebook["fine_tune"](TRAIN, 1, **recipe)[0]).max() > 1e-3


def test_fine_tuning_learns_and_repeats(notebook, checkpoint):
    recipe = {"epochs": 8, "lr": 1e-2, "warmup": 0.1}
    probabilities, model, history = notebook["fine_tune"](TRAIN, 0, **recipe)
    np.testing.assert_array_equal(probabilities.argmax(1), TEST["label"])
    assert history["train_loss"].iloc[-1] < 0.3 < history["train_loss"][0]
    result = evaluate(model, notebook["test_set"], device="cpu")
    np.testing.assert_allclose(result["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_array_equal(probabilities, notebook["fine_tune"](TRAIN, 0, **recipe)[0])
    assert abs(probabilities - notebook["fine_tune"](TRAIN, 1, **recipe)[0]).max() > 1e-3
    changed = find_changed(model.encoder, read_parameters(load_encoder(str(checkpoint))[1]), atol=1e-5)
    assert {"embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"} < changed


@pytest.mark.parametrize("n_layers", [0, 1])
def test_fine_tuning_begins_with_fresh_top_layers_where_asked(notebook, checkpoint, n_layers):
    before = read_parameters(load_encoder(str(checkpoint))[1])
    how = {"epochs": 1, "lr": 1e-9, "warmup": 0.1}  # all stays where it begins
    probabilities, model, _ = notebook["fine_tune"](TRAIN, 0, reinit_layers=n_layers, **how)
    top = {name for name in before if name.startswith("encoder.layer.1.")}
    assert find_changed(model.encoder, before, atol=1e-6) == (top if n_layers else set())
    np.testing.assert_array_equal(probabilities, notebook["fine_tune"](TRAIN, 0, reinit_layers=n_layers, **how)[0])
    with pytest.raises(ValueError, match="REINIT_LAYERS = 3"):
        notebook["fine_tune"](TRAIN, 0, reinit_layers=3, **how)


# floors


def test_counted_words_learn_an_easy_set(notebook):
    probabilities, model, history = notebook["count_words"](TRAIN, 0)
    assert model is None and history is None and probabilities.shape == (len(TEST), 2)
    np.testing.assert_array_equal(probabilities.argmax(1), TEST["label"])
    flipped = notebook["count_words"](TRAIN.assign(label=1 - TRAIN["label"]), 0)[0]
    np.testing.assert_allclose(flipped, 1 - probabilities, atol=1e-3)
    pairs = pd.DataFrame({"text": ["not bad", "bad film", "not fine", "fine film"] * 3, "label": [1, 0, 0, 1] * 3})
    use_test(notebook, pairs)
    np.testing.assert_array_equal(notebook["count_words"](pairs, 0)[0].argmax(1), pairs["label"])  # needs two words


def test_the_frozen_encoder_answers_from_its_sentences_and_descriptions_alone_from_none(notebook):
    def by_hand(table):
        vectors = notebook["encode"](TextClassifier(notebook["used_name"], 2), notebook["as_dataset"](table))
        head = LogisticRegression(C=10, max_iter=1000).fit(vectors, table["label"])
        return head.predict_proba(notebook["encode"](notebook["untrained"], notebook["test_set"]))

    half = TRAIN.iloc[:6]
    for table in (TRAIN, half):
        np.testing.assert_allclose(notebook["freeze"](table, 0)[0], by_hand(table), atol=1e-5)
        np.testing.assert_allclose(notebook["describe"](table, 0)[0], by_hand(DESCRIBED), atol=1e-5)
    assert abs(by_hand(TRAIN) - by_hand(half)).max() > 0.01 and abs(by_hand(TRAIN) - by_hand(DESCRIBED)).max() > 0.01


# all methods together


def test_every_method_gets_its_own_recipe(notebook):
    calls, signatures = [], {name: inspect.signature(notebook[name]) for name in ("fine_tune", "contrast")}

    def record(name):
        def spy(*given, **named):
            bound = signatures[name].bind(*given, **named)
            bound.apply_defaults()
            calls.append((name, bound.arguments))

        return spy

    notebook |= {name: record(name) for name in signatures}
    execute(notebook, "stable = ", "methods = ")
    found = {}
    for name, method in notebook["methods"].items():
        calls.clear()
        method(TRAIN, 5)
        for function, arguments in calls:
            assert arguments.pop("train") is TRAIN and arguments.pop("seed") == 5
            found[name] = function, arguments
    plain = {"lora": False, "reinit_layers": 0}
    pairs = {"with_descriptions": False, "rank": 0, "lr": None}
    assert found == {
        "plain fine-tuning": ("fine_tune", plain | {"recipe": {"epochs": 2, "lr": 3e-3, "warmup": 0.0}}),
        "stable fine-tuning": (
            "fine_tune", plain | {"reinit_layers": 1, "recipe": {"epochs": 3, "lr": 3e-3, "warmup": 0.1}},
        ),
        "LoRA": ("fine_tune", plain | {"lora": True, "recipe": {"epochs": 3, "lr": 3e-2, "warmup": 0.1}}),
        "contrastive": ("contrast", pairs),
        "contrastive, descriptions": ("contrast", pairs | {"with_descriptions": True}),
        "contrastive, descriptions, LoRA": ("contrast", {"with_descriptions": True, "rank": 2, "lr": 2e-2}),
    }  # fmt: skip
    first, second, third = list(notebook["methods"].values())[:3]
    assert (first, second, third) == (notebook["count_words"], notebook["freeze"], notebook["describe"])


def test_no_method_leaves_anything_behind(notebook):
    notebook |= {"EPOCHS_PAIRS": 2, "EPOCHS": 1, "EPOCHS_PLAIN": 1}
    execute(notebook, "stable = ", "methods = ", "columns = ")
    model = notebook["untrained"]
    weights, vectors = copy.deepcopy(dict(model.named_parameters())), notebook["untrained_vectors"].copy()
    tables = [notebook[name].copy() for name in ("test", "described")] + [TRAIN.copy()]
    names = list(notebook["methods"])
    first = {name: notebook["run_method"](name, TRAIN, 3) for name in names}
    torch.manual_seed(99)
    second = {name: notebook["run_method"](name, TRAIN, 3) for name in names[::-1]}
    for name, (table, _, history, took) in first.items():
        pd.testing.assert_frame_equal(table, second[name][0])
        assert took > 0 and (history is None) == (name in names[:3])
    answers = [table["p1"].to_numpy() for table, *_ in first.values()]
    assert all(abs(a - b).max() > 1e-4 for a, b in itertools.combinations(answers, 2))  # nine different ones
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]) and parameter.grad is None
    assert np.array_equal(notebook["untrained_vectors"], vectors)
    assert np.array_equal(notebook["encode"](model, notebook["test_set"]), vectors)
    assert all(a.equals(b) for a, b in zip(tables, [notebook["test"], notebook["described"], TRAIN], strict=True))


def test_predictions_are_a_row_a_sentence(notebook):
    execute(notebook, "columns = ")
    probabilities = np.random.default_rng(0).dirichlet([1, 1], len(TEST))
    notebook["methods"] = {"coin": lambda train, seed: (probabilities, "model", "history")}
    table, model, history, _ = notebook["run_method"]("coin", TRAIN, 7)
    assert (model, history) == ("model", "history") and set(table["method"]) == {"coin"} and set(table["seed"]) == {7}
    assert table["clip"].tolist() == list(range(len(TEST))) and table["target"].tolist() == TEST["label"].tolist()
    np.testing.assert_array_equal(table[["p0", "p1"]], probabilities)
    right = (probabilities[:, 1] > 0.5) == TEST["label"]
    np.testing.assert_array_equal(table["predicted"], probabilities[:, 1] > 0.5)
    assert table["correct"].tolist() == right.tolist() and 0 < right.mean() < 1
