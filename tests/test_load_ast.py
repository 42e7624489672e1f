"""Pretrained ASTs: positions cut from the middle and never zeroed, TinyAST as one of them, and classifiers on top."""

import copy
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_finetuning import make_checkpoint
from torch import nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

from shared_utils import finetuning
from shared_utils.datasets import ArrayDataset
from shared_utils.device import ROOT, seed_everything
from shared_utils.finetuning import AST, SMALL_AST, TINY_AST, AstClassifier, convert_tiny_ast, load_ast
from shared_utils.notebooks import load_definitions
from shared_utils.runs import load_run, save_run
from shared_utils.spectrograms import KaldiFbank
from shared_utils.training import fit

ROWS, COLUMNS, WIDTH = 3, 18, 32  # 36 bands and 190 frames in patches of 16, every 10
NAMES = ["dog", "drill", "siren"]


def make_ast(folder: Path, model_class=ASTForAudioClassification, **changes) -> Path:
    """Write a small AST with five classes, whose positions say where they are: 100 * row + column, tokens -1 and -2."""
    settings = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings |= {"num_mel_bins": 36, "max_length": 190, "num_labels": 5, "problem_type": "multi_label_classification"}
    torch.manual_seed(0)
    model = model_class(ASTConfig(**settings | changes))
    for parameter in model.parameters():  # far from the zeros and ones that tokens, norms and biases begin with
        parameter.data += 0.1 * torch.randn_like(parameter)
    grid = 100.0 * torch.arange(ROWS)[:, None] + torch.arange(COLUMNS)
    places = torch.cat([torch.tensor([-1.0, -2.0]), grid.flatten()])
    positions = dict(model.named_parameters())[next(n for n, _ in model.named_parameters() if "position_emb" in n)]
    positions.data = places[None, :, None].repeat(1, 1, WIDTH)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_ast(tmp_path_factory.mktemp("checkpoints") / "ast")


def positions_of(model) -> tuple[list[float], torch.Tensor]:
    """Return what stands at the two tokens and in the grid (rows, columns), where all of a vector is the same."""
    positions = model.audio_spectrogram_transformer.embeddings.position_embeddings[0]
    assert (positions == positions[:, :1]).all()
    return positions[:2, 0].tolist(), positions[2:, 0].unflatten(0, (ROWS, -1))


# ---- positions


@pytest.mark.parametrize(
    ("max_length", "columns"),
    # the code of AST's authors: COLUMNS // 2 - n // 2 up to that + n; a patch more every 10 frames from 16 on
    [(190, range(18)), (186, range(18)), (185, range(1, 18)), (96, range(5, 14)), (86, range(5, 13)), (16, [9])],
)
def test_the_middle_of_the_positions_is_kept(checkpoint, max_length, columns, capsys):
    model, _ = load_ast(str(checkpoint), 3, max_length)
    tokens, grid = positions_of(model)
    assert tokens == [-1, -2]
    assert grid.tolist() == [[100 * row + column for column in columns] for row in range(ROWS)]
    assert model.config.max_length == max_length and capsys.readouterr().out == ""
    assert model.audio_spectrogram_transformer.embeddings.position_embeddings.requires_grad
    assert model(torch.zeros(2, max_length, 36)).logits.shape == (2, 3)


def test_ast_itself_keeps_columns_31_to_69_for_four_seconds():
    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig(num_labels=10))
    embeddings = model.audio_spectrogram_transformer.embeddings
    embeddings.position_embeddings = nn.Parameter(torch.arange(1214.0)[None, :, None].repeat(1, 1, 768))
    finetuning._set_max_length(model, 400)
    kept = embeddings.position_embeddings[0, :, 0].tolist()
    assert kept == [0, 1] + [2 + 101 * row + column for row in range(12) for column in range(31, 70)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 85_625_098


def test_the_full_model_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig(num_labels=527))
    n_layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768
    n_tokens = 16 * 16 * 768 + 768 + 2 * 768 + (12 * 101 + 2) * 768
    expected = n_tokens + 12 * n_layer + 2 * 768 + 2 * 768 + 768 * 527 + 527
    assert sum(parameter.numel() for parameter in model.parameters()) == expected == 86_594_063  # "86.6 M"


