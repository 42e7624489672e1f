"""One page on which the runs of all notebooks stand beside each other: what `make compare` writes.

Plain HTML and CSS in one file, with nothing from outside and a few lines of script that sort a table. It can be opened
without a network, mailed, and printed.
"""

import base64
import html
import io
import os
import urllib.parse
import warnings
from pathlib import Path

import pandas as pd

from shared_utils.device import resolve_path, write_whole
from shared_utils.runs import differing_settings, name_data, read_runs

N_CURVES = 8  # more lines in one figure cannot be told apart
LONGEST_VALUE = 32  # characters of a setting that a cell shows; all of it stands in the cell's title


def write_page(
    only: str = "", folder: str | os.PathLike = "models", path: str | os.PathLike = "figures/compare.html"
) -> tuple[Path, pd.DataFrame]:
    """Write the page about all runs in `folder`, or those of the notebook `only`; return its path and a short table.

    Notebooks come in the order of their newest runs. Runs are compared where data set, classes and metric are the same
    (see `runs.read_runs`): the table has a row for each such group, with columns notebook, data, runs, best, which (the
    best run), and latest (its points to the best).

    Raises FileNotFoundError, and writes nothing, where there is no run folder.
    """
    parent, only = resolve_path(folder), Path(only).stem
    names = sorted(place.name for place in parent.glob("*") if place.is_dir())
    found = {name: read_runs(name, parent) for name in names if name == only or not only}
    found = {name: parts for name, parts in found.items() if any(parts)}
    if not found:
        target = f"make notebooks ONLY={only}" if only else "make notebooks"
        raise FileNotFoundError(f"There are no runs of {only or 'any notebook'} in {parent}; `{target}` makes some.")
    newest = {name: max((run["created"] for run in runs), default="") for name, (runs, _) in found.items()}
    order = sorted(found, key=newest.get, reverse=True)
    groups = {name: _group(found[name][0]) for name in order}
    rows = [_summarise(name, runs) for name in order for runs in groups[name]]
    table = pd.DataFrame(rows, columns=["notebook", "data", "runs", "best", "which", "latest"])

    n_runs, n_broken = (sum(len(parts[i]) for parts in found.values()) for i in (0, 1))
    counts = [_count(n_runs, "run"), _count(len(found), "notebook")]
    counts += [f"{_count(n_broken, 'folder')} that cannot be read"] * (n_broken > 0)
    sections = [_write_section(name, *found[name], groups[name], parent) for name in order]
    body = [f"<header><h1>Runs compared</h1><p>{_text(', '.join(counts))}.</p></header>"]
    body += [_write_overview(order, groups)] * (len(rows) > 1) + sections
    path = resolve_path(path)
    with write_whole(path) as temporary:
        temporary.write_text("\n".join([_HEAD, *body, _FOOT]), encoding="utf-8")
    return path, table


# ---- which runs can be compared, and what is said of them


def _group(runs: list[dict]) -> list[list[dict]]:
    """Return the runs group by group, each newest first; groups on real data come first."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(run["group"], []).append(run)
    return sorted(groups.values(), key=lambda group: bool(group[0]["data"].get("demo")))


def _best(runs: list[dict]) -> dict | None:
    """Return the best run of a group, the newest of equals; None if no number says which that is."""
    known = [run for run in runs if run["value"] is not None and (run["delta"] is not None or len(runs) == 1)]
    return max(known, key=lambda run: run["value"], default=None)


def _summarise(notebook: str, runs: list[dict]) -> dict:
    best, latest = _best(runs), runs[0]
    if best is None or len(runs) == 1:
        away = ""
    else:
        away = "is the best" if latest["delta"] == 0 else f"{_points(latest['delta'])} points"
    return {
        "notebook": _clean(notebook), "data": _name_data(runs[0]), "runs": len(runs),
        "best": _name_score(best) if best else "", "which": _name(best) if best else "", "latest": away,
    }  # fmt: skip


def _name(run: dict) -> str:
    """Return what a person calls a run: its name, or when it was made."""
    return _clean(run["name"] or run["created"])


def _name_data(run: dict) -> str:
    return _clean(", ".join(filter(None, [name_data(run), run["tested"]])))


def _name_score(run: dict) -> str:
    """Return "test accuracy 88.9 % (84.7 to 92.8)"."""
    return f"{_clean(run['metric']).replace('_', ' ')} {_percent(run)}"


def _percent(run: dict) -> str:
    interval = f" ({100 * run['low']:.1f} to {100 * run['high']:.1f})" if run["low"] is not None else ""
    return f"{100 * run['value']:.1f} %{interval}"


def _points(delta: float) -> str:
    return f"{delta:+.1f}".replace("-", "−") if abs(delta) >= 0.05 else f"{delta:+.2f}".replace("-", "−")


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _clean(value: object) -> str:
    """Return a text without what neither a page nor a figure nor a terminal can show."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in str(value))


