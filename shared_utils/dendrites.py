"""Dendrites: small branches that grow beside the layers of a trained network.

A layer M with D dendrites gives y = M(x) + sum_d w_d * a_d, where a_d = f(B_d(x) + sum_{e < d} c_de * a_e). A branch
B_d has the form of M, or is of low rank; the weights w_d and c_de are one number a channel and start at zero, so a new
dendrite changes nothing until it has learned. Cascades of this kind go back to cascade-correlation (Fahlman and
Lebiere 1990); the forward pass is that of the package perforatedai, and as in its open part all weights follow the
gradient of the loss. Perforated backpropagation, which cuts gradients and trains dendrites by correlation, is patented
(US 11,580,403) and not here.

    make_dendritic(model, ["fc2"])           # wraps every layer of that name
    fit_with_dendrites(model, train, val, max_dendrites=3, epochs=20, patience=5)
"""

import copy
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from shared_utils.training import fit, refuse_checkpoint

ACTIVATIONS = ("sigmoid", "tanh", "relu")
_SPREAD = 0.01  # standard deviation of a new branch's weights, as in perforatedai
_FILE = "dendrites.safetensors"


class Dendrite(nn.Module):
    """One branch with its weights: `top` (channels) to the layer's output, `cascade` (n_before, channels)."""

    def __init__(self, branch: nn.Module, n_before: int, n_channels: int):
        super().__init__()
        self.branch = branch
        self.top = nn.Parameter(torch.zeros(n_channels))
        self.cascade = nn.Parameter(torch.zeros(n_before, n_channels))


class Dendritic(nn.Module):
    """A layer and the dendrites beside it; without any it is the layer.

    Args:
        base_layer: a linear layer, a convolution, a LoRA layer of peft around one, or a module that ends in a linear
            layer (channels last), a convolution or a batch norm (channels second). It returns one tensor.
        rank: width of low-rank branches; None: a branch is a copy of the layer with all weights drawn anew.
        activation: f, one of ACTIVATIONS.

    Dendrites always learn, also beside a frozen layer. `load_state_dict` grows or prunes to what the state holds.
    """

    def __init__(self, base_layer: nn.Module, rank: int | None = None, activation: str = "sigmoid"):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"There is no activation {activation!r}; choose {', '.join(ACTIVATIONS)}.")
        if rank is not None and rank < 1:
            raise ValueError(f"A rank of {rank} is below 1; raise it, or give None for full branches.")
        self.base_layer, self.rank, self.activation = base_layer, rank, activation
        self.dendrites = nn.ModuleList()
        self.training = base_layer.training
        self.n_channels, self.channel_dim = _find_channels(base_layer)
        if rank is not None:
            with torch.random.fork_rng(devices=[]):
                _make_low_rank(_bare(base_layer), rank)  # refuses what has no low rank, before anything is trained

    def grow(self) -> None:
        """Add one dendrite, which changes no output yet; its weights come from torch's global CPU generator."""
        layer = _bare(self.base_layer)
        branch = _draw_copy(layer) if self.rank is None else _make_low_rank(layer, self.rank)
        like = next(iter(layer.parameters()))
        dendrite = Dendrite(branch, len(self.dendrites), self.n_channels).to(like.device, like.dtype)
        self.dendrites.append(dendrite.train(self.training))

    def prune(self, n: int) -> None:
        """Keep the first `n` dendrites."""
        del self.dendrites[n:]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest) -> None:
        starts = f"{prefix}dendrites."
        n = len({name.removeprefix(starts).partition(".")[0] for name in state_dict if name.startswith(starts)})
        self.prune(n)
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten at once
            while len(self.dendrites) < n:
                self.grow()
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: torch.Tensor, *arguments, **more) -> torch.Tensor:
        y = self.base_layer(x, *arguments, **more)
        if not isinstance(y, torch.Tensor):
            inside = [name for name, module in self.base_layer.named_modules() if isinstance(module, nn.Linear)]
            raise TypeError(
                f"{type(self.base_layer).__name__} returns a {type(y).__name__}, and a dendrite adds to one tensor; "
                f"wrap a layer inside it, such as {', '.join(inside[:4]) or 'a linear layer'}."
            )
        if y.dim() == 0 or y.shape[self.channel_dim] != self.n_channels:
            raise ValueError(
                f"{type(self.base_layer).__name__} gives {tuple(y.shape)}, not {self.n_channels} channels on axis "
                f"{self.channel_dim}; wrap the layer inside it that has them."
            )
        after = 0 if self.channel_dim == -1 else y.dim() - 2  # axes behind that of the channels
        activate, activations = getattr(torch, self.activation), []
        for dendrite in self.dendrites:
            z = dendrite.branch(x, *arguments, **more)
            for weight, earlier in zip(dendrite.cascade, activations, strict=True):
                z = z + weight.view(-1, *[1] * after) * earlier
            activations.append(activate(z))
        for dendrite, a in zip(self.dendrites, activations, strict=True):
            y = y + (dendrite.top.view(-1, *[1] * after) * a).to(y.dtype)
        return y


