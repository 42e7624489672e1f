"""Fine-tuning an AST on clips of 4 s: this project's step against the usual one, and a linear probe on kept features.

The usual step runs transformers' extractor on one clip after the other, pads each to AST's own 1,024 frames, and trains
all weights in float32. Ours takes 400 frames, which is what 4 s have, computes them for the whole batch on the model's
device, multiplies in bfloat16 where the hardware can, and trains all weights or those of LoRA (Hu et al. 2021). Both
have the same weights, but for the positions that 400 frames do not need, the same optimizer and the same clip of
gradients. Weights of the large model are random: the published ones take the same time.

The probe trains AST's head alone, a norm and a linear layer, on a frozen TinyAST. Ours keeps what the frozen layers
make of each clip, a vector of 128 numbers in float32, computed in one pass; theirs goes from waveforms through filter
bank and layers in every epoch, in the same batches and precision.

The large model needs about 6 GB and, on two cores, a few minutes.
"""

import gc
import tempfile
from functools import cache, partial

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification
from transformers.utils import logging as transformers_logging

from benchmarks import time_in_turn
from shared_utils.audio import decode
from shared_utils.datasets import ArrayDataset, load_urbansound8k
from shared_utils.device import autocast, pick_device, pick_precision, seed_everything, set_threads
from shared_utils.finetuning import TINY_AST, AstClassifier, load_ast
from shared_utils.training import count_step_bytes, fit, make_optimizer

TARGET = 4.0
PATH_TITLE = "Memory of one training step of AST, in MB"
METHODS = ("usual", "full", "LoRA")
N_FRAMES = 400
USUAL_FRAMES = 1024
RANK = 6
PROBE_EPOCHS = 50  # that share the one pass which makes the features
PROBE_BATCH = 32


