"""Smoke tests of the benchmarks and of their reports."""

import json
import math
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY, Data, run

Benchmark = Callable[..., None]
COLUMNS = {
    *("peer", "resolution", "cores", "images_per_second", "ratio_to_ffcv", "first_batch_seconds_warm"),
    *("batch_seconds_p50", "batch_seconds_p99", "cpu_seconds_per_1000_images"),
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Benchmark:
    """Return a function that runs a script of ``benchmarks/`` in this process."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)  # restored afterwards

    def run_script(script: str, *args: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(REPOSITORY / "benchmarks" / script), run_name="__main__")
        if exited.value.code:
            raise exited.value

    return run_script


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("loader.py", ["--data", "none", "--json"]),
        ("loader.py", ["--data", "none", "--image"]),
        ("decode.py", ["none", "--json"]),
        ("writer.py", ["--data", "none", "--json"]),
        ("low_memory.py", ["--data", "none", "--json"]),
        ("open_tars.py", ["--json"]),
        ("speedrun.py", ["--out"]),
    ],
)
def test_destinations_are_checked_first(
    script: str, args: list[str], tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit):
        benchmark(script, *args, tmp_path / "file" / "report.json")
    printed = capsys.readouterr()
    assert "[file-not-writable]" in printed.err
    assert printed.err.count("\n") == 1


def test_a_report_does_not_replace_another_file(
    tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.beton").write_bytes(b"mine")
    with pytest.raises(SystemExit):
        benchmark("open_tars.py", "--json", tmp_path / "train.beton")
    assert "[write-target-exists]" in capsys.readouterr().err
    assert (tmp_path / "train.beton").read_bytes() == b"mine"


@pytest.mark.nightly  # every peer compiles in an empty cache
def test_loader_benchmark(data: Data, tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    sizes = ["--resolutions", "32", "--cores", "1", "--count", "64", "--batch-size", "16"]
    repeats = ["--epochs", "2", "--repetitions", "1", "--work", tmp_path / "work"]
    peers = "rebar,torchvision_cv2,dali=/nowhere/python"
    files = ["--json", report, "--image", tmp_path / "bars.png"]
    benchmark("loader.py", "--data", data.tree / "train", "--peers", peers, *sizes, *repeats, *files)
    content = json.loads(report.read_text())
    assert [row["peer"] for row in content["rows"]] == ["rebar", "torchvision_cv2"]
    for row in content["rows"]:
        assert row.keys() >= COLUMNS
        assert row["images_per_second"] > 0
        assert 0 < row["batch_seconds_p50"] <= row["batch_seconds_p99"] <= row["runs"][0]["epoch_seconds"][1]
        assert row["cpu_seconds_per_1000_images"] > 0
        assert row["runs"][0]["images"] == 64
        assert len(row["runs"][0]["epoch_seconds"]) == 2
    assert list(content["left_out"]) == ["dali"]
    assert "dali is skipped" in capsys.readouterr().out
    assert content["machine"]["versions"]["torch"]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


BURN = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
"""Uses 0.2 CPU seconds and then waits."""


def test_run_peer_measures_latency_and_cpu_time_without_the_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    namespace = runpy.run_path(str(REPOSITORY / "benchmarks" / "run_peer.py"))
    workers = []

    def batches(epoch: int) -> Iterator[int]:
        for number in range(20):
            time.sleep(0.1 if epoch == 0 else 0.01 * (number == 7))
            yield 5
        pipe = subprocess.PIPE
        worker = subprocess.Popen([sys.executable, "-c", BURN], stdin=pipe, stdout=pipe)
        assert worker.stdout is not None
        worker.stdout.readline()
        if epoch % 2:
            worker.communicate(b"\n")  # has ended when the epoch ends
        else:
            workers.append(worker)

    started = time.perf_counter()
    measured = namespace["measure"](lambda job: map(batches, range(3)), None, started)
    for worker in workers:
        worker.communicate(b"\n")
    assert measured["images"] == 100
    assert len(measured["epoch_seconds"]) == 3
    assert measured["first_batch_seconds"] >= 0.1
    assert measured["batch_seconds_p50"] < measured["batch_seconds_p99"] < measured["epoch_seconds"][0]
    assert measured["batch_seconds_p99"] >= 0.01
    assert measured["cpu_seconds_per_1000_images"] >= 1.8  # 0.2 s per 100 images, counted in ticks of 0.01 s


def test_open_tars_benchmark(tmp_path: Path, benchmark: Benchmark) -> None:
    report = tmp_path / "report.json"
    benchmark("open_tars.py", "--samples", "20000", "--work", tmp_path, "--json", report)
    indexed, cached = json.loads(report.read_text())["rows"]
    assert indexed["samples"] == cached["samples"] == 20_000
    assert list(tmp_path.iterdir()) == [report]


def test_low_memory_benchmark(data: Data, tmp_path: Path, benchmark: Benchmark) -> None:
    report = tmp_path / "report.json"
    cases = ["--no-limit", "--loaders", "rebar", "--os-cache", "None", "--orders", "RANDOM", "--processes", "2"]
    small = ["--work", tmp_path, "--gigabytes", "0.001", "--batch-size", "8", "--json", report]
    benchmark("low_memory.py", "--data", data.tree / "train", *cases, *small)
    (row,) = json.loads(report.read_text())["rows"]
    assert len(row["epochs"]) == row["processes"] == 2
    for epoch in row["epochs"]:
        assert epoch["images_per_second"] > 0
        assert epoch["own_memory_mb_per_process"] > 10
        assert epoch["bytes_read_per_byte_needed"] >= 0


def test_three_parts_benchmark(data: Data, tmp_path: Path, benchmark: Benchmark) -> None:
    report = tmp_path / "report.json"
    small = ["--arch", "resnet20", "--resolution", "32", "--batch-size", "16", "--steps", "2", "--repetitions", "1"]
    benchmark("three_parts.py", "--train-dataset", data.train, *small, "--json", report)
    content = json.loads(report.read_text())
    assert all(content[f"{part}_images_per_second"] > 0 for part in ("loader", "step", "both"))
    assert 0 <= content["data_wait_fraction"] <= 1


@pytest.mark.nightly
def test_writer_benchmark(data: Data, tmp_path: Path) -> None:
    pytest.importorskip("ffcv")
    report = tmp_path / "report.json"
    small = [
        "--count",
        "140",
        "--workers",
        "1",
        "--repetitions",
        "1",
        "--cases",
        "passthrough",
        "--work",
        tmp_path / "w",
    ]
    run("benchmarks/writer.py", "--data", data.tree / "train", "--json", report, *small)
    rows = json.loads(report.read_text())["rows"]
    assert [(row["peer"], row["case"]) for row in rows] == [("ffcv", "passthrough"), ("rebar", "passthrough")]
    assert all(row.keys() >= {"images_per_second", "ratio_to_ffcv"} for row in rows)
    assert all(math.isfinite(row["images_per_processor_second"]) for row in rows)


def test_training_benchmark(
    data: Data, tmp_path: Path, benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    small = ["--arch", "resnet20", "--batch-size", "4", "--steps", "2", "--repetitions", "1", "--resolution", "32"]
    benchmark("training.py", *small, "--train-dataset", data.train, "--json", report)
    rows = {row["loop"]: row for row in json.loads(report.read_text())["rows"]}
    assert list(rows) == ["torchvision_reference", "ffcv_imagenet", "rebar", "rebar_from_file"]
    # the same images, weights and hyperparameters
    losses = [rows[loop]["first_epoch_mean_loss"] for loop in ("torchvision_reference", "ffcv_imagenet", "rebar")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    for row in rows.values():
        assert row["images_per_second"] > 0
        assert row["ratio_to_torchvision"] > 0
        assert row["tflops"] > 0
        assert row["share_of_peak"] is None  # the table has no CPUs
    assert 0 < rows["rebar_from_file"]["data_wait_fraction"] < 1
    assert rows["ffcv_imagenet"]["data_wait_fraction"] is None
    assert "rebar_from_file" in capsys.readouterr().out


@pytest.mark.nightly
def test_speedrun_benchmark(data: Data, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    for beton in (data.train, data.val):
        (work / beton.name).symlink_to(beton)
    small = ["--epochs", "1", "--training.batch_size", "16", "--min-res", "24", "--max-res", "24"]
    command = ["benchmarks/speedrun.py", "--target", "0.01", "--work", work, "--out", out, "--processes", "2", *small]
    run(*command, "--seeds", "1")
    (alone,) = json.loads((out / "speedrun.json").read_text())["runs"]
    run(*command, "--seeds", "2")
    report = json.loads((out / "speedrun.json").read_text())
    first, second = report["runs"]
    assert first == alone  # a finished run is not repeated
    assert first["train_seconds"] != second["train_seconds"]
    assert report["top1_mean"] == pytest.approx((first["top1"] + second["top1"]) / 2)
    assert report["train_seconds_deviation"] > 0
    assert first["epoch_that_reached_the_target"] == 1
    page = (out / "speedrun.md").read_text()
    assert re.match(r"# 1% of Fashion-MNIST in \d+ minutes? on \d+ CPU cores?\n", page)
    assert "over 2 seeds" in page
    assert "epochs: 1" in (out / "speedrun.yaml").read_text()
    assert json.loads((out / "speedrun_seed_1.jsonl").read_text().splitlines()[0])["world_size"] == 2
    logs = [(out / f"speedrun_seed_{seed}.jsonl").read_text() for seed in range(2)]
    assert all('"event": "end"' in log for log in logs)
