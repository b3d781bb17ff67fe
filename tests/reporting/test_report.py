"""The HTML report of a run and the comparison of several."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rebar.errors import RebarError
from rebar.reporting.__main__ import main
from rebar.reporting.report import write_comparison, write_report
from rebar.storage.run_store import RunStatus, write_status


def make_run(folder: Path, epochs: int, lr: float = 0.5) -> Path:
    folder.mkdir()
    changed = {"lr.lr": lr, "training.epochs": epochs}
    environment = {"command": "train_imagenet.py --x <b>"}
    records = [{"event": "start", "device": "CPU", "changed": changed, "environment": environment}]
    for epoch in range(epochs):
        records += [
            {
                "event": "step",
                "step": 10 * epoch + i,
                "epoch": epoch + i / 10,
                "train/loss": 2.0 / (epoch + 1),
                "train/lr": lr,
            }
            for i in range(10)
        ]
        records.append(
            {
                "event": "epoch",
                "epoch": epoch,
                "train/loss": 2.0,
                "train/top1": 0.1,
                "train/lr": lr,
                "train/resolution": 160 + 32 * (epoch > 0),
                "val/loss": 2.5,
                "val/top1": 0.25 + epoch / 100,
                "val/top1_tta": None,
                "throughput/samples_per_second": 1234.5,
                "time/data_wait_fraction": 0.015,
            }
        )
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "config.yaml").write_text(f"lr:\n  lr: {lr}\nmodel:\n  arch: resnet50\n")
    return folder


class PageChecker(HTMLParser):
    """Check that every element is closed and that no resource is external; count the charts."""

    VOID = ("meta", "br", "path", "use", "rect", "line", "image")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.charts = 0
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert not any(name in ("src", "href") and not str(value).startswith("#") for name, value in attributes)
        self.charts += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_report_shows_final_resolutions_until_run_is_resumed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", epochs=2)
    accuracies = {"val/top1_224px": 0.75, "val/top1_tta_224px": 0.76, "val/top1_256px": 0.77}
    log = folder / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"event": "end", "epoch": 2, **accuracies}) + "\n")
    page = write_report(folder).read_text()
    for fact in (
        "75.00%</b><span>top-1 at 224 px<",
        "76.00%</b><span>top-1 at 224 px with flip TTA<",
        "77.00%</b><span>top-1 at 256 px<",
    ):
        assert fact in page
    log.write_text(log.read_text() + json.dumps({"event": "start", "device": "CPU"}) + "\n")
    assert "224 px" not in write_report(folder).read_text()


def test_report_has_all_sections_and_escapes_html(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", epochs=3)
    write_status(folder / "status.json", RunStatus("interrupted", "SIGTERM", 3, 30, 75))
    page = write_report(folder).read_text()
    assert PageChecker(page).charts == 6
    assert "interrupted: SIGTERM" in page
    assert "27.00%" in page
    assert "--x &lt;b&gt;" in page
    assert "arch: resnet50" in page


def test_report_shows_the_options_that_differ_from_the_recipe_before_all_options(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "mine", epochs=3, lr=0.25)).read_text()
    changed = page.index("<td>lr.lr</td><td>0.25</td></tr><tr><td>training.epochs</td><td>3</td>")
    assert changed < page.index("<summary>all options</summary>")


def test_report_shows_when_the_run_took_place_and_its_best_epoch(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine", epochs=2)
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    records[-1]["val/top1"] = 0.1
    for index, record in enumerate(records):
        record["time"] = 1_000_000_000 + 300 * index
    (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(folder).read_text()
    assert "2001-09-09 01:46 to 03:36 UTC (2 h" not in page
    assert "2001-09-09 01:46 to 03:36 UTC (1 h 50 min)" in page
    assert page.count('class="best"') == 1
    assert "<td>1 (best)</td>" in page


def test_report_of_run_without_epochs(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "mine", epochs=0)).read_text()
    assert PageChecker(page).charts == 0


def test_comparison_shows_charts_and_different_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make_run(tmp_path / name, epochs, lr) for name, epochs, lr in (("a", 2, 0.5), ("b", 3, 0.7))]
    main([*map(str, runs), "--out", str(tmp_path / "both.html")])
    page = (tmp_path / "both.html").read_text()
    assert PageChecker(page).charts == 6
    assert re.search(r"<td>lr\.lr</td><td>0\.5</td><td>0\.7</td>", page)
    assert "model.arch" not in page  # equal in both
    assert capsys.readouterr().out.strip().endswith("both.html")


def test_comparison_replaces_an_earlier_page_but_no_other_file(tmp_path: Path) -> None:
    runs = [str(make_run(tmp_path / name, 1)) for name in ("one", "two")]
    for _ in range(2):
        main([*runs, "--out", str(tmp_path / "page.html")])
    (tmp_path / "train.beton").write_bytes(b"mine")
    with pytest.raises(RebarError) as error:
        main([*runs, "--out", str(tmp_path / "train.beton")])
    assert error.value.code == "write-target-exists"
    assert (tmp_path / "train.beton").read_bytes() == b"mine"


def test_comparison_distinguishes_runs_of_one_name_by_path(tmp_path: Path) -> None:
    places = ("first/fast/run", "second/fast/run", "second/other")
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    write_comparison([make_run(tmp_path / place, 1) for place in places], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<h1>first/fast/run · second/fast/run · other</h1>" in page
    assert page.count(str(tmp_path)) == 0


def test_report_and_comparison_show_gpu_utilization_if_logged(tmp_path: Path) -> None:
    with_gpu, without = make_run(tmp_path / "gpu", 2), make_run(tmp_path / "cpu", 2)
    log = with_gpu / "log.jsonl"
    log.write_text(log.read_text().replace('"train/top1"', '"gpu/utilization": 0.93, "train/top1"'))
    for page in (write_report(with_gpu), write_comparison([with_gpu, without], tmp_path / "page.html")):
        assert PageChecker(page.read_text()).charts == 7
        assert "<th>GPU utilization</th>" in page.read_text()
        assert "<td>93%</td>" in page.read_text()


def test_comparison_shows_names_with_special_characters(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, 1) for name in ("$x^$", "_hidden", "<b>")]
    write_comparison(runs, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert PageChecker(page).charts == 6
    legend = page[page.index("<svg") : page.index("</svg>")]
    assert "$x^$" in legend
    assert "_hidden" in legend
    assert "&lt;b&gt;" in legend


def test_report_rejects_folder_without_log(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as caught:
        write_report(tmp_path)
    assert caught.value.code == "run-not-found"


def test_main_rejects_out_for_one_run(tmp_path: Path) -> None:
    with pytest.raises(RebarError) as caught:
        main([str(tmp_path), "--out", "page.html"])
    assert caught.value.code == "config-conflict"


def test_comparison_is_written_next_to_the_runs_and_highlights_the_best_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    runs = [make_run(tmp_path / "runs" / name, epochs=epochs) for name, epochs in (("a", 1), ("b", 3))]
    main([str(run) for run in runs])
    page = tmp_path / "runs/comparison.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert re.findall(r'<td class="best">([^<]+)</td>', page.read_text()) == ["27.00%"]  # top-1 of b; the rest is equal
