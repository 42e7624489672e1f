"""Dendrites: nothing changes at growth, the formula afterwards, what learns, what is saved, and what is kept."""

import copy
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification, ASTModel
from transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer import ASTMLP

from shared_utils import dendrites
from shared_utils.datasets import ArrayDataset
from shared_utils.dendrites import (
    ACTIVATIONS,
    Dendritic,
    count_dendrites,
    fit_with_dendrites,
    grow_dendrites,
    load_dendrites,
    make_dendritic,
    prune_dendrites,
    save_pretrained,
)
from shared_utils.device import seed_everything
from shared_utils.finetuning import AstClassifier
from shared_utils.runs import load_run, save_run
from shared_utils.training import evaluate

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TINY |= {"num_mel_bins": 32, "max_length": 64, "num_labels": 3}
FC2 = [f"audio_spectrogram_transformer.layers.{i}.mlp.fc2" for i in range(2)]
SPECS = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and a block: a name, an end of a name, and a module that holds another."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.fc1 = nn.Linear(4, width)
        self.block = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        self.head = nn.Linear(width, 3)

    def forward(self, inputs):
        return self.head(self.block(torch.tanh(self.fc1(inputs))))


class DendriticNet(nn.Module):
    """What a notebook would save: its layers are wrapped where it is built, and nothing has grown yet."""

    def __init__(self, width: int, rank: int | None):
        super().__init__()
        self.fc1, self.head = nn.Linear(4, width), nn.Linear(width, 3)
        make_dendritic(self, ["fc1", "head"], rank)

    def forward(self, inputs):
        return self.head(torch.relu(self.fc1(inputs)))


class Attention(nn.Module):
    """Returns a tuple, as the attention of transformers does."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.o_proj(self.q_proj(x)), None


def make_block() -> nn.Module:
    block = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU())
    block[1].running_mean += 0.3
    return block.eval()


# name -> (layer, shape of its inputs, its output channels)
LAYERS = {
    "linear": (lambda: nn.Linear(4, 5), (3, 4), 5),
    "linear over tokens": (lambda: nn.Linear(4, 5), (2, 7, 4), 5),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, stride=2, padding=1, dilation=2), (2, 3, 11), 5),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 5), stride=(2, 1), padding=(1, 2), bias=False), (2, 3, 8, 7), 5),
    "grouped conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same", padding_mode="reflect"), (2, 4, 8, 7), 6),
    "block": (make_block, (2, 3, 8, 7), 5),
    "ASTMLP": (lambda: ASTMLP(ASTConfig(**TINY)), (2, 5, 16), 16),
}
PLAIN = [name for name in LAYERS if name not in ("block", "ASTMLP")]
FORMS = [(name, None) for name in LAYERS] + [(name, 2) for name in PLAIN]


def randomise(module: nn.Module, scale: float = 0.5, seed: int = 0) -> nn.Module:
    """Draw all parameters anew, so that no zero and no small number hides a wrong term."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return module


def make(name: str, n: int, rank: int | None = None, activation: str = "sigmoid") -> tuple[Dendritic, torch.Tensor]:
    """Return a layer with `n` dendrites, none of whose weights is zero, and inputs for it."""
    torch.manual_seed(0)
    build, shape, _ = LAYERS[name]
    layer = Dendritic(build(), rank, activation)
    for _ in range(n):
        layer.grow()
    return randomise(layer), torch.randn(shape)


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def copy_state(module: nn.Module) -> dict:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# ---- the layer


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("name", "rank"), FORMS)
def test_growth_changes_nothing(name, rank, activation):
    torch.manual_seed(0)
    build, shape, n_channels = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    expected = layer(x)
    wrapped = Dendritic(layer, rank, activation)
    assert torch.equal(wrapped(x), expected)
    for n in (1, 2):
        wrapped.grow()
        assert len(wrapped.dendrites) == n and torch.equal(wrapped(x), expected)
    for d, dendrite in enumerate(wrapped.dendrites):  # the branch sees the input: what it adds is no constant
        assert torch.unique(dendrite.branch(x)).numel() > 2 * x.shape[0]
        assert dendrite.branch(x).shape == expected.shape and dendrite.cascade.shape == (d, n_channels)
    with torch.no_grad():
        wrapped.dendrites[0].top.fill_(1.0)
    assert not torch.equal(wrapped(x), expected)
    wrapped.prune(0)
    assert torch.equal(wrapped(x), expected)


def branch_by_hand(name: str, state: dict, prefix: str, x: torch.Tensor) -> torch.Tensor:
    """Return what a layer of LAYERS with these weights gives."""
    weight, bias = state[f"{prefix}weight"], state.get(f"{prefix}bias")
    if name.startswith("linear"):
        return torch.einsum("...i,oi->...o", x, weight) + (0 if bias is None else bias)
    if name == "conv1d":
        return F.conv1d(x, weight, bias, stride=2, padding=1, dilation=2)
    return F.conv2d(x, weight, bias, stride=(2, 1), padding=(1, 2))


