"""A page on this machine on which a person tries the models: record or upload a sound, or type a sentence.

    python -m shared_utils.app

It needs the extra `app` (Gradio), which `make app` installs. The page shows the probabilities of the classes, what the
model attended to, and what its run says about it. It can be reached from this machine only, loads nothing from
elsewhere, and keeps sounds in a temporary folder that goes when it ends.
"""

import contextlib
import copy
import functools
import html
import importlib.util
import io
import math
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch

from shared_utils.audio import decode, find_loudest, read_audio
from shared_utils.device import resolve_path, set_threads
from shared_utils.finetuning import leave_words_out
from shared_utils.runs import Run, load_run, make_front_end, name_data, predict_files, read_runs
from shared_utils.spectrograms import KaldiFbank, LogMel

FIRST_PORT = 7860
MOST_WORDS = 160  # that a figure has room for, if they are not long
LARGEST_FILE = "100mb"
# Browsers keep to it: what Gradio's page wants from other hosts, now or in a later version, is not fetched.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
CSS = """
.gradio-container {max-width: 1360px !important; margin: auto}
.about dl {display: grid; grid-template-columns: max-content 1fr; gap: 8px 20px; margin: 4px 0}
.about dt {font-weight: 600}
.about dd {margin: 0}
.picture .icon-button-wrapper {top: auto !important; bottom: 0}
"""


# ---- which models, and what their runs say


def list_models(folder: str | os.PathLike = "models") -> tuple[list[dict], list[str]]:
    """Return what `runs.read_runs` says of each model that can be tried, and a sentence a folder that is broken.

    Published weights come first, the best in front, then the runs of notebooks, the newest in front. Added are `key`,
    the folder inside `folder`, and `kind`, "sound" or "sentence". Left out without a word are runs that were never
    tested, such as backbones for fine-tuning, and links that lead out of `folder`: a model's source is executed.
    """
    parent = resolve_path(folder)
    names = sorted(place.name for place in parent.glob("[!.]*") if place.is_dir())
    published, problems = read_runs(None, parent)
    found = [read_runs(name, parent) for name in names]
    problems += [problem for _, broken in found for problem in broken]
    own = sorted((run for runs, _ in found for run in runs), key=lambda run: run["created"], reverse=True)
    models = []
    for run in sorted(published, key=lambda run: run["value"] or 0, reverse=True) + own:
        path, how = run["folder"], run["preprocessing"]
        known = {name for name, value in how.items() if isinstance(value, int | float)}
        missing = [name for name in ("model.py", "weights.safetensors") if not (path / name).is_file()]
        kind = "sound" if {"sample_rate", "seconds"} <= known else "sentence" if "max_length" in known else None
        if not str(run["metric"]).startswith("test") or not path.resolve().is_relative_to(parent):
            continue
        if missing or kind is None:
            lack = missing[0] if missing else "sample_rate and seconds, or max_length, as numbers in its preprocessing"
            problems.append(f"{path} has no {lack}; it cannot be tried.")
            continue
        models.append(run | {"key": path.relative_to(parent).as_posix(), "kind": kind})
    return models, problems


def name_model(run: dict) -> str:
    """Return what a row of `list_models` is called in the list: its name, what it takes, its data, how good it is."""
    if "/" in run["key"]:
        name = f"{run['name']} ({run['notebook']})" if run["name"] else f"{run['notebook']}, {run['created'][:16]}"
    else:
        name = run["key"].replace("_", " ")
    return f"{name} · {run['kind']}s · {name_data(run)} · {run['headline']}"


