"""The model of audio_transformer_pipeline, as it was when the run was saved; load_run executes this file."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvStem(nn.Module):
    """Tokens from five small convolutions that each halve both axes: a token covers a third of a second and half of the
    bands, seen through shared local filters, which a few hundred clips are enough to learn (Xiao et al. 2021)."""

    def __init__(self, d_model, channels=(32, 64, 96, 128)):
        super().__init__()
        layers, n_in = [], 1
        for n_out in channels:
            size = 5 if n_in == 1 else 3
            layers += [nn.Conv2d(n_in, n_out, size, stride=2, padding=size // 2, bias=False)]
            layers += [nn.BatchNorm2d(n_out), nn.ReLU()]
            n_in = n_out
        self.layers = nn.Sequential(*layers, nn.Conv2d(n_in, d_model, 3, stride=2, padding=1))

    def forward(self, specs):  # (batch, 1, mels, frames)
        return self.layers(specs.contiguous(memory_format=torch.channels_last))  # (batch, d_model, rows, columns)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, d_model, n_heads, dropout):
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.norm1 = nn.LayerNorm(d_model, eps=1e-12)
        self.query, self.key, self.value = (nn.Linear(d_model, d_model) for _ in range(3))
        self.out = nn.Linear(d_model, d_model)
        self.norm2 = nn.LayerNorm(d_model, eps=1e-12)
        self.fc1 = nn.Linear(d_model, 4 * d_model)
        self.fc2 = nn.Linear(4 * d_model, d_model)

    def heads(self, x):  # (batch, tokens, d_model) -> three times (batch, heads, tokens, d_model / heads)
        x = self.norm1(x)
        return [f(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)]

    def attention(self, x):  # (batch, heads, tokens, tokens): what each token looks at; each row sums to 1
        query, key, _ = self.heads(x)
        return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)

    def forward(self, x):  # (batch, tokens, d_model)
        mixed = F.scaled_dot_product_attention(*self.heads(x))  # (batch, heads, tokens, d_model / heads)
        x = x + F.dropout(self.out(mixed.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))), self.dropout, self.training)


class PatchEmbedding(nn.Module):
    """AST's tokens: one linear map of overlapping 16 x 16 patches, every 10 mel bands and 10 frames."""

    def __init__(self, d_model):
        super().__init__()
        self.projection = nn.Conv2d(1, d_model, kernel_size=16, stride=10)

    def forward(self, specs):  # (batch, 1, mels, frames)
        return self.projection(specs)  # (batch, d_model, rows, columns)


class TinyAST(nn.Module):
    def __init__(self, embedding, n_mels, n_frames, n_classes, d_model, n_layers, n_heads, dropout):
        super().__init__()
        if embedding not in ("stem", "patches") or d_model % n_heads:
            raise ValueError(f"{embedding=} must be 'stem' or 'patches', and {n_heads=} must divide {d_model=}.")
        self.spec_shape = (n_mels, n_frames)
        self.embedding = {"stem": ConvStem, "patches": PatchEmbedding}[embedding](d_model)
        with torch.no_grad():
            self.grid = tuple(self.embedding(torch.zeros(2, 1, n_mels, n_frames)).shape[2:])  # (rows, columns)
        n_tokens = self.grid[0] * self.grid[1] + 2
        self.class_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, d_model))
        self.positions = nn.Parameter(torch.zeros(1, n_tokens, d_model))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(EncoderLayer(d_model, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(d_model, eps=1e-12)
        self.head = nn.Sequential(nn.LayerNorm(d_model, eps=1e-12), nn.Linear(d_model, n_classes))
        for parameter in (self.class_token, self.distillation_token, self.positions):
            nn.init.trunc_normal_(parameter, std=0.02)

    def tokens(self, specs):  # (batch, frames, mels), as AST takes them
        x = self.embedding(specs.transpose(1, 2).unsqueeze(1))  # (batch, d_model, rows, columns)
        x = x.flatten(2).transpose(1, 2)  # (batch, rows * columns, d_model)
        first = torch.cat([self.class_token, self.distillation_token], 1).expand(len(x), -1, -1)
        return self.dropout(torch.cat([first, x], 1) + self.positions)  # (batch, tokens, d_model)

    def forward(self, specs):
        x = self.tokens(specs)
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.head((x[:, 0] + x[:, 1]) / 2)  # (batch, classes)
