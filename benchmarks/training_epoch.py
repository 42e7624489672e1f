"""One training epoch of TinyAST: this project's path against the usual one.

The usual path is a Dataset whose `__getitem__` reads one recording with librosa and runs AST's feature extractor on it,
a DataLoader with two workers, and a float32 loop. Ours decodes once before training, computes the spectrograms in
batches (both are added to the first epoch), gathers each batch with one indexing operation and multiplies in bfloat16
where the processor can. Both feed the same spectrograms to the same model; augmentation is left out of both.
"""

import statistics
import tempfile
import time

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from transformers import ASTFeatureExtractor

from shared_utils.audio import decode
from shared_utils.datasets import ArrayDataset, load_esc50
from shared_utils.device import ROOT, seed_everything, set_threads
from shared_utils.runs import load_run
from shared_utils.spectrograms import KaldiFbank
from shared_utils.training import fit

TARGET = 3.0


class FileDataset(torch.utils.data.Dataset):
    """The usual data set: every clip is read and transformed each time it is asked for."""

    def __init__(self, clips):
        self.paths, self.labels = clips["path"].tolist(), clips["label"].tolist()
        self.extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=500)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        waveform, _ = librosa.load(self.paths[index], sr=16000)
        waveform = librosa.util.fix_length(waveform, size=80000)
        spec = self.extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values[0]
        return spec, self.labels[index]


def train_usual(model, loader) -> None:
    """One epoch as tutorials write it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def measure(n_runs: int = 3) -> list[dict]:
    """Return name, ours, theirs (seconds an epoch, median), ratio and unit; ours with and without the preparation."""
    set_threads()
    real = ROOT.parent / "shared" / "data"
    clips = load_esc50(real if real.is_dir() else "data", source="auto")
    clips = clips[clips["fold"] > 2].reset_index(drop=True)  # as many as one fold's training has
    model = load_run("models/tiny_ast_esc10").model
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        waveforms = decode(clips, 16000, 5.0, cache_dir=cache, progress=False)
        specs = KaldiFbank(n_mels=64, max_length=500)(torch.from_numpy(np.array(waveforms)))
        prepared = time.perf_counter() - started
    dataset, usual = ArrayDataset(specs, clips["label"].to_numpy()), FileDataset(clips)
    assert torch.allclose(usual[5][0], specs[5], atol=2e-3), "both paths must see the same spectrograms"

    ours, theirs = [], []
    for _ in range(n_runs):
        seed_everything(0)
        started = time.perf_counter()
        fit(model, dataset, epochs=1, batch_size=32, schedule="none", warmup=0, device="cpu", progress=False)
        ours.append(time.perf_counter() - started)
        loader = torch.utils.data.DataLoader(usual, batch_size=32, shuffle=True, num_workers=2)
        started = time.perf_counter()
        train_usual(model, loader)
        theirs.append(time.perf_counter() - started)
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    return [
        {"name": f"epoch of {len(clips)} clips", "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"},
        {
            "name": "first epoch, decoding and front-end included", "ours": ours + prepared, "theirs": theirs,
            "ratio": theirs / (ours + prepared), "unit": "s",
        },
    ]  # fmt: skip