def describe_model(run: dict) -> list[tuple[str, str]]:
    """Return what run.json says about a row of `list_models`, as pairs of a heading and a text; the last is Limits."""
    how, classes, data = run["preprocessing"], run["class_names"], name_data(run)
    result, of_these = run["headline"], run["metrics"].get("test_accuracy_of_these_weights")
    result += f"; these weights alone {of_these:.1%}" if isinstance(of_these, float) else ""
    takes, others = f"up to {how.get('max_length')} tokens; a word is one or more", "other kinds of text"
    if run["kind"] == "sound":
        takes = f"{how['seconds']:g} s at {how['sample_rate']:,} Hz, one channel"
        others = "other microphones, rooms and sounds"
    limits = f"It knows only these {len(classes)} classes and always names one of them, even if none fits."
    if run["data"].get("demo"):
        made = "sounds that a program made" if run["kind"] == "sound" else "sentences written for this project"
        limits += f" It learned from demo data, {made}: its answers to others mean little."
    limits += f" Its result was measured on {data}; expect more mistakes with {others}. A long bar is no proof."
    return [
        ("Trained on", data), ("Notebook", f"{run['notebook']}, run of {run['created'][:16]}"),
        ("Model", run["model"].get("class", "unknown")), ("Result", result), ("Takes", takes),
        ("Classes", ", ".join(map(str, classes))), ("Limits", limits),
    ]  # fmt: skip


# ---- what a model attends to


@torch.no_grad()
def find_attention(model: torch.nn.Module, inputs: torch.Tensor) -> tuple[np.ndarray | None, str]:
    """Return (attention, what it is in a sentence); the attention sums to 1, or is None for a model that has none.

    Args:
        model: in evaluation mode, on the CPU; the notebooks' models are known by the parts that they offer.
        inputs: one clip (1, ...) as the model takes it.

    The attention is (steps,), the weights of a pooling over time, or (rows, columns) of the grid of tokens, low
    frequencies first: attention rollout of Abnar and Zuidema, Quantifying Attention Flow in Transformers (2020).
    """
    pooling = "The orange line is the weight that each moment has in the model's pooling over time."
    rollout = "The map is attention rollout: how much of each part of the sound reaches the answer through all layers."
    encoder = getattr(model, "encoder", None)
    if hasattr(encoder, "set_attn_implementation"):  # an AST of transformers, with its front-end beside it
        encoder = copy.deepcopy(encoder)
        encoder.set_attn_implementation("eager")  # the fast one does not tell its weights
        attentions = encoder(model.front_end(inputs), output_attentions=True).attentions
        return _roll_out(attentions, 2, encoder.embeddings.get_shape(encoder.config)), rollout
    if hasattr(model, "steps"):
        return model.steps(inputs)[1][0, :, 0].numpy(), pooling
    layers = getattr(model, "layers", None) or getattr(model, "blocks", None)
    if layers is None or not hasattr(model, "tokens"):
        return None, "This model has no attention to show."
    x, attentions = model.tokens(inputs), []
    for layer in layers:
        if hasattr(layer, "attention"):
            attentions.append(layer.attention(x))
        else:
            attentions.append(layer.attend.attention(layer.norm1(x) if layer.pre_norm else x))
        x = layer(x)
    if hasattr(model, "pool"):
        return model.pool(x)[1][0, :, 0].numpy(), pooling
    if hasattr(model, "grid"):
        return _roll_out(attentions, 2, model.grid), rollout
    grid = model.stem(model.scale(model.filters(inputs)[:, None])).shape[2:]
    return _roll_out(attentions, 1, grid), rollout


def _roll_out(attentions, n_first: int, grid: tuple[int, int]) -> np.ndarray:
    """Return how much each token of the grid reaches the first ones: attentions (1, heads, tokens, tokens) a layer."""
    reach = itself = torch.eye(attentions[0].shape[-1])
    for attention in attentions:
        reach = (0.5 * attention[0].mean(0) + 0.5 * itself) @ reach  # half stays: the residual
    reach = reach[:n_first, n_first:].mean(0)
    return (reach / reach.sum()).unflatten(0, tuple(grid)).numpy()


