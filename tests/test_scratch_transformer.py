"""The raw-audio models as the notebook defines them: counts, equality with PyTorch's layers, collapse, filter bank."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared_utils.audio import cut_windows
from shared_utils.datasets import ArrayDataset, load_esc50
from shared_utils.device import ROOT, seed_everything
from shared_utils.notebooks import load_definitions
from shared_utils.spectrograms import RandomCrop
from shared_utils.splits import split_by_fold
from shared_utils.tracking import check_tracker
from shared_utils.training import count_parameters, cross_validate, evaluate

NOTEBOOK = ROOT / "audio_spectrogram_transformer" / "cnn1d_scratch_transformer.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return load_definitions(NOTEBOOK)


@pytest.fixture(scope="module")
def clips():
    return load_esc50(source="demo")


def randomise(module):
    """Give every parameter a value of its own, so that no norm, bias or zero hides a wrong place."""
    for parameter in module.parameters():
        with torch.no_grad():
            parameter += 0.2 * torch.randn_like(parameter)
    return module


# ---- parameter counts

CONVOLUTIONS = (3 * 1 * 32 + 32) + (3 * 32 * 64 + 64) + (3 * 64 * 128 + 128)  # weights and biases
CNN_NORMS = 2 * (32 + 64 + 128)


def block_size(d_model, d_ff):  # attention without biases, an MLP with them, two norms
    return 4 * d_model**2 + (d_model * d_ff + d_ff) + (d_ff * d_model + d_model) + 2 * 2 * d_model


def test_parameters_of_the_reference_cnn(notebook):
    with torch.device("meta"):
        model = notebook["Cnn1d"](10, 16000)
    by_hand = CONVOLUTIONS + CNN_NORMS + (128 * 2000 * 10 + 10)
    assert count_parameters(model) == (by_hand, by_hand) == (2_591_498, 2_591_498)


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_parameters_of_the_reference_transformer(notebook, n_heads):
    with torch.device("meta"):  # 48 million weights that nobody looks at
        model = notebook["ReferenceTransformer"](10, 16000, 2000, n_heads)
    by_hand = CONVOLUTIONS + CNN_NORMS + 2000 + 3 * block_size(2000, 32) + (2000 * 10 + 10)
    assert count_parameters(model) == (by_hand, by_hand) == (48_467_594, 48_467_594)
    with torch.device("meta"):
        repaired = notebook["ReferenceTransformer"](10, 16000, 200, n_heads, pre_norm=True, tokens="time")
    added = 2 * 200 + (128 * 200 + 200)  # the last norm and the projection
    rest = CONVOLUTIONS + CNN_NORMS + 200 + 3 * block_size(200, 32) + (200 * 10 + 10)
    assert count_parameters(repaired)[0] == rest + added


@pytest.mark.parametrize(("n_samples", "d_model", "n_layers"), [(16000, 96, 3), (12345, 32, 2)])
def test_parameters_of_the_repaired_transformer(notebook, n_samples, d_model, n_layers):
    model = notebook["RepairedTransformer"](7, n_samples, d_model, n_layers, 2)
    stem = (32 * 1 * 32 + 64) + (9 * 32 * 64 + 128) + (5 * 64 * 96 + 192) + (5 * 96 * d_model + 2 * d_model)
    n_positions = n_samples // 256 + 2
    head = 2 * d_model + d_model * 7 + 7
    expected = stem + (1 + n_positions) * d_model + n_layers * block_size(d_model, 4 * d_model) + head
    assert count_parameters(model)[0] == expected
    assert model.tokens(torch.randn(2, n_samples)).shape == (2, n_positions, d_model)


@pytest.mark.parametrize(
    ("n_samples", "n_tokens"), [(80000, 32), (16000, 8), (20480 - 1, 8), (20480, 8), (20480 + 120, 10)]
)
def test_parameters_of_the_audio_transformer(notebook, n_samples, n_tokens):
    d_model = 40
    model = notebook["AudioTransformer"](7, n_samples, 16000, d_model=d_model, n_layers=2)
    stem = (25 * 1 * 32 + 64) + (9 * 32 * 64 + 128) + (9 * 64 * 96 + 192) + (9 * 96 * 128 + 256)
    stem += 9 * 128 * d_model + d_model + 2  # the scale before it has two
    expected = 128 * 400 + stem + 2 * block_size(d_model, 4 * d_model) + 2 * d_model + (d_model * 7 + 7)
    assert count_parameters(model)[0] - expected == d_model + (1 + n_tokens) * d_model  # class token and positions
    with torch.no_grad():
        assert model.tokens(torch.zeros(1, n_samples)).shape == (1, 1 + n_tokens, d_model)


# ---- the CNN


class PlainCnn(nn.Module):
    """The same network as one writes it down."""

    def __init__(self, n_classes, n_samples):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(32, 64, 3, padding=1), nn.BatchNorm1d(64), nn.ReLU(), nn.MaxPool1d(2),
            nn.Conv1d(64, 128, 3, padding=1), nn.BatchNorm1d(128), nn.ReLU(), nn.AvgPool1d(2),
        )  # fmt: skip
        self.head = nn.Linear(128 * (n_samples // 8), n_classes)

    def forward(self, waveforms):
        loudness = waveforms.std(1, keepdim=True)
        return self.head(self.layers((waveforms / (loudness + 0.001))[:, None]).flatten(1))


@pytest.mark.parametrize("n_samples", [1000, 1003])
def test_the_cnn_equals_one_of_conv1d(notebook, n_samples):
    seed_everything(0)
    ours, plain = randomise(notebook["Cnn1d"](10, n_samples)), PlainCnn(10, n_samples)
    with torch.no_grad():
        ours.head.weight *= 0.05  # 16,000 features add up: logits of a few units
    weights = {name: tensor.squeeze(2) if tensor.ndim == 4 else tensor for name, tensor in ours.state_dict().items()}
    plain.load_state_dict(weights)
    waveforms = torch.randn(6, n_samples) * torch.tensor([1, 0.1, 0.01, 1e-3, 1, 0])[:, None]  # the last is silent
    with torch.no_grad():
        for _ in range(2):  # the running statistics become others than zero and one
            torch.testing.assert_close(ours.train()(waveforms), plain.train()(waveforms), atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.eval()(waveforms), plain.eval()(waveforms), atol=1e-4, rtol=0)
        assert ours(waveforms).isfinite().all()
        assert ours.features(waveforms).shape == (6, 128, n_samples // 8)
    int16 = (32767 * waveforms.clamp(-1, 1)).short()
    torch.testing.assert_close(ours(int16), plain(int16.float() / 32768), atol=1e-4, rtol=0)

    loud = waveforms[:5].double()  # without silence, where the largest of equals has any place
    for model in (ours, plain):
        F.cross_entropy(model.double().train()(loud), torch.arange(5)).backward()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad.reshape(theirs.shape), theirs.grad)


def test_an_untrained_cnn_prefers_no_class(notebook):
    model = notebook["Cnn1d"](10, 800)
    logits = model(torch.randn(4, 800))
    torch.testing.assert_close(logits, model.head.bias.expand(4, -1))


# ---- attention and encoder blocks


def pytorch_attention(ours, d_model):
    """Return nn.MultiheadAttention with the weights of `ours`."""
    theirs = nn.MultiheadAttention(d_model, ours.n_heads, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.out_proj.weight.copy_(ours.out.weight)
    return theirs


@pytest.mark.parametrize("n_heads", [1, 2, 4])
def test_attention_equals_pytorch(notebook, n_heads):
    seed_everything(0)
    ours = notebook["MultiHeadAttention"](48, n_heads)
    theirs = pytorch_attention(ours, 48)
    x = 2 * torch.randn(3, 17, 48)
    x_theirs = x.clone().requires_grad_()
    x.requires_grad_()
    expected, shares = theirs(x_theirs, x_theirs, x_theirs, average_attn_weights=False)
    outputs, attention = ours(x), ours.attention(x)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention, shares, atol=1e-5, rtol=0)
    torch.testing.assert_close(attention.sum(3), torch.ones(3, n_heads, 17), atol=1e-5, rtol=0)
    assert attention.max() > 0.3 and attention.min() >= 0  # far from even, where a mistake could hide

    upstream = torch.randn_like(outputs)
    outputs.backward(upstream)
    expected.backward(upstream)
    gradients = torch.cat([ours.query.weight.grad, ours.key.weight.grad, ours.value.weight.grad])
    torch.testing.assert_close(gradients, theirs.in_proj_weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.out.weight.grad, theirs.out_proj.weight.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad, x_theirs.grad, atol=1e-5, rtol=1e-5)


def test_one_head_and_four_are_different_functions(notebook):
    seed_everything(0)
    one, four = notebook["MultiHeadAttention"](48, 1), notebook["MultiHeadAttention"](48, 4)
    four.load_state_dict(one.state_dict())
    x = 2 * torch.randn(3, 17, 48)
    assert (one(x) - four(x)).abs().max() > 0.05


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_an_encoder_block_equals_pytorch(notebook, pre_norm, n_heads):
    seed_everything(0)
    block = randomise(notebook["EncoderBlock"](48, n_heads, 32, pre_norm))
    layer = notebook["to_pytorch"](block)
    assert layer.norm_first == pre_norm and layer.self_attn.num_heads == n_heads
    x = torch.randn(3, 17, 48)
    with torch.no_grad():  # PyTorch's fused layers, and the plain ones of training
        torch.testing.assert_close(block.eval()(x), layer.eval()(x), atol=1e-5, rtol=0)
        torch.testing.assert_close(block.train()(x), layer.train()(x), atol=1e-5, rtol=0)

    x_theirs = x.clone().requires_grad_()
    x.requires_grad_()
    upstream = torch.randn_like(x)
    block(x).backward(upstream)
    layer(x_theirs).backward(upstream)
    attend = block.attend
    pairs = [
        (torch.cat([part.weight.grad for part in (attend.query, attend.key, attend.value)]),
         layer.self_attn.in_proj_weight.grad),
        (attend.out.weight.grad, layer.self_attn.out_proj.weight.grad),
        (x.grad, x_theirs.grad),
    ]  # fmt: skip
    for mine, theirs in ((block.mlp[0], layer.linear1), (block.mlp[2], layer.linear2), (block.norm1, layer.norm1),
                         (block.norm2, layer.norm2)):  # fmt: skip
        pairs += [(mine.weight.grad, theirs.weight.grad), (mine.bias.grad, theirs.bias.grad)]
    for mine, theirs in pairs:
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_dropout_lies_on_both_branches_of_a_block(notebook):
    x = torch.randn(2, 9, 16)
    block = randomise(notebook["EncoderBlock"](16, 2, 32, True, dropout=1.0))
    assert torch.equal(block.train()(x), x)  # only the residual path is left
    assert not torch.allclose(block.eval()(x), x, atol=0.1)


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize(
    "changes", [{}, {"pre_norm": True, "tokens": "time", "n_tokens": 20}], ids=["as it was", "repaired"]
)
def test_the_reference_equals_an_encoder_of_pytorch(notebook, changes, n_heads):
    seed_everything(0)
    model = randomise(notebook["ReferenceTransformer"](10, 1600, 48, n_heads, **changes)).eval()
    layers = [notebook["to_pytorch"](block) for block in model.blocks]
    norm = model.norm if changes else None
    encoder = nn.TransformerEncoder(layers[0], 3, norm=norm, enable_nested_tensor=False).eval()
    encoder.layers = nn.ModuleList(layers)
    waveforms = torch.randn(4, 1600)
    with torch.no_grad():
        tokens = model.tokens(waveforms)
        logits = model.head(encoder(tokens)[:, 0])
        torch.testing.assert_close(model(waveforms), logits, atol=1e-5, rtol=0)
        assert logits.std(0).max() > 0.01  # the clips are told apart
        tokens[:, 1:] = torch.randn_like(tokens[:, 1:])
        assert not torch.allclose(model.head(encoder(tokens)[:, 0]), logits, atol=1e-2)  # the tokens matter


@pytest.mark.parametrize("n_heads", [1, 2, 4])
@pytest.mark.parametrize("name", ["RepairedTransformer", "AudioTransformer"])
def test_the_repaired_models_equal_a_pre_norm_encoder_of_pytorch(notebook, name, n_heads):
    seed_everything(0)
    arguments = {
        "RepairedTransformer": (10, 8000, 48, 2, n_heads),
        "AudioTransformer": (10, 8000, 16000, 48, 2, n_heads),
    }
    model = randomise(notebook[name](*arguments[name])).eval()
    layers = [notebook["to_pytorch"](block) for block in model.blocks]
    assert all(layer.norm_first and layer.linear1.out_features == 4 * 48 for layer in layers)
    encoder = nn.TransformerEncoder(layers[0], 2, norm=model.norm, enable_nested_tensor=False).eval()
    encoder.layers = nn.ModuleList(layers)
    waveforms = 0.1 * torch.randn(4, 8000)
    waveforms[3] = 0
    with torch.no_grad():
        logits = model.head(encoder(model.tokens(waveforms))[:, 0])
        torch.testing.assert_close(model(waveforms), logits, atol=1e-5, rtol=1e-5)
        assert logits.isfinite().all() and logits.std(0).max() > 0.01
        int16 = (32768 * waveforms).short()
        torch.testing.assert_close(model(int16), model(int16.float() / 32768))


# ---- tokens and positions


@pytest.mark.parametrize("d_model", [96, 7])
def test_positions_are_those_of_vaswani(notebook, d_model):
    positions = notebook["sine_positions"](129, d_model)
    expected = torch.empty(129, d_model, dtype=torch.float64)
    for place in range(129):
        for column in range(d_model):
            angle = place / 10000 ** (2 * (column // 2) / d_model)
            expected[place, column] = math.cos(angle) if column % 2 else math.sin(angle)
    torch.testing.assert_close(positions.double(), expected, atol=1e-4, rtol=0)


def test_tokens_are_channels_or_moments(notebook):
    seed_everything(0)
    waveforms = torch.randn(3, 1600)
    positions = notebook["sine_positions"]

    def read(d_model, **changes):  # tokens without positions, and the features that they are made of
        model = randomise(notebook["ReferenceTransformer"](10, 1600, d_model, 2, **changes)).eval()
        with torch.no_grad():
            x = model.tokens(waveforms)
            x = x - positions(x.shape[1], d_model)
            torch.testing.assert_close(x[:, :1], model.class_token.expand(3, -1, -1))
            return x[:, 1:], model.cnn.features(waveforms), model.projection

    close = {"atol": 1e-5, "rtol": 1e-5}
    tokens, features, _ = read(200)  # 1600 samples leave 200 steps: each channel is a token as it is
    torch.testing.assert_close(tokens, features, **close)
    tokens, features, _ = read(50)
    torch.testing.assert_close(tokens, features.unflatten(2, (50, 4)).mean(3), **close)
    tokens, features, _ = read(50, n_tokens=16)
    torch.testing.assert_close(tokens, features.unflatten(2, (50, 4)).mean(3).unflatten(1, (16, 8)).mean(2), **close)
    tokens, features, projection = read(32, tokens="time", n_tokens=40)
    expected = projection(features.unflatten(2, (40, 5)).mean(3).transpose(1, 2)).detach()
    torch.testing.assert_close(tokens, expected, **close)
    assert read(32, tokens="time")[0].shape == (3, 125, 32)


# ---- windows: a clip's stay together, and their mean is its answer


def place_windows(clips, windows, test_fold, val_fold):
    """Return a row a window: the clip whose samples it holds, its source and the side of the split it is on."""
    sides = dict(zip(("train", "val", "test"), split_by_fold(clips, test_fold, val_fold), strict=True))
    tables = []
    for side, rows in sides.items():
        samples = windows[rows].reshape(-1, windows.shape[2])
        assert (samples == samples[:, :1]).all()  # no window holds samples of two clips
        tables.append(pd.DataFrame({"clip": samples[:, 0], "side": side}))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(source=clips["source"].to_numpy()[table["clip"]])


def find_torn(table, what):
    n_sides = table.groupby(what)["side"].nunique()
    return n_sides.index[n_sides > 1].tolist()


def number_clips(n_clips, n_samples):
    """Return "recordings" (clips, samples) of which every sample is the number of the clip."""
    return np.repeat(np.arange(n_clips)[:, None], n_samples, axis=1)


def test_five_seconds_are_nine_windows():
    windows = cut_windows(np.arange(80000)[None], 16000, 8000)
    assert windows.shape == (1, 9, 16000)
    assert windows[0, :, 0].tolist() == [8000 * k for k in range(9)] and windows[0, 8, -1] == 79999


@pytest.mark.parametrize("test_fold", [1, 2, 3, 4, 5])
def test_the_windows_of_a_clip_are_on_one_side(clips, test_fold):
    windows = cut_windows(number_clips(len(clips), 50), 10, 5)
    for val_fold in {1, 2, 3, 4, 5} - {test_fold}:
        table = place_windows(clips, windows, test_fold, val_fold)
        assert table["clip"].value_counts().eq(9).all() and table["clip"].nunique() == len(clips)
        assert table["side"].value_counts().to_dict() == {"train": 240 * 9, "val": 80 * 9, "test": 80 * 9}
        assert find_torn(table, "clip") == [] and find_torn(table, "source") == []

        planted = table.copy()
        planted.loc[0, "side"] = "test"
        assert find_torn(planted, "clip") == [table["clip"][0]]
        assert find_torn(planted, "source") == [table["source"][0]]


def test_no_window_of_a_held_out_clip_is_ever_trained_on(clips):
    """The same for a whole cross-validation: what the model is shown in training and in evaluation."""
    models = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shown = nn.Linear(10, 10), {True: [], False: []}
            models.append(self)

        def forward(self, inputs):
            assert (inputs == inputs[:, :1]).all()
            self.shown[self.training].append(inputs[:, 0].int())
            return self.layer(inputs / 400)

    dataset = ArrayDataset(number_clips(len(clips), 50).astype(np.float32), clips["label"].to_numpy())
    views = [lambda clips, k=k: cut_windows(clips, 10, 5)[:, k] for k in range(9)]
    result = cross_validate(Spy, dataset, clips, epochs=1, batch_size=80, augment=RandomCrop(10, 5), views=views,
                            device="cpu", progress=False)  # fmt: skip
    assert len(models) == len(result["folds"]) == 5
    for model, row in zip(models, result["folds"].itertuples(), strict=True):
        trained = torch.cat(model.shown[True]).numpy()
        judged, n_times = np.unique(torch.cat(model.shown[False]).numpy(), return_counts=True)
        train, val, test = split_by_fold(clips, row.fold, row.val_fold)
        assert sorted(trained) == train.tolist()
        assert judged.tolist() == sorted([*val, *test])
        # nine windows each time: validation clips once, test clips as the watched set and at the end
        assert (n_times == np.where(np.isin(judged, test), 18, 9)).all()


def test_a_clip_is_answered_by_the_mean_over_its_windows(notebook):
    seed_everything(0)
    model = randomise(notebook["Cnn1d"](3, 400))
    with torch.no_grad():
        model.head.weight *= 0.3
    waveforms = torch.randint(-9000, 9000, (24, 1000), dtype=torch.int16)
    labels = torch.arange(24) % 3
    views = [lambda clips, k=k: cut_windows(clips, 400, 150)[:, k] for k in range(5)]
    result = evaluate(
        model, ArrayDataset(waveforms, labels), views=views, batch_size=7, device="cpu", precision="float32"
    )
    with torch.no_grad():
        logits = [model.eval()(waveforms[:, start : start + 400]) for start in range(0, 601, 150)]
    alone = torch.stack(logits).softmax(2)  # (windows, clips, classes)
    np.testing.assert_allclose(result["probabilities"], alone.mean(0), atol=1e-6)
    assert result["accuracy"] == pytest.approx((alone.mean(0).argmax(1) == labels).float().mean().item())
    assert result["view_accuracy"] == pytest.approx((alone.argmax(2) == labels).float().mean().item())
    assert result["view_accuracy"] != pytest.approx(result["accuracy"], abs=0.01)


# ---- the collapse, and what ends it


@pytest.fixture(scope="module")
def tones():
    """Clips of four pitches that nobody confuses: waveforms (8, 800) and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat_interleave(2)
    angles = 2 * math.pi * torch.tensor([150.0, 500.0, 1700.0, 5000.0])[labels, None] * torch.arange(800) / 16000
    phases = 2 * math.pi * torch.rand(8, 1, generator=generator)
    return 0.3 * (angles + phases).sin() + 0.03 * torch.randn(8, 800, generator=generator), labels


