"""TinyAST as the notebook defines it: parameter counts, equality with transformers' AST, attention, augmentation."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from shared_utils.datasets import load_esc50
from shared_utils.device import ROOT, seed_everything
from shared_utils.notebooks import load_definitions
from shared_utils.runs import load_run, predict_files

NOTEBOOK = ROOT / "audio_spectrogram_transformer" / "audio_transformer_pipeline.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return load_definitions(NOTEBOOK)


def make(notebook, embedding, **changes):
    seed_everything(0)
    arguments = {"n_mels": 64, "n_frames": 498, "n_classes": 10, "d_model": 128, "n_layers": 3,
                 "n_heads": 2, "dropout": 0.1} | changes
    model = notebook["TinyAST"](embedding, **arguments)
    for parameter in model.parameters():  # no tensor may stay at a value that hides a wrong place
        if parameter.ndim <= 1:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.parametrize(("embedding", "grid"), [("stem", (2, 16)), ("patches", (5, 49))])
def test_parameter_counts(notebook, embedding, grid):
    model = make(notebook, embedding)
    d, n_tokens = 128, grid[0] * grid[1] + 2
    layer = 4 * (d * d + d) + 2 * 2 * d + (d * 4 * d + 4 * d) + (4 * d * d + d)
    tokens = {
        "patches": 16 * 16 * d + d,
        "stem": (25 * 32 + 64) + (9 * 32 * 64 + 128) + (9 * 64 * 96 + 192) + (9 * 96 * 128 + 256) + (9 * 128 * d + d),
    }[embedding]
    expected = tokens + (n_tokens + 2) * d + 3 * layer + 2 * d + (2 * d + d * 10 + 10)
    assert model.grid == grid
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_patches_equal_the_ast_of_transformers(notebook):
    model = make(notebook, "patches", n_heads=4, n_layers=2, dropout=0.3)
    theirs = notebook["to_hugging_face"](model)
    specs = torch.randn(3, 498, 64)
    with torch.no_grad():
        assert (theirs(specs).logits - model(specs)).abs().max() < 1e-5
    assert theirs.config.max_length == 498 and theirs.config.num_attention_heads == 4


def test_the_converted_model_survives_saving(notebook, tmp_path):
    from transformers import ASTForAudioClassification

    model = make(notebook, "patches")
    notebook["to_hugging_face"](model).save_pretrained(tmp_path)
    loaded = ASTForAudioClassification.from_pretrained(tmp_path).eval()
    specs = torch.randn(2, 498, 64)
    with torch.no_grad():
        assert (loaded(specs).logits - model(specs)).abs().max() < 1e-5


def test_attention_is_what_the_forward_pass_uses(notebook):
    layer = make(notebook, "stem").layers[0]
    x = torch.randn(2, 9, 128)
    attention = layer.attention(x)  # (batch, heads, tokens, tokens)
    mixed = attention @ layer.heads(x)[2]
    by_hand = x + layer.out(mixed.transpose(1, 2).flatten(2))
    by_hand = by_hand + layer.fc2(nn.functional.gelu(layer.fc1(layer.norm2(by_hand))))
    torch.testing.assert_close(layer(x), by_hand, atol=1e-5, rtol=1e-5)


def test_rollout_follows_attention_through_the_layers(notebook):
    model = make(notebook, "stem")
    maps = notebook["rollout"](model, torch.randn(2, 498, 64))
    assert maps.shape == (2, 2, 16)
    np.testing.assert_allclose(maps.sum((1, 2)), 1, rtol=1e-5)

    with torch.no_grad():  # make both layers attend to token 5 alone: the whole map must lie on the cell of token 5
        for layer in model.layers:
            layer.attention = lambda x: torch.eye(x.shape[1])[5].expand(x.shape[0], 2, x.shape[1], -1)
    maps = notebook["rollout"](model, torch.randn(1, 498, 64)).flatten()
    assert maps.argmax() == 3 and maps[3] == pytest.approx(1)


def test_occlusion_finds_the_only_piece_that_matters(notebook):
    class Loud(nn.Module):
        def forward(self, specs):  # class 1 is the energy of frames 100 to 150 in the lowest quarter of the bands
            energy = specs[:, 100:150, :16].mean((1, 2))
            return torch.stack([torch.zeros_like(energy), energy], 1)

    spec = torch.zeros(498, 64)
    spec[100:150, :16] = 5.0
    losses = notebook["occlusion"](Loud(), spec, 1)
    assert losses.shape == (4, 10) and losses.flatten().argmax() == 2 and (losses > 0.01).sum() == 1


def test_augment_moves_and_scales_but_keeps_its_hands_off_in_evaluation(notebook):
    specs = torch.randn(4, 498, 64)
    augment = notebook["Augment"](max_gain=0.15, freq_width=0, time_width=0)
    assert torch.equal(augment.eval()(specs), specs)
    seed_everything(0)
    altered = augment.train()(specs)
    gains = altered.mean((1, 2)) - specs.mean((1, 2))
    assert gains.abs().max() <= 0.15 + 1e-6 and gains.std() > 0.01
    moved = (altered - gains[:, None, None]).sum(2).sort(1).values
    torch.testing.assert_close(moved, specs.sum(2).sort(1).values, atol=1e-3, rtol=1e-3)  # the same frames, moved
    assert not torch.allclose(altered[0] - gains[0], specs[0], atol=1e-3)


@pytest.mark.parametrize("name", ["tiny_ast_esc10", "tiny_ast_esc10_patches"])
def test_published_weights_predict_recordings_they_never_heard(real_data, name):
    folder = ROOT / "models" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 5_000_000
    clips = load_esc50(real_data, source="real")
    held_out = clips[clips["fold"] == 1]  # the test fold of the published weights
    run = load_run(folder)
    assert run.settings["FOLDS"][0] == 1 and run.data == {"data_set": "ESC-10", "demo": False}
    predicted = predict_files(run, held_out["path"])["predicted"].to_numpy()
    accuracy = (predicted == held_out["class_name"].to_numpy()).mean()
    # the run averaged shifts and multiplied in bfloat16: a clip on the edge may fall to the other side
    assert accuracy == pytest.approx(run.metrics["test_accuracy_of_these_weights"], abs=0.04)
    assert not re.search(r'"/[a-z]+/', (folder / "run.json").read_text())  # no path of one machine
