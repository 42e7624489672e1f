"""The model of gru_baselines, as it was when the run was saved; load_run executes this file."""

import torch
from shared_utils.spectrograms import Mfcc
from shared_utils.spectrograms import SpecAugment
from torch import nn


def channels_last_gradient(x):
    """Return `x`, whose gradient will lie in memory as convolutions like it: out of a GRU it comes back strided."""
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


class CRNNAttention(nn.Module):
    """2-D convolutions with pooling, a bidirectional GRU, attention pooling over its steps, two linear layers."""

    def __init__(self, n_classes, n_mfcc=40, dropout=0.3):
        super().__init__()
        self.front_end = Mfcc(n_mfcc=n_mfcc, n_mels=64, n_fft=400, hop_length=160)
        self.scale = nn.BatchNorm1d(n_mfcc, affine=False)
        self.augment = SpecAugment(2, 7, 2, 20, value=0.0)
        layers = []
        for n_in, n_out in ((1, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.SiLU()]
            layers += [nn.MaxPool2d(2)] if n_out < 128 else []
        self.conv = nn.Sequential(*layers)
        self.gru = nn.GRU(128 * (n_mfcc // 4), 128, num_layers=2, bidirectional=True, batch_first=True)
        self.score = nn.Linear(256, 1)
        self.head = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, n_classes))

    def steps(self, waveforms):  # (batch, samples) -> the GRU's output and the weight of each step
        x = self.augment(self.scale(self.front_end(waveforms)))  # (batch, n_mfcc, 101)
        x = self.conv(x.unsqueeze(3).permute(0, 3, 1, 2))  # channels last in memory: (batch, 128, n_mfcc / 4, 25)
        x = channels_last_gradient(x)
        x, _ = self.gru(x.flatten(1, 2).transpose(1, 2))  # (batch, 25, 256)
        return x, self.score(x).softmax(1)  # (batch, 25, 256), (batch, 25, 1)

    def forward(self, waveforms):
        x, weights = self.steps(waveforms)
        return self.head((weights * x).sum(1))  # (batch, classes)
