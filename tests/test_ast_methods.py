"""Methods of fine-tuning an AST as the notebook defines them: what learns and is saved, formulas, merging, errors."""

import ast
import copy
import importlib.util
import json
import math
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from test_finetuning import make_checkpoint
from torch import nn
from transformers import ASTConfig, ASTForAudioClassification, ASTModel

from shared_utils.datasets import ESC10_IN_URBANSOUND8K, ArrayDataset, load_esc50
from shared_utils.device import ROOT, seed_everything
from shared_utils.finetuning import TINY_AST, AstClassifier, load_ast
from shared_utils.notebooks import load_definitions
from shared_utils.runs import load_run, save_run
from shared_utils.splits import find_shared_sources
from shared_utils.training import count_parameters, count_step_bytes, fit

NOTEBOOK = ROOT / "audio_spectrogram_transformer" / "ast_lora_finetuning.ipynb"
WIDTH, N_LAYERS, N_HEADS, N_MELS, MAX_LENGTH = 64, 2, 4, 32, 96
N_TOKENS = 2 + 2 * 9  # patches of 16 bands and frames, every 10
N_CLASSES = 3
HOW = {"rank": 3, "adapter_rank": 6, "kernel": 5, "n_prompts": 4}
HEAD = {"head.layernorm.weight", "head.layernorm.bias", "head.dense.weight", "head.dense.bias"}
# what learns in the encoder: a pattern for the names, and how many tensors it must find in two layers
LEARNS = {
    "full fine-tuning": ("", 39),
    "from scratch": ("", 39),
    "linear probe": ("(?!)", 0),
    "BitFit": (r"\.bias$", 18),  # six linear layers and two norms a layer, the patches, the last norm
    "LayerNorm tuning": (r"\.layernorm_(before|after)\.", 8),
    "LoRA": (r"\.[qv]_proj\.lora_[AB]\.", 8),
    "LoRA, all layers": (r"\.([qkvo]_proj|fc[12])\.lora_[AB]\.", 24),
    "DoRA": (r"\.[qv]_proj\.lora_(A|B|magnitude_vector)\.", 12),
    "IA3": (r"\.([kv]_proj|fc2)\.ia3_l\.", 6),
    "Pfeiffer adapter": (r"\.mlp\.adapter\.|\.layernorm_after\.", 12),
    "Houlsby adapter": (r"\.(mlp|attention)\.adapter\.|\.layernorm_(after|before)\.", 24),
    "Conformer adapter": (r"\.mlp\.adapter\.|\.layernorm_after\.", 24),
    "Soft-MoA": (r"\.mlp\.adapter\.|\.layernorm_after\.", 14),
    "prefix": (r"\.attention\.(keys|values)$", 4),
    "shallow prompts": (r"^layers\.0\.prompts$", 1),
    "deep prompts": (r"^layers\.[01]\.prompts$", 2),
}
START_ELSEWHERE = ("from scratch", "prefix", "shallow prompts", "deep prompts")
MERGED = ("LoRA", "LoRA, all layers", "DoRA", "IA3")