def make_dendritic(
    model: nn.Module, layers: Sequence[str], rank: int | None = None, activation: str = "sigmoid"
) -> list[str]:
    """Wrap layers of `model` in `Dendritic`, in place, and return their names; nothing grows yet.

    `layers` are names as in `model.named_modules()`, or their ends: "fc2", "mlp.fc2". LoRA of peft comes before this.
    Raises ValueError for a name that no layer has (the error lists those that there are), for a layer that is wrapped
    already and for one whose weights PyTorch reads past its forward pass.
    """
    modules = dict(model.named_modules())
    wrapped = [name for name, module in modules.items() if isinstance(module, Dendritic)]
    found = []
    for layer in layers:
        ends = [name for name in modules if name.endswith(f".{layer}")]
        named = [layer] if layer and layer in modules else ends
        nested = [(f"{name}.", f"{other}.") for name in named for other in wrapped]
        inside = [other[:-1] for name, other in nested if name.startswith(other) or other.startswith(name)]
        if inside:
            raise ValueError(f"{inside[0]} has dendrites already; a layer is wrapped once.")
        if not named:
            raise ValueError(f"There is no layer {layer!r}; there are {', '.join(_list_layers(model)) or 'none'}.")
        found += [name for name in named if name not in found]
    for name in found:
        above = [other for other in found if name.startswith(f"{other}.")]
        if above:
            raise ValueError(f"{name} is a part of {above[0]}, which is to have dendrites too; choose one of them.")
        parent = modules[name.rpartition(".")[0]]
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise ValueError(
                f"{type(parent).__name__} reads the weights of {name} without calling it, so dendrites would be passed "
                "over; write the block from single layers."
            )
    made = [Dendritic(modules[name], rank, activation) for name in found]
    for name, layer in zip(found, made, strict=True):
        model.set_submodule(name, layer)
    return found


def grow_dendrites(model: nn.Module) -> int:
    """Add one dendrite to every `Dendritic` layer of `model`; return how many each has."""
    for layer in find_dendritic(model).values():
        layer.grow()
    return count_dendrites(model)


def prune_dendrites(model: nn.Module, n: int) -> None:
    """Keep the first `n` dendrites of every `Dendritic` layer of `model`."""
    for layer in find_dendritic(model).values():
        layer.prune(n)


def count_dendrites(model: nn.Module) -> int:
    """Return how many dendrites each `Dendritic` layer of `model` has; 0 where there is no such layer."""
    return max((len(layer.dendrites) for layer in model.modules() if isinstance(layer, Dendritic)), default=0)


