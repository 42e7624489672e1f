"""Training on spoken words: this project's path against the reference's, and how fast each part of the path is.

The reference's way is a Dataset whose `__getitem__` reads one file with soundfile, a DataLoader with two workers, and
torchaudio's MFCC as the model's first layer, a batch at a time; float32, Adam. Ours decodes once before training (added
to the first epoch), gathers each batch with one indexing operation and multiplies in bfloat16 where the processor can.
Both train the same three models of the notebooks from the same weights on the same clips in the same batches: the small
GRU, where the path matters most, the CRNN, and the strided transformer, where the model's own arithmetic does.
Augmentation is left out of both. `measure_path` has it in, as the notebooks train.
"""

import copy
import tempfile
from functools import cache, partial

import numpy as np
import pandas as pd
import soundfile
import torch
import torchaudio
from torch import nn

from benchmarks import time_in_turn, train_usual
from shared_utils.audio import decode
from shared_utils.datasets import ArrayDataset, load_noise, load_speech_commands
from shared_utils.device import pick_device, pick_precision, resolve_path, seed_everything, set_threads
from shared_utils.notebooks import load_definitions
from shared_utils.spectrograms import AddNoise, Gain, SpeedPerturb, TimeShift
from shared_utils.training import fit

TARGET = 3.0
BATCH_SIZE = 64
N_STANDARD = 22_246  # training clips of v0.01 with twelve classes
PATH_TITLE = "The path to a trained model, part by part, with augmentation"


class FileDataset(torch.utils.data.Dataset):
    """The usual data set: every clip is read each time it is asked for."""

    def __init__(self, clips):
        self.paths, self.labels = clips["path"].tolist(), clips["label"].tolist()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        waveform, _ = soundfile.read(self.paths[index], frames=16000, dtype="float32", fill_value=0)
        return torch.from_numpy(waveform).unsqueeze(0), self.labels[index]  # (1, 16000)


class UsualGRU(nn.Module):
    """The layers of a GRU1d behind torchaudio's MFCC."""

    def __init__(self, model):
        super().__init__()
        settings = {"n_fft": 400, "hop_length": 410, "n_mels": 64, "f_min": 20}
        self.front_end = torchaudio.transforms.MFCC(16000, n_mfcc=40, melkwargs=settings)
        self.scale, self.conv, self.gru, self.head = model.scale, model.conv, model.gru, model.head

    def forward(self, waveforms):  # (batch, 1, samples)
        _, last = self.gru(self.conv(self.scale(self.front_end(waveforms).squeeze(1))).transpose(1, 2))
        return self.head(torch.cat([last[-2], last[-1]], 1))


class UsualCRNN(nn.Module):
    """The layers of a CRNNAttention behind torchaudio's MFCC, called the plain way."""

    def __init__(self, model):
        super().__init__()
        settings = {"n_fft": 400, "hop_length": 160, "n_mels": 64, "f_min": 20}
        self.front_end = torchaudio.transforms.MFCC(16000, n_mfcc=40, melkwargs=settings)
        self.scale, self.conv, self.gru, self.score, self.head = (
            model.scale, model.conv, model.gru, model.score, model.head,
        )  # fmt: skip

    def forward(self, waveforms):  # (batch, 1, samples)
        x = self.scale(self.front_end(waveforms).squeeze(1)).unsqueeze(1)  # (batch, 1, 40, 101)
        x, _ = self.gru(self.conv(x).flatten(1, 2).transpose(1, 2))  # (batch, 25, 256)
        return self.head((self.score(x).softmax(1) * x).sum(1))


class UsualTransformer(nn.Module):
    """The layers of a strided GridTransformer behind torchaudio's MelSpectrogram, with PyTorch's own encoder layers."""

    def __init__(self, model):
        super().__init__()
        self.front_end = nn.Sequential(
            torchaudio.transforms.MelSpectrogram(16000, n_fft=400, hop_length=160, n_mels=64),
            torchaudio.transforms.AmplitudeToDB(),
        )
        self.conv, self.projection, self.head = model.conv, model.projection, model.head
        self.class_token, layers = model.class_token, []
        for ours in model.layers:
            layer = nn.TransformerEncoderLayer(256, 4, 512, dropout=0.0, batch_first=True)
            layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = ours.query_key_value.parameters()
            layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias = ours.out.parameters()
            layer.linear1, layer.linear2, layer.norm1, layer.norm2 = ours.fc1, ours.fc2, ours.norm1, ours.norm2
            layers.append(layer)
        self.layers = nn.Sequential(*layers)

    def forward(self, waveforms):  # (batch, 1, samples)
        cells = self.projection(self.conv(self.front_end(waveforms)).flatten(2).transpose(1, 2))  # (batch, 416, 256)
        tokens = torch.cat([self.class_token.expand(len(cells), -1, -1), cells], 1)
        return self.head(self.layers(tokens)[:, 0])