def teach(make_model, tones, lr, seed):
    """Train 16 steps of Adam on all clips at once; return (model, classes answered, accuracy on these clips)."""
    waveforms, labels = tones
    seed_everything(seed)
    model = make_model().train()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for _ in range(16):
        loss = F.cross_entropy(model(waveforms), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    result = evaluate(model, ArrayDataset(waveforms, labels), device="cpu", precision="float32")
    return model.eval(), set(result["probabilities"].argmax(1)), result["accuracy"]


def gradient_ratio(model):  # how much of the gradient at the last block reaches the first
    first, *_, last = [torch.stack([p.grad.norm() for p in block.parameters()]).norm() for block in model.blocks]
    return (first / last).item()


@pytest.mark.parametrize(("n_heads", "seed"), [(1, 0), (2, 1), (4, 2)])
def test_the_reference_collapses_and_the_repair_does_not(notebook, tones, n_heads, seed):
    """Post-norm, channels as tokens, Adam with too high a rate for the width: one class for everything."""
    model, answers, accuracy = teach(
        lambda: notebook["ReferenceTransformer"](4, 800, 100, n_heads), tones, lr=0.03, seed=seed
    )
    assert len(answers) == 1 and accuracy == pytest.approx(1 / 4)
    assert notebook["look_inside"](model, tones[0])[1][-1] > 0.99  # all tokens are alike
    assert gradient_ratio(model) < 0.05

    model, answers, accuracy = teach(
        lambda: notebook["RepairedTransformer"](4, 800, 48, 2, n_heads), tones, lr=1e-3, seed=seed
    )
    assert len(answers) == 4 and accuracy > 0.9
    assert notebook["look_inside"](model, tones[0])[1][-1] < 0.99
    assert gradient_ratio(model) > 0.3


def test_a_lower_rate_ends_the_collapse_and_so_do_the_repairs_with_it(notebook, tones):
    model, answers, accuracy = teach(lambda: notebook["ReferenceTransformer"](4, 800, 100, 2), tones, lr=1e-3, seed=1)
    assert len(answers) >= 2 and accuracy >= 0.5
    assert notebook["look_inside"](model, tones[0])[1][-1] < 0.9 and gradient_ratio(model) > 0.3

    changes = {"pre_norm": True, "tokens": "time", "n_tokens": 25}
    model, answers, accuracy = teach(
        lambda: notebook["ReferenceTransformer"](4, 800, 48, 2, **changes), tones, lr=1e-3, seed=1
    )
    assert len(answers) >= 2 and accuracy >= 0.5
    assert notebook["look_inside"](model, tones[0])[1][-1] < 0.95


# ---- looking inside


class Still(nn.Module):
    """A model whose blocks leave its tokens as they are, so that they can be chosen; attention stays what it is."""

    def __init__(self, notebook, tokens, pre_norm=True):
        super().__init__()
        block = notebook["EncoderBlock"](tokens.shape[2], 1, 8, pre_norm)
        for layer in (block.attend.out, block.mlp[2]):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(block.mlp[2].bias)
        self.chosen, self.blocks = tokens, nn.ModuleList([block])

    def tokens(self, inputs):
        return self.chosen


def test_similarity_is_the_mean_cosine_of_two_tokens(notebook):
    look = notebook["look_inside"]

    def similarity(*tokens):
        return look(Still(notebook, torch.tensor([tokens])), None)[1][0]

    assert similarity([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1, abs=1e-6)
    assert similarity([1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 9.0]) == pytest.approx(0, abs=1e-6)
    assert similarity([1.0, -2.0], [-1.0, 2.0]) == pytest.approx(-1, abs=1e-6)
    # three of one kind and two of another, at right angles: 3 * 2 + 2 * 1 of 5 * 4 pairs are alike
    first, second = [1.0, 0.0, 0.0], [0.0, 7.0, 0.0]
    assert similarity(first, first, first, second, second) == pytest.approx(8 / 20, abs=1e-6)


def test_entropy_is_that_of_attention_relative_to_an_even_spread(notebook):
    look = notebook["look_inside"]
    model = Still(notebook, torch.randn(2, 8, 16))
    attend = model.blocks[0].attend
    before = look(model, None)[0][0]
    assert 0.5 < before < 0.999
    nn.init.zeros_(attend.query.weight)  # asks for nothing, so every token is as good
    assert look(model, None)[0][0] == pytest.approx(1, abs=1e-6)

    shares = torch.zeros(2, 1, 8, 8)
    shares[..., :2] = 0.5
    attend.attention = lambda x: shares  # two tokens of eight: one bit of three
    assert look(model, None)[0][0] == pytest.approx(1 / 3, abs=1e-6)
    attend.attention = lambda x: torch.eye(8).expand(2, 1, 8, 8)
    assert look(model, None)[0][0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_look_inside_sees_what_the_forward_pass_does(notebook, pre_norm):
    seed_everything(0)
    model = randomise(notebook["ReferenceTransformer"](10, 1600, 48, 2, pre_norm=pre_norm)).eval()
    waveforms = torch.randn(4, 1600)
    fed, left, hooks = [], [], []
    for block in model.blocks:
        hooks += [
            block.attend.register_forward_hook(lambda module, inputs, _: fed.append(module.attention(inputs[0]))),
            block.register_forward_hook(lambda *arguments: left.append(arguments[2])),
        ]
    with torch.no_grad():
        model(waveforms)
    for hook in hooks:
        hook.remove()
    entropies, similarities = notebook["look_inside"](model, waveforms)
    expected = [torch.special.entr(attention).sum(3).mean() / math.log(129) for attention in fed]
    assert entropies == pytest.approx([value.item() for value in expected], abs=1e-5)
    pairs = torch.triu_indices(129, 129, 1)
    expected = [F.cosine_similarity(x[:, pairs[0]], x[:, pairs[1]], dim=2).mean().item() for x in left]
    assert similarities == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 3) for value in entropies + similarities}) == 6