def test_more_frames_than_the_checkpoint_has_are_interpolated_and_said(checkpoint, capsys):
    model, _ = load_ast(str(checkpoint), 3, 370)  # 36 columns: twice as many
    assert "needs 36 columns of positions and the checkpoint has 18 (for 190 frames)" in capsys.readouterr().out
    tokens, grid = positions_of(model)
    column = np.clip((np.arange(36) + 0.5) / 2 - 0.5, 0, 17)  # centres of the new columns among the old
    assert tokens == [-1, -2]
    np.testing.assert_allclose(grid.detach(), 100 * np.arange(ROWS)[:, None] + column, atol=1e-4)
    assert model(torch.zeros(2, 370, 36)).logits.shape == (2, 3)


# ---- what else is kept, and what is new


def test_nothing_but_the_last_layer_is_new(checkpoint):
    original = ASTForAudioClassification.from_pretrained(checkpoint)
    model, used_name = load_ast(str(checkpoint), 3, 190)
    assert used_name == str(checkpoint) and not model.training and model.dtype == torch.float32
    before, after = original.state_dict(), model.state_dict()
    new = {"classifier.dense.weight", "classifier.dense.bias"}
    assert before.keys() == after.keys()
    assert {name for name in after if not torch.equal(before[name], after[name])} == new
    assert not after["classifier.dense.bias"].any()
    assert after["classifier.dense.weight"].std().item() == pytest.approx(0.02, rel=0.25)  # of 96 draws
    specs = torch.randn(2, 190, 36)
    model.classifier.dense = original.classifier.dense
    with torch.no_grad():
        assert torch.equal(model(specs).logits, original.eval()(specs).logits)


def test_loading_draws_nothing_and_repeats(checkpoint, tmp_path, capfd):
    bare = make_ast(tmp_path / "without head", ASTModel)  # so that transformers draws one
    capfd.readouterr()
    for folder in (str(checkpoint), str(bare), TINY_AST, SMALL_AST):
        seed_everything(3)
        expected = torch.rand(1), np.random.rand()
        seed_everything(3)
        model, _ = load_ast(folder, 3, 96)
        assert (torch.rand(1), np.random.rand()) == expected
        again, _ = load_ast(folder, 3, 96)
        assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
        assert capfd.readouterr() == ("", "")


def test_class_names_go_into_the_config_and_old_ones_leave(checkpoint):
    config = load_ast(str(checkpoint), 3, class_names=NAMES, max_length=96)[0].config
    assert config.id2label == {0: "dog", 1: "drill", 2: "siren"} and config.label2id["siren"] == 2
    assert config.num_labels == 3
    config = load_ast(TINY_AST, 10)[0].config  # as many classes as it was trained for, but others
    assert config.id2label[4] == "LABEL_4" and "dog" not in config.label2id


def test_single_labels_are_learned_whatever_the_checkpoint_learned(checkpoint):
    model, _ = load_ast(str(checkpoint), 3, 96)
    output = model(torch.randn(4, 96, 36), labels=torch.tensor([0, 1, 2, 1]))
    expected = nn.functional.cross_entropy(output.logits, torch.tensor([0, 1, 2, 1]))
    assert output.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("source", ["checkpoint", "stand-in"])
def test_saving_and_loading_gives_equal_logits(checkpoint, tmp_path, source):
    model, _ = load_ast(str(checkpoint) if source == "checkpoint" else TINY_AST, 3, 96, class_names=NAMES)
    nn.init.normal_(model.classifier.dense.bias)
    model.save_pretrained(tmp_path)
    theirs = ASTForAudioClassification.from_pretrained(tmp_path).eval()
    specs = torch.randn(2, 96, model.config.num_mel_bins)
    with torch.no_grad():
        assert torch.equal(theirs(specs).logits, model(specs).logits)
    assert theirs.config.id2label == {0: "dog", 1: "drill", 2: "siren"} and theirs.config.max_length == 96
    assert theirs.config.front_end == model.config.front_end
    shorter, _ = load_ast(str(tmp_path), 2, 50)  # another task on top
    assert shorter.config.front_end == model.config.front_end | {"max_length": 50}
    assert shorter(torch.zeros(1, 50, model.config.num_mel_bins)).logits.shape == (1, 2)


