"""One ONNX graph, waveform in and probabilities out, says what the model says."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shared_utils.runs import export_onnx
from shared_utils.spectrograms import KaldiFbank, LogMel, Mfcc

N_SAMPLES = 8000
NAMES = ["ja", "nein", "grün"]


class Pool(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.score, self.head = nn.Linear(width, 1), nn.Linear(width, 3)

    def forward(self, tokens):  # (batch, tokens, width)
        return self.head((tokens * self.score(tokens).softmax(1)).sum(1))


class Transformer(nn.Module):
    def __init__(self, front_end: nn.Module, n_mels: int = 40):
        super().__init__()
        self.front_end = front_end
        self.conv = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, stride=(2, 1), padding=1), nn.GELU())
        self.project, self.norm, self.qkv = nn.Linear(4 * n_mels // 2, 32), nn.LayerNorm(32), nn.Linear(32, 96)
        self.dropout, self.pool = nn.Dropout(0.5), Pool(32)

    def forward(self, waveforms):
        specs = self.conv(self.front_end(waveforms)[:, None] / 10)  # (batch, channels, mels, frames)
        tokens = self.dropout(self.project(specs.flatten(1, 2).transpose(1, 2)))
        n_clips, n_tokens, width = tokens.shape
        q, k, v = self.qkv(self.norm(tokens)).view(n_clips, n_tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n_clips, n_tokens, width)
        return self.pool(tokens + attended)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.front_end = Mfcc(n_mfcc=20, n_mels=40, n_fft=400, hop_length=200)
        self.gru, self.pool = nn.GRU(20, 16, num_layers=2, batch_first=True, bidirectional=True), Pool(32)

    def forward(self, waveforms):
        return self.pool(self.gru(self.front_end(waveforms).transpose(1, 2) / 10)[0])


class FbankFirst(Transformer):
    def __init__(self):
        super().__init__(KaldiFbank(n_mels=40, normalize=False))

    def forward(self, waveforms):
        specs = self.front_end(waveforms).transpose(1, 2)
        return self.pool(self.project(self.conv(specs[:, None]).flatten(1, 2).transpose(1, 2)))


MODELS = {
    "transformer": lambda: Transformer(LogMel(n_mels=40, n_fft=1024, hop_length=320)),
    "no floor": lambda: Transformer(LogMel(n_mels=40, n_fft=480, hop_length=160, top_db=None)),
    "bigru": Recurrent,
    "kaldi": FbankFirst,
}


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """A hundred clips of every loudness, the first of them silent."""
    generator = torch.Generator().manual_seed(1)
    loudness = torch.logspace(-5, -0.5, 100)[:, None] * (torch.arange(100) > 0)[:, None]
    tones = torch.sin(torch.arange(N_SAMPLES) * torch.linspace(0.01, 3, 100)[:, None])
    return loudness * (tones + 0.3 * torch.randn(100, N_SAMPLES, generator=generator))


@pytest.mark.parametrize("kind", MODELS)
def test_the_graph_says_what_the_model_says(kind, clips, tmp_path, capfd):
    import onnxruntime

    torch.manual_seed(0)
    model = MODELS[kind]()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = export_onnx(model, tmp_path / "deep" / "model.onnx", N_SAMPLES, NAMES)
    assert capfd.readouterr() == ("", "")
    assert path == tmp_path / "deep" / "model.onnx" and list(path.parent.iterdir()) == [path]
    assert model.training  # left as it was
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.shape for node in session.get_inputs()] == [["batch", N_SAMPLES]]
    assert [node.name for node in session.get_outputs()] == ["probabilities"]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == NAMES and metadata["sample_rate"] == "16000"
    with torch.no_grad():
        expected = model.eval()(clips).softmax(1).numpy()
    assert expected.std(0).max() > 0.005  # the clips are told apart
    found = session.run(None, {"waveform": clips.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    single = np.concatenate([session.run(None, {"waveform": clips[i : i + 1].numpy()})[0] for i in (0, 30, 99)])
    np.testing.assert_allclose(single, expected[[0, 30, 99]], atol=1e-4)


class FixesTheBatch(Transformer):
    def forward(self, waveforms):
        logits = super().forward(waveforms)
        return logits.view(len(logits) // 1, 3) + torch.zeros(int(logits.shape[0]), 3)


class DependsOnValues(Transformer):
    def forward(self, waveforms):
        logits = super().forward(waveforms)
        return logits * 5 if waveforms[0, 0] > 0 else -logits


@pytest.mark.parametrize("model_class", [FixesTheBatch, DependsOnValues])
def test_a_model_that_is_no_graph_leaves_nothing_behind(model_class, tmp_path):
    torch.manual_seed(0)
    model = model_class(LogMel(n_mels=40))
    (tmp_path / "model.onnx").write_text("an earlier one")
    with pytest.raises(RuntimeError, match=f"{model_class.__name__} (does not become|differs from)"):
        export_onnx(model, tmp_path / "model.onnx", N_SAMPLES)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["an earlier one"]


class SaysNothing(Transformer):
    def forward(self, waveforms):
        if torch.jit.is_tracing():
            raise NotImplementedError
        return super().forward(waveforms)


def test_an_error_without_text_is_told_by_its_name(tmp_path):
    with pytest.raises(RuntimeError, match=r"of any size: NotImplementedError\. Take shapes from x\.shape"):
        export_onnx(SaysNothing(LogMel(n_mels=40)), tmp_path / "model.onnx", N_SAMPLES)
    assert list(tmp_path.iterdir()) == []


def test_class_names_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 class names do not fit 3 classes"):
        export_onnx(Transformer(LogMel(n_mels=40)), tmp_path / "model.onnx", N_SAMPLES, NAMES[:2])
    assert list(tmp_path.iterdir()) == []
