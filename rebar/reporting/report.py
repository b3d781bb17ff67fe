"""``report.html``: a run, or several side by side, on one page that needs no other file and no network."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rebar.errors import RebarError
from rebar.reporting.charts import Series, line_chart
from rebar.reporting.console import resolutions
from rebar.reporting.log import read_log
from rebar.reporting.plots import latest_records
from rebar.reporting.run_folder import RunFolder, read_status
from rebar.storage.atomic_write import atomic_write

Record = dict[str, Any]
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
.words td { text-align: left }
pre { background: #f4f5f7; padding: 1rem; border-radius: 8px; overflow-x: auto; font-size: 13px }
"""
_COLUMNS = (  # name in the log, heading, format
    ("train/loss", "train loss", ".3f"),
    ("train/top1", "train top-1", ".2%"),
    ("val/loss", "loss", ".3f"),
    ("val/top1", "top-1", ".2%"),
    ("val/top1_tta", "top-1, mirrored too", ".2%"),
    ("val/top5", "top-5", ".2%"),
    ("train/lr", "learning rate", ".4g"),
    ("train/resolution", "px", "d"),
    ("throughput/samples_per_second", "images/s", ",.0f"),
    ("time/data_wait_fraction", "waiting", ".0%"),
    ("gpu/utilization", "GPU busy", ".0%"),
    ("time/epoch_seconds", "seconds", ",.0f"),
)


@dataclass(frozen=True)
class Run:
    """What a run's folder says about it."""

    name: str
    epochs: list[Record]
    steps: list[Record]
    start: Record
    config: str
    state: str
    end: Record
    """How the run ended, where no epoch followed."""

    @property
    def last(self) -> Record:
        """The last epoch that was evaluated, else the last one, else nothing."""
        evaluated = [epoch for epoch in self.epochs if epoch.get("val/top1") is not None]
        return (evaluated or self.epochs or [{}])[-1]

    def series(self, name: str, label: str, scale: float = 1) -> Series:
        """A metric over complete epochs."""
        points = [(e["epoch"] + 1, e[name] * scale) for e in self.epochs if e.get(name) is not None]
        return Series(label, [x for x, _ in points], [y for _, y in points])

    def step_series(self, name: str, label: str, faint: bool = False) -> Series:
        """A metric over the steps that were logged."""
        steps = [step for step in self.steps if step.get(name) is not None]
        return Series(label, [step["epoch"] for step in steps], [step[name] for step in steps], faint)


def read_run(folder: Path) -> Run:
    """Read a run's folder, whether it is finished or not. Raises RebarError where it is none."""
    files = RunFolder(folder)
    if not files.log.is_file():
        raise RebarError(f"{folder} is no run folder: it has no log.jsonl")
    records = read_log(files.log)
    status = read_status(files.status)
    starts = [record for record in records if record["event"] == "start"]
    state = "" if status is None else status.state + (f": {status.reason}" if status.reason else "")
    return Run(
        name=folder.resolve().name,
        epochs=latest_records(records, "epoch", "epoch"),
        steps=latest_records(records, "step", "step"),
        start=starts[-1] if starts else {},
        config=files.config.read_text() if files.config.is_file() else "",
        state=state,
        end=records[-1] if records and records[-1]["event"] == "end" else {},
    )