def test_the_front_end_is_that_of_the_checkpoint(checkpoint, tmp_path):
    audioset = {"sample_rate": 16000, "n_mels": 36, "max_length": 96, "mean": -4.2677393, "std": 4.5689974}
    assert load_ast(str(checkpoint), 3, 96)[0].config.front_end == audioset | {"normalize": True}
    folder = shutil.copytree(checkpoint, tmp_path / "with extractor")
    extractor = ASTFeatureExtractor(num_mel_bins=36, max_length=190, mean=-6.5, std=3.25)
    extractor.save_pretrained(folder)
    front_end = load_ast(str(folder), 3, 190)[0].config.front_end
    assert front_end == audioset | {"max_length": 190, "mean": -6.5, "std": 3.25, "normalize": True}
    waveform = 0.1 * torch.randn(16000)
    expected = extractor(waveform.numpy(), sampling_rate=16000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(KaldiFbank(**front_end)(waveform[None]), expected, atol=1e-3, rtol=0)


# ---- the stand-in


def test_tiny_ast_gives_its_own_logits_in_hugging_faces_layout():
    run = load_run(TINY_AST)
    theirs = convert_tiny_ast(TINY_AST)
    specs = torch.randn(4, 498, 64)
    with torch.no_grad():
        difference = (theirs(specs).logits - run.model(specs)).abs().max()
    assert difference < 1e-4 and not theirs.training
    assert list(theirs.config.id2label.values()) == run.class_names
    assert theirs.config.hidden_dropout_prob == 0.1 and theirs.config.attention_probs_dropout_prob == 0
    assert theirs.config.front_end == {
        "sample_rate": 16000, "n_mels": 64, "max_length": 498, "mean": -4.2677393, "std": 4.5689974, "normalize": True,
    }  # fmt: skip
    notebook = load_definitions(ROOT / "audio_spectrogram_transformer" / "audio_transformer_pipeline.ipynb")
    published = notebook["to_hugging_face"](run.model)  # two tellings of one mapping
    assert published.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in published.state_dict().items())


def test_offline_a_small_ast_stands_in_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(finetuning, "_fetch", lambda name: pytest.fail("the network was asked"))
    model, used_name = load_ast(AST, 10)
    printed = capsys.readouterr().out
    assert printed == f"{AST} cannot be had here (HF_HUB_OFFLINE is set): using {SMALL_AST} instead.\n"
    assert used_name == SMALL_AST and model.config.max_length == 400
    again, used_again = load_ast(used_name, 10)  # what was used can be named
    assert used_again == used_name and capsys.readouterr().out == ""
    specs = KaldiFbank(**model.config.front_end)(torch.randn(2, 64000) / 10)  # 4 s: 398 frames and 2 of padding
    with torch.no_grad():
        assert torch.equal(model(specs).logits, again(specs).logits)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor in the hub's cache"):
        load_ast(AST, 10, stand_in=None)


# ---- bad input