def fit_with_dendrites(
    model: nn.Module, train, val, *, max_dendrites: int, grow: bool = True, title: str = "", **fit_arguments
) -> pd.DataFrame:
    """Train to a plateau, add a set of dendrites, train on; keep it if validation improves, else go back and stop.

    Args:
        model: with layers wrapped by `make_dendritic`.
        max_dendrites: sets to try, beside those that the model has.
        grow: False adds none and is the control: the same phases, from the same weights, without dendrites.
        fit_arguments: of `training.fit`, for every phase: `epochs` at most, fewer with `patience`. Each phase has an
            optimizer and a schedule of its own, starting at `lr`.

    Returns the histories of all phases as one DataFrame, as `fit` does, with `phase` (from 0) and `dendrites` (sets
    that the model had). The model ends with its best validation weights; attrs hold their best_epoch, counted through,
    and `dendrites`, the sets that were kept. Where a later phase fails, the model is as it was before that phase.
    """
    refuse_checkpoint(fit_arguments, "train with dendrites")
    if val is None:
        raise ValueError("Dendrites are kept where validation improves; give validation clips.")
    if max_dendrites < 0:
        raise ValueError(f"max_dendrites={max_dendrites} is below 0; 0 trains one phase without new dendrites.")
    if grow:
        find_dendritic(model)  # a model without them is refused before it trains
    by_loss = fit_arguments.get("monitor") == "val_loss"
    histories, best_score, best_epoch, n_kept = [], None, 0, 0
    for phase in range(max_dendrites + 1):
        before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        n_dendrites = grow_dendrites(model) if grow and phase else count_dendrites(model)
        label = f"dendrites: {n_dendrites}" if grow else f"phase {phase + 1}"
        try:
            history = fit(model, train, val, title=f"{title}, {label}" if title else label, **fit_arguments)
        except (FloatingPointError, RuntimeError):  # the phases before it are not lost
            if phase:
                model.load_state_dict(before)
            raise
        except KeyboardInterrupt:  # before the end of an epoch
            if not phase:
                raise
            model.load_state_dict(before)
            history.attrs["interrupted"] = True  # that of the phase before
            break
        n_before = sum(map(len, histories))
        chosen = history.attrs["best_epoch"]
        histories.append(history.assign(epoch=history["epoch"] + n_before, phase=phase, dendrites=n_dendrites))
        if chosen == 0:  # stopped by hand before the first validation
            score = None
        else:
            row = history.set_index("epoch").loc[chosen]
            score = (-row["val_loss"],) if by_loss else (row["val_accuracy"], -row["val_loss"])
        if phase and (score is None or not score > best_score):  # NaN is no improvement
            model.load_state_dict(before)
            break
        best_score, best_epoch, n_kept = score, chosen + n_before * (chosen > 0), n_dendrites
        if history.attrs["interrupted"]:
            break
    whole = pd.concat(histories, ignore_index=True)
    whole.attrs = history.attrs | {"best_epoch": best_epoch, "dendrites": n_kept}
    return whole


def save_pretrained(model: nn.Module, folder: str | os.PathLike) -> None:
    """Write a transformers model without its dendrites as transformers does, and the dendrites into a file beside it.

    `load_dendrites(AutoModelForAudioClassification.from_pretrained(folder), folder)` brings both back.

    Raises ValueError where any layer holds LoRA: merge it first.
    """
    layers = find_dendritic(model)
    around = [(name, module) for name, module in model.named_modules() if hasattr(module, "base_layer")]
    with_lora = [name.removesuffix(".base_layer") for name, module in around if not isinstance(module, Dendritic)]
    if with_lora:
        raise ValueError(f"{with_lora[0]} holds LoRA, which transformers cannot load again; merge it first.")
    kinds = {(layer.rank, layer.activation, len(layer.dendrites)) for layer in layers.values()}
    if len(kinds) > 1:
        raise ValueError("Layers differ in rank, activation or number of dendrites; one file holds one kind.")
    rank, activation, n = kinds.pop()
    with without_dendrites(model):
        model.save_pretrained(folder)
    how = {"layers": list(layers), "rank": rank, "activation": activation, "dendrites": n}
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, layer in layers.items()
        for key, tensor in layer.dendrites.state_dict().items()
    }
    temporary = Path(folder) / f"{_FILE}.part"
    save_file(tensors, temporary, metadata={"dendrites": json.dumps(how)})
    temporary.replace(Path(folder) / _FILE)