def _text(value: object) -> str:
    return html.escape(_clean(value))


# ---- the parts of the page


def _write_overview(order: list[str], groups: dict[str, list[list[dict]]]) -> str:
    """Return the first table: a row a notebook and data set, with the best run and how far the latest is from it."""
    lines = []
    for name in order:
        for runs in groups[name]:
            row, best = _summarise(name, runs), _best(runs)
            which = _link(name, best) if best else ""
            score = _text(_name_score(best)) if best else "no number to compare"
            cells = [f'<a href="#{_anchor(name)}">{_text(name)}</a>', _write_data(runs[0]), str(row["runs"]), score]
            lines.append("".join(f"<td>{cell}</td>" for cell in [*cells, which, _text(row["latest"])]))
    head = "".join(f"<th>{name}</th>" for name in ("Notebook", "Data", "Runs", "Best", "Which run", "The latest run"))
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>'


def _write_section(notebook: str, runs: list[dict], problems: list[str], groups: list[list[dict]], parent: Path) -> str:
    parts = [f'<section id="{_text(notebook)}"><h2>{_text(notebook)}</h2>']
    parts += [f"<p>{_write_best(notebook, group)}</p>" for group in groups]
    if runs:
        parts.append(_write_table(notebook, runs, groups))
    for number, group in enumerate(groups):
        curves = _draw_curves(group)
        if curves is None:
            continue
        name = f"Validation curves, {_name_data(group[0])}"
        label = f"{name}: the best and the latest, {N_CURVES} of {len(group)}" if len(group) > N_CURVES else name
        is_open = " open" if number == 0 else ""  # a demo's curves wait folded below those of real data
        parts.append(f"<details{is_open}><summary>{_text(label)}</summary>{curves}</details>")
    for problem in problems:
        problem = problem.replace(f"{parent}{os.sep}", f"{parent.name}/")
        parts.append(f'<p class="broken">Left out: {_text(problem)}</p>')
    return "\n".join([*parts, "</section>"])


def _write_best(notebook: str, runs: list[dict]) -> str:
    """Return the line about a group of runs: which is the best, how clearly, and how far the latest is from it."""
    best, latest, data = _best(runs), runs[0], _text(_name_data(runs[0]))
    if best is None:
        return f"<strong>On {data}</strong>: {_count(len(runs), 'run')} without a number that can be compared."
    score = f"<strong>{_link(notebook, best)}</strong>, {_text(_name_score(best))}"
    if len(runs) == 1:
        return f"The only run on <strong>{data}</strong>: {score}."
    equals = [run for run in runs if run["delta"] == 0 and run is not best]
    others = [run for run in runs if run["delta"] < 0]
    text = f"The best of {len(runs)} runs on <strong>{data}</strong>: {score}"
    if equals:
        text += f", and {_count(len(equals), 'other run')} with the same number"
    if others:
        second = max(others, key=lambda run: run["value"])
        ahead = _points(-second["delta"]).lstrip("+")
        text += f"; {ahead} points ahead of {'the latest, ' * (second is latest)}{_link(notebook, second)}"
        if best["low"] is not None and second["high"] is not None and second["high"] >= best["low"]:
            text += ", whose interval overlaps"
        if latest["delta"] < 0 and latest is not second:
            text += f". The latest, {_link(notebook, latest)}, is {_points(-latest['delta']).lstrip('+')} points behind"
    return f"{text}."