def test_what_is_no_ast_is_said(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="text is no audio spectrogram transformer .*: its model_type is 'bert'"):
        load_ast(str(make_checkpoint(tmp_path / "text")), 3)
    with pytest.raises(ValueError, match=r"tiny_ast_esc10 holds no TinyAST with AST's own patches .*; name one such"):
        load_ast("models/tiny_ast_esc10", 3)  # its tokens come from convolutions
    with pytest.raises(ValueError, match="keyword_crnn holds no TinyAST"):
        load_ast("models/keyword_crnn", 3)
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged cannot be loaded as an AST .*fetch it again, or name another"):
        load_ast(str(damaged), 3)
    partial = shutil.copytree(checkpoint, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    name = next(name for name in weights if "position" in name)
    save_file({n: w for n, w in weights.items() if n != name}, partial / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="partial lacks 1 weights, .*position_embeddings first; name another"):
        load_ast(str(partial), 3)
    config = json.loads((checkpoint / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps(config | {"max_length": 400}))  # transformers would zero positions
    shutil.copy(checkpoint / "model.safetensors", partial)
    with pytest.raises(ValueError, match="partial cannot be loaded as an AST"):
        load_ast(str(partial), 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"n_classes": 1}, "n_classes=1 has nothing to tell apart; give 2 or more"),
        ({"class_names": NAMES[:2]}, r"3 classes need as many different names, but there are \['dog', 'drill'\]"),
        ({"class_names": ["dog", "drill", "dog"]}, "3 classes need as many different names"),
        ({"max_length": 15}, "max_length=15 frames are shorter than one patch of 16"),
    ],
)
def test_classes_and_lengths_that_cannot_be(checkpoint, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        load_ast(str(checkpoint), **{"n_classes": 3} | arguments)


# ---- from waveform to logits


@pytest.mark.parametrize("final_output", ["class", "both", "mean"])
def test_the_classifier_is_front_end_and_ast(checkpoint, final_output):
    model = AstClassifier(str(checkpoint), 3, max_length=96, final_output=final_output).eval()
    theirs, _ = load_ast(str(checkpoint), 3, 96)
    waveforms = torch.randn(2, 8000) / 10  # 48 frames, the rest is padding
    specs = KaldiFbank(n_mels=36, max_length=96)(waveforms)
    with torch.no_grad():
        states = theirs.audio_spectrogram_transformer(specs).last_hidden_state
        vectors = {"class": states[:, 0], "both": states[:, :2].mean(1), "mean": states.mean(1)}
        torch.testing.assert_close(model.embed(waveforms), vectors[final_output])
        torch.testing.assert_close(model(waveforms), theirs.classifier(vectors[final_output]))
        if final_output == "both":
            torch.testing.assert_close(model(waveforms), theirs(specs).logits)
        long = torch.randn(1, 32000)
        torch.testing.assert_close(model(long), model(long[:, :15600]))  # 95 * 160 + 400 samples are 96 frames


class LinearProbe(AstClassifier):
    """As a notebook would write it: the head alone learns."""

    def __init__(self, pretrained, n_classes, max_length=400):
        super().__init__(pretrained, n_classes, max_length)
        self.encoder.requires_grad_(False)


class LoraClassifier(AstClassifier):
    """As a notebook would write it: LoRA on queries and values (Hu et al. 2022)."""

    def __init__(self, pretrained, n_classes, max_length=400):
        super().__init__(pretrained, n_classes, max_length)
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), self.encoder)


def test_a_run_keeps_what_was_trained_and_no_more(checkpoint, tmp_path):
    waveforms = torch.randn(8, 16000) / torch.tensor([1.0, 100.0]).repeat(4)[:, None]  # loud and soft
    dataset = ArrayDataset(waveforms, torch.tensor([0, 1] * 4))
    how = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "device": "cpu", "precision": "float32", "progress": False}
    head = {"head.layernorm.weight", "head.layernorm.bias", "head.dense.weight", "head.dense.bias"}
    for model_class in (LinearProbe, LoraClassifier, AstClassifier):
        seed_everything(0)
        model = model_class(str(checkpoint), 2, max_length=96)
        history = fit(model, dataset, dataset, **how)
        encoder = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
        adapters = {name for name in encoder if "lora_" in name}
        assert len(adapters) == (8 if model_class is LoraClassifier else 0)
        assert set(model.state_dict()) == head | (encoder if model_class is AstClassifier else adapters)
        folder = save_run(
            "sounds", model, {"SEED": 0}, ["loud", "soft"], {"sample_rate": 16000, "seconds": 1.0}, history,
            {"accuracy": 1.0}, "all right", folder=tmp_path,
            model_arguments={"pretrained": str(checkpoint), "n_classes": 2, "max_length": 96},
        )  # fmt: skip
        loaded = load_run(folder).model
        with torch.no_grad():
            assert torch.equal(loaded(waveforms), model.eval()(waveforms))
            assert torch.equal(copy.deepcopy(model)(waveforms), model(waveforms))
    with pytest.raises(RuntimeError, match="Missing key.*head.dense.bias"):
        probe = LinearProbe(str(checkpoint), 2, 96)
        probe.load_state_dict({name: tensor for name, tensor in probe.state_dict().items() if "bias" not in name})


class OwnHead(AstClassifier):
    """A linear layer in the place of AST's head."""

    def __init__(self, pretrained, n_classes, max_length=400):
        super().__init__(pretrained, n_classes, max_length)
        self.head = nn.Linear(WIDTH, n_classes)