def randomise(module: nn.Module, scale: float = 0.1, pattern: str = "") -> nn.Module:
    """Move the parameters whose names match, so that no zero, norm or bias hides a wrong place."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if re.search(pattern, name):
                parameter += scale * torch.randn_like(parameter)
    return module


def make_ast(folder: Path, seed: int = 0, **changes) -> Path:
    """Write a small AST in Hugging Face's layout."""
    settings = {"hidden_size": WIDTH, "num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS}
    settings |= {"intermediate_size": 128, "num_mel_bins": N_MELS, "max_length": MAX_LENGTH, "num_labels": 5}
    torch.manual_seed(seed)
    randomise(ASTForAudioClassification(ASTConfig(**settings | changes))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def notebook():
    return load_definitions(NOTEBOOK)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The notebook's classes and functions in a file: like a kernel, and unlike exec, a file keeps their source."""
    parts = []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        kinds = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
        nodes = ast.parse(text).body if cell["cell_type"] == "code" else []
        parts += [ast.get_source_segment(text, node) for node in nodes if isinstance(node, kinds)]
    path = tmp_path_factory.mktemp("notebook") / "ast_notebook_in_a_file.py"
    path.write_text("\n\n\n".join(parts), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, path.stem, loaded)
        spec.loader.exec_module(loaded)
        yield loaded


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_ast(tmp_path_factory.mktemp("checkpoints") / "ast")


@pytest.fixture(scope="module")
def waveforms() -> torch.Tensor:
    """Six clips of 96 frames, loud and soft."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 15600, generator=generator) * torch.tensor([0.2, 0.02, 0.002] * 2)[:, None]


@pytest.fixture(scope="module")
def plain(checkpoint) -> AstClassifier:
    """The pretrained model with its fresh head."""
    return AstClassifier(str(checkpoint), N_CLASSES, MAX_LENGTH, 16000, "both").eval()


def make_model(names, checkpoint, method, seed=0, final_output="both", **changes):
    """Return the notebook's model with a method in it, in evaluation mode."""
    seed_everything(seed)
    model_class = names["AdaptedAst"] if isinstance(names, dict) else names.AdaptedAst
    how = HOW | {"method": method} | changes
    return model_class(str(checkpoint), N_CLASSES, MAX_LENGTH, 16000, final_output, **how).eval()


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of all parameters and buffers, saved ones or not."""
    return {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


# ---- how much learns


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        ("full fine-tuning", {}, 85_615_872),
        ("from scratch", {}, 85_615_872),
        ("linear probe", {}, 0),
        ("BitFit", {}, 102_912),
        ("LayerNorm tuning", {}, 36_864),
        ("LoRA", {"rank": 6}, 221_184),
        ("LoRA, all layers", {"rank": 6}, 995_328),
        ("DoRA", {"rank": 6}, 239_616),
        ("IA3", {}, 55_296),
        ("Pfeiffer adapter", {"adapter_rank": 12}, 248_976),
        ("Houlsby adapter", {"adapter_rank": 12}, 497_952),
        ("Conformer adapter", {"adapter_rank": 12, "kernel": 8}, 268_512),  # rank 8
        ("Conformer adapter", {"adapter_rank": 12, "kernel": 31}, 270_720),
        # slots; seven bottlenecks of rank 6 with their biases; the norm before them
        ("Soft-MoA", {"adapter_rank": 12}, 12 * (7 * 768 + 7 * (2 * 768 * 6 + 6 + 768) + 2 * 768)),
        ("prefix", {"n_prompts": 24}, 221_184),
        ("deep prompts", {"n_prompts": 25}, 230_400),
        ("shallow prompts", {"n_prompts": 25}, 230_400),
    ],
)
def test_trainable_parameters_of_the_full_model(notebook, method, changes, expected):
    with torch.device("meta"):
        encoder = ASTModel(ASTConfig(max_length=400))
        names = notebook["adapt"](encoder, method, **HOW | changes)
    assert names == list(LEARNS)
    assert count_parameters(encoder)[1] == notebook["count_learning"](encoder) == expected
    kept = [
        name for name, _ in encoder.named_parameters() if not re.search("lora_|ia3_|adapter|prompts|keys|values", name)
    ]
    assert sum(encoder.get_parameter(name).numel() for name in kept) == 85_615_872  # nothing went, nothing doubled
    if method == "shallow prompts":
        assert encoder.layers[0].prompts.shape == (1, 300, 768)


def test_the_whole_model_and_its_head():
    with torch.device("meta"):
        model = ASTForAudioClassification(ASTConfig(max_length=400, num_labels=10))
    assert count_parameters(model)[0] == 85_625_098 == 85_615_872 + 9_226
    assert count_parameters(model.classifier)[0] == 9_226


# ---- where training starts


@pytest.mark.parametrize("method", LEARNS)
def test_methods_start_at_the_pretrained_model_where_they_say_so(notebook, checkpoint, plain, waveforms, method):
    model = make_model(notebook, checkpoint, method)
    with torch.no_grad():
        vectors, pretrained = model.embed(waveforms), plain.embed(waveforms)
        assert pretrained.std(0).min() > 0.01  # clips are told apart, so equality says something
        if method in START_ELSEWHERE:
            assert (vectors - pretrained).abs().max() > 1e-2
        else:
            torch.testing.assert_close(vectors, pretrained, atol=1e-5, rtol=0)
            torch.testing.assert_close(model(waveforms), plain(waveforms), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["checkpoint", "run"])
def test_from_scratch_keeps_nothing_of_the_checkpoint_and_repeats(notebook, checkpoint, kind):
    pretrained = str(checkpoint) if kind == "checkpoint" else TINY_AST
    before = AstClassifier(pretrained, N_CLASSES, MAX_LENGTH).encoder.state_dict()
    model, again, other = (make_model(notebook, pretrained, "from scratch", seed=seed) for seed in (0, 0, 1))
    for name, tensor in model.encoder.named_parameters():
        assert torch.equal(tensor, again.encoder.get_parameter(name)) and tensor.requires_grad
        if tensor.ndim > 1:
            for strange in (before[name], other.encoder.get_parameter(name)):
                assert (tensor == strange).float().mean() < 0.01, name
            assert tensor.std().item() == pytest.approx(0.02, rel=0.3), name
        else:
            assert (tensor == ("layernorm" in name and name.endswith("weight"))).all(), name
    norm = model.head.layernorm
    assert (norm.weight == 1).all() and (norm.bias == 0).all()
    unharmed = AstClassifier(pretrained, N_CLASSES, MAX_LENGTH).encoder.state_dict()
    assert all(torch.equal(tensor, unharmed[name]) for name, tensor in before.items())


def test_spectrograms_are_masked_in_training_only_and_both_ways(notebook, checkpoint):
    model = make_model(notebook, checkpoint, "linear probe")
    n_mels = model.front_end[0].n_mels
    masks = model.front_end[1]
    specs = torch.randn(64, MAX_LENGTH, n_mels, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masks.eval()(specs), specs)
    seed_everything(0)
    hidden = masks.train()(specs) != specs  # (clips, frames, mels)
    bands, frames = hidden.all(1).sum(1), hidden.all(2).sum(1)
    assert hidden.shape == specs.shape and (bands.max(), frames.max()) == (n_mels // 5, MAX_LENGTH // 5)
    assert torch.equal(hidden, hidden.all(1, keepdim=True) | hidden.all(2, keepdim=True))
    assert bands.unique().tolist() == list(range(n_mels // 5 + 1)) and len(frames.unique()) > 5


# ---- what learns is what changes, and what is saved


@pytest.mark.parametrize("method", LEARNS)
def test_training_changes_what_learns_and_saves_that(notebook, checkpoint, waveforms, method):
    model = make_model(notebook, checkpoint, method)
    pattern, n_tensors = LEARNS[method]
    encoder = {f"encoder.{name}" for name, _ in model.encoder.named_parameters() if re.search(pattern, name)}
    assert len(encoder) == n_tensors
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == HEAD | encoder
    buffers = {f"encoder.{name}" for name, _ in model.encoder.named_buffers()}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    norms = [f"encoder.layers.{i}.mlp.adapter.batch_norm." for i in range(N_LAYERS) if method == "Conformer adapter"]
    assert buffers == {name + part for name in norms for part in statistics}

    before = tensors_of(model)
    dataset = ArrayDataset(waveforms, torch.arange(6) % N_CLASSES)
    # the first step moves only what stands behind the zeros that LoRA and adapters begin with
    fit(model, dataset, epochs=2, batch_size=6, lr=1e-2, schedule="none", device="cpu", precision="float32",
        progress=False)  # fmt: skip
    after = tensors_of(model)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == HEAD | encoder | buffers

    state = model.state_dict()
    assert set(state) == HEAD | encoder | buffers
    fresh = make_model(notebook, checkpoint, method, seed=9)
    with torch.no_grad():
        logits = model(waveforms)
        assert (fresh(waveforms) - logits).abs().max() > 1e-3
        fresh.load_state_dict(state)
        assert torch.equal(fresh(waveforms), logits)
        assert torch.equal(copy.deepcopy(fresh)(waveforms), logits)
    assert fresh.state_dict().keys() == state.keys()
    # an incomplete file is refused
    name = sorted(encoder or HEAD)[0]
    with pytest.raises(RuntimeError, match=f"Missing key.*{re.escape(name)}"):
        fresh.load_state_dict({key: tensor for key, tensor in state.items() if key != name})


# ---- the methods against implementations of their own


def bottleneck(x, adapter):  # Houlsby et al. 2019, with the exact GELU
    squeezed = x @ adapter.down.weight.T + adapter.down.bias
    active = 0.5 * squeezed * (1 + torch.erf(squeezed / math.sqrt(2)))
    return active @ adapter.up.weight.T + adapter.up.bias


def test_what_stands_beside_a_layer_is_added(notebook):
    seed_everything(0)
    layer = nn.Linear(8, 8)
    adapter = notebook["Bottleneck"](8, 3)
    x = torch.randn(2, 5, 8)
    beside = notebook["Beside"](layer, adapter)
    assert torch.equal(beside(x), layer(x))
    randomise(adapter, 0.5)
    torch.testing.assert_close(beside(x), layer(x) + bottleneck(x, adapter))

    class Attention(nn.Module):
        def forward(self, x, mask, scale=1.0):
            return scale * x + mask, "weights"

    output = notebook["Beside"](Attention(), adapter)(x, 7, scale=2.0)
    assert len(output) == 2 and output[1] == "weights"
    torch.testing.assert_close(output[0], 2 * x + 7 + bottleneck(x, adapter))


@pytest.mark.parametrize("method", ["Pfeiffer adapter", "Houlsby adapter"])
def test_adapters_hear_what_their_layer_hears(notebook, checkpoint, plain, method):
    model = make_model(notebook, checkpoint, method)
    assert model.encoder.layers[0].mlp.adapter.down.weight.shape == (HOW["adapter_rank"], WIDTH)
    randomise(model.encoder, 0.3, "adapter|layernorm_")
    x = torch.randn(2, N_TOKENS, WIDTH)
    for adapted, layer in zip(model.encoder.layers, copy.deepcopy(plain.encoder.layers), strict=True):
        for norm in ("layernorm_before", "layernorm_after"):
            getattr(layer, norm).load_state_dict(getattr(adapted, norm).state_dict())
        with torch.no_grad():
            heard = layer.layernorm_before(x)
            middle = x + layer.attention(heard)[0]
            if method == "Houlsby adapter":
                middle = middle + bottleneck(heard, adapted.attention.adapter)
            heard = layer.layernorm_after(middle)
            expected = middle + layer.mlp(heard) + bottleneck(heard, adapted.mlp.adapter)
            torch.testing.assert_close(adapted(x), expected, atol=1e-4, rtol=1e-4)
            assert (expected - layer(x)).abs().max() > 0.1


@pytest.mark.parametrize("kernel", [1, 2, 5, 8])
def test_the_conformer_adapter_equals_a_convolution_over_padded_tokens(notebook, kernel):
    seed_everything(0)
    width, rank, n_tokens = 12, 4, 11
    adapter = randomise(notebook["ConformerAdapter"](width, rank, kernel), 0.5)
    norm = adapter.batch_norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, n_tokens, width)

    with torch.no_grad():
        value, gate = adapter.down(F.layer_norm(x, (width,), adapter.norm.weight, adapter.norm.bias)).chunk(2, 2)
        gated = value * torch.sigmoid(gate)  # (batch, tokens, rank)
        before = (kernel - 1) // 2
        padded = torch.cat([torch.zeros(3, before, rank), gated, torch.zeros(3, kernel - 1 - before, rank)], 1)
        convolved = torch.zeros(3, n_tokens, rank)
        for token in range(n_tokens):
            for k in range(kernel):
                convolved[:, token] += adapter.depthwise.weight[:, 0, k] * padded[:, token + k]
        convolved += adapter.depthwise.bias
        layer = nn.Conv1d(rank, rank, kernel, groups=rank)
        layer.load_state_dict(adapter.depthwise.state_dict())
        torch.testing.assert_close(layer(padded.transpose(1, 2)).transpose(1, 2), convolved)

        def finish(mean, variance):
            scaled = (convolved - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
            return scaled * torch.sigmoid(scaled) @ adapter.up.weight.T + adapter.up.bias

        expected = finish(norm.running_mean, norm.running_var)
        torch.testing.assert_close(adapter.eval()(x), expected, atol=1e-5, rtol=1e-5)
        of_batch = finish(convolved.mean((0, 1)), convolved.var((0, 1), unbiased=False))
        torch.testing.assert_close(adapter.train()(x), of_batch, atol=1e-4, rtol=1e-4)
        assert (expected - of_batch).abs().max() > 0.01


def test_conformer_adapters_and_soft_moa_have_the_reference_s_ranks(notebook):
    for adapter_rank, of_conformer, of_moa in ((12, 8, 6), (13, 9, 7), (1, 1, 1)):
        with torch.device("meta"):
            first, second = (ASTModel(ASTConfig(num_hidden_layers=1)) for _ in range(2))
            notebook["adapt"](first, "Conformer adapter", **HOW | {"adapter_rank": adapter_rank})
            notebook["adapt"](second, "Soft-MoA", **HOW | {"adapter_rank": adapter_rank})
        assert first.layers[0].mlp.adapter.depthwise.weight.shape == (of_conformer, 1, HOW["kernel"])
        assert second.layers[0].mlp.adapter.down.shape == (7, 768, of_moa)


def test_soft_moa_equals_loops_over_clips_tokens_and_slots(notebook):
    seed_everything(0)
    width, rank, n_adapters, n_tokens = 6, 3, 4, 5
    adapter = randomise(notebook["SoftMoA"](width, rank, n_adapters), 0.5)
    x = torch.randn(2, n_tokens, width)
    expected = torch.zeros_like(x)
    with torch.no_grad():
        for clip in range(2):
            scores = [[float(x[clip, t] @ adapter.slots[:, s]) for s in range(n_adapters)] for t in range(n_tokens)]
            for slot in range(n_adapters):
                total = sum(math.exp(scores[t][slot]) for t in range(n_tokens))
                heard = sum(math.exp(scores[t][slot]) / total * x[clip, t] for t in range(n_tokens))
                made = F.gelu(heard @ adapter.down[slot] + adapter.down_bias[slot, 0])
                made = made @ adapter.up[slot] + adapter.up_bias[slot, 0]
                for token in range(n_tokens):
                    share = math.exp(scores[token][slot]) / sum(math.exp(score) for score in scores[token])
                    expected[clip, token] += share * made
        torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(adapter(x)[:, 0], adapter(x)[:, 1], atol=1e-2)  # tokens mix in their own way


@pytest.mark.parametrize("n_tokens", [0, 3])
def test_prefix_attention_equals_softmax_over_more_keys_and_values(notebook, plain, n_tokens):
    seed_everything(0)
    layer = plain.encoder.layers[0].attention
    attention = notebook["PrefixAttention"](layer, n_tokens).eval()
    randomise(attention, 1.0, "keys|values")
    x = torch.randn(2, N_TOKENS, WIDTH)
    n_each = WIDTH // N_HEADS
    with torch.no_grad():
        queries, keys, values = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
        mixed = torch.zeros_like(x)
        for clip in range(2):
            all_keys = torch.cat([attention.keys[0], keys[clip]])
            all_values = torch.cat([attention.values[0], values[clip]])
            for head in range(N_HEADS):
                part = slice(head * n_each, (head + 1) * n_each)
                weights = (queries[clip, :, part] @ all_keys[:, part].T / math.sqrt(n_each)).softmax(1)
                mixed[clip, :, part] = weights @ all_values[:, part]
        outputs = attention(x, None)
        torch.testing.assert_close(outputs[0], layer.o_proj(mixed), atol=1e-5, rtol=1e-5)
        assert outputs[1] is None
        difference = (outputs[0] - layer(x)[0]).abs().max()
        assert difference < 1e-5 if n_tokens == 0 else difference > 0.01


def test_prefix_without_tokens_is_the_plain_model_and_half_of_them_are_keys(notebook, checkpoint, plain, waveforms):
    model = make_model(notebook, checkpoint, "prefix", n_prompts=0)
    with torch.no_grad():
        torch.testing.assert_close(model(waveforms), plain(waveforms), atol=1e-5, rtol=0)
    layers = make_model(notebook, checkpoint, "prefix", n_prompts=6).encoder.layers
    assert all(layer.attention.keys.shape == layer.attention.values.shape == (1, 3, WIDTH) for layer in layers)


@pytest.mark.parametrize(("method", "n_prompts", "n_blocks"), [("shallow prompts", 8, 1), ("deep prompts", 4, 2)])
def test_prompts_stand_behind_the_tokens_and_give_way_to_the_next(
    notebook, checkpoint, plain, waveforms, method, n_prompts, n_blocks
):
    model = make_model(notebook, checkpoint, method, final_output="mean")
    layers = model.encoder.layers
    prompted = [layer for layer in layers if isinstance(layer, notebook["Prompted"])]
    assert len(prompted) == n_blocks and all(layer.prompts.shape == (1, n_prompts, WIDTH) for layer in prompted)
    randomise(model.encoder, 1.0, "prompts")
    entered, left = [], []
    for layer in layers:
        block = getattr(layer, "base_layer", layer)
        block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        block.register_forward_hook(lambda module, inputs, output: left.append(output))
    with torch.no_grad():
        vectors = model.embed(waveforms)
        tokens = plain.encoder.embeddings(plain.front_end(waveforms))
    assert tokens.shape[1] == N_TOKENS
    assert [x.shape for x in entered] == [(6, N_TOKENS + n_prompts, WIDTH)] * N_LAYERS
    assert torch.equal(entered[0][:, :N_TOKENS], tokens)  # class and distillation token first
    assert torch.equal(entered[1][:, :N_TOKENS], left[0][:, :N_TOKENS])
    for layer, x in zip(prompted, entered[:n_blocks], strict=True):
        assert torch.equal(x[:, N_TOKENS:], layer.prompts.expand(6, -1, -1))
    if method == "shallow prompts":
        assert torch.equal(entered[1], left[0])

    with torch.no_grad():
        x = tokens
        for i, layer in enumerate(plain.encoder.layers):
            if i < n_blocks:
                x = torch.cat([x[:, :N_TOKENS], layers[i].prompts.expand(6, -1, -1)], 1)
            x = layer(x)
        expected = plain.encoder.layernorm(x)
        torch.testing.assert_close(vectors, expected.mean(1), atol=1e-5, rtol=1e-5)
        model.final_output = "both"
        torch.testing.assert_close(model.embed(waveforms), expected[:, :2].mean(1), atol=1e-5, rtol=1e-5)


# ---- merging


@pytest.mark.parametrize("method", MERGED)
def test_merged_models_answer_the_same_without_adapters(notebook, checkpoint, plain, waveforms, method):
    model = make_model(notebook, checkpoint, method)
    randomise(model.encoder, 0.3, LEARNS[method][0])
    randomise(model.head, 1.0)
    merged = notebook["merge"](copy.deepcopy(model))
    assert any(isinstance(part, BaseTunerLayer) for part in model.modules())  # the copy alone is merged
    assert not any(isinstance(part, BaseTunerLayer) for part in merged.modules())
    assert count_parameters(merged)[0] == count_parameters(plain)[0] < count_parameters(model)[0]
    with torch.no_grad():
        expected = model(waveforms)
        assert (expected - plain(waveforms)).abs().max() > 0.1
        torch.testing.assert_close(merged(waveforms), expected, atol=1e-4, rtol=0)
    bare = AstClassifier(str(checkpoint), N_CLASSES, MAX_LENGTH, final_output="both").eval()
    bare.encoder.load_state_dict(merged.encoder.state_dict())  # strict: it is an ordinary AST
    bare.head.load_state_dict(merged.head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(bare(waveforms), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", MERGED)
def test_merged_matrices_are_what_the_papers_write(notebook, checkpoint, plain, method):
    model = make_model(notebook, checkpoint, method)
    randomise(model.encoder, 0.3, LEARNS[method][0])
    merged = notebook["merge"](copy.deepcopy(model)).encoder.state_dict()
    adapters = {name: parameter.detach() for name, parameter in model.encoder.named_parameters()}
    n_changed = 0
    for name, before in plain.encoder.state_dict().items():
        place = name.removesuffix(".weight")
        expected = before
        if f"{place}.lora_A.default.weight" in adapters:
            down, up = (adapters[f"{place}.lora_{side}.default.weight"] for side in "AB")
            assert down.shape[0] == HOW["rank"]
            expected = before + 2 * up @ down  # alpha / r = 2
            if method == "DoRA":  # Liu et al. 2024, equation 5: the norm runs over the inputs of an output
                size = adapters[f"{place}.lora_magnitude_vector.default.weight"]
                expected = size[:, None] * expected / expected.norm(dim=1, keepdim=True)
        scale = adapters.get(f"{name.rpartition('.')[0]}.ia3_l.default")
        if scale is not None and name.endswith("fc2.weight"):
            expected = before * scale.view(1, -1)  # what comes in
        elif scale is not None and not name.endswith("fc2.bias"):
            expected = before * (scale.view(-1, 1) if before.ndim == 2 else scale.view(-1))  # what comes out
        torch.testing.assert_close(merged[name], expected, atol=1e-5, rtol=1e-5)
        n_changed += not torch.equal(merged[name], before)
    assert n_changed == {"LoRA": 4, "LoRA, all layers": 12, "DoRA": 4, "IA3": 10}[method]


# ---- runs


def save(model, folder: Path, class_names=("dog", "drill", "siren"), **arguments) -> Path:
    history = pd.DataFrame({"epoch": [1], "val_accuracy": [0.5]})
    return save_run(
        "sounds", model, {"SEED": 0}, list(class_names), {"sample_rate": 16000, "seconds": 0.96}, history,
        {"accuracy": 0.5}, "-", folder=folder, model_arguments=arguments,
    )  # fmt: skip


def save_adapted(module, checkpoint, folder: Path, method: str) -> tuple[Path, nn.Module]:
    model = make_model(module, checkpoint, method)
    base_hash = module.hash_weights(AstClassifier(str(checkpoint), N_CLASSES, MAX_LENGTH).encoder)
    randomise(model.encoder, 0.3, LEARNS[method][0])
    randomise(model.head, 1.0)
    arguments = {"n_classes": N_CLASSES, "max_length": MAX_LENGTH, "sample_rate": 16000, "final_output": "both"}
    arguments |= HOW | {"pretrained": str(checkpoint), "method": method, "base_hash": base_hash}
    return save(model, folder, **arguments), model


@pytest.mark.parametrize("method", ["full fine-tuning", "LoRA", "DoRA", "Conformer adapter", "deep prompts"])
def test_runs_hold_what_learned_and_find_the_rest(module, checkpoint, waveforms, tmp_path, method):
    run, model = save_adapted(module, checkpoint, tmp_path, method)
    loaded = load_run(run).model
    with torch.no_grad():
        assert torch.equal(loaded(waveforms), model(waveforms))
    n_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    size = (run / "weights.safetensors").stat().st_size
    assert n_bytes < size < n_bytes + 8000  # names and shapes
    if method != "full fine-tuning":
        assert n_bytes < 4 * count_parameters(model)[0] / 4
        with pytest.raises(ValueError, match="holds more or less than an AST and its KaldiFbank: adapters, prompts"):
            load_ast(str(run), 4)
    else:
        again, used_name = load_ast(str(run), 4, MAX_LENGTH)
        assert used_name == str(run)
        again.classifier.dense = model.head.dense
        with torch.no_grad():
            torch.testing.assert_close(again(model.front_end(waveforms)).logits, model(waveforms))


def test_a_small_ast_that_was_pretrained_here_becomes_the_backbone(module, tmp_path, waveforms):
    arguments = {"n_classes": 3, "hidden_size": 128, "n_layers": 2, "patch_size": 16, "max_length": 96}
    arguments |= {"sample_rate": 16000, "n_mels": 32}
    seed_everything(0)
    small = module.SmallAst(**arguments)
    embeddings = small.encoder.embeddings
    for tokens in (embeddings.cls_token, embeddings.distillation_token, embeddings.position_embeddings):
        assert tokens.std().item() == pytest.approx(0.02, rel=0.2)  # transformers leaves them at zero
    assert small.encoder.config.num_attention_heads == 2 and small.encoder.config.intermediate_size == 512
    randomise(small).eval()
    run = save(small, tmp_path, **arguments)

    model, used_name = load_ast(str(run), 4, 96, class_names=["car", "dog", "gun", "siren"])
    assert used_name == str(run) and not model.training
    assert model.classifier.dense.weight.shape == (4, 128) and (model.classifier.dense.bias == 0).all()
    assert model.config.id2label[2] == "gun" and model.config.hidden_dropout_prob == 0
    expected = {"sample_rate": 16000, "n_mels": 32, "max_length": 96, "mean": -4.2677393, "std": 4.5689974}
    assert model.config.front_end == expected | {"normalize": True}
    front_end = type(small.front_end)(**model.config.front_end)
    assert torch.equal(model.classifier.layernorm.weight, small.head.layernorm.weight)
    model.classifier.dense = small.head.dense
    with torch.no_grad():
        torch.testing.assert_close(model(front_end(waveforms)).logits, small(waveforms), atol=1e-6, rtol=0)

    adapted = make_model(module, run, "LoRA")
    with torch.no_grad():
        states = small.encoder(small.front_end(waveforms)).last_hidden_state
        torch.testing.assert_close(adapted.embed(waveforms), states[:, :2].mean(1), atol=1e-5, rtol=0)
    shorter, _ = load_ast(str(run), 4, 56)  # five columns of nine: the middle ones
    grids = [encoder.embeddings.position_embeddings[0, 2:].unflatten(0, (2, -1))
             for encoder in (shorter.audio_spectrogram_transformer, small.encoder)]  # fmt: skip
    assert torch.equal(grids[0], grids[1][:, 2:7]) and shorter.config.front_end["max_length"] == 56


# ---- bad input


def test_an_unknown_method_is_answered_with_those_that_there_are(notebook, checkpoint):
    with pytest.raises(ValueError) as error:
        make_model(notebook, checkpoint, "lora")
    assert str(error.value) == f"There is no method 'lora'; there are {', '.join(LEARNS)}."


@pytest.mark.parametrize("method", ["LoRA", "LoRA, all layers", "DoRA"])
@pytest.mark.parametrize("rank", [0, WIDTH + 1])
def test_a_rank_that_cannot_be_is_refused(notebook, checkpoint, method, rank):
    with pytest.raises(ValueError, match=f"^A rank of {rank} is not between 1 and the width {WIDTH}; lower it.$"):
        make_model(notebook, checkpoint, method, rank=rank)
    make_model(notebook, checkpoint, method, rank=WIDTH)


def test_layers_that_do_not_exist_are_answered_with_those_that_do(notebook, checkpoint):
    encoder = AstClassifier(str(checkpoint), N_CLASSES, MAX_LENGTH).encoder
    expected = "^There is no linear layer query in a block; there are fc1, fc2, k_proj, o_proj, q_proj, v_proj.$"
    with pytest.raises(ValueError, match=expected):
        notebook["add_lora"](encoder, 2, ("v_proj", "query"))
    assert not any(isinstance(part, BaseTunerLayer) for part in encoder.modules())


def test_adapters_of_another_base_are_refused(notebook, module, checkpoint, tmp_path):
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    run, _ = save_adapted(module, base, tmp_path, "LoRA")
    wanted = json.loads((run / "run.json").read_text())["model"]["arguments"]["base_hash"]
    assert re.fullmatch("[0-9a-f]{12}", wanted)
    make_ast(base, seed=1)  # other weights under the same name
    with pytest.raises(ValueError, match=rf"This belongs to another base than {base}, .*, not {wanted}\.") as error:
        load_run(run)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^This belongs to another base than"):
        make_model(notebook, base, "LoRA", base_hash=wanted)
    assert make_model(notebook, checkpoint, "LoRA", base_hash=wanted).head.dense.out_features == N_CLASSES


def test_the_hash_of_a_base_notices_one_weight(notebook, checkpoint, plain):
    find = notebook["hash_weights"]
    expected = find(plain.encoder)
    assert find(make_model(notebook, checkpoint, "linear probe").encoder) == expected
    changed = copy.deepcopy(plain.encoder)
    with torch.no_grad():
        changed.layers[1].mlp.fc2.bias[-1] += 1e-6
    assert find(changed) != expected


def test_a_run_with_another_number_of_classes_is_refused(module, checkpoint, tmp_path):
    run, _ = save_adapted(module, checkpoint, tmp_path, "LoRA")
    record = json.loads((run / "run.json").read_text())
    record["model"]["arguments"]["n_classes"] = 5
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        ValueError, match="weights.safetensors does not fit AdaptedAst in model.py.*head.dense"
    ) as error:
        load_run(run)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_is_no_ast_is_refused(notebook, tmp_path):
    with pytest.raises(ValueError, match="text is no audio spectrogram transformer .*its model_type is 'bert'; name"):
        make_model(notebook, make_checkpoint(tmp_path / "text"), "LoRA")


def test_a_width_that_is_no_multiple_of_64_is_refused(notebook):
    with pytest.raises(ValueError, match="^HIDDEN_SIZE = 100 must be a multiple of 64, the width of an attention head"):
        notebook["SmallAst"](3, 100, 1, 16, 96, 16000)


# ---- what a step costs


def test_the_bytes_of_a_step_are_those_counted_by_hand():
    seed_everything(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
    batch, n_parameters = 4, 5 * 7 + 7 + 7 * 3 + 3
    counted = count_step_bytes(
        model, torch.randn(batch, 5), torch.tensor([0, 1, 2, 0]), device="cpu", precision="float32"
    )
    # inputs; the hidden layer, which ReLU and the second layer share; log-probabilities; targets (int64) and their
    # total weight
    activations = 4 * batch * (5 + 7 + 3) + 8 * batch + 4
    assert counted == {
        "parameters": 4 * n_parameters, "gradients": 4 * n_parameters, "optimizer": 8 * n_parameters + 4 * 4,
        "activations": activations, "all": 16 * n_parameters + 4 * 4 + activations,
    }  # fmt: skip


def test_what_is_frozen_costs_no_gradient_and_no_moments(notebook, checkpoint, waveforms):
    counted = {}
    for method in ("full fine-tuning", "LoRA", "linear probe"):
        model = make_model(notebook, checkpoint, method)
        learning = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        bytes_of = count_step_bytes(model, waveforms, torch.arange(6) % 3, device="cpu", precision="float32")
        assert bytes_of["parameters"] == 4 * count_parameters(model)[0]
        assert bytes_of["gradients"] == 4 * sum(learning)
        # two moments a number, and a counter of steps in float32 for each tensor
        assert bytes_of["optimizer"] == 2 * 4 * sum(learning) + 4 * len(learning)
        assert bytes_of["all"] == sum(value for name, value in bytes_of.items() if name != "all")
        counted[method] = bytes_of
    n_lora = N_LAYERS * 2 * 2 * HOW["rank"] * WIDTH + 2 * WIDTH + (WIDTH + 1) * N_CLASSES
    assert counted["LoRA"]["gradients"] == 4 * n_lora
    # a frozen encoder keeps nothing: the head has the vectors, its norm's output and two numbers a clip, and the loss
    probe = 4 * 6 * (WIDTH + WIDTH + 2 + N_CLASSES) + 8 * 6 + 4
    assert counted["linear probe"]["activations"] == probe
    assert counted["LoRA"]["activations"] > counted["full fine-tuning"]["activations"] / 2 > 100 * probe


# ---- recordings in two data sets


def test_the_recordings_that_esc10_and_urbansound8k_share(real_data):
    table = pd.read_csv(real_data / "UrbanSound8K" / "metadata" / "all_8732_rows.csv", dtype={"fsID": str})
    urban = table.rename(columns={"fsID": "source", "class": "class_name"})
    assert len(urban) == 8732
    shared = find_shared_sources(load_esc50(real_data, subset="esc10", source="real"), urban)
    assert tuple(shared["source"]) == ESC10_IN_URBANSOUND8K and len(set(ESC10_IN_URBANSOUND8K)) == 34
    assert (shared["n_a"].sum(), shared["n_b"].sum()) == (36, 110)