def _write_table(notebook: str, runs: list[dict], groups: list[list[dict]]) -> str:
    """Return the table of all runs, newest first. Settings that are as in the best run of the group are grey."""
    best_of = {run["folder"].name: _best(group) for group in groups for run in group}
    latest = {group[0]["folder"].name for group in groups if len(group) > 1}
    settings = differing_settings(runs)
    numbers = [run[key] for run in runs for key in ("low", "value", "high") if run[key] is not None]
    span = (min(numbers), max(numbers)) if numbers else (0, 1)
    metrics = list(dict.fromkeys(run["metric"] for run in runs if run["metric"]))
    heading = _text(metrics[0].replace("_", " ").capitalize()) if len(metrics) == 1 else "Metric"
    scale = f"{span[0]:.0%} to {span[1]:.0%}; dashed: best" if span[0] < span[1] else ""
    heads = [
        ("", "Run", "name and folder"), ("", "Created", ""), ("", "Data", ""),
        ("", heading, f"95 % interval<br>{scale}"), ("number", "To the best", "points"),
        ("number", "Best epoch", "of all"), ("number", "Training", "of these<br>weights"),
    ]  # fmt: skip
    head = "".join(
        f'<th class="{kind}"><button>{name}<small>{note}</small></button></th>' for kind, name, note in heads
    )
    head += "".join(f'<th class="setting"><button>{_break(name)}</button></th>' for name in settings)
    lines = []
    for run in runs:
        key, best = run["folder"].name, best_of[run["folder"].name]
        is_best = run["delta"] == 0
        badges = '<span class="badge">best</span>' * is_best + '<span class="badge">latest</span>' * (key in latest)
        name = f"<b>{_text(run['name'])}</b>" if run["name"] else ""
        metric = f"<small>{_text(run['metric'] or '')}</small>" if len(metrics) > 1 else ""
        value, delta, epoch = run["value"], run["delta"], run.get("best_epoch")
        cells = [
            f'<th scope="row" data-v="{_text(_name(run))}">{name}{badges}<code>{_text(key)}</code></th>',
            _cell(run["created"], _text(run["created"]), "created"), _cell(_name_data(run), _write_data(run)),
            _cell(value, "–" if value is None else _percent(run) + metric + _draw_interval(run, span, best), "score"),
            _cell(delta, "–" if delta is None else "0" if is_best else _points(delta), "number"),
            _cell(epoch, "–" if epoch is None else f"{_text(epoch)} <small>of {len(run['history'])}</small>", "number"),
            _cell(run["seconds"], "–" if run["seconds"] is None else _seconds(run["seconds"]), "number"),
        ]  # fmt: skip
        for setting in settings:
            value, usual = (str(one["settings"][setting]) if one and setting in one["settings"] else None
                            for one in (run, best))  # fmt: skip
            kind = "setting same" if value is not None and value == usual and run is not best else "setting"
            cells.append(_write_setting(value, kind))
        mark = ' class="best"' if is_best else ""
        lines.append(f'<tr id="{_text(f"{notebook}-{key}")}"{mark}>{"".join(cells)}</tr>')
    note = ""
    if len(runs) > 1:
        same = "Only settings that differ; grey: as in the best run." if settings else "All have the same settings."
        note = f'<p class="note">{len(runs)} runs, newest first; a click on a heading sorts. {same}</p>\n'
    rows = "\n".join(lines)
    table = f'<table class="runs"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>'
    return f'{note}<div class="box tall">{table}</div>'


def _write_setting(value: str | None, kind: str) -> str:
    if value is None or len(value) <= LONGEST_VALUE:
        return _cell(value, _text("–" if value is None else value), kind)
    return _cell(value[:200], f"{_text(value[: LONGEST_VALUE - 1])}…", kind, f' title="{_text(value[:2000])}"')


def _cell(value: object, content: str, kind: str = "", title: str = "") -> str:
    """Return a cell that is sorted by `value`; None comes last."""
    kind = f' class="{kind}"' if kind else ""
    return f'<td{kind}{title} data-v="{"" if value is None else _text(value)}">{content}</td>'


