"""The model of cnn1d_scratch_transformer, as it was when the run was saved; load_run executes this file."""

import math
import torch
import torch.nn.functional as F
from shared_utils.spectrograms import SpecAugment
from torch import nn


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with `n_heads` heads, written out (Vaswani et al. 2017)."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"{n_heads} heads do not divide a width of {d_model}; choose a width that they divide.")
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def split(self, x):  # (batch, tokens, d_model) -> (batch, heads, tokens, d_head)
        return x.view(*x.shape[:2], self.n_heads, -1).transpose(1, 2)

    def attention(self, x):  # (batch, heads, tokens, tokens): what each token looks at; each row sums to 1
        query, key = self.split(self.query(x)), self.split(self.key(x))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        return torch.softmax(scores.float(), -1)

    def forward(self, x):
        heads = self.attention(x).to(x.dtype) @ self.split(self.value(x))  # (batch, heads, tokens, d_head)
        return self.out(heads.transpose(1, 2).reshape(x.shape))  # heads side by side again


class EncoderBlock(nn.Module):
    def __init__(self, d_model, n_heads, d_ff, pre_norm, dropout=0.0):
        super().__init__()
        self.pre_norm, self.dropout = pre_norm, nn.Dropout(dropout)
        self.attend = MultiHeadAttention(d_model, n_heads)
        self.mlp = nn.Sequential(nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model))
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x):  # (batch, tokens, d_model)
        if self.pre_norm:
            x = x + self.dropout(self.attend(self.norm1(x)))
            return x + self.dropout(self.mlp(self.norm2(x)))
        x = self.norm1(x + self.dropout(self.attend(x)))
        return self.norm2(x + self.dropout(self.mlp(x)))


def mel_edges(n_filters, sample_rate, low=40.0):
    """Return where bands begin, have their centres and end: n_filters + 2 frequencies in Hz, even on the mel scale."""
    return 700 * torch.linspace(math.log1p(low / 700), math.log1p(sample_rate / 2 / 700), n_filters + 2).expm1()


def gabor_filters(n_filters, size, sample_rate):
    """Return (2 * n_filters, size): cosines, then sines, at mel-spaced frequencies, in Gauss windows.

    A window is as long as its band is narrow: at half the power a band is as wide as the triangle of the mel scale,
    but no narrower than `size` samples allow (63 Hz for 25 ms).
    """
    edges = mel_edges(n_filters, sample_rate)
    centres, widths = edges[1:-1, None], (edges[2:] - edges[:-2])[:, None] / 2
    times = (torch.arange(size) - (size - 1) / 2) / sample_rate  # seconds
    deviations = math.sqrt(math.log(2)) / (math.pi * widths)  # seconds, of the Gauss windows
    gauss = (-0.5 * (times / deviations) ** 2).exp() * torch.hann_window(size, periodic=False)
    gauss = gauss / gauss.sum(1, keepdim=True)
    phases = 2 * math.pi * centres * times
    return torch.cat([gauss * phases.cos(), gauss * phases.sin()])


def to_float(waveforms):  # int16 or float -> float in [-1, 1]
    return waveforms.float() / 32768 if waveforms.dtype == torch.int16 else waveforms


class FilterBank(nn.Module):
    """Waveforms (batch, samples) -> learned log energies (batch, filters, frames of 10 ms at 16 kHz), about -2 to 3."""

    def __init__(self, n_filters, sample_rate, size=400, stride=40, pool=4):
        super().__init__()
        self.stride, self.pool = stride, pool
        self.register_buffer("start", gabor_filters(n_filters, size, sample_rate), persistent=False)
        self.change = nn.Parameter(torch.zeros(2 * n_filters, size))  # in thousandths: the ear learns slowly

    def forward(self, waveforms):
        filters = self.start + 0.001 * self.change
        padded = F.pad(to_float(waveforms), (filters.shape[1] // 2, filters.shape[1] // 2))
        # A convolution as one matrix product over overlapping frames, which is faster for filters this long.
        outputs = padded.unfold(1, filters.shape[1], self.stride) @ filters.T  # (batch, steps, 2 * filters)
        energy = outputs.float().square().unflatten(2, (2, -1)).sum(2).transpose(1, 2)  # (batch, filters, steps)
        return ((F.avg_pool1d(energy, self.pool) + 1e-10).log() + 14) / 4


class AudioTransformer(nn.Module):
    """Waveforms (batch, samples) -> logits (batch, classes): learned filters, convolutional stem, pre-norm blocks."""

    def __init__(self, n_classes, n_samples, sample_rate, d_model=128, n_layers=3, n_heads=2, dropout=0.1):
        super().__init__()
        self.filters = FilterBank(64, sample_rate)
        self.masks, self.scale = SpecAugment(2, 8, 2, 40), nn.BatchNorm2d(1)
        layers, n_in = [], 1
        for n_out in (32, 64, 96, 128):
            size = 5 if n_in == 1 else 3
            layers += [nn.Conv2d(n_in, n_out, size, 2, size // 2, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
            n_in = n_out
        self.stem = nn.Sequential(*layers, nn.Conv2d(n_in, d_model, 3, 2, 1))
        with torch.no_grad():
            n_tokens = 2 * math.ceil(self.filters(torch.zeros(1, n_samples)).shape[2] / 32)
        self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.positions = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1 + n_tokens, d_model), std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(EncoderBlock(d_model, n_heads, 4 * d_model, True, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, n_classes)

    def tokens(self, waveforms):
        x = self.masks(self.filters(waveforms))  # (batch, 64, frames)
        x = self.scale(x.unsqueeze(3).permute(0, 3, 1, 2))  # (batch, 1, 64, frames), channels last
        x = self.stem(x)  # (batch, d_model, 2, frames / 32)
        x = x.flatten(2).transpose(1, 2)  # (batch, tokens, d_model)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        return self.dropout(x + self.positions[:, : x.shape[1]])

    def forward(self, waveforms):
        x = self.tokens(waveforms)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