def project_by_hand(name: str, state: dict, prefix: str, x: torch.Tensor) -> torch.Tensor:
    """Return what the second layer of a low-rank branch gives: channels mixed at each place."""
    form = "...i,oi->...o" if name.startswith("linear") else "bi...,oi->bo..."
    weight, bias = state[f"{prefix}weight"], state[f"{prefix}bias"]
    y = torch.einsum(form, x, weight.reshape(weight.shape[:2]))
    return y + bias.reshape([-1] if name.startswith("linear") else [-1] + [1] * (y.dim() - 2))


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("name", ["linear", "linear over tokens", "conv1d", "conv2d"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_forward_pass_is_the_formula(name, rank, activation):
    layer, x = make(name, 3, rank, activation)
    state = {key: value.detach().clone().requires_grad_() for key, value in layer.state_dict().items()}
    f = {"sigmoid": lambda z: 1 / (1 + torch.exp(-z)), "tanh": torch.tanh, "relu": lambda z: z.clamp_min(0)}[activation]
    last = [-1] if name.startswith("linear") else [-1] + [1] * (x.dim() - 2)
    y, a = branch_by_hand(name, state, "base_layer.", x), []
    for d in range(3):
        start = f"dendrites.{d}."
        if rank is None:
            z = branch_by_hand(name, state, f"{start}branch.", x)
        else:
            z = branch_by_hand(name, state, f"{start}branch.0.", x)
            z = project_by_hand(name, state, f"{start}branch.1.", z)
        for e in range(d):
            z = z + state[f"{start}cascade"][e].reshape(last) * a[e]
        a.append(f(z))
        y = y + state[f"{start}top"].reshape(last) * a[d]
    out = layer(x)
    torch.testing.assert_close(out, y, atol=1e-5, rtol=1e-5)

    weights = torch.randn(y.shape)
    (out * weights).sum().backward()
    (y * weights).sum().backward()
    for key, parameter in layer.named_parameters():
        if parameter.numel():  # the first cascade has no row
            torch.testing.assert_close(parameter.grad, state[key].grad, atol=2e-4, rtol=1e-4)


def test_one_example_by_arithmetic():
    layer = Dendritic(nn.Linear(1, 1))
    for branch, top in ((2.0, 10.0), (-1.0, 100.0)):
        layer.grow()
        layer.dendrites[-1].branch.weight.data.fill_(branch)
        layer.dendrites[-1].branch.bias.data.zero_()
        layer.dendrites[-1].top.data.fill_(top)
    layer.base_layer.weight.data.fill_(3.0)
    layer.base_layer.bias.data.fill_(0.5)
    layer.dendrites[1].cascade.data.fill_(4.0)
    first = 1 / (1 + math.exp(-2 * 0.7))
    second = 1 / (1 + math.exp(-(-0.7 + 4 * first)))
    assert layer(torch.tensor([[0.7]])).item() == pytest.approx(3 * 0.7 + 0.5 + 10 * first + 100 * second, rel=1e-6)


def test_the_arguments_of_a_layer_reach_its_branches():
    class Scaled(nn.Linear):
        def forward(self, x, scale, shift=0.0):
            return super().forward(x) * scale + shift

    layer = Dendritic(Scaled(4, 4), activation="tanh")
    layer.grow()
    randomise(layer)
    x, dendrite = torch.randn(2, 4), layer.dendrites[0]
    expected = layer.base_layer(x, 2.0, shift=1.0) + dendrite.top * torch.tanh(dendrite.branch(x, 2.0, shift=1.0))
    torch.testing.assert_close(layer(x, 2.0, shift=1.0), expected)


@pytest.mark.parametrize(("name", "rank"), FORMS)
def test_parameters_follow_the_formula(name, rank):
    layer, _ = make(name, 0, rank)
    base, n_out = n_parameters(layer.base_layer), LAYERS[name][2]
    for n in range(1, 4):
        layer.grow()
        cascade = n_out * n * (n - 1) // 2
        if rank is None:
            branches = n * base
        else:
            kernel = math.prod(getattr(layer.base_layer, "kernel_size", ()))
            n_in = getattr(layer.base_layer, "in_channels", 4)
            branches = n * (rank * (n_in * kernel + n_out) + n_out)  # with the bias of the second part
        assert n_parameters(layer) - base == branches + n * n_out + cascade


@pytest.mark.parametrize(("rank", "expected"), [(None, 12 * (3072 * 768 + 2 * 768)), (8, 12 * (8 * 3840 + 2 * 768))])
def test_what_a_set_on_fc2_costs_the_full_ast(rank, expected):
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    before = n_parameters(model)
    names = make_dendritic(model, ["fc2"], rank)
    assert names == [f"layers.{i}.mlp.fc2" for i in range(12)] and n_parameters(model) == before
    assert grow_dendrites(model) == 1
    assert n_parameters(model) - before == expected == {None: 28_329_984, 8: 387_072}[rank]


@pytest.mark.parametrize("rank", [None, 64])
def test_new_branches_begin_small(rank):
    """Of low rank at the scale of a full branch: 64 products with variances 1/64 and 0.0001 add up to 0.0001."""
    torch.manual_seed(0)
    layer = Dendritic(nn.Linear(200, 200), rank)
    layer.grow()
    assert not layer.dendrites[0].top.any()
    branch = layer.dendrites[0].branch
    weight = branch.weight if rank is None else branch[1].weight @ branch[0].weight
    bias = branch.bias if rank is None else branch[1].bias
    assert weight.std().item() == pytest.approx(0.01, rel=0.05) and abs(weight.mean().item()) < 1e-3
    assert bias.std().item() == pytest.approx(0.01, rel=0.2)
    layer.grow()
    assert not torch.equal(layer.dendrites[1].branch(torch.ones(200)), branch(torch.ones(200)))


@pytest.mark.parametrize("rank", [None, 2])
def test_a_seed_gives_the_same_dendrites_wherever_the_layer_lies(rank):
    states = []
    for device, dtype in (("cpu", torch.float32), ("meta", torch.float32), ("cpu", torch.float64)):
        layer = Dendritic(nn.Linear(4, 5, device=device, dtype=dtype), rank)
        torch.manual_seed(3)
        layer.grow()
        states.append(torch.get_rng_state())
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {(device, dtype)}
    assert torch.equal(states[0], states[1]) and torch.equal(states[0], states[2])
    torch.manual_seed(3)
    again = Dendritic(nn.Linear(4, 5), rank)
    torch.manual_seed(3)
    again.grow()
    state = layer.dendrites.state_dict()
    assert all(torch.equal(state[name].float(), tensor) for name, tensor in again.dendrites.state_dict().items())


def test_dendrites_share_the_mode_of_their_layer():
    layer = Dendritic(make_block())
    layer.grow()
    assert not any(module.training for module in layer.modules() if not isinstance(module, nn.ModuleList))
    net = nn.Sequential(make_block()).train()
    net[0][1].eval()  # a norm that was set still on purpose stays so
    make_dendritic(net, ["0"])
    assert net[0].training and net[0].base_layer.training and not net[0].base_layer[1].training
    net[0].grow()
    assert net[0].dendrites[0].branch[1].training


# ---- what learns


@pytest.mark.parametrize(("name", "rank"), FORMS)
def test_gradients_reach_everything_once_top_weights_have_moved(name, rank):
    layer, x = make(name, 0, rank, "tanh")
    for _ in range(3):
        layer.grow()
    layer(x).square().sum().backward()
    for key, parameter in layer.dendrites.named_parameters():
        if parameter.numel():  # zero, but there: an optimizer that skips None would not count its steps
            assert parameter.grad is not None and parameter.grad.any() == key.endswith("top"), key
    layer.zero_grad()
    randomise(layer, 0.3)
    (layer(x) * torch.randn(layer(x).shape)).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.numel() == 0 or parameter.grad.any(), key


@pytest.mark.parametrize("rank", [None, 2])
def test_dendrites_learn_beside_a_frozen_layer(rank):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).requires_grad_(False)
    make_dendritic(model, ["0"], rank)
    for _ in range(2):
        grow_dendrites(model)
    before = copy_state(model)
    learns = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(learns) == {f"0.dendrites.{name}" for name, _ in model[0].dendrites.named_parameters()}
    optimizer = torch.optim.SGD(learns.values(), lr=0.5)
    x, y, losses = torch.randn(32, 4), torch.randint(3, (32,)), []
    for _ in range(5):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = model.state_dict()
    changed = {name for name in after if after[name].numel() and not torch.equal(after[name], before[name])}
    assert changed == {name for name in learns if learns[name].numel()}
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("rank", [None, 2])
def test_lora_and_dendrites_learn_side_by_side(rank):
    torch.manual_seed(0)
    model = ASTForAudioClassification(ASTConfig(**TINY)).eval()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["fc2", "q_proj"], init_lora_weights=False), model)
    expected = model(SPECS).logits
    assert make_dendritic(model, ["fc2"], rank) == FC2 and grow_dendrites(model) == 1
    assert torch.equal(model(SPECS).logits, expected)
    layer = model.get_submodule(FC2[0])
    assert [name for name, _ in layer.dendrites.named_parameters() if "lora" in name or "base_layer" in name] == []
    assert isinstance(layer.dendrites[0].branch, nn.Linear if rank is None else nn.Sequential)

    before = copy_state(model)
    learns = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in model.named_parameters() if "lora_" in name or ".dendrites." in name}
    assert set(learns) == expected and len([name for name in learns if "lora_" in name]) == 2 * 2 * 2
    optimizer = torch.optim.SGD(learns.values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(SPECS).logits, torch.tensor([0, 2])).backward()
        optimizer.step()
    after = model.state_dict()
    changed = {name for name in after if after[name].numel() and not torch.equal(after[name], before[name])}
    assert changed == {name for name in learns if learns[name].numel()}