# ---- the learned filter bank


def mel_edges(n_filters):  # Hz, as the mel scale spaces triangles between 40 Hz and 8 kHz
    return 700 * np.expm1(np.linspace(np.log1p(40 / 700), np.log1p(8000 / 700), n_filters + 2))


def half_power_widths(filters, n_fft=2**15):
    """Return the frequencies in Hz at which pairs of filters (cosines, then sines) respond most, and the widths."""
    cosines, sines = np.split(filters.double().numpy(), 2)
    power = np.abs(np.fft.fft(cosines + 1j * sines, n_fft)) ** 2
    hertz = np.fft.fftfreq(n_fft, 1 / 16000)
    return hertz[power.argmax(1)], (power >= power.max(1, keepdims=True) / 2).sum(1) * 16000 / n_fft


def test_filters_are_as_wide_as_mel_triangles(notebook):
    edges = mel_edges(64)
    half_bases = (edges[2:] - edges[:-2]) / 2
    peaks, widths = half_power_widths(notebook["gabor_filters"](64, 6000, 16000))  # long enough for every band
    np.testing.assert_allclose(peaks, edges[1:-1], atol=0.5)
    np.testing.assert_allclose(widths, half_bases, rtol=0.05)

    peaks, widths = half_power_widths(notebook["gabor_filters"](64, 400, 16000))  # 25 ms, as in the model
    np.testing.assert_allclose(peaks, edges[1:-1], atol=0.5)
    deviations = math.sqrt(math.log(2)) / (math.pi * half_bases)  # seconds
    whole = 4 * deviations < 200 / 16000  # the Gauss window has room for four deviations on both sides
    assert 30 <= whole.sum() < 64
    np.testing.assert_allclose(widths[whole], half_bases[whole], rtol=0.2)
    assert (widths[~whole] > half_bases[~whole]).all()
    assert widths.min() == pytest.approx(63, abs=1)  # as narrow as 25 ms allow