def write_report(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder; returns its path."""
    run = read_run(folder)
    sections = [
        f'<p class="state">{html.escape(run.state)}</p>',
        _facts(run),
        '<div class="charts">' + "".join(_charts(run)) + "</div>",
        "<h2>Epochs</h2>" + _epochs_table(run),
        "<h2>Environment</h2>" + _words_table(_environment(run)),
        f"<h2>Configuration</h2><pre>{html.escape(run.config)}</pre>",
    ]
    return _write_page(folder / "report.html", run.name, sections)


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Write a page with several runs side by side; returns its path."""
    runs = [replace(read_run(folder), name=name) for folder, name in zip(folders, _names(folders), strict=True)]
    charts = [
        _chart("validation top-1, %", [run.series("val/top1", run.name, 100) for run in runs]),
        _chart("validation loss", [run.series("val/loss", run.name) for run in runs]),
        _chart("training loss", [run.series("train/loss", run.name) for run in runs]),
        _chart("learning rate", [run.step_series("train/lr", run.name) for run in runs]),
        _chart(
            "images a second", [run.series("throughput/samples_per_second", run.name) for run in runs], from_zero=True
        ),
        _chart(
            "waiting for data, %",
            [run.series("time/data_wait_fraction", run.name, 100) for run in runs],
            from_zero=True,
        ),
        _chart("GPU busy, %", [run.series("gpu/utilization", run.name, 100) for run in runs], from_zero=True),
    ]
    columns = _columns([run.last for run in runs])
    rows = [[run.name, run.state, str(len(run.epochs)), *_cells(run.last, columns)] for run in runs]
    heads = ["run", "state", "epochs", *(heading for _, heading, _ in columns)]
    sections = [
        '<div class="charts">' + "".join(charts) + "</div>",
        "<h2>Last evaluation</h2>" + _table(heads, rows),
        "<h2>What was set differently</h2>" + _differences(runs),
    ]
    return _write_page(target, " · ".join(run.name for run in runs), sections)


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' names; of those that share theirs, as much of the path as tells them apart."""
    paths = [folder.resolve() for folder in folders]

    def name(path: Path, parts: int) -> str:
        return str(Path(*path.parts[-parts:]))

    def parts_of(path: Path) -> int:
        others = [other for other in paths if other != path]
        enough = (n for n in range(1, len(path.parts)) if name(path, n) not in {name(other, n) for other in others})
        return next(enough, len(path.parts))

    return [name(path, parts_of(path)) for path in paths]


# ------------------------------------------------------------------ parts of a page


def _facts(run: Run) -> str:
    last, facts = run.last, dict[str, str]()
    for name, label, form in (
        ("val/top1", "top-1", ".2%"),
        ("val/top1_tta", "top-1, mirrored too", ".2%"),
        ("val/top5", "top-5", ".2%"),
        ("throughput/samples_per_second", "images/s", ",.0f"),
        ("time/train_seconds", "seconds of training", ",.0f"),
        ("gpu/utilization", "GPU busy", ".0%"),
        ("memory/gpu_peak_gb", "GB of GPU memory", ".1f"),
        ("memory/host_peak_gb", "GB of main memory", ".1f"),
    ):
        if last.get(name) is not None:
            facts[label] = format(last[name], form)
    for pixels in resolutions(run.end):
        facts[f"top-1 at {pixels} px"] = format(run.end[f"val/top1_{pixels}px"], ".2%")
        mirrored = run.end.get(f"val/top1_tta_{pixels}px")
        if mirrored is not None:
            facts[f"top-1 at {pixels} px, mirrored too"] = format(mirrored, ".2%")
    facts["epochs"] = str(len(run.epochs))
    cells = (f"<div><b>{value}</b><span>{label}</span></div>" for label, value in facts.items())
    return f'<div class="facts">{"".join(cells)}</div>'


def _charts(run: Run) -> list[str]:
    return [
        _chart(
            "loss",
            [
                run.step_series("train/loss", "training, one batch", faint=True),
                run.series("train/loss", "training"),
                run.series("val/loss", "validation"),
            ],
        ),
        _chart(
            "accuracy, %",
            [
                run.series("train/top1", "training top-1", 100),
                run.series("val/top1", "top-1", 100),
                run.series("val/top1_tta", "top-1, mirrored too", 100),
                run.series("val/top5", "top-5", 100),
            ],
        ),
        _chart("learning rate", [run.step_series("train/lr", "")]),
        _resolution_chart(run),
        _chart("images a second", [run.series("throughput/samples_per_second", "")], from_zero=True),
        _chart("waiting for data, %", [run.series("time/data_wait_fraction", "", 100)], from_zero=True),
        _chart("GPU busy, %", [run.series("gpu/utilization", "", 100)], from_zero=True),
    ]


def _resolution_chart(run: Run) -> str:
    found = run.series("train/resolution", "")
    line = Series("", [0, *found.x], [*found.y[:1], *found.y]) if found.x else found
    return line_chart("resolution, px", [line], x_label="epoch", stairs=True)


def _chart(title: str, series: Sequence[Series], from_zero: bool = False) -> str:
    return line_chart(title, series, x_label="epoch", from_zero=from_zero)


def _columns(epochs: Sequence[Record]) -> list[Column]:
    """Those that any of the epochs has a value for."""
    return [column for column in _COLUMNS if any(epoch.get(column[0]) is not None for epoch in epochs)]


def _cells(epoch: Record, columns: Sequence[Column]) -> list[str]:
    return [format(epoch[name], form) if epoch.get(name) is not None else "" for name, _, form in columns]


def _epochs_table(run: Run) -> str:
    columns = _columns(run.epochs)
    heads = ["epoch", *(heading for _, heading, _ in columns)]
    return _table(heads, [[str(epoch["epoch"] + 1), *_cells(epoch, columns)] for epoch in run.epochs])


def _environment(run: Run) -> dict[str, str]:
    shown = {name: str(run.start[name]) for name in ("device", "world_size", "parameters") if name in run.start}
    return shown | {name: str(value) for name, value in run.start.get("environment", {}).items() if value}


def _differences(runs: Sequence[Run]) -> str:
    flat = [_flatten(yaml.safe_load(run.config) or {}) for run in runs]
    names = sorted({name for settings in flat for name in settings} - {"logging.folder"})
    rows = [[name, *(str(settings.get(name, "")) for settings in flat)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    return _table(["setting", *(run.name for run in runs)], rows) if rows else "<p>Nothing.</p>"


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{name}": value
        for section, knobs in content.items()
        if isinstance(knobs, Mapping)
        for name, value in knobs.items()
    }


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _words_table(facts: Mapping[str, str]) -> str:
    body = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f'<table class="words">{body}</table>'


def _write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    name = html.escape(title)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_CSS}</style></head><body><h1>{name}</h1>{''.join(sections)}</body></html>\n"
    )
    with atomic_write(path) as (file,):
        file.write(page.encode())
    return path