def test_a_frozen_ast_with_both_on_one_layer_saves_and_loads_what_learns(tmp_path):
    ASTForAudioClassification(ASTConfig(**TINY)).save_pretrained(tmp_path)

    def build(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = AstClassifier(str(tmp_path), 3, 64)
        model.encoder.requires_grad_(False)
        config = LoraConfig(r=2, target_modules=["fc2"], init_lora_weights=False)
        inject_adapter_in_model(config, model.encoder.layers)
        make_dendritic(model.encoder, ["fc2"], 2)
        return model.eval()

    model, again = build(0), build(1)
    grow_dendrites(model)
    for name, parameter in model.named_parameters():
        if name.endswith(".top"):
            parameter.data += 1
    state = model.state_dict()
    assert all("lora_" in name or "dendrites" in name for name in state if name.startswith("encoder"))
    again.load_state_dict(state)
    waveforms = torch.randn(2, 10240)
    with torch.no_grad():
        assert torch.equal(again(waveforms), model(waveforms))


@pytest.mark.parametrize(("name", "rank"), [("linear over tokens", None), ("conv2d", 2), ("ASTMLP", None)])
def test_bf16_autocast_gives_what_the_layer_gives(name, rank):
    layer, x = make(name, 3, rank)
    full = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        assert out.dtype == layer.base_layer(x).dtype == torch.bfloat16
        loss = out.float().square().mean()
    loss.backward()
    torch.testing.assert_close(out.float(), full, atol=0.05, rtol=0.05)
    assert math.isfinite(loss.item())
    for parameter in layer.parameters():
        assert parameter.numel() == 0 or (parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all())
    fresh = Dendritic(layer.base_layer, rank)
    fresh.grow()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fresh(x), fresh.base_layer(x))


