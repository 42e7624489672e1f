"""One training epoch of TinyAST: this project's path against the usual one.

The usual path is a Dataset whose `__getitem__` reads one recording with librosa and runs AST's feature extractor on it,
a DataLoader with two workers, and a float32 loop. Ours decodes once before training, computes the spectrograms in
batches (both are added to the first epoch), gathers each batch with one indexing operation and multiplies in bfloat16
where the processor can. Both feed the same spectrograms to the same model; augmentation is left out of both.
"""

import tempfile

import librosa
import numpy as np
import torch
from transformers import ASTFeatureExtractor

from benchmarks import load_clips, time_in_turn, train_usual
from shared_utils.audio import decode
from shared_utils.datasets import ArrayDataset
from shared_utils.device import resolve_path, seed_everything, set_threads
from shared_utils.notebooks import load_definitions
from shared_utils.spectrograms import KaldiFbank
from shared_utils.training import fit

TARGET = 3.0


class FileDataset(torch.utils.data.Dataset):
    """The usual data set: every clip is read and transformed each time it is asked for."""

    def __init__(self, clips):
        self.paths, self.labels = clips["path"].tolist(), clips["label"].tolist()
        self.extractor = ASTFeatureExtractor(num_mel_bins=64, max_length=498)  # what 5 s have

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        waveform, _ = librosa.load(self.paths[index], sr=16000)
        waveform = librosa.util.fix_length(waveform, size=80000)
        spec = self.extractor(waveform, sampling_rate=16000, return_tensors="pt").input_values[0]
        return spec, self.labels[index]


def make_model(n_frames: int, n_classes: int) -> torch.nn.Module:
    """Make the notebook's TinyAST with its convolutional stem, with the notebook's own code."""
    notebook = resolve_path("audio_spectrogram_transformer/audio_transformer_pipeline.ipynb")
    TinyAST = load_definitions(notebook)["TinyAST"]
    return TinyAST("stem", 64, n_frames, n_classes, d_model=128, n_layers=3, n_heads=2, dropout=0.1)


def measure(n_runs: int = 3) -> list[dict]:
    """Return name, ours, theirs (seconds an epoch, median), ratio and unit; ours with and without the preparation."""
    set_threads()
    clips = load_clips()
    clips = clips[clips["fold"] > 2].reset_index(drop=True)  # as many as one fold's training has
    front_end = KaldiFbank(n_mels=64)

    def prepare() -> torch.Tensor:
        with tempfile.TemporaryDirectory() as cache:
            return front_end(torch.from_numpy(np.array(decode(clips, 16000, 5, cache_dir=cache, progress=False))))

    specs = prepare()
    dataset, usual = ArrayDataset(specs, clips["label"].to_numpy()), FileDataset(clips)
    assert torch.allclose(usual[5][0], specs[5], atol=2e-3), "both paths must see the same spectrograms"
    loader = torch.utils.data.DataLoader(usual, batch_size=32, shuffle=True, num_workers=2)
    seed_everything(0)
    model = make_model(specs.shape[1], clips["label"].nunique())
    seconds = time_in_turn(
        {
            "prepare": prepare,
            "ours": lambda: fit(
                model, dataset, epochs=1, schedule="none", warmup=0, device="cpu", progress=False, batch_size=32
            ),
            "theirs": lambda: train_usual(model, loader, torch.optim.AdamW(model.parameters(), lr=1e-3)),
        },
        n_runs,
    )
    theirs = seconds["theirs"]
    rows = []
    for name, ours in (
        (f"epoch of {len(clips)} clips", seconds["ours"]),
        ("first epoch, decoding and front-end included", seconds["ours"] + seconds["prepare"]),
    ):
        rows.append({"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"})
    return rows