def load_dendrites(model: nn.Module, folder: str | os.PathLike) -> nn.Module:
    """Wrap the layers of `model` as those were that `save_pretrained` wrote, and load their dendrites; return `model`.

    Raises FileNotFoundError where the folder holds none, ValueError for a model without these layers or of another
    size.
    """
    path = Path(folder) / _FILE
    if not path.is_file():
        raise FileNotFoundError(f"There are no dendrites in {folder}; save_pretrained of this module writes {_FILE}.")
    with safe_open(path, "pt") as file:
        how = json.loads(file.metadata()["dendrites"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    missing = set(how["layers"]) - dict(model.named_modules()).keys()  # whole names: an end would be another layer
    if missing:
        raise ValueError(f"The dendrites in {folder} belong to {min(missing)}, which this model does not have.")
    make_dendritic(model, how["layers"], how["rank"], how["activation"])
    for name in how["layers"]:
        layer = model.get_submodule(name)
        state = {f"base_layer.{key}": tensor for key, tensor in layer.base_layer.state_dict().items()}
        start = f"{name}."
        state |= {
            f"dendrites.{key.removeprefix(start)}": tensor for key, tensor in tensors.items() if key.startswith(start)
        }
        try:
            layer.load_state_dict(state)
        except RuntimeError as error:
            for wrapped in how["layers"]:
                model.set_submodule(wrapped, model.get_submodule(wrapped).base_layer)
            raise ValueError(f"The dendrites in {folder} are those of a {name} of another size.") from error
    return model


def find_dendritic(model: nn.Module) -> dict[str, Dendritic]:
    """Return the layers that `make_dendritic` wrapped, by name; raises ValueError where there are none."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Dendritic)}
    if not layers:
        raise ValueError("The model has no layer for dendrites; call make_dendritic first.")
    return layers


def _list_layers(model: nn.Module) -> list[str]:
    """Names that `make_dendritic` takes: the last part of a layer's, the whole where that is a number."""
    around = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    names, taken = {}, tuple(f"{name}." for name in around)
    for name, module in model.named_modules():
        is_lora = name in around and not isinstance(module, Dendritic)
        if (is_lora or isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)) and not name.startswith(taken):
            last = name.rpartition(".")[2]
            names[name if last.isdigit() else last] = None
    return list(names)


def _bare(layer: nn.Module) -> nn.Module:
    """Return the layer inside peft's wrapping."""
    while hasattr(layer, "base_layer"):
        layer = layer.base_layer
    return layer


def _find_channels(layer: nn.Module) -> tuple[int, int]:
    """Return how many channels the layer's output has, and their axis: -1, or 1 after a convolution."""
    for module in reversed(list(_bare(layer).modules())):
        if isinstance(module, nn.Linear):
            return module.out_features, -1
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            return module.out_channels, 1
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return module.num_features, 1
    raise ValueError(
        f"{type(layer).__name__} holds no linear layer, convolution or batch norm; dendrites need one that learns."
    )


def _draw_copy(layer: nn.Module) -> nn.Module:
    branch = copy.deepcopy(layer)
    for parameter in branch.parameters():
        _draw(parameter, _SPREAD)
    return branch.requires_grad_(True)


def _draw(parameter: nn.Parameter, spread: float) -> None:
    """Draw on the CPU, wherever the layer lies: a seed gives the same dendrites on every device."""
    parameter.data.copy_(spread * torch.randn(parameter.shape, device="cpu"))


def _make_low_rank(layer: nn.Module, rank: int) -> nn.Module:
    """Return two layers, of which the first has `rank` outputs, that begin at the scale of a full branch."""
    if isinstance(layer, nn.Linear):
        parts = [nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)]
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        shape = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
        parts = [
            type(layer)(layer.in_channels, rank, layer.kernel_size, bias=False, **shape),
            type(layer)(rank, layer.out_channels, 1),
        ]
    else:
        raise ValueError(f"A {type(layer).__name__} has no branch of low rank; wrap linear layers or convolutions.")
    _draw(parts[0].weight, rank**-0.5)
    for parameter in parts[1].parameters():
        _draw(parameter, _SPREAD)
    return nn.Sequential(*parts)


@contextmanager
def without_dendrites(model: nn.Module) -> Iterator[None]:
    layers = find_dendritic(model)
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer.base_layer)
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