def test_every_filter_answers_a_tone_of_its_frequency_loudest(notebook):
    bank = notebook["FilterBank"](64, 16000)
    centres = torch.tensor(mel_edges(64)[1:-1])
    tones = 0.5 * (2 * math.pi * centres[:, None] * torch.arange(8000) / 16000).sin().float()
    with torch.no_grad():
        loudness = bank(tones)[:, :, 5:-5].mean(2)  # (tones, filters), without the ends
    assert loudness.argmax(1).tolist() == list(range(64))
    best = loudness.sort(1).values
    assert (best[:, -1] - best[:, -2] > 0.1).all()
    # a tone of amplitude 1/2 through a filter that lets half of it pass, the other half being negative frequencies
    np.testing.assert_allclose(loudness.diagonal()[20:60], (math.log(0.25**2) + 14) / 4, atol=0.01)


def test_the_filter_bank_equals_a_plain_convolution(notebook):
    seed_everything(0)
    bank = notebook["FilterBank"](12, 16000, size=100, stride=20, pool=3)
    with torch.no_grad():
        bank.change.normal_()
    waveforms = 0.1 * torch.randn(3, 4000)
    filters = notebook["gabor_filters"](12, 100, 16000) + 0.001 * bank.change
    outputs = F.conv1d(waveforms[:, None], filters[:, None], stride=20, padding=50)  # (batch, 24, steps)
    energies = outputs[:, :12] ** 2 + outputs[:, 12:] ** 2
    n_frames = energies.shape[2] // 3
    means = energies[:, :, : 3 * n_frames].unflatten(2, (n_frames, 3)).mean(3)
    torch.testing.assert_close(bank(waveforms), ((means + 1e-10).log() + 14) / 4, atol=1e-4, rtol=1e-4)
    int16 = (32768 * waveforms).short()
    torch.testing.assert_close(bank(int16), bank(int16.float() / 32768))
    bank(waveforms).square().mean().backward()
    assert bank.change.grad.abs().max() > 0