# ---- copies and states


@pytest.mark.parametrize("n_there", [0, 1, 4])
@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("n", [0, 1, 3])
def test_a_state_brings_its_dendrites(n, rank, n_there):
    def build(seed: int, count: int) -> nn.Module:
        seed_everything(seed)
        model = Net().eval()
        make_dendritic(model, ["fc1", "head"], rank)
        for _ in range(count):
            grow_dendrites(model)
        return randomise(model, seed=seed)

    model, other = build(1, n), build(2, n_there)
    seed_everything(5)
    expected = torch.rand(3)
    seed_everything(5)
    assert str(other.load_state_dict(model.state_dict())) == "<All keys matched successfully>"
    assert torch.equal(torch.rand(3), expected)  # nothing was drawn
    assert count_dendrites(other) == n
    assert_same(other.state_dict(), model.state_dict())
    x = torch.randn(5, 4)
    assert torch.equal(other(x), model(x))
    assert not torch.equal(build(2, n)(x), model(x))


def test_loading_keeps_the_parameters_an_optimizer_holds():
    layer, _ = make("linear", 2)
    before = [id(parameter) for parameter in layer.parameters()]
    layer.load_state_dict(copy_state(layer))
    assert [id(parameter) for parameter in layer.parameters()] == before
    state = copy_state(layer)
    layer.prune(1)
    layer.load_state_dict(state)
    assert [id(parameter) for parameter in layer.dendrites[0].parameters()] == before[2:6]
    with pytest.raises(RuntimeError, match="size mismatch"):
        Dendritic(nn.Linear(4, 6)).load_state_dict(state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_whole_and_independent(copied):
    layer, x = make("conv2d", 2, 2)
    expected = layer(x)
    twin = copied(layer)
    assert torch.equal(twin(x), expected)
    randomise(twin, seed=9)
    twin.grow()
    assert len(layer.dendrites) == 2 and torch.equal(layer(x), expected)
    assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize("rank", [None, 2])
def test_runs_hold_dendrites(tmp_path, rank):
    seed_everything(0)
    arguments = {"width": 5, "rank": rank}
    model = DendriticNet(**arguments)
    for _ in range(2):
        grow_dendrites(model)
    randomise(model)
    history = pd.DataFrame({"epoch": [1], "val_accuracy": [0.5]})
    preprocessing = {"sample_rate": 16000, "seconds": 0.5, "front_end": None}
    run = save_run(
        "tiny", model, {"SEED": 0}, ["a", "b", "c"], preprocessing, history, {"accuracy": 0.5}, "-",
        model_arguments=arguments, folder=tmp_path,
    )  # fmt: skip
    loaded = load_run(run).model
    assert type(loaded) is not DendriticNet and count_dendrites(loaded) == 2
    assert_same(loaded.state_dict(), model.state_dict())
    x = torch.randn(3, 4)
    assert torch.equal(loaded(x), model(x))


# ---- transformers


def make_ast(**changes) -> nn.Module:
    torch.manual_seed(0)
    return randomise(ASTForAudioClassification(ASTConfig(**TINY | changes)), 0.3).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder, the logits of the model in it with and without its dendrites, and the model."""
    folder = tmp_path_factory.mktemp("pretrained")
    model = make_ast()
    plain = model(SPECS).logits
    make_dendritic(model, ["fc2"], rank=3, activation="tanh")
    for _ in range(2):
        grow_dendrites(model)
    for name in FC2:
        randomise(model.get_submodule(name).dendrites, 1.0)
    logits = model(SPECS).logits
    assert not torch.allclose(logits, plain, atol=0.01)
    save_pretrained(model, folder)
    assert torch.equal(model(SPECS).logits, logits) and count_dendrites(model) == 2  # still there
    return folder, logits, plain, model


def test_a_folder_brings_model_and_dendrites_back(saved):
    folder, logits, plain, _ = saved
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "dendrites.safetensors", "model.safetensors"]
    loaded = ASTForAudioClassification.from_pretrained(folder)
    assert torch.equal(loaded(SPECS).logits, plain) and count_dendrites(loaded) == 0
    seed_everything(7)
    expected = torch.rand(3)
    seed_everything(7)
    assert load_dendrites(loaded, str(folder)) is loaded
    assert torch.equal(torch.rand(3), expected)  # nothing was drawn
    assert torch.equal(loaded(SPECS).logits, logits)
    layer = loaded.get_submodule(FC2[1])
    assert (layer.rank, layer.activation, len(layer.dendrites), layer.training) == (3, "tanh", 2, False)
    loaded.train()
    assert grow_dendrites(loaded) == 3 and layer.dendrites[2].branch[0].weight.shape == (3, 24)


def test_full_branches_and_none_at_all_come_back_too(tmp_path):
    for n in (1, 0):  # the second in the place of the first
        model = make_ast()
        make_dendritic(model, ["fc2", "classifier.dense"])
        for _ in range(n):
            grow_dendrites(model)
        randomise(model, 0.3, seed=n)
        save_pretrained(model, tmp_path)
        loaded = load_dendrites(ASTForAudioClassification.from_pretrained(tmp_path), tmp_path)
        assert count_dendrites(loaded) == n and isinstance(loaded.classifier.dense, Dendritic)
        assert torch.equal(loaded(SPECS).logits, model(SPECS).logits)
    assert load_file(tmp_path / "dendrites.safetensors") == {}


def test_saving_that_fails_leaves_the_model_whole(saved, monkeypatch, tmp_path):
    _, logits, _, model = saved
    monkeypatch.setattr(type(model), "save_pretrained", lambda self, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_pretrained(model, tmp_path)
    assert torch.equal(model(SPECS).logits, logits) and list(tmp_path.iterdir()) == []


def test_folders_that_do_not_fit_are_refused(saved, tmp_path):
    folder = saved[0]
    with pytest.raises(FileNotFoundError, match=f"no dendrites in {tmp_path}; save_pretrained of this module writes"):
        load_dendrites(make_ast(), tmp_path)
    with pytest.raises(ValueError, match="belong to audio_spectrogram_transformer.layers.0.mlp.fc2, which this model"):
        load_dendrites(Net(), folder)
    inner = nn.ModuleDict({"model": make_ast()})  # the names are ends of these: not the same layers
    with pytest.raises(ValueError, match="which this model does not have"):
        load_dendrites(inner, folder)
    for changes in ({"intermediate_size": 20}, {"hidden_size": 8}):
        model = make_ast(**changes)
        expected = model(SPECS).logits
        with pytest.raises(ValueError, match=r"are those of a audio_spec.*\.0\.mlp\.fc2 of another size"):
            load_dendrites(model, folder)
        assert not any(isinstance(module, Dendritic) for module in model.modules())  # as it was
        assert torch.equal(model(SPECS).logits, expected)
    deeper = load_dendrites(make_ast(num_hidden_layers=3), folder)
    assert count_dendrites(deeper) == 2
    with pytest.raises(ValueError, match="fc2 has dendrites already"):
        load_dendrites(deeper, folder)


def test_the_heads_own_dendrites_stay_when_others_are_loaded(saved):
    model = make_ast()
    make_dendritic(model, ["dense"])
    assert grow_dendrites(model) == 1
    state = copy_state(model.classifier.dense)
    load_dendrites(model, saved[0])
    assert_same(model.classifier.dense.state_dict(), state)
    with pytest.raises(ValueError, match="differ in rank, activation or number"):
        save_pretrained(model, saved[0])


@pytest.mark.parametrize("target", ["fc2", "q_proj"])
def test_lora_is_merged_before_saving(target, tmp_path):
    model = make_ast()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=[target]), model)
    make_dendritic(model, ["fc2"])
    with pytest.raises(ValueError, match=rf"layers\.0\.\w+\.{target} holds LoRA, .* merge it first"):
        save_pretrained(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- bad input


def wrapped_in(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Dendritic)]


@pytest.mark.parametrize(
    ("layers", "how", "message"),
    [
        (["fc3"], {}, "There is no layer 'fc3'; there are fc1, block.0, head.$"),
        (["head", ""], {}, "There is no layer ''"),
        (["fc1", "fc1x"], {}, "no layer 'fc1x'"),
        (["block", "block.0"], {}, "block.0 is a part of block, which is to have dendrites too"),
        (["fc1"], {"rank": 0}, "rank of 0 is below 1"),
        (["fc1"], {"activation": "gelu"}, "no activation 'gelu'; choose sigmoid, tanh, relu"),
        (["fc1", "block"], {"rank": 2}, "A Sequential has no branch of low rank"),
    ],
)
def test_layers_that_cannot_be_wrapped_are_named(layers, how, message):
    model = Net()
    with pytest.raises(ValueError, match=message):
        make_dendritic(model, layers, **how)
    assert wrapped_in(model) == []


def test_a_layer_is_wrapped_once():
    model = Net()
    assert make_dendritic(model, ["fc1", "0", "fc1"]) == ["fc1", "block.0"]
    grow_dendrites(model)
    for again, name in (("fc1", "fc1"), ("block.0", "block.0"), ("block", "block.0"), ("base_layer", "fc1")):
        with pytest.raises(ValueError, match=f"^{name} has dendrites already; a layer is wrapped once"):
            make_dendritic(model, [again])
    with pytest.raises(ValueError, match="there are head.$"):
        make_dendritic(model, ["fc3"])
    assert make_dendritic(model, ["head"]) == ["head"]
    assert wrapped_in(model) == ["fc1", "block.0", "head"]


def test_layers_with_lora_are_listed_under_their_own_names():
    model = make_ast()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["fc2"]), model)
    with pytest.raises(ValueError, match="there are projection, q_proj, k_proj, v_proj, o_proj, fc1, fc2, dense.$"):
        make_dendritic(model, ["fc3"])


def test_modules_that_learn_nothing_or_return_no_tensor_are_refused():
    with pytest.raises(ValueError, match="ReLU holds no linear layer, convolution or batch norm"):
        make_dendritic(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), ["1"])
    with pytest.raises(ValueError, match="GRU holds no linear layer"):
        make_dendritic(nn.Sequential(nn.GRU(4, 4)), ["0"])
    model = nn.Sequential(Attention())
    make_dendritic(model, ["0"])
    with pytest.raises(TypeError, match="Attention returns a tuple, .* wrap a layer inside it, such as q_proj, o_proj"):
        model(torch.randn(2, 4))
    layer = Dendritic(nn.MultiheadAttention(4, 2))
    with pytest.raises(TypeError, match="MultiheadAttention returns a tuple"):
        layer(*[torch.randn(3, 2, 4)] * 3)
    model = make_ast()
    make_dendritic(model, ["attention"])
    with pytest.raises(TypeError, match="ASTAttention returns a tuple, .* such as q_proj, k_proj, v_proj, o_proj"):
        model(SPECS)
    layer = Dendritic(nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3))))
    with pytest.raises(ValueError, match=r"Sequential gives \(5, 2, 3\), not 6 channels on axis -1"):
        layer(torch.randn(5, 4))


@pytest.mark.parametrize("name", ["linear1", "linear2", "out_proj", "self_attn"])
def test_layers_that_pytorch_reads_past_their_forward_are_refused(name):
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)
    with pytest.raises(ValueError, match=f"reads the weights of layers.0.*{name} without calling it"):
        make_dendritic(model, [name])
    assert wrapped_in(model) == []


def test_a_model_without_wrapped_layers_grows_nothing(tmp_path):
    for call in (
        grow_dendrites,
        lambda model: prune_dendrites(model, 0),
        lambda model: save_pretrained(model, tmp_path),
    ):
        with pytest.raises(ValueError, match="no layer for dendrites; call make_dendritic first"):
            call(Net())
    assert count_dendrites(Net()) == 0


# ---- train, grow, keep or go back


class Phases:
    """Stands in for `fit`: changes all weights and returns histories that were written before."""

    def __init__(self, *phases, by_loss: bool = False, stops: tuple = ()):
        self.phases, self.by_loss, self.stops = list(phases), by_loss, stops  # a phase: [(accuracy, loss), ...]
        self.starts, self.ends, self.arguments = [], [], []

    def __call__(self, model, train, val, **arguments) -> pd.DataFrame:
        phase = len(self.starts)
        self.starts.append(copy_state(model))
        self.arguments.append(arguments)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.ends.append(copy_state(model))
        rows = self.phases[phase]
        if isinstance(rows, BaseException):
            raise rows
        table = pd.DataFrame(
            [{"epoch": i, "val_accuracy": accuracy, "val_loss": loss} for i, (accuracy, loss) in enumerate(rows, 1)]
        )
        scores = [(-loss,) if self.by_loss else (accuracy, -loss) for accuracy, loss in rows]
        best_epoch = scores.index(max(scores)) + 1 if rows else 0
        table.attrs = {"best_epoch": best_epoch, "interrupted": phase in self.stops, "device": "cpu", "precision": "-"}
        return table


@pytest.fixture
def play(monkeypatch):
    """Run `fit_with_dendrites` on prepared phases; return model, history and what was played."""

    def run(*phases, n_before: int = 0, stops=(), **arguments):
        fake = Phases(*phases, by_loss=arguments.get("monitor") == "val_loss", stops=stops)
        monkeypatch.setattr(dendrites, "fit", fake)
        torch.manual_seed(0)
        model = Net()
        make_dendritic(model, ["fc1", "head"])
        for _ in range(n_before):
            grow_dendrites(model)
        history = fit_with_dendrites(model, "train", "val", **{"max_dendrites": 5, "epochs": 9} | arguments)
        return model, history, fake

    return run


def test_a_set_that_helps_is_kept_and_one_that_does_not_is_gone(play):
    model, history, fake = play(
        [(0.4, 2.0), (0.5, 1.0), (0.3, 1.0)], [(0.6, 1.0), (0.5, 0.5)], [(0.6, 1.0)], title="AST"
    )
    assert [len({name.split(".")[2] for name in start if ".dendrites." in name}) for start in fake.starts] == [0, 1, 2]
    assert count_dendrites(model) == 1
    assert_same(model.state_dict(), fake.ends[1])
    for phase in (1, 2):  # each goes on from the weights before it
        assert all(torch.equal(fake.starts[phase][name], fake.ends[phase - 1][name]) for name in fake.ends[phase - 1])
    assert list(history.columns) == ["epoch", "val_accuracy", "val_loss", "phase", "dendrites"]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["phase"].tolist() == history["dendrites"].tolist() == [0, 0, 0, 1, 1, 2]
    assert history["val_accuracy"].tolist() == [0.4, 0.5, 0.3, 0.6, 0.5, 0.6]
    expected = {"best_epoch": 4, "dendrites": 1, "interrupted": False, "device": "cpu", "precision": "-"}
    assert history.attrs == expected
    assert [arguments["title"] for arguments in fake.arguments] == [f"AST, dendrites: {n}" for n in range(3)]
    assert all(arguments["epochs"] == 9 and len(arguments) == 2 for arguments in fake.arguments)


def test_no_more_sets_are_tried_than_asked_for(play):
    better = [[(0.1 * i, 1.0)] for i in range(1, 5)]
    for n in (0, 2):
        model, history, fake = play(*better, max_dendrites=n)
        assert len(fake.starts) == n + 1 and count_dendrites(model) == n
        assert history.attrs["dendrites"] == n and history.attrs["best_epoch"] == n + 1
        assert_same(model.state_dict(), fake.ends[n])


@pytest.mark.parametrize(
    ("monitor", "second", "kept"),
    [
        ("val_accuracy", (0.5, 0.9), True),  # among equals the lower loss
        ("val_accuracy", (0.5, 1.0), False),
        ("val_accuracy", (0.4, 0.1), False),
        ("val_accuracy", (0.6, 9.0), True),
        ("val_loss", (0.4, 0.9), True),
        ("val_loss", (0.6, 1.0), False),
        ("val_loss", (0.6, math.nan), False),
        ("val_accuracy", (0.5, math.nan), False),
    ],
)
def test_better_is_what_fit_calls_better(play, monitor, second, kept):
    model, history, fake = play([(0.1, 3.0), (0.5, 1.0)], [second], max_dendrites=1, monitor=monitor)
    assert count_dendrites(model) == history.attrs["dendrites"] == kept
    assert history.attrs["best_epoch"] == (3 if kept else 2)
    assert_same(model.state_dict(), fake.ends[int(kept)])


def test_the_control_follows_the_same_phases_without_dendrites(play):
    phases = [(0.5, 1.0)], [(0.6, 1.0), (0.7, 1.0)], [(0.6, 1.0)]
    model, history, fake = play(*phases, grow=False)
    assert count_dendrites(model) == 0 and not any(".dendrites." in name for name in fake.starts[2])
    assert_same(model.state_dict(), fake.ends[1])
    assert history["phase"].tolist() == [0, 1, 1, 2] and not history["dendrites"].any()
    assert history.attrs["best_epoch"] == 3 and history.attrs["dendrites"] == 0
    assert [arguments["title"] for arguments in fake.arguments] == ["phase 1", "phase 2", "phase 3"]
    fake.starts.clear()  # the control needs no wrapped layer
    history = fit_with_dendrites(Net(), "train", "val", max_dendrites=5, grow=False)
    assert history.attrs["best_epoch"] == 3


def test_dendrites_that_were_there_are_counted_and_stay(play):
    model, history, fake = play([(0.5, 1.0)], [(0.6, 1.0)], [(0.1, 1.0)], n_before=2)
    assert history["dendrites"].tolist() == [2, 3, 4] and history.attrs["dendrites"] == count_dendrites(model) == 3
    assert_same(model.state_dict(), fake.ends[1])


def test_ctrl_c_keeps_the_best_and_grows_no_more(play):
    model, history, fake = play([(0.5, 1.0)], [(0.6, 1.0)], stops=[1])  # after an epoch that was better
    assert len(fake.starts) == 2 and count_dendrites(model) == 1 and history.attrs["interrupted"]
    assert_same(model.state_dict(), fake.ends[1])
    model, history, fake = play([(0.5, 1.0)], KeyboardInterrupt())  # before the end of an epoch
    assert count_dendrites(model) == history.attrs["dendrites"] == 0 and history.attrs["interrupted"]
    assert history.attrs["best_epoch"] == 1 and len(history) == 1
    assert_same(model.state_dict(), fake.ends[0])
    with pytest.raises(KeyboardInterrupt):
        play(KeyboardInterrupt())


@pytest.mark.parametrize("failure", [FloatingPointError("The loss is nan"), RuntimeError("out of memory")])
def test_a_phase_that_fails_costs_only_itself(monkeypatch, failure):
    fake = Phases([(0.5, 1.0)], [(0.6, 1.0)], failure)
    monkeypatch.setattr(dendrites, "fit", fake)
    model = Net()
    make_dendritic(model, ["fc1"])
    with pytest.raises(type(failure), match=str(failure)):
        fit_with_dendrites(model, "train", "val", max_dendrites=5)
    assert_same(model.state_dict(), fake.ends[1])


def test_what_cannot_work_is_refused_before_training(monkeypatch):
    fake = Phases()
    monkeypatch.setattr(dendrites, "fit", fake)
    model = Net()
    with pytest.raises(ValueError, match="no layer for dendrites; call make_dendritic first"):
        fit_with_dendrites(model, "train", "val", max_dendrites=1)
    make_dendritic(model, ["fc1"])
    for name in ("checkpoint", "resume_from"):
        with pytest.raises(ValueError, match=f"{name} belongs to one call of fit"):
            fit_with_dendrites(model, "train", "val", max_dendrites=1, **{name: "file"})
    with pytest.raises(ValueError, match="give validation clips"):
        fit_with_dendrites(model, "train", None, max_dendrites=1)
    with pytest.raises(ValueError, match="max_dendrites=-1 is below 0"):
        fit_with_dendrites(model, "train", "val", max_dendrites=-1)
    assert fake.starts == []


# ---- two spirals, with the real loop


def make_spirals(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    targets, radius = np.arange(n) % 2, rng.uniform(0.2, 1.0, n)
    angle = 5 * radius + math.pi * targets
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + rng.normal(0, 0.02, (n, 2))
    return torch.tensor(points, dtype=torch.float32), torch.tensor(targets)


class Interrupting(ArrayDataset):
    """Hears Ctrl-C at the batch of this number."""

    left = 10**9

    def __getitems__(self, indices):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__getitems__(indices)


TRAINING = {"epochs": 12, "batch_size": 64, "lr": 0.03, "device": "cpu", "precision": "float32", "progress": False}


def train_on_spirals(stop_at: int = 10**9, **arguments):
    seed_everything(0)
    model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2))
    make_dendritic(model, ["0"], activation="tanh")
    train, val = (Interrupting(*make_spirals(256, seed)) for seed in (0, 1))
    train.left = stop_at
    return model, fit_with_dendrites(model, train, val, **{"max_dendrites": 2} | TRAINING | arguments), val


def test_dendrites_unwind_two_spirals():
    model, history, val = train_on_spirals()
    n = history.attrs["dendrites"]
    assert 1 <= n == count_dendrites(model)
    best = history.groupby("phase")["val_accuracy"].max()
    assert best[n] > best[0] + 0.02
    row = history.set_index("epoch").loc[history.attrs["best_epoch"]]
    assert row["phase"] == row["dendrites"] == n
    result = evaluate(model, val, device="cpu", precision="float32")
    assert result["accuracy"] == row["val_accuracy"] and result["loss"] == pytest.approx(row["val_loss"], rel=1e-6)
    assert history["epoch"].tolist() == list(range(1, len(history) + 1)) and not model.training
    assert model[0].dendrites[0].top.abs().max() > 0.1

    again, history_again, _ = train_on_spirals()
    assert_same(again.state_dict(), model.state_dict())
    pd.testing.assert_frame_equal(history_again.drop(columns="seconds"), history.drop(columns="seconds"))

    control, history_control, _ = train_on_spirals(grow=False, max_dendrites=1)
    assert n_parameters(control) == 2 * 6 + 6 + 6 * 2 + 2 and set(history_control["dendrites"]) == {0}
    columns = ["epoch", "train_loss", "val_loss", "val_accuracy"]
    first, first_control = (table.loc[table["phase"] == 0, columns] for table in (history, history_control))
    pd.testing.assert_frame_equal(first, first_control)


def test_ctrl_c_in_the_real_loop():
    steps = 12 * 4
    before, history_before, _ = train_on_spirals(max_dendrites=0)
    model, history, _ = train_on_spirals(stop_at=steps + 2)  # before the first validation with dendrites
    assert history.attrs["interrupted"] and history.attrs["dendrites"] == 0 and len(history) == 12
    assert history.attrs["best_epoch"] == history_before.attrs["best_epoch"]
    assert_same(model.state_dict(), before.state_dict())
