"""The parts of inference_toy_model: what moved an answer, a spreadsheet, the official model, what goes wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_finetuning import BAD, GOOD, VOCABULARY, make_checkpoint
from torch import nn

from shared_utils import finetuning
from shared_utils.datasets import load_texts
from shared_utils.device import ROOT
from shared_utils.finetuning import TextClassifier, load_encoder, predict_texts
from shared_utils.notebooks import load_definitions
from shared_utils.runs import Run

NAMES = ["negative", "positive"]
WEIGHTS = {"bad": -4.0, "fine": 1.0, "funny": 0.5, "warm": 0.25}


@pytest.fixture(scope="module")
def notebook() -> dict:
    return load_definitions(ROOT / "toy_transformer_sentiment" / "inference_toy_model.ipynb")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


class WordCounter(nn.Module):
    """Adds up a weight for each token: the log-odds of the second class, or the logits of three."""

    def __init__(self, tokenizer, weights: dict[str, float], n_classes: int = 2):
        super().__init__()
        self.tokenizer = tokenizer
        table = torch.zeros(len(VOCABULARY), n_classes)
        for word, weight in weights.items():
            table[VOCABULARY.index(word), 1 if n_classes == 2 else -1] = weight
        self.table = nn.Parameter(table)

    def forward(self, inputs):
        return (self.table[inputs["input_ids"]] * inputs["attention_mask"][:, :, None]).sum(1)


def make_run(model: nn.Module, class_names=NAMES, max_length: int = 64) -> Run:
    empty = {"settings": {}, "metrics": {}, "data": {}, "history": pd.DataFrame(), "predictions": None, "results": []}
    names = {"notebook": "text", "created": "", "headline": "", "folder": Path("text"), "class_names": class_names}
    return Run(**names, **empty, preprocessing={"max_length": max_length}, model=model.eval())


@pytest.fixture
def counter(checkpoint) -> Run:
    return make_run(WordCounter(load_encoder(str(checkpoint))[0], WEIGHTS))


def logistic(x: float) -> float:
    return 1 / (1 + np.exp(-x))


# which words moved an answer


def test_the_word_that_turns_the_answer_has_the_largest_effect(notebook, counter):
    sentence = "a fine and funny film , just not warm but bad"
    words, effects = notebook["word_effects"](counter, sentence, "cpu")
    assert words == sentence.split() and len(effects) == len(words)
    total = sum(WEIGHTS.values())
    expected = [logistic(total) - logistic(total - WEIGHTS.get(word, 0)) for word in words]
    np.testing.assert_allclose(effects, expected, atol=1e-6)
    assert words[np.abs(effects).argmax()] == "bad" and effects[-1] < 0 < effects[1]
    answers = predict_texts(counter, [sentence, sentence.removesuffix("bad")], "cpu")
    assert answers["predicted"].tolist() == ["negative", "positive"]
    np.testing.assert_allclose(answers["positive"][0] - answers["positive"][1], effects[-1], atol=1e-6)


def test_effects_of_a_model_that_adds_words_add_up(notebook, counter):
    _, effects = notebook["word_effects"](counter, "warm and fine and funny and fine", "cpu")
    whole = logistic(0.25 + 2 * 1.0 + 0.5)
    log_odds = [np.log(p / (1 - p)) for p in (whole, *(whole - np.array(effects)))]
    assert sum(log_odds[0] - value for value in log_odds[1:]) == pytest.approx(2.75, abs=1e-4)


def test_of_a_repeated_word_one_is_left_out_at_a_time(notebook, counter):
    words, effects = notebook["word_effects"](counter, "bad fine bad fine fine", "cpu")
    assert words == ["bad", "fine", "bad", "fine", "fine"]
    bad, fine = (logistic(-5) - logistic(-5 - WEIGHTS[word]) for word in ("bad", "fine"))
    np.testing.assert_allclose(effects, [bad, fine, bad, fine, fine], atol=1e-6)


def test_a_word_that_stands_alone_is_compared_with_an_even_chance(notebook, counter, checkpoint):
    for sentence in ("bad", "  bad \n"):
        words, effects = notebook["word_effects"](counter, sentence, "cpu")
        assert words == ["bad"] and effects == [pytest.approx(logistic(-4) - 0.5, abs=1e-6)]
    with pytest.raises(ValueError, match="and no text; fill it or leave it out"):
        notebook["word_effects"](counter, " \n", "cpu")


def test_spaces_scripts_and_punctuation_keep_their_places(notebook, counter, monkeypatch):
    tried = []
    monkeypatch.setattr(finetuning, "predict_texts", lambda *given: tried.extend(given[1]) or predict_texts(*given))
    words, effects = notebook["word_effects"](counter, " fine,\n\n 😀  не bad\t(fine)", "cpu")
    assert words == ["fine,", "😀", "не", "bad", "(fine)"]
    total = 1 - 4 + 1
    assert tried[0] == " fine,\n\n 😀  не bad\t(fine)" and tried[2] == " fine,\n\n не bad\t(fine)"
    expected = [logistic(total) - logistic(total - weight) for weight in (1, 0, 0, -4, 1)]
    np.testing.assert_allclose(effects, expected, atol=1e-6)


def test_of_a_long_text_only_what_is_read_is_tried(notebook, counter, capsys, monkeypatch):
    counter.preprocessing["max_length"] = 16
    sentence = "fine " + "film " * 12 + "funny,bad " + "bad warm " * 5000  # 14 tokens end behind "funny"
    tried = []
    monkeypatch.setattr(finetuning, "predict_texts", lambda *given: tried.extend(given[1]) or predict_texts(*given))
    words, effects = notebook["word_effects"](counter, sentence, "cpu")
    assert words == ["fine", *["film"] * 12, "funny"] and len(tried) == 15
    expected = [logistic(1.5) - logistic(0.5), *[0] * 12, logistic(1.5) - logistic(1)]
    np.testing.assert_allclose(effects, expected, atol=1e-6)
    assert capsys.readouterr().out == "The model reads 16 tokens of a text: the first 14 of these 10,014 words.\n"
    answer = predict_texts(counter, [sentence, tried[0]], "cpu")["positive"]
    assert answer[0] == pytest.approx(answer[1], abs=1e-6)  # what is tried is what is read


def test_with_more_classes_it_is_the_probability_of_the_answer(notebook, checkpoint):
    model = WordCounter(load_encoder(str(checkpoint))[0], WEIGHTS | {"bad": -4}, n_classes=3)
    run = make_run(model, ["a", "b", "c"])
    share = lambda x: np.exp(x) / (np.exp(x) + 2)  # noqa: E731
    words, effects = notebook["word_effects"](run, "fine and funny", "cpu")
    np.testing.assert_allclose(effects, [share(1.5) - share(0.5), 0, share(1.5) - share(1)], atol=1e-6)
    assert notebook["word_effects"](run, "fine", "cpu")[1] == [pytest.approx(share(1) - 1 / 3, abs=1e-6)]
    answers = predict_texts(run, ["fine and funny"], "cpu")
    fig = notebook["draw_words"](answers, [words], [effects], run.class_names)
    assert {"c 69 %", "speaks for other classes"} <= {text.get_text() for text in fig.axes[0].texts}


def test_effects_are_differences_of_a_real_models_answers(notebook, checkpoint):
    torch.manual_seed(0)
    model = TextClassifier(str(checkpoint), 2, pooling="mean")
    for parameter in model.parameters():  # so that its answers differ
        parameter.data += 0.5 * torch.randn_like(parameter)
    run, sentence = make_run(model), "a great , great cast and a dull film"
    words, effects = notebook["word_effects"](run, sentence, "cpu")
    parts, answers = sentence.split(), []
    for left_out in [None, *range(len(parts))]:
        text = " ".join(part for k, part in enumerate(parts) if k != left_out)
        with torch.no_grad():
            answers.append(model(model.tokenizer(text, return_tensors="pt")).softmax(1)[0, 1].item())
    assert words == parts and np.ptp(effects) > 0.01
    np.testing.assert_allclose(effects, answers[0] - np.array(answers[1:]), atol=1e-5)


def test_a_figure_has_the_words_and_what_was_answered(notebook, counter):
    texts = ["a fine film", "bad " * 500, "fine"]
    counter.preprocessing["max_length"] = 64
    found = [notebook["word_effects"](counter, text, "cpu") for text in texts]
    answers = predict_texts(counter, texts, "cpu")
    assert notebook["describe"](answers, NAMES) == ["positive 73 %", "negative 100 %", "positive 73 %"]
    fig = notebook["draw_words"](answers, [row[0] for row in found], [row[1] for row in found], NAMES)
    shown = [text.get_text() for text in fig.axes[0].texts]
    assert len(found[1][0]) == 62 and shown.count("bad") == 53 and shown.count("fine") == 2
    assert "negative 100 %, the first 53 words" in shown and shown.count("positive 73 %") == 2


# a spreadsheet


def test_a_sheet_comes_back_with_its_answers(notebook, counter, tmp_path, capsys):
    texts = ["a fine film", "=1+1 is bad", "NA", "👍 fine 不错", 'bad, "bad"\nand bad', "fine"]
    pd.DataFrame({"id": range(7), "Review": [*texts[:3], None, *texts[3:]]}).to_csv(
        tmp_path / "reviews.csv", index=False
    )
    table, path = notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")
    assert path == tmp_path / "reviews.predicted.xlsx" and "Left out 1 blank row" in capsys.readouterr().out
    read = pd.read_excel(path, keep_default_na=False)
    assert read.columns.tolist() == ["text", "negative", "positive", "predicted"]
    assert read["text"].tolist() == texts == load_texts(path)["text"].tolist() == table["text"].tolist()
    expected = [logistic(x) for x in (1, -4, 0, 1, -12, 1)]
    np.testing.assert_allclose(read["positive"], expected, atol=1e-6)
    assert [read["predicted"][k] for k in (0, 1, 3, 4, 5)] == [NAMES[k] for k in (1, 0, 1, 0, 1)]
    notebook["predict_sheet"](counter, path, "cpu")  # and what was written can be read again
    again = pd.read_excel(tmp_path / "reviews.predicted.predicted.xlsx", keep_default_na=False)
    np.testing.assert_allclose(again["positive"], read["positive"], atol=1e-6)


def test_answers_corrected_by_hand_are_never_written_over(notebook, counter, tmp_path):
    (tmp_path / "reviews.csv").write_text("text\na fine film\nall bad\n")
    _, path = notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")
    assert notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")[1] == path  # it says the same
    corrected = pd.read_excel(path).rename(columns={"predicted": "label"}).assign(label="negative")
    corrected.to_excel(path, index=False)
    (tmp_path / "reviews.predicted 2.xlsx").write_bytes(b"something else")
    table, other = notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")
    assert other == tmp_path / "reviews.predicted 3.xlsx" and pd.read_excel(other)["text"].tolist() == [*table["text"]]
    assert pd.read_excel(path)["label"].tolist() == ["negative"] * 2
    assert (tmp_path / "reviews.predicted 2.xlsx").read_bytes() == b"something else"


def test_a_file_without_texts_is_refused_and_nothing_written(notebook, counter, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="reviews.csv does not exist; give an .xlsx or .csv file with a text a r"
    ):
        notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")
    (tmp_path / "reviews.csv").write_text("id,stars\n1,5\n")
    with pytest.raises(ValueError, match="reviews.csv has no column of texts; its first row names id, stars"):
        notebook["predict_sheet"](counter, tmp_path / "reviews.csv", "cpu")
    (tmp_path / "reviews.xlsx").write_bytes(b"PK and no more")
    with pytest.raises(ValueError, match="reviews.xlsx is damaged, or no .xlsx file at all"):
        notebook["predict_sheet"](counter, tmp_path / "reviews.xlsx", "cpu")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["reviews.csv", "reviews.xlsx"]


# which run


def test_the_newest_run_comes_before_the_one_that_ships(notebook, tmp_path, monkeypatch):
    monkeypatch.setitem(notebook, "resolve_path", lambda path: tmp_path / path)
    with pytest.raises(FileNotFoundError, match="There is no run to load: run fine_tune_toy_model first, or set RUN"):
        notebook["choose_run"]()
    unfinished = tmp_path / "models" / "fine_tune_toy_model" / ".unfinished-1"
    for folder in (tmp_path / "models" / "sentiment_prompts", unfinished):
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
    assert notebook["choose_run"]() == "models/sentiment_prompts"
    unfinished.rename(unfinished.with_name("20260101-000000-0123abcd"))
    assert notebook["choose_run"]() == "fine_tune_toy_model"
    assert notebook["choose_run"]("elsewhere") == "elsewhere"


# the official model


def make_official(folder: Path, checkpoint: Path, names: list[str], kind: str = "Bert") -> Path:
    """Write a small classifier with a head, as the hub has them."""
    import transformers

    sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64, "id2label": dict(enumerate(names))}
    if kind == "Bert":
        sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    else:
        sizes |= {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
    sizes["label2id"] = {name: label for label, name in enumerate(names)}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(getattr(transformers, f"{kind}Config")(**sizes))
    for parameter in model.parameters():  # so that its answers differ
        parameter.data += 0.5 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    shutil.copy(checkpoint / "vocab.txt", folder)
    tokenizer = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"tokenizer_class": f"{kind}Tokenizer"}))
    return folder


@pytest.mark.parametrize(
    "names, kind, order",
    [
        (["NEGATIVE", "POSITIVE"], "Bert", [0, 1]),
        (["positive", "negative"], "Bert", [1, 0]),
        (["POS", "Neg"], "DistilBert", [1, 0]),
    ],
)
def test_the_official_models_columns_go_by_their_names(notebook, checkpoint, tmp_path, capfd, names, kind, order):
    folder = make_official(tmp_path / "official", checkpoint, names, kind)
    capfd.readouterr()
    official = notebook["load_official"](str(folder))
    assert capfd.readouterr() == ("", "") and not official.training
    texts = [*GOOD, *BAD, "fine 😀"]
    found = notebook["classify"](official, texts, "cpu")
    expected = []
    with torch.no_grad():
        for text in texts:
            inputs = official.tokenizer(text, return_tensors="pt")
            inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            expected.append(official.model(**inputs).logits.softmax(1)[0, order].numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found[:, 1]) > 0.05 and abs(found[:, 1].mean() - 0.5) > 0.01  # the two columns can be told apart


@pytest.mark.parametrize(
    "names", [["LABEL_0", "LABEL_1"], ["neg", "neutral", "pos"], ["positive", "possibly"], ["NEGATIVE"]]
)
def test_an_official_model_of_other_classes_is_refused(notebook, checkpoint, tmp_path, names):
    folder = make_official(tmp_path / "official", checkpoint, names)
    with pytest.raises(
        ValueError, match=f"official has the classes {', '.join(names)}; two are needed, NEGATIVE and POS"
    ):
        notebook["load_official"](str(folder))


def test_a_damaged_official_model_is_said(notebook, checkpoint, tmp_path):
    folder = make_official(tmp_path / "official", checkpoint, ["NEGATIVE", "POSITIVE"])
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"official cannot be loaded as a classifier of texts \(\w+\): fetch it again, or"
    ):
        notebook["load_official"](str(folder))


def test_without_the_official_model_the_toy_model_stands_alone(notebook, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(finetuning, "_fetch", lambda name: pytest.fail("the network was asked"))
    assert notebook["load_official"]("distilbert-base-uncased-finetuned-sst-2-english") is None
    printed = capsys.readouterr().out
    assert printed.startswith("The toy model stands alone: distilbert-base-uncased-finetuned-sst-2-english is neither ")
    assert "HF_HUB_OFFLINE is set" in printed and printed.count("\n") == 1


# what goes wrong, and the field to type into


def test_mistakes_are_listed_by_who_makes_them_the_surest_first(notebook):
    sentences = pd.DataFrame({"text": list("abcdef"), "label": [0, 0, 0, 1, 1, 1], "class_name": ["-"] * 3 + ["+"] * 3})
    toy = np.array([0.6, 0.9, 0.2, 0.4, 0.7, 0.1])  # wrong on a, b, d, f
    official = np.array([0.9, 0.1, 0.8, 0.3, 0.6, 0.9])  # wrong on a, c, d
    both = {name: np.stack([1 - p, p], 1) for name, p in (("toy model", toy), ("official model", official))}
    table = notebook["list_mistakes"](sentences, both)
    found = [(row.text, row.label, row.wrong) for row in table.itertuples()]
    assert found == [
        ("a", "-", "both"), ("d", "+", "both"), ("b", "-", "toy model only"), ("f", "+", "toy model only"),
        ("c", "-", "official model only"),
    ]  # fmt: skip
    np.testing.assert_allclose(table["toy model: P(positive)"], [0.6, 0.4, 0.9, 0.1, 0.2])
    np.testing.assert_allclose(table["official model: P(positive)"], [0.9, 0.3, 0.1, 0.9, 0.8])
    alone = notebook["list_mistakes"](sentences, {"toy model": both["toy model"]}, most=3)
    assert alone["text"].tolist() == ["b", "f", "a"] and set(alone["wrong"]) == {"toy model"}
    right = {"toy model": np.stack([1 - sentences["label"], sentences["label"]], 1)}
    assert notebook["list_mistakes"](sentences, right).empty


def test_the_field_answers_what_is_typed(notebook, counter, monkeypatch):
    drawn = []
    monkeypatch.setitem(notebook, "display", drawn.append)
    field = notebook["make_widget"](counter, "cpu").children[0]
    field.value = "a fine film"
    assert {"a", "fine", "film", "positive 73 %"} <= {text.get_text() for text in drawn.pop().axes[0].texts}
    field.value = "  "
    assert drawn == []
