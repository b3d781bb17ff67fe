"""HTML report of a run, or a comparison of several, as one page without external resources."""

import html
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from rebar.cli import escape_lines
from rebar.reporting.console import final_resolutions, format_duration
from rebar.reporting.log import Record, RunData, read_run
from rebar.reporting.plots import Panel, comparison_panels, run_panels, to_svg
from rebar.storage.files import atomic_write

_DOCTYPE = "<!doctype html>"
Column = tuple[str, str, str]
_CSS = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem }
.state { color: #666; margin-top: .2rem }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.facts div { background: #f4f5f7; border-radius: 8px; padding: .6rem 1rem; min-width: 7.5rem }
.facts b { display: block; font-size: 1.3rem } .facts span { color: #666; font-size: .85rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(360px, 1fr)); gap: 1rem }
.charts svg { width: 100%; height: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } .wide { overflow-x: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee } th { color: #555 }
th:first-child, td:first-child { text-align: left }
.text td { text-align: left } details { margin-top: .8rem } .best { font-weight: 600; background: #eef6ee }
pre { background: #f4f5f7; padding: 1rem; border-radius: 8px; overflow-x: auto; font-size: 13px }
"""
_COLUMNS = (  # name in the log, heading, format
    ("train/loss", "train loss", ".3f"),
    ("train/top1", "train top-1", ".2%"),
    ("val/loss", "loss", ".3f"),
    ("val/top1", "top-1", ".2%"),
    ("val/top1_tta", "top-1 with flip TTA", ".2%"),
    ("val/top5", "top-5", ".2%"),
    ("train/lr", "learning rate", ".4g"),
    ("train/resolution", "px", "d"),
    ("throughput/samples_per_second", "images/s", ",.0f"),
    ("time/data_wait_fraction", "waiting for data", ".0%"),
    ("gpu/utilization", "GPU utilization", ".0%"),
    ("time/epoch_seconds", "s", ",.0f"),
)


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder and return its path."""
    run = read_run(folder)
    sections = [
        f'<p class="state">{_escape(_state(run))}</p>',
        _facts(run),
        _charts(run_panels(run)),
        "<h2>Epochs</h2>" + _epochs_table(run),
        "<h2>Environment</h2>" + _text_table(_environment(run)),
        "<h2>Configuration</h2>" + _configuration(run),
    ]
    return _write_page(folder / "report.html", run.name, sections)


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Write a page that compares several runs and return its path."""
    runs = [replace(read_run(folder), name=name) for folder, name in zip(folders, _names(folders), strict=True)]
    columns = _columns([run.last for run in runs])
    rows = [[run.name, run.state, str(len(run.epochs)), *_cells(run.last, columns)] for run in runs]
    heads = ["run", "state", "epochs", *(heading for _, heading, _ in columns)]
    sections = [
        _charts(comparison_panels(runs)),
        "<h2>Last evaluation</h2>"
        + _table(heads, rows, best_cells=_best_cells([run.last for run in runs], columns, 3)),
        "<h2>Different options</h2>" + _differences(runs),
    ]
    return _write_page(target, " · ".join(run.name for run in runs), sections)


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with as many parents as needed to distinguish them."""
    paths = [folder.resolve() for folder in folders]

    def name(path: Path, parts: int) -> str:
        return str(Path(*path.parts[-parts:]))

    def parts_of(path: Path) -> int:
        others = [other for other in paths if other != path]
        enough = (n for n in range(1, len(path.parts)) if name(path, n) not in {name(other, n) for other in others})
        return next(enough, len(path.parts))

    return [name(path, parts_of(path)) for path in paths]


# ------------------------------------------------------------------ sections of a page


def _state(run: RunData) -> str:
    """Describe the state of the run and when it started and ended, such as 'finished, 2026-11-28 09:15 to 10:02'."""
    if run.times is None:
        return run.state
    first, last = (datetime.fromtimestamp(seconds, timezone.utc) for seconds in run.times)
    form = "%H:%M" if first.date() == last.date() else "%Y-%m-%d %H:%M"
    words = [run.state] if run.state else []
    words.append(f"{first:%Y-%m-%d %H:%M} to {last:{form}} UTC ({format_duration(run.times[1] - run.times[0])})")
    return ", ".join(words)


def _facts(run: RunData) -> str:
    last, facts = run.last, dict[str, str]()
    for name, label, form in (
        ("val/top1", "top-1", ".2%"),
        ("val/top1_tta", "top-1 with flip TTA", ".2%"),
        ("val/top5", "top-5", ".2%"),
        ("throughput/samples_per_second", "images/s", ",.0f"),
        ("time/train_seconds", "s of training", ",.0f"),
        ("gpu/utilization", "GPU utilization", ".0%"),
        ("memory/gpu_peak_gb", "GB of GPU memory", ".1f"),
        ("memory/host_peak_gb", "GB of host memory", ".1f"),
    ):
        if last.get(name) is not None:
            facts[label] = format(last[name], form)
    for pixels in final_resolutions(run.end):
        facts[f"top-1 at {pixels} px"] = format(run.end[f"val/top1_{pixels}px"], ".2%")
        with_tta = run.end.get(f"val/top1_tta_{pixels}px")
        if with_tta is not None:
            facts[f"top-1 at {pixels} px with flip TTA"] = format(with_tta, ".2%")
    facts["epoch" if len(run.epochs) == 1 else "epochs"] = str(len(run.epochs))
    cells = (f"<div><b>{value}</b><span>{label}</span></div>" for label, value in facts.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def _charts(panels: Sequence[Panel]) -> str:
    return '<div class="charts">' + "".join(to_svg(panel) for panel in panels) + "</div>"


def _columns(epochs: Sequence[Record]) -> list[Column]:
    """Return the columns for which at least one epoch has a value."""
    return [column for column in _COLUMNS if any(epoch.get(column[0]) is not None for epoch in epochs)]


def _cells(epoch: Record, columns: Sequence[Column]) -> list[str]:
    return [format(epoch[name], form) if epoch.get(name) is not None else "" for name, _, form in columns]


def _epochs_table(run: RunData) -> str:
    columns = _columns(run.epochs)
    heads = ["epoch", *(heading for _, heading, _ in columns)]
    rows = [[str(epoch["epoch"] + 1), *_cells(epoch, columns)] for epoch in run.epochs]
    best = next((index for index, epoch in enumerate(run.epochs) if epoch["epoch"] == run.best), None)
    if best is not None:
        rows[best][0] += " (best)"
    return _table(heads, rows, best)


def _environment(run: RunData) -> dict[str, str]:
    shown = {name: str(run.start[name]) for name in ("device", "world_size", "parameters") if name in run.start}
    return shown | {name: str(value) for name, value in run.start.get("environment", {}).items() if value}


def _configuration(run: RunData) -> str:
    """Return the options that differ from the recipe's, and all options, folded."""
    changed = {name: str(value) for name, value in run.start.get("changed", {}).items()}
    table = f"<p>Options that differ from the recipe:</p>{_text_table(changed)}" if changed else ""
    return f"{table}<details><summary>all options</summary><pre>{_escape(run.config)}</pre></details>"


def _differences(runs: Sequence[RunData]) -> str:
    flat = [_flatten(yaml.safe_load(run.config) or {}) for run in runs]
    names = sorted({name for options in flat for name in options} - {"logging.folder"})
    rows = [[name, *(str(options.get(name, "")) for options in flat)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return _table(["option", *(run.name for run in runs)], rows) if rows else "<p>None.</p>"


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, options in content.items()
        if isinstance(options, Mapping)
        for name, value in options.items()
    }


def _escape(text: str) -> str:
    """Escape HTML and control characters except for line breaks."""
    return html.escape(escape_lines(text))


def _best_cells(records: Sequence[Record], columns: Sequence[Column], first_column: int) -> set[tuple[int, int]]:
    """Return row and column of the highest accuracies and the lowest losses, if the records differ."""
    cells: set[tuple[int, int]] = set()
    for column, (name, _, _) in enumerate(columns, start=first_column):
        values = {row: record[name] for row, record in enumerate(records) if record.get(name) is not None}
        if name.startswith(("val/", "train/top1", "train/loss")) and len(set(values.values())) > 1:
            best = (min if name.endswith("loss") else max)(values.values())
            cells |= {(row, column) for row, value in values.items() if value == best}
    return cells


def _table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: int | None = None,
    best_cells: Collection[tuple[int, int]] = (),
) -> str:
    """Return a table in which the row with the index ``best`` and some cells, (row, column), are highlighted."""
    head = "".join(f"<th>{_escape(text)}</th>" for text in heads)
    body = ""
    for index, row in enumerate(rows):
        marks = [' class="best"' if (index, column) in best_cells else "" for column in range(len(row))]
        cells = "".join(f"<td{mark}>{_escape(text)}</td>" for mark, text in zip(marks, row, strict=True))
        body += f'<tr class="best">{cells}</tr>' if index == best else f"<tr>{cells}</tr>"
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _text_table(facts: Mapping[str, str]) -> str:
    body = "".join(f"<tr><td>{_escape(k)}</td><td>{_escape(v)}</td></tr>" for k, v in facts.items())
    return f'<table class="text">{body}</table>'


def is_page(path: Path) -> bool:
    """Return whether a file is an HTML page, such as an earlier report, which may be replaced."""
    with path.open("rb") as file:
        return file.read(len(_DOCTYPE)) == _DOCTYPE.encode()


def _write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    name = _escape(title)
    page = (
        f'{_DOCTYPE}<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_CSS}</style></head><body><h1>{name}</h1>{''.join(sections)}</body></html>\n"
    )
    with atomic_write(path) as (file,):
        file.write(page.encode())
    return path
