"""The models of the Speech Commands notebooks: the reference's sizes, and attention equal to PyTorch's own."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from shared_utils.device import ROOT
from shared_utils.notebooks import load_definitions
from shared_utils.runs import export_onnx
from shared_utils.training import count_parameters


@pytest.fixture(scope="module")
def transformers() -> dict:
    return load_definitions(ROOT / "speech_commands_transformer" / "cnn_transformer.ipynb")


@pytest.fixture(scope="module")
def recurrent() -> dict:
    return load_definitions(ROOT / "speech_commands_transformer" / "gru_baselines.ipynb")


@pytest.mark.parametrize("kind, n_tokens", [("early", 6465), ("strided", 417), ("maxpool", 401)])
def test_grid_transformers_have_the_reference_s_size(transformers, kind, n_tokens):
    for positions in (False, True):
        assert count_parameters(transformers["GridTransformer"](kind, 12, positions)) == (2_147_404, 2_147_404)
    model = transformers["GridTransformer"](kind, 31).eval()
    assert count_parameters(model)[0] == 2_152_287
    with torch.no_grad():
        assert model.tokens(torch.randn(1, 16000)).shape == (1, n_tokens, 256)
        if kind != "early":
            assert model(torch.randn(2, 16000)).shape == (2, 31)


def test_the_time_transformer_is_small_and_has_a_token_every_20_ms(transformers):
    model = transformers["TimeTransformer"](12).eval()
    assert count_parameters(model)[0] == 486_213  # under a million
    with torch.no_grad():
        tokens = model.tokens(torch.randn(2, 16000))
        pooled, weights = model.pool(tokens)
    assert tokens.shape == (2, 51, 96) and pooled.shape == (2, 96)
    torch.testing.assert_close(weights.sum(1), torch.ones(2, 1))


@pytest.mark.parametrize(
    "name, n_classes, n_parameters",
    [("GRU1d", 30, 441_190), ("CRNN2d", 12, 4_424_652), ("CRNNAttention", 12, 1_507_149)],
)
def test_recurrent_models_have_the_reference_s_size(recurrent, name, n_classes, n_parameters):
    model = recurrent[name](n_classes).eval()
    assert count_parameters(model) == (n_parameters, n_parameters)
    with torch.no_grad():
        assert model(torch.randn(2, 16000)).shape == (2, n_classes)


@pytest.mark.parametrize("name", ["CRNN2d", "CRNNAttention"])
def test_the_convolutions_of_a_crnn_get_gradients_laid_out_like_their_output(recurrent, monkeypatch, name):
    torch.manual_seed(0)
    model = recurrent[name](12).eval()  # no masks: twice the same
    waveforms, gradients = torch.randn(2, 16000), []
    model.conv[-1].register_full_backward_pre_hook(lambda module, arriving: gradients.append(arriving[0]))
    for turn_off in (False, True):
        if turn_off:
            monkeypatch.setitem(type(model).forward.__globals__, "channels_last_gradient", lambda x: x)
        model(waveforms).logsumexp(1).sum().backward()
    ours, plain = gradients
    assert torch.equal(ours, plain) and ours.abs().max() > 0
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert not plain.is_contiguous(memory_format=torch.channels_last)


def test_the_recurrent_models_see_the_reference_s_number_of_steps(recurrent):
    waveforms = torch.randn(1, 16000)
    assert recurrent["GRU1d"](30).front_end(waveforms).shape == (1, 40, 40)
    crnn = recurrent["CRNNAttention"](12).eval()
    with torch.no_grad():
        steps, weights = crnn.steps(waveforms)
        convolved = crnn.conv(crnn.front_end(waveforms).unsqueeze(1))
    assert convolved.shape == (1, 128, 10, 25) and steps.shape == (1, 25, 256) and weights.shape == (1, 25, 1)


@pytest.mark.parametrize(("n_queries", "n_tokens"), [(51, 51), (417, 417), (1, 417)])
def test_attention_equals_the_fused_kernel_forwards_and_backwards(transformers, n_queries, n_tokens):
    torch.manual_seed(0)
    # nine clips: more than one part where all tokens ask
    ours = [torch.randn(9, 4, n, 16, requires_grad=True) for n in (n_queries, n_tokens, n_tokens)]
    theirs = [tensor.detach().clone().requires_grad_() for tensor in ours]
    mixed, expected = transformers["attend"](*ours), nn.functional.scaled_dot_product_attention(*theirs)
    torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(mixed)
    mixed.backward(upstream)
    expected.backward(upstream)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_layer_equals_pytorch_s_own(transformers, pre_norm):
    torch.manual_seed(0)
    ours = transformers["EncoderLayer"](64, 4, 128, pre_norm).eval()
    activation = "gelu" if pre_norm else "relu"
    theirs = nn.TransformerEncoderLayer(64, 4, 128, 0.0, activation, batch_first=True, norm_first=pre_norm).eval()
    names = {"self_attn.in_proj_": "query_key_value.", "self_attn.out_proj.": "out.", "linear": "fc", "norm": "norm"}
    weights = {}
    for name in theirs.state_dict():
        ours_name = name
        for old, new in names.items():
            ours_name = ours_name.replace(old, new)
        weights[name] = ours.state_dict()[ours_name]
    theirs.load_state_dict(weights)
    x = torch.randn(3, 21, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(x, 2), theirs(x)[:, :2], atol=1e-5, rtol=1e-5)
        # and what the notebook draws is what the layer uses
        attention = ours.attention(x)
        _, _, value = ours.heads(x)
        mixed = (attention @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(mixed, transformers["attend"](*ours.heads(x)).transpose(1, 2).flatten(2))


def test_the_last_layer_works_out_the_class_token_alone_and_the_gradients_stay(transformers):
    torch.manual_seed(0)
    model, waveforms = transformers["GridTransformer"]("strided", 12).eval(), torch.randn(2, 16000)
    outputs = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, arriving, leaving: outputs.append(leaving.shape[1]))
    logits = model(waveforms)
    assert outputs == [417, 417, 417, 1]
    x = model.tokens(waveforms)
    for layer in model.layers:
        x = layer(x)
    expected = model.head(x[:, 0])
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(out.logsumexp(1).sum(), list(model.parameters())) for out in (logits, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_sine_positions_tell_every_cell_from_every_other(transformers):
    table = transformers["sine_positions"](16, 26, 256)
    assert table.shape == (416, 256)
    distances = torch.cdist(table, table) + 1e3 * torch.eye(416)
    assert distances.min() > 0.5
    # the first row of cells differs in time only, the first column in pitch only
    assert (table[0, :64] == table[25, :64]).all() and not (table[0, :64] == table[26, :64]).all()


def test_patchout_keeps_the_class_token_and_other_cells_for_every_clip(transformers):
    torch.manual_seed(0)
    tokens = torch.arange(417).float().expand(3, 417)[:, :, None].repeat(1, 1, 2)  # every token tells its number
    kept = transformers["drop_tokens"](tokens, 0.4)
    assert kept.shape == (3, 1 + 166, 2) and (kept[:, 0] == 0).all() and (kept[..., 0] == kept[..., 1]).all()
    numbers = kept[:, 1:, 0]
    assert all(len(row.unique()) == 166 and row.min() >= 1 for row in numbers)
    assert not torch.equal(numbers[0].sort().values, numbers[1].sort().values)
    many = transformers["drop_tokens"](tokens[:1].expand(300, -1, -1), 0.4)[:, 1:, 0].long()
    counts = many.flatten().bincount(minlength=417)[1:]  # each is kept 120 times of 300, give or take 8.5
    assert 80 < counts.min() and counts.max() < 160


def test_patchout_is_for_training_only(transformers):
    torch.manual_seed(0)
    model = transformers["GridTransformer"]("strided", 12, positions=True, keep=0.4)
    whole = transformers["GridTransformer"]("strided", 12, positions=True)
    whole.load_state_dict(model.state_dict())
    waveforms = torch.randn(2, 16000)
    with torch.no_grad():
        assert torch.equal(model.eval()(waveforms), whole.eval()(waveforms))
        assert not torch.equal(model.train()(waveforms), model(waveforms))
    with pytest.raises(ValueError, match="A share of 0 of the tokens cannot be kept"):
        transformers["GridTransformer"]("strided", 12, keep=0)


def test_checkpointing_changes_memory_and_not_the_gradient(transformers):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = transformers["GridTransformer"]("strided", 12, checkpointing=checkpointing).train()
        with transformers["PeakMemory"]() as memory:
            model(torch.randn(2, 16000)).sum().backward()
        gradients.append((model.projection.weight.grad, memory.peak))
    torch.testing.assert_close(gradients[0][0], gradients[1][0])
    assert gradients[1][1] < 0.65 * gradients[0][1]  # three layers of four: the last one keeps little either way


def test_peak_memory_counts_what_is_alive(transformers):
    with transformers["PeakMemory"]() as memory:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        del a
        c = b.view(10, 100) * 2  # a view holds no bytes of its own
        b.add_(1)
    assert memory.peak == 8000 and memory.now == 8000
    del b, c
    assert memory.now == 0


def test_even_attention_has_entropy_one(transformers):
    model = transformers["GridTransformer"]("strided", 12).eval()
    for layer in model.layers:
        nn.init.zeros_(layer.query_key_value.weight)
    waveforms = torch.randn(2, 16000)
    entropies = transformers["attention_entropies"](model, waveforms)
    assert entropies == pytest.approx([1.0] * 4, abs=1e-4)
    with torch.no_grad():  # one query that always finds the same key
        model.layers[0].query_key_value.weight[:512].normal_(0, 3)
    assert transformers["attention_entropies"](model, waveforms)[0] < 0.9
    assert math.isfinite(transformers["attention_entropies"](model, waveforms)[3])
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    transformers["attention_entropies"](model, waveforms)  # looking changes nothing that is judged later
    assert len(before) >= 3 and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_recordings_are_paired_and_not_rows(recurrent, capsys):
    files = [f"yes/anna_{k}.wav" for k in range(6)]
    table = pd.DataFrame({"seed": 0, "fold": 1, "clip": range(6), "file": files, "target": 0, "source": list("aabbcc")})
    table["predicted"] = [0, 0, 0, 1, 1, 1]
    table["correct"] = table["predicted"] == 0
    other = table.iloc[1:].assign(clip=range(5), predicted=[0, 0, 1, 0, 0])  # the first recording was thrown away
    other["correct"] = other["predicted"] == 0
    recurrent["compare"]("A", table, "B", other)
    said = capsys.readouterr().out
    assert "5 clips: only A right on 0, only B on 2" in said and "A minus B: -40.0 points" in said
    recurrent["compare"]("A", table, "B", other.drop(columns="file"))
    assert "saved without the names of its clips" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "n_clips"),
    [("TimeTransformer", (12,), 100), ("CRNNAttention", (12,), 100), ("GridTransformer", ("strided", 12), 20)],
)
def test_as_one_graph_the_models_say_what_they_say_in_pytorch(
    transformers, recurrent, tmp_path, name, arguments, n_clips
):
    import onnxruntime

    torch.manual_seed(0)
    model = (recurrent if name in recurrent else transformers)[name](*arguments).eval()
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 12][-1]
    nn.init.normal_(last.weight)  # an untrained head hardly tells clips apart, and a wrong graph would go unnoticed
    pitch, loudness = torch.linspace(0.02, 2.5, n_clips)[:, None], torch.logspace(-3, -0.5, n_clips)[:, None]
    clips = loudness * (torch.sin(pitch * torch.arange(16000)) + 0.3 * torch.randn(n_clips, 16000))
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "model.onnx", 16000))
    found = session.run(None, {"waveform": clips.numpy()})[0]
    with torch.no_grad():
        expected = torch.cat([model(part).softmax(1) for part in clips.split(20)]).numpy()
    assert expected.shape == (n_clips, 12) and expected.std(0).max() > 0.02
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_demo_crnn_beats_logistic_regression_by_15_points_on_unseen_voices():
    """The committed notebook holds the outputs of its default run; test_notebooks.py checks that they are fresh."""
    text = (ROOT / "speech_commands_transformer" / "gru_baselines.ipynb").read_text()
    (gain,) = re.findall(r"attention pooling, minus logistic regression: ([+-][\d.]+) points", text)
    assert float(gain) >= 15