def _write_data(run: dict) -> str:
    data_set, n_classes = _text(run["data"].get("data_set") or "unnamed data"), len(run["class_names"])
    badge = '<span class="badge demo">demo data</span>' if run["data"].get("demo") else ""
    return f"{data_set}<small>{badge}{n_classes} {'class' if n_classes == 1 else 'classes'}</small>"


def _link(notebook: str, run: dict) -> str:
    target = f"{notebook}-{run['folder'].name}"
    return f'<a href="#{_anchor(target)}">{_text(_name(run))}</a>'


def _anchor(name: str) -> str:
    return html.escape(urllib.parse.quote(_clean(name)))


def _break(name: str) -> str:
    return _text(name).replace("_", "_<wbr>")


def _draw_interval(run: dict, span: tuple[float, float], best: dict | None) -> str:
    """Return a small picture of a share of 1 and its interval between the two ends of `span`."""
    if run["value"] is None or span[0] == span[1]:
        return ""

    def place(value: float) -> str:
        return f"{6 + 108 * (value - span[0]) / (span[1] - span[0]):.1f}"

    parts = []
    if best is not None:
        there = place(best["value"])
        parts.append(f'<line class="other" x1="{there}" x2="{there}" y1="0" y2="16"/>')
    if run["low"] is not None:
        parts.append(f'<line x1="{place(run["low"])}" x2="{place(run["high"])}" y1="8" y2="8"/>')
    parts.append(f'<circle cx="{place(run["value"])}" cy="8" r="4"/>')
    return f'<svg width="120" height="16" aria-hidden="true">{"".join(parts)}</svg>'


def _draw_curves(runs: list[dict]) -> str | None:
    """Return the validation accuracies of the best and the latest runs of a group as a picture; None without any."""
    from shared_utils import plotting

    best = _best(runs) if len(runs) > 1 else None
    first = [run for run in (best, runs[0]) if run is not None]
    tables: dict[str, pd.DataFrame] = {}
    for run in {run["folder"].name: run for run in [*first, *runs]}.values():
        columns = [pd.to_numeric(run["history"].get(name, pd.Series(dtype=float)), errors="coerce")
                   for name in ("epoch", "val_accuracy")]  # fmt: skip
        table = pd.concat(columns, axis=1, keys=["epoch", "accuracy"])
        table = table[table["accuracy"].between(0, 1) & table["epoch"].between(0, 1e9)].drop_duplicates("epoch")
        if len(table) == 0 or len(tables) == N_CURVES:
            continue
        roles = [role for role, one in (("best", best), ("latest", runs[0])) if run is one and len(runs) > 1]
        name = f"{' and '.join(roles)}: {_name(run)}" if roles else _name(run)
        tables[f"{name} {run['folder'].name}" if name in tables else name] = table
    if max(map(len, tables.values()), default=0) < 2:  # a dot is no curve
        return None
    title = f"Validation accuracy on {_name_data(runs[0])}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of signs in a name that the font does not have
        fig = plotting.plot_lines(
            pd.concat([table.assign(run=name) for name, table in tables.items()]), x="epoch", y="accuracy", by="run",
            x_label="Epoch", y_label="Validation accuracy (%)", title=title,
        )  # fmt: skip
        for line, name in zip(fig.axes[0].lines, tables, strict=False):
            if len(tables) > 1 and name.startswith(("best", "latest")):
                line.set(linewidth=4, zorder=4)
            elif len(tables) > 2:
                line.set(linewidth=1.5, alpha=0.7, markersize=6, markeredgewidth=0.5)
        content = io.BytesIO()
        fig.savefig(content, format="png", dpi=100)
    ends = [f"{name} ends at {100 * table['accuracy'].iloc[-1]:.1f} %" for name, table in tables.items()]
    picture = base64.b64encode(content.getvalue()).decode()
    alt = _text(f"{title}: {', '.join(ends)}.")
    return f'<img src="data:image/png;base64,{picture}" width="1280" height="720" alt="{alt}">'


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Runs compared</title>
<style>
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1f2328; --grey: #636c76; --line: #d8dee4; --tint: #f3f5f7; --accent: #2f6fd6;
  --best: #e8f1ff; --demo: #8a4b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e4e8ec; --grey: #98a2ad; --line: #343b43; --tint: #1e2329; --accent: #7fb0ff;
    --best: #1b2c47; --demo: #f0b060;
  }
  img { filter: brightness(0.9); }
}
body { margin: 0 auto; padding: 1.5rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; }
header p, .note { margin: 0.2rem 0 1rem; color: var(--grey); }
h2 { margin: 2.5rem 0 0.5rem; font-size: 1.3rem; overflow-wrap: anywhere; }
section > p { margin: 0.4rem 0; max-width: 60rem; }
a { color: var(--accent); }
.note, small { font-size: 0.8rem; }
small { display: block; color: var(--grey); font-weight: normal; }
td small, section > p a { white-space: nowrap; }
.box { overflow: auto; margin: 0.5rem 0 1rem; border: 1px solid var(--line); border-radius: 8px; }
.tall { max-height: 34rem; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.88rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.45rem 0.6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; z-index: 2; background: var(--tint); vertical-align: bottom; }
tbody th { position: sticky; left: 0; z-index: 1; background: var(--paper); font-weight: normal; }
tr.best > * { background: var(--best); }
tr:target > * { box-shadow: inset 0 2px var(--accent), inset 0 -2px var(--accent); }
button { all: unset; cursor: pointer; font-weight: 600; }
button:focus-visible { outline: 2px solid var(--accent); }
[aria-sort] button::before { content: "\\2193 "; }
[aria-sort=ascending] button::before { content: "\\2191 "; }
.number, .created, .score { white-space: nowrap; }
.number { text-align: right; }
.setting { max-width: 14rem; overflow-wrap: break-word; font-size: 0.82rem; }
.same { color: var(--grey); }
code { display: block; color: var(--grey); font-size: 0.75rem; white-space: nowrap; user-select: all; }
.badge { display: inline-block; margin-right: 0.3rem; padding: 0 0.4rem; border: 1px solid currentColor;
  border-radius: 1rem; color: var(--accent); font-size: 0.72rem; white-space: nowrap; }