class OwnFrontEnd(AstClassifier):
    """Spectrograms in the place of waveforms."""

    def __init__(self, pretrained, n_classes, max_length=400):
        super().__init__(pretrained, n_classes, max_length)
        self.front_end = nn.Identity()


def save_model(model, checkpoint: Path, folder: Path, **arguments) -> str:
    history = pd.DataFrame({"epoch": [1], "val_accuracy": [0.5]})
    return str(save_run(
        "sounds", model, {"SEED": 0}, ["loud", "soft"], {"sample_rate": 16000, "seconds": 1.0}, history, {}, "-",
        folder=folder, model_arguments={"pretrained": str(checkpoint), "n_classes": 2, "max_length": 96} | arguments,
    ))  # fmt: skip


def test_a_run_of_an_ast_becomes_the_next_backbone(checkpoint, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "with extractor")
    ASTFeatureExtractor(num_mel_bins=36, max_length=190, mean=-6.5, std=3.25).save_pretrained(folder)
    seed_everything(0)
    trained = AstClassifier(str(folder), 2, 96, final_output="both").eval()
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    run = save_model(trained, folder, tmp_path, final_output="both")
    capsys.readouterr()

    seed_everything(3)
    expected = torch.rand(1)
    seed_everything(3)
    model, used_name = load_ast(run, 3, 96, class_names=NAMES)
    assert torch.rand(1) == expected and capsys.readouterr().out == ""
    assert used_name == run and not model.training
    assert list(model.config.id2label.values()) == NAMES and model.classifier.dense.out_features == 3
    assert model.config.front_end == {
        "sample_rate": 16000, "n_mels": 36, "max_length": 96, "mean": -6.5, "std": 3.25, "normalize": True,
    }  # fmt: skip
    fresh = load_ast(str(checkpoint), 3, 96)[0].classifier.dense
    assert torch.equal(model.classifier.dense.weight, fresh.weight) and not model.classifier.dense.bias.any()
    model.classifier.dense = trained.head.dense
    waveforms = torch.randn(3, 16000) / 10
    with torch.no_grad():
        specs = KaldiFbank(**model.config.front_end)(waveforms)
        torch.testing.assert_close(model(specs).logits, trained(waveforms))

    shorter, _ = load_ast(run, 3, 56)  # five columns of patches of nine
    grids = [encoder.embeddings.position_embeddings[0, 2:].unflatten(0, (ROWS, -1))
             for encoder in (shorter.audio_spectrogram_transformer, trained.encoder)]  # fmt: skip
    assert torch.equal(grids[0], grids[1][:, 2:7])
    assert shorter.config.max_length == shorter.config.front_end["max_length"] == 56
    again = AstClassifier(run, 3, 96)  # a run on top of a run
    assert torch.equal(again.encoder.layernorm.weight, trained.encoder.layernorm.weight)


def test_all_of_a_backbone_can_learn_whatever_was_frozen_in_its_run(checkpoint, tmp_path):
    run = save_model(LinearProbe(str(checkpoint), 2, 96), checkpoint, tmp_path)
    model, _ = load_ast(run, 3, 96)
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == []


@pytest.mark.parametrize("model_class", [LoraClassifier, OwnHead, OwnFrontEnd])
def test_runs_that_are_more_or_less_than_an_ast_are_refused(checkpoint, tmp_path, model_class):
    run = save_model(model_class(str(checkpoint), 2, 96), checkpoint, tmp_path)
    with pytest.raises(ValueError, match=f"^{run} holds more or less than an AST and its KaldiFbank") as error:
        load_ast(run, 3, 96)
    assert "\n" not in str(error.value) and str(error.value).endswith("name a run of which all weights learned.")


def test_classifiers_that_cannot_be(checkpoint):
    with pytest.raises(ValueError, match="final_output='all' is unknown; choose class, both or mean"):
        AstClassifier(str(checkpoint), 3, final_output="all")
    with pytest.raises(ValueError, match="was trained on 16000 Hz, not 8000; decode clips at that"):
        AstClassifier(str(checkpoint), 3, sample_rate=8000)
    with pytest.raises(FileNotFoundError, match="neither a folder here nor in the hub's cache"):
        AstClassifier(AST, 3)  # weights of one checkpoint must not meet another