@cache
def load_clips() -> pd.DataFrame:
    """Return the training words of the demo data: WAV as their publisher's, where the real clips here may be FLAC."""
    clips = load_speech_commands(silence=False, source="demo")
    return clips[clips["split"] == "train"].reset_index(drop=True)


@cache
def load_train_noise() -> np.ndarray:
    return load_noise(side="train", source="demo")


def make_models(n_classes: int) -> dict[str, nn.Module]:
    """Make the CRNN with attention pooling and the transformer with time tokens, with the notebooks' own code."""
    task = resolve_path("speech_commands_transformer")
    CRNNAttention = load_definitions(task / "gru_baselines.ipynb")["CRNNAttention"]
    TimeTransformer = load_definitions(task / "cnn_transformer.ipynb")["TimeTransformer"]
    seed_everything(0)
    return {"CRNN with attention": CRNNAttention(n_classes), "time tokens": TimeTransformer(n_classes)}


def measure(n_runs: int = 3, n_clips: int = 512) -> list[dict]:
    """Return name, ours, theirs (milliseconds a clip, median), ratio and unit; the CRNN with and without decoding."""
    set_threads()
    clips = load_clips()
    n_classes = clips["label"].max() + 1
    task = resolve_path("speech_commands_transformer")
    gru = load_definitions(task / "gru_baselines.ipynb")["GRU1d"](n_classes)
    crnn = make_models(n_classes)["CRNN with attention"]
    grid = load_definitions(task / "cnn_transformer.ipynb")["GridTransformer"]("strided", n_classes)
    gru.augment = crnn.augment = nn.Identity()  # SpecAugment
    rows = _compare("GRU", gru, UsualGRU, _thin(clips, n_clips), BATCH_SIZE, n_runs)[:1]
    rows += _compare("CRNN", crnn, UsualCRNN, _thin(clips, n_clips), BATCH_SIZE, n_runs)
    rows += _compare("strided transformer", grid, UsualTransformer, _thin(clips, n_clips // 8), 16, n_runs)[:1]
    return rows


def _compare(name: str, model, make_usual, clips: pd.DataFrame, batch_size: int, n_runs: int) -> list[dict]:
    """Return the rows of `measure` for one model: an epoch, and one that decodes its clips first."""
    usual_model, usual = make_usual(copy.deepcopy(model)), FileDataset(clips)
    # workers that stay, so that starting them falls on the round that does not count
    loader = torch.utils.data.DataLoader(usual, batch_size, shuffle=True, num_workers=2, persistent_workers=True)

    def decode_anew() -> ArrayDataset:
        return ArrayDataset(_decode_anew(clips), clips["label"].to_numpy())

    dataset = decode_anew()
    inputs, targets = dataset.__getitems__(range(16))
    usual_inputs, usual_targets = torch.utils.data.default_collate([usual[i] for i in range(16)])
    np.testing.assert_array_equal(inputs / 32768, usual_inputs.squeeze(1))
    np.testing.assert_array_equal(targets, usual_targets)
    with torch.inference_mode():
        features = model.front_end(inputs), usual_model.front_end(usual_inputs).squeeze(1)
        np.testing.assert_allclose(*features, atol=0.05)  # dB
        logits = model.eval()(inputs), usual_model.eval()(usual_inputs)
        np.testing.assert_allclose(*logits, atol=1e-3)
    seconds = time_in_turn(
        {
            "decode": decode_anew,
            "ours": lambda: _train(model, dataset, torch.device("cpu"), batch_size),
            "theirs": lambda: train_usual(usual_model, loader, torch.optim.Adam(usual_model.parameters(), lr=1e-3)),
        },
        n_runs,
    )
    theirs = 1000 * seconds["theirs"] / len(clips)
    rows = []
    for what, ours in (
        (f"epoch of {len(clips)} clips", seconds["ours"]),
        ("first epoch, decoding included", seconds["ours"] + seconds["decode"]),
    ):
        ours = 1000 * ours / len(clips)
        row = {"name": f"{name}, {what} / files, workers, float32", "ours": ours, "theirs": theirs}
        rows.append(row | {"ratio": theirs / ours, "unit": "ms a clip"})
    return rows


def measure_path(n_runs: int = 3, n_clips: int = 512) -> pd.DataFrame:
    """Return part, device, precision, batch, clips a second (median) and seconds for 22,246 clips, a row a part.

    Decoding is cold: nothing in data/cache/ is used. Augmentation and front-end stand alone, without gradients; a
    training epoch contains them. On a GPU the array of 22,246 clips lies there; on a CPU `n_clips` stand for them.
    """
    set_threads()
    clips, cpu, fastest = load_clips(), torch.device("cpu"), pick_device()
    seconds = time_in_turn({"decode": lambda: _decode_anew(clips)}, n_runs)["decode"]
    speed = {"clips a second": len(clips) / seconds}
    rows = [{"part": "decoding, once", "device": "cpu", "precision": "-", "batch": "-"} | speed]
    rows += _measure_device(_thin(clips, n_clips), cpu, n_clips, BATCH_SIZE, n_runs)
    if fastest != cpu:  # larger batches, or a GPU waits for the next small step
        rows += _measure_device(clips, fastest, N_STANDARD, 512, n_runs)
    table = pd.DataFrame(rows)
    return table.assign(**{f"s for {N_STANDARD:,} clips": N_STANDARD / table["clips a second"]})


def _measure_device(
    clips: pd.DataFrame, device: torch.device, n_clips: int, batch_size: int, n_runs: int
) -> list[dict]:
    """Return the rows of `measure_path` for one device, with the clips repeated until there are `n_clips`."""
    rows = np.resize(np.arange(len(clips)), n_clips)
    dataset = ArrayDataset(_decode_anew(clips)[rows], clips["label"].to_numpy()[rows]).to(device)
    noise = AddNoise(load_train_noise(), (5, 30), 0.5)
    augment = nn.Sequential(SpeedPerturb(0.1), TimeShift(0.1, 16000, wrap=False), Gain(6), noise)
    functions, precisions = {}, {}
    for name, model in make_models(clips["label"].max() + 1).items():
        front_end = nn.Sequential(augment, model.front_end, model.augment).to(device).train()
        part = f"augmentation and {type(model.front_end).__name__}"
        functions[part] = partial(_transform, front_end, dataset, batch_size)
        precisions[part] = torch.float32
        part = f"training, {name}"
        functions[part] = partial(_train, model, dataset, device, batch_size, augment)
        precisions[part] = pick_precision(device)
    return [
        {
            "part": part, "device": device.type, "precision": str(precisions[part]).removeprefix("torch."),
            "batch": batch_size, "clips a second": n_clips / seconds,
        }
        for part, seconds in time_in_turn(functions, n_runs).items()
    ]  # fmt: skip


def _thin(clips: pd.DataFrame, n_clips: int) -> pd.DataFrame:
    """Return `n_clips` clips spread over the table, so that all words and speakers take part."""
    return clips.iloc[np.linspace(0, len(clips) - 1, min(n_clips, len(clips))).astype(int)].reset_index(drop=True)


def _decode_anew(clips: pd.DataFrame) -> np.ndarray:
    with tempfile.TemporaryDirectory() as cache:
        return np.array(decode(clips, 16000, 1.0, cache_dir=cache, progress=False))


def _train(model, dataset, device: torch.device, batch_size: int, augment: nn.Module | None = None) -> None:
    fit(
        model, dataset, epochs=1, batch_size=batch_size, schedule="none", warmup=0, augment=augment,
        device=str(device), progress=False,
    )  # fmt: skip


@torch.no_grad()
def _transform(front_end: nn.Module, dataset: ArrayDataset, batch_size: int) -> None:
    for indices in torch.randperm(len(dataset)).split(batch_size):
        specs = front_end(dataset.__getitems__(indices)[0])
    specs.sum().item()  # a GPU is done when this number is there