class UsualAst(nn.Module):
    """Float waveforms (batch, samples) -> logits: transformers' extractor clip by clip, then its model."""

    def __init__(self, pretrained: str, n_classes: int):
        super().__init__()
        self.ast, _ = load_ast(pretrained, n_classes, USUAL_FRAMES)
        self.extractor = ASTFeatureExtractor(num_mel_bins=self.ast.config.num_mel_bins, max_length=USUAL_FRAMES)

    def extract(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return spectrograms (batch, frames, n_mels) on the CPU."""
        clips = waveforms.cpu().numpy()
        specs = [self.extractor(waveform, sampling_rate=16000)["input_values"][0] for waveform in clips]
        return torch.from_numpy(np.stack(specs))

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.ast(self.extract(waveforms).to(self.ast.device)).logits


@cache
def load_clips() -> pd.DataFrame:
    """Return the 300 urban sounds of the demo data, of up to 4 s."""
    return load_urbansound8k(source="demo")


@cache
def load_waveforms() -> torch.Tensor:
    """Return the clips as int16 (300, 64000)."""
    return torch.from_numpy(np.array(decode(load_clips(), 16000, 4, progress=False)))


def make_checkpoint(folder: str, **config) -> None:
    """Write an AST with random weights, of the published size unless `config` changes transformers.ASTConfig."""
    seed_everything(0)
    transformers_logging.disable_progress_bar()
    ASTForAudioClassification(ASTConfig(**config)).save_pretrained(folder)


def make_step(method: str, pretrained: str, batch_size: int, device: torch.device) -> tuple:
    """Return the arguments of `train_step` for one of METHODS: model, inputs, targets, optimizer, precision."""
    clips = load_clips()
    n_classes = clips["label"].nunique()
    rows = np.linspace(0, len(clips) - 1, batch_size).astype(int)
    waveforms, targets = load_waveforms()[rows], torch.tensor(clips["label"].to_numpy()[rows])
    if method == "usual":
        model, precision = UsualAst(pretrained, n_classes), torch.float32
        inputs = waveforms.float() / 32768
    else:
        model, precision = AstClassifier(pretrained, n_classes, N_FRAMES, final_output="both"), pick_precision(device)
        inputs = waveforms.to(device)
    if method == "LoRA":
        inject_adapter_in_model(LoraConfig(r=RANK, target_modules=["q_proj", "v_proj"]), model.encoder)
        layers, width = model.encoder.config.num_hidden_layers, model.encoder.config.hidden_size
        n_trained = sum(weight.numel() for weight in model.encoder.parameters() if weight.requires_grad)
        assert n_trained == 4 * RANK * width * layers, "LoRA must train two matrices beside query and value, no more"
    model.to(device).train()
    optimizer = make_optimizer(model, "adamw", lr=5e-5, weight_decay=0.1)
    return model, inputs, targets.to(device), optimizer, precision


def train_step(model: nn.Module, inputs, targets: torch.Tensor, optimizer, precision: torch.dtype) -> None:
    """One step as `training.fit` does it; it ends when the device has done it."""
    optimizer.zero_grad(set_to_none=True)
    with autocast(targets.device, precision):
        logits = model(inputs)
    loss = F.cross_entropy(logits.float(), targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if targets.device.type != "cpu":
        torch.accelerator.synchronize()


def measure(n_runs: int = 3, batch_size: int = 2, **config) -> list[dict]:
    """Return name, ours, theirs (milliseconds, median), ratio and unit: training steps of both models, the probe.

    Args:
        n_runs: rounds, after one that does not count.
        batch_size: clips a step of AST on the CPU; it is 16 on a GPU, and 8 for TinyAST.
        config: changes to transformers.ASTConfig, for a smaller model in the place of AST.
    """
    set_threads()
    cpu, fastest = torch.device("cpu"), pick_device()
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, **config)
        rows = _compare_steps("AST", folder, batch_size, cpu, n_runs)
        if fastest != cpu:
            rows += _compare_steps("AST", folder, 16, fastest, n_runs)
    rows += _compare_steps("TinyAST", TINY_AST, 8, cpu, n_runs)
    return rows + _compare_probe(n_runs)


def measure_path(batch_size: int = 2, **config) -> pd.DataFrame:
    """Return step, device, batch, the megabytes of `training.count_step_bytes`, and how many times less "all" is."""
    set_threads()
    cpu, fastest = torch.device("cpu"), pick_device()
    places = [(cpu, batch_size)] if fastest == cpu else [(cpu, batch_size), (fastest, 16)]
    names = {
        "usual": f"all weights, {USUAL_FRAMES:,} frames, float32",
        "full": f"all weights, {N_FRAMES} frames",
        "LoRA": f"LoRA, {N_FRAMES} frames",
    }
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, **config)
        for device, n in places:
            rows = []
            for method in METHODS:
                gc.collect()  # the model before this one, of which only cycles are left
                model, inputs, targets, _, precision = make_step(method, folder, n, device)
                how = {"device": str(device), "precision": name_precision(precision)}
                counted = count_step_bytes(model, inputs, targets, **how)
                name = names[method] if method == "usual" else f"{names[method]}, {name_precision(precision)}"
                used = {part: n_bytes / 1e6 for part, n_bytes in counted.items()}
                rows.append({"step": name, "device": device.type, "batch": n} | used)
                del model
            table = pd.DataFrame(rows)
            tables.append(table.assign(**{"times less": table["all"].iloc[0] / table["all"]}))
    return pd.concat(tables, ignore_index=True)


def _compare_steps(name: str, pretrained: str, batch_size: int, device: torch.device, n_runs: int) -> list[dict]:
    """Return the rows of full fine-tuning and of LoRA, each against the usual step, which trains all weights."""
    steps = {method: make_step(method, pretrained, batch_size, device) for method in METHODS}
    _check_same(steps["usual"], steps["full"])
    seconds = time_in_turn({method: partial(train_step, *step) for method, step in steps.items()}, n_runs)
    rows = []
    for method, what in (("full", "all weights"), ("LoRA", "LoRA")):
        ours, theirs = 1000 * seconds[method], 1000 * seconds["usual"]
        how = f"{batch_size} clips on {device.type}, {name_precision(steps[method][-1])}"
        row = {"name": f"{name}, {what}: {how} / all weights, {USUAL_FRAMES:,} frames, float32", "ours": ours}
        rows.append(row | {"theirs": theirs, "ratio": theirs / ours, "unit": "ms a step"})
    return rows


@torch.no_grad()
def _check_same(usual: tuple, ours: tuple) -> None:
    """Assert that both steps see the same sounds, in the frames that both have, and train the same weights."""
    usual_model, model = usual[0], ours[0]
    specs, usual_specs = model.front_end(ours[1]), usual_model.extract(usual[1])
    np.testing.assert_allclose(specs.cpu(), usual_specs[:, :N_FRAMES], atol=2e-3)
    np.testing.assert_array_equal(ours[2].cpu(), usual[2].cpu())
    for module, usual_module in (
        (model.encoder, usual_model.ast.audio_spectrogram_transformer), (model.head, usual_model.ast.classifier),
    ):  # fmt: skip
        usual_weights = dict(usual_module.named_parameters())
        for path, weight in module.named_parameters():
            assert path.endswith("position_embeddings") or torch.equal(weight, usual_weights[path]), path


def _compare_probe(n_runs: int) -> list[dict]:
    """Return the rows of an epoch of the linear probe, without and with its share of the pass that makes features."""
    cpu, clips = torch.device("cpu"), load_clips()
    labels, waveforms = clips["label"].to_numpy(), load_waveforms()
    seed_everything(0)
    model = AstClassifier(TINY_AST, clips["label"].nunique(), N_FRAMES, final_output="both")
    model.encoder.requires_grad_(False)
    precision = pick_precision(cpu)

    @torch.no_grad()
    def make_features() -> torch.Tensor:
        model.eval()
        with autocast(cpu, precision):
            return torch.cat([model.embed(batch) for batch in waveforms.split(PROBE_BATCH)])

    features = make_features()  # (clips, width)
    with torch.no_grad(), autocast(cpu, precision):
        logits = model.head(features[:PROBE_BATCH]), model(waveforms[:PROBE_BATCH])
    np.testing.assert_allclose(*(part.float() for part in logits), atol=1e-3)
    dataset, usual = ArrayDataset(features, labels), ArrayDataset(waveforms, labels)
    train = partial(fit, epochs=1, batch_size=PROBE_BATCH, schedule="none", warmup=0, device="cpu", progress=False)
    seconds = time_in_turn(
        {
            "features": make_features,
            "ours": lambda: train(model.head, dataset),
            "theirs": lambda: train(model, usual),
        },
        n_runs,
    )
    share = seconds["features"] / PROBE_EPOCHS
    rows, theirs = [], 1000 * seconds["theirs"]
    for what, ours in (
        (f"epoch of {len(clips)} clips", 1000 * seconds["ours"]),
        (f"and 1/{PROBE_EPOCHS} of making features", 1000 * (seconds["ours"] + share)),
    ):
        row = {"name": f"linear probe, {what} / features made anew", "ours": ours, "theirs": theirs}
        rows.append(row | {"ratio": theirs / ours, "unit": "ms an epoch"})
    return rows


def name_precision(precision: torch.dtype) -> str:
    """Return "bfloat16", not "torch.bfloat16"."""
    return str(precision).removeprefix("torch.")
