"""Sentences a second of a pretrained encoder, in training and in inference: this project's path against the usual one.

The usual path pads every sentence to 128 tokens once, and a DataLoader feeds a plain loop in float32. Ours makes
batches of similar length, pads each to its own longest sentence and multiplies in bfloat16 where the processor can.
Both start from the same encoder, all-MiniLM-L6-v2, whose weights all learn, and give the same logits for the same
sentences. Tokenising is left out of both: it takes milliseconds, once.
"""

import copy
from functools import cache

import numpy as np
import pandas as pd
import torch

from benchmarks import time_in_turn, train_usual
from shared_utils.datasets import load_sst2
from shared_utils.device import ROOT, seed_everything, set_threads
from shared_utils.finetuning import TextClassifier, TextDataset, load_encoder
from shared_utils.training import evaluate, fit

TARGET = 3.0
MAX_LENGTH = 128
BATCH_SIZE = 16


@cache
def load_clips() -> pd.DataFrame:
    """Return sentences of SST-2 if it lies beside the repository, of the demo data otherwise."""
    real = ROOT.parent / "shared" / "data"
    if (real / "SST-2").is_dir():
        return load_sst2(real, n_train=192, n_test=None, source="real")
    return load_sst2(n_train=192, n_test=None, source="demo")


def measure(n_runs: int = 3, n_train: int = 192, n_test: int = 384) -> list[dict]:
    """Return name, ours, theirs (sentences a second, median), ratio (ours / theirs) and unit: an epoch, inference."""
    set_threads()
    tokenizer, _, used_name = load_encoder("minilm")
    seed_everything(0)
    model = TextClassifier(used_name, 2)
    usual_model = copy.deepcopy(model)
    ours, theirs, sizes = {}, {}, {}
    for split, n in (("train", n_train), ("test", n_test)):
        sentences = load_clips()
        sentences = sentences[sentences["split"] == split]
        rows = np.linspace(0, len(sentences) - 1, min(n, len(sentences))).astype(int)
        texts, labels = sentences["text"].iloc[rows].tolist(), sentences["label"].to_numpy()[rows]
        ours[split] = TextDataset(texts, labels, tokenizer, MAX_LENGTH)
        padded = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        theirs[split] = [({name: row[i] for name, row in padded.items()}, int(labels[i])) for i in range(len(rows))]
        sizes[split] = len(rows)
    train_loader = torch.utils.data.DataLoader(theirs["train"], BATCH_SIZE, shuffle=True)
    test_loader = torch.utils.data.DataLoader(theirs["test"], 64)
    check_same(model, usual_model, ours["test"], theirs["test"])
    optimizer = torch.optim.AdamW(usual_model.parameters(), lr=2e-5)
    seconds = time_in_turn(
        {
            "train ours": lambda: fit(
                model, ours["train"], epochs=1, batch_size=BATCH_SIZE, lr=2e-5, schedule="none", warmup=0,
                device="cpu", progress=False,
            ),
            "train theirs": lambda: train_usual(usual_model, train_loader, optimizer),
            "test ours": lambda: evaluate(model, ours["test"], device="cpu"),
            "test theirs": lambda: predict_usual(usual_model, test_loader),
        },
        n_runs,
    )  # fmt: skip
    rows = []
    for what, split in (("training on", "train"), ("inference on", "test")):
        rates = {side: sizes[split] / seconds[f"{split} {side}"] for side in ("ours", "theirs")}
        name = f"{what} {sizes[split]} sentences / all padded to {MAX_LENGTH}, float32"
        rows.append({"name": name, **rates, "ratio": rates["ours"] / rates["theirs"], "unit": "sentences a second"})
    return rows


@torch.inference_mode()
def check_same(model, usual_model, ours: TextDataset, theirs: list) -> None:
    """Assert that both paths give the same logits for the same sentences, in float32."""
    inputs, targets = ours.__getitems__(range(16))
    usual_inputs, usual_targets = torch.utils.data.default_collate(theirs[:16])
    logits = model.eval()(inputs), usual_model.eval()(usual_inputs)
    np.testing.assert_allclose(*logits, atol=1e-4)
    np.testing.assert_array_equal(targets, usual_targets)


@torch.no_grad()
def predict_usual(model, loader) -> torch.Tensor:
    model.eval()
    return torch.cat([model(inputs).softmax(1) for inputs, _ in loader])