def test_a_frame_is_ten_milliseconds_and_ten_decibels_are_a_step(notebook):
    bank = notebook["FilterBank"](64, 16000)
    seed_everything(0)
    noise = 0.05 * torch.randn(2, 80000)
    with torch.no_grad():
        quiet, loud = bank(noise), bank(noise * 10**0.5)
        assert quiet.shape == (2, 64, 500) and bank(noise[:, :16000]).shape == (2, 64, 100)
        torch.testing.assert_close(loud - quiet, torch.full_like(quiet, math.log(10) / 4), atol=1e-3, rtol=0)
        silence = bank(torch.zeros(1, 1600))
    torch.testing.assert_close(silence, torch.full_like(silence, (math.log(1e-10) + 14) / 4))

    click = torch.zeros(1, 16000)
    click[0, 8000] = 1.0  # at 500 ms, so in the highest band, whose filter is shortest, in frame 49 or 50
    with torch.no_grad():
        assert bank(click)[0, 63].argmax().item() in (49, 50)


# ---- bad input


def test_clips_too_short_for_windows_are_one_clear_sentence():
    with pytest.raises(ValueError, match="Clips of 8000 samples are shorter than a window of 16000; take a shorter"):
        cut_windows(np.zeros((3, 8000), np.int16), 16000, 8000)
    with pytest.raises(
        ValueError, match="Only one window of 16000 samples fits into clips of 16000 with a hop of 8000"
    ):
        cut_windows(torch.zeros(3, 16000), 16000, 8000)
    with pytest.raises(ValueError, match="Only one window"):
        evaluate(
            nn.Linear(400, 3), ArrayDataset(torch.zeros(4, 500), torch.zeros(4)), device="cpu",
            views=[lambda clips: cut_windows(clips, 400, 200)[:, 0]],
        )  # fmt: skip