b { margin-right: 0.4rem; }
.demo { color: var(--demo); }
.broken { color: var(--demo); overflow-wrap: anywhere; }
svg { display: block; margin-top: 0.1rem; }
svg line, svg circle { stroke: var(--accent); stroke-width: 2; fill: var(--accent); }
svg .other { stroke: var(--grey); stroke-width: 1; stroke-dasharray: 2 2; }
summary { cursor: pointer; }
img { display: block; width: 100%; max-width: 60rem; height: auto; margin: 0.5rem 0; border-radius: 8px; }
footer { margin-top: 3rem; border-top: 1px solid var(--line); max-width: 60rem; color: var(--grey); font-size: 0.85rem;
}
footer code { display: inline; user-select: auto; }
@media print { .tall { max-height: none; } .box { overflow: visible; } }
</style>
</head>
<body>"""
_FOOT = """<footer>
<p>Runs are compared only on the same data set and test folds (without folds: as many test sentences), with the same
classes and the same metric; runs on demo data never with real ones. The best of many runs, chosen by what it scores on
the test clips, is in part the luckiest: choose by validation, and look whether intervals overlap.</p>
<p>Give a run a name: <code>.venv/bin/python -m shared_utils.notebooks name RUN "with warm-up"</code><br>
Be rid of one: <code>.venv/bin/python -m shared_utils.notebooks delete RUN</code><br>
RUN is the grey folder name under each run. <code>make compare</code> writes this page anew.</p>
</footer>
<script>
for (const table of document.querySelectorAll("table.runs")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.onclick = () => {
    const down = head.ariaSort !== "descending", value = row => row.cells[column].dataset.v;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.ariaSort = down ? "descending" : "ascending";
    body.append(...[...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    }));
  });
}
</script>
</body>
</html>
"""