@torch.no_grad()
def find_spectrogram(run: Run, waveforms: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (spec (mels, frames) in dB, times in s, frequencies in Hz) of one clip (1, samples).

    It is the model's own front-end where that is a filter bank, and a LogMel like it for models that learn theirs.
    """
    rate, layers = run.preprocessing["sample_rate"], [make_front_end(run.preprocessing), run.model]
    parts = (part for layer in layers for part in layer.modules() if isinstance(part, KaldiFbank | LogMel))
    layer = next(parts, None) or LogMel(rate, 64, n_fft=rate // 40, hop_length=rate // 100)
    spec = layer(waveforms)[0]
    if isinstance(layer, KaldiFbank):
        spec = (2 * layer.std * spec + layer.mean if layer.normalize else spec).T * 10 / math.log(10)
    return spec.numpy(), layer.frame_times(spec.shape[1]), layer.frequencies()


# ---- an answer


def answer_sound(run: Run, path: str | os.PathLike) -> tuple[dict[str, float], str, list]:
    """Return (probabilities of the classes, what was heard in sentences, figures) for a recording.

    Of a longer recording than the model takes it hears the loudest part, of a shorter one all, padded as in training.
    Raises ValueError for a file that cannot be used.
    """
    from shared_utils import plotting

    rate, seconds = run.preprocessing["sample_rate"], run.preprocessing["seconds"]
    padding = run.preprocessing.get("padding", "zeros")
    try:
        waveform, file_rate = read_audio(path)
    except ValueError as error:
        reason = str(error).replace(str(resolve_path(path)), Path(path).name).removesuffix(".")
        raise ValueError(f"{reason}; wav, flac, ogg and mp3 can be read.") from error
    length, n_samples = len(waveform) / file_rate, math.ceil(seconds * file_rate)
    start, is_longer = find_loudest(waveform, n_samples), length > seconds + 0.05
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if is_longer:
            path = Path(folder) / "heard.wav"
            soundfile.write(path, waveform[start : start + n_samples], file_rate, subtype="FLOAT")
        table = predict_files(run, path)
        how = {"padding": padding, "cache_dir": Path(folder) / "cache", "progress": False}
        heard = np.array(decode(pd.DataFrame({"path": [str(path)]}), rate, seconds, **how))
    if is_longer:
        begin = start / file_rate
        note = (
            f"The recording has {length:.1f} s, the model takes {seconds:g} s: it heard the loudest part, "
            f"{begin:.1f} to {begin + seconds:.1f} s, as one clip. The scissors cut out another part."
        )
    elif length < seconds:
        filled = "by repeating it" if padding == "repeat" else "with silence"
        note = f"The model heard all {length:.1f} s as one clip, filled up {filled} to the {seconds:g} s that it takes."
    else:
        note = f"The model heard all {length:.1f} s, as one clip."
    note += "" if heard.any() else " All of it is silence: is the microphone on?"

    model, waveforms = run.model.cpu(), torch.from_numpy(heard.astype(np.float32) / 32768)
    spec, times, frequencies = find_spectrogram(run, waveforms)
    try:
        attention, what = find_attention(model, make_front_end(run.preprocessing)(waveforms))
    except Exception as error:  # a model that its owner has changed
        attention, what = None, f"This model's attention cannot be shown ({type(error).__name__}: {error})."
    if attention is not None and attention.ndim == 2:
        figures = [plotting.plot_attention(spec, attention, times, frequencies)]
    else:
        figures = [plotting.plot_spectrograms(spec[None], times, frequencies, ["Spectrogram"])]
    if attention is not None and attention.ndim == 1:
        middles = (np.arange(len(attention)) + 0.5) * len(times) / len(attention) - 0.5  # in frames
        moments = np.interp(middles, np.arange(len(times)), times)
        titles = ["Waveform and attention"]
        figures.append(plotting.plot_attention_over_waveform(heard, rate, attention[None], moments, titles))
    return table.loc[0, run.class_names].astype(float).to_dict(), f"{note} {what}", figures


def answer_sentence(run: Run, sentence: str) -> tuple[dict[str, float], str, list]:
    """Return (probabilities of the classes, what was read in a sentence, figures) for one or more sentences.

    The figure shows what each word does to the answer (`finetuning.leave_words_out`). Raises ValueError where there is
    no word.
    """
    from shared_utils import plotting

    if not sentence.strip():
        raise ValueError("There is no sentence yet: type one.")
    limit, classes = run.preprocessing["max_length"], run.class_names
    table, words, effects = leave_words_out(run, sentence)
    answer, n_words = table["predicted"][0], len(sentence.split())
    note = f"The model read all {n_words} words." if n_words > 1 else "The model read one word."
    if n_words > len(words):
        note = f"The model reads {limit} tokens at most: it read the first {len(words)} of {n_words} words."
    note += " Each word's colour says how the answer would change without it."
    sides = classes if len(classes) == 2 else ("other classes", answer)
    label = f"{answer} {table[answer][0]:.0%}"
    drawn = min(len(words), MOST_WORDS)
    while True:
        try:
            figure = plotting.plot_word_effects([words[:drawn]], [effects[:drawn]], [label], sides)
            break
        except ValueError:  # long words: fewer of them fit
            if drawn == 1:
                raise
            drawn -= -(-drawn // 10)
    note += f" The first {drawn} words are drawn." if drawn < len(words) else ""
    return table.loc[0, classes].astype(float).to_dict(), note, [figure]


# ---- the page


def build_page(folder: str | os.PathLike = "models", kept_in: str = ""):
    """Return the gradio.Blocks of the page; `kept_in` is where it says that sounds are kept."""
    import gradio as gr

    load = functools.lru_cache(maxsize=3)(lambda path, modified: load_run(path))

    def find(key: str | None) -> dict | None:  # only what is offered now: a model's source is executed
        return next((row for row in list_models(folder)[0] if row["key"] == key), None)

    def offer():
        rows, problems = list_models(folder)
        choices = [(name_model(row), row["key"]) for row in rows]
        problems = [f"Left out: {problem}" for problem in problems]
        problems += [] if rows else ["There is no model to try: `make notebooks` makes some."]
        text = "".join(f"<p>{html.escape(problem)}</p>" for problem in problems)
        value = choices[0][1] if choices else None
        return gr.update(choices=choices, value=value), gr.update(value=text, visible=bool(text))

    def show_model(key):
        row = find(key)
        pairs, kind = (describe_model(row), row["kind"]) if row else ([], None)
        rows = "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in pairs)
        typed = gr.update(visible=kind == "sentence")
        return gr.update(visible=kind == "sound"), typed, typed, f"<dl>{rows}</dl>"

    def answer(key, path, sentence, asked=False):
        scores, pictures, note = None, [], ""
        try:
            row = find(key)
            if row is None:
                raise ValueError("This run is not there any more: reload the page and choose another.")
            run = load(row["folder"], (row["folder"] / "weights.safetensors").stat().st_mtime_ns)
            if row["kind"] == "sound" and path:
                scores, note, figures = answer_sound(run, path)
            elif row["kind"] == "sentence" and (asked or sentence):
                scores, note, figures = answer_sentence(run, sentence or "")
            pictures = [_draw(figure) for figure in figures] if scores else []
        except Exception as error:  # whatever it is, a person at the page reads a sentence
            note = " ".join(str(error).split()) or type(error).__name__
            gr.Warning(html.escape(note))
        shown = [gr.update(value=picture, visible=True) for picture in pictures]
        shown += [gr.update(value=None, visible=False)] * (2 - len(pictures))
        return scores, f"<p>{html.escape(note)}</p>", *shown

    with gr.Blocks(title="Try a model", analytics_enabled=False, fill_width=True) as page:
        where = f"; sounds are kept in {html.escape(kept_in)} until the page's program ends" if kept_in else ""
        gr.HTML(f"<h1>Try a model</h1><p>All of it stays on this machine{where}.</p>")
        choice = gr.Dropdown(label="Model (published ones first, then your runs, newest first)", elem_id="model")
        problems = gr.HTML(visible=False, elem_classes="about")
        with gr.Row():
            with gr.Column(scale=5):
                how = {"sources": ["microphone", "upload"], "type": "filepath", "buttons": ["download"]}
                sound = gr.Audio(label="Sound", visible=False, elem_id="sound", **how)
                sentence = gr.Textbox(label="Sentence", placeholder="type a sentence, then Enter", visible=False)
                button = gr.Button("Answer", variant="primary", visible=False)
                scores = gr.Label(label="Probabilities, the ten largest", num_top_classes=10, elem_id="scores")
                note = gr.HTML(elem_classes="about", elem_id="note")
            with gr.Column(scale=7):
                look = {"show_label": False, "buttons": ["download", "fullscreen"], "elem_classes": "picture"}
                first, second = (gr.Image(format="png", interactive=False, visible=False, **look) for _ in range(2))
                about = gr.HTML(elem_classes="about", elem_id="about")
        given, shown = [choice, sound, sentence], [scores, note, first, second]
        how = {"concurrency_id": "model", "show_progress_on": scores}  # one answer at a time: they share the model
        how["api_visibility"] = "private"
        page.load(offer, None, [choice, problems], api_visibility="private")
        choice.change(show_model, choice, [sound, sentence, button, about], api_visibility="private")
        gr.on([choice.change, sound.change], answer, given, shown, **how)
        gr.on([sentence.submit, button.click], functools.partial(answer, asked=True), given, shown, **how)
    return page


def _draw(figure):
    from PIL import Image

    from shared_utils.plotting import FILE_DPI

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=FILE_DPI)
    return Image.open(content)


def _stay_here(app):
    """Wrap an ASGI app: its pages may load nothing from other hosts, and only this machine's names lead to it."""
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    async def wrapped(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, send_with_policy)

    return TrustedHostMiddleware(wrapped, ["127.0.0.1", "localhost"])


def main(folder: str | os.PathLike = "models") -> int:
    """Show the page on the first free port from 7860 until Ctrl-C; return 2 where Gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        print("The page needs Gradio, which is not installed: run `make app`.", file=sys.stderr)
        return 2
    for name in ("SIGTERM", "SIGHUP"):  # a closed terminal must not leave recordings behind either
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="sounds-") as kept_in:
        own = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "GRADIO_TEMP_DIR": kept_in}
        os.environ.update(own, MPLBACKEND="agg")  # read when Gradio is imported
        import fastapi
        import gradio as gr
        import uvicorn

        set_threads()
        place, port = _bind_port()
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["system-ui", "sans-serif"]}
        app = gr.mount_gradio_app(
            fastapi.FastAPI(), build_page(folder, kept_in), path="/", server_name="127.0.0.1", server_port=port,
            footer_links=[], max_file_size=LARGEST_FILE, ssr_mode=False, enable_monitoring=False, pwa=False,
            theme=gr.themes.Default(primary_hue="blue", **fonts), css=CSS,
            js="() => document.body.classList.remove('dark')",  # the figures are white
        )  # fmt: skip
        config = uvicorn.Config(_stay_here(app), log_level="critical", timeout_graceful_shutdown=1)
        print(f"The page is at http://127.0.0.1:{port}/ (Ctrl-C ends it).", flush=True)
        uvicorn.Server(config).run(sockets=[place])
    return 0


def _bind_port() -> tuple[socket.socket, int]:
    for port in range(FIRST_PORT, 65536):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port)), port
    raise OSError(f"No port from {FIRST_PORT} on is free; end another program.")


if __name__ == "__main__":
    sys.exit(main())