def test_heads_must_divide_the_width(notebook):
    with torch.device("meta"):
        for make_model in (
            lambda: notebook["MultiHeadAttention"](250, 4),
            lambda: notebook["EncoderBlock"](250, 4, 32, True),
            lambda: notebook["ReferenceTransformer"](10, 16000, 250, 4),
            lambda: notebook["RepairedTransformer"](10, 16000, 250, 3, 4),
            lambda: notebook["AudioTransformer"](10, 80000, 16000, d_model=250, n_heads=4),
        ):
            with pytest.raises(ValueError, match="^4 heads do not divide a width of 250; choose a width"):
                make_model()


def test_tokens_of_an_unknown_kind_are_refused(notebook):
    with pytest.raises(ValueError, match="tokens='frequency' must be 'channels' or 'time'"):
        notebook["ReferenceTransformer"](10, 1600, 48, 2, tokens="frequency")


def test_a_fold_without_a_class_is_found_before_any_model_is_made(clips):
    name = clips["class_name"][0]
    poor = clips[(clips["fold"] != 4) | (clips["class_name"] != name)].reset_index(drop=True)
    dataset = ArrayDataset(torch.zeros(len(poor), 8), poor["label"].to_numpy())

    def make_model():
        pytest.fail("a model was made, so a training would have begun")

    with pytest.raises(ValueError, match=f"^Fold 4 has no clip of class '{name}'"):
        cross_validate(make_model, dataset, poor, epochs=1, device="cpu", progress=False)
    with pytest.raises(ValueError, match=f"^Fold 4 has no clip of class '{name}'"):
        cross_validate(make_model, dataset, poor, folds=[1], val_fold=4, epochs=1, device="cpu", progress=False)


def test_an_unknown_tracker_is_refused():
    with pytest.raises(ValueError, match="Tracker 'mlflow' is unknown; choose one of none, "):
        check_tracker("mlflow")
