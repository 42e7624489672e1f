"""The model of cnn_transformer, as it was when the run was saved; load_run executes this file."""

import math
import torch
import torch.nn.functional as F
from shared_utils.spectrograms import LogMel
from shared_utils.spectrograms import SpecAugment
from torch import nn


def attend(query, key, value):  # each (batch, heads, tokens, width)
    n_heads, n_tokens, width = query.shape[1:]
    if query.device.type != "cpu" or n_tokens > 1000 or torch.jit.is_tracing():
        return F.scaled_dot_product_attention(query, key, value)
    n_clips = max(1, 2**22 // (n_heads * n_tokens**2))  # whose tables fit the cache together
    parts = zip(query.split(n_clips), key.split(n_clips), value.split(n_clips), strict=True)
    with torch.autocast("cpu", enabled=False):  # which would turn the tables into float32
        return torch.cat([(q * width**-0.5 @ k.transpose(2, 3)).softmax(-1) @ v for q, k, v in parts])


class EncoderLayer(nn.Module):
    """Transformer layer: attention over tokens, then an MLP for each of them, both with a residual connection."""

    def __init__(self, d_model, n_heads, d_ff, pre_norm):
        super().__init__()
        self.n_heads, self.pre_norm = n_heads, pre_norm
        self.query_key_value = nn.Linear(d_model, 3 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.fc1, self.fc2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def heads(self, x):  # (batch, tokens, d_model) -> three times (batch, heads, tokens, d_model / heads)
        x = self.norm1(x) if self.pre_norm else x
        return [part.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part in self.query_key_value(x).chunk(3, -1)]

    def attention(self, x):  # (batch, heads, tokens, tokens): what each token looks at; each row sums to 1
        query, key, _ = self.heads(x)
        return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)

    def forward(self, x):  # (batch, tokens, d_model)
        mixed = self.out(attend(*self.heads(x)).transpose(1, 2).flatten(2))
        if self.pre_norm:
            x = x + mixed
            return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        x = self.norm1(x + mixed)
        return self.norm2(x + self.fc2(F.relu(self.fc1(x))))


class Residual(nn.Module):
    """A convolution that adds to its input."""

    def __init__(self, n_channels):
        super().__init__()
        self.conv = nn.Conv2d(n_channels, n_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(n_channels)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


class TimeTransformer(nn.Module):
    """Keyword transformer with tokens along time only, pre-norm layers and attention pooling."""

    def __init__(self, n_classes, n_mels=40, channels=(24, 48, 72), d_model=96, n_layers=3, n_heads=2, positions=True):
        super().__init__()
        self.front_end = LogMel(n_mels=n_mels, n_fft=400, hop_length=160)
        self.norm_bands = nn.BatchNorm1d(n_mels)  # mean and deviation of every mel band, from the training clips
        self.augment = SpecAugment(2, n_mels // 6, 2, 20)
        layers, n_in = [], 1
        for place, n_out in enumerate(channels):
            stride = (2, 1) if place else (2, 2)  # (frequency, time)
            layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
            layers += [Residual(n_out)] if place else []
            n_in = n_out
        self.conv = nn.Sequential(*layers)
        self.projection = nn.Linear(n_in * math.ceil(n_mels / 2 ** len(channels)), d_model)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 51, d_model)) if positions else None
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads, 4 * d_model, pre_norm=True) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model)
        self.score = nn.Linear(d_model, 1)
        self.head = nn.Linear(d_model, n_classes)

    def tokens(self, waveforms):  # (batch, samples)
        specs = self.augment(self.norm_bands(self.front_end(waveforms)))  # (batch, mels, 101)
        x = self.conv(specs.unsqueeze(3).permute(0, 3, 1, 2))  # (batch, 72, mels / 8, 51), channels last in memory
        x = self.projection(x.flatten(1, 2).transpose(1, 2))  # (batch, 51, d_model)
        return x if self.positions is None else x + self.positions

    def pool(self, x):  # (batch, 51, d_model) -> (batch, d_model), and the weight of every moment (batch, 51, 1)
        x = self.norm(x)
        weights = self.score(x).softmax(1)
        return (weights * x).sum(1), weights

    def forward(self, waveforms):
        x = self.tokens(waveforms)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.pool(x)[0])  # (batch, classes)
