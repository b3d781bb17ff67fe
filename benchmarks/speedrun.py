"""Train Fashion-MNIST to a target accuracy with several seeds; report the mean and standard deviation.

    python benchmarks/speedrun.py --seeds 5
    python benchmarks/speedrun.py --seeds 3 --epochs 12 --max-lr 0.3      # other flags go to train_imagenet.py
    python benchmarks/speedrun.py --processes 2 --training.batch_size 64  # two ranks, one per GPU or CPU core

Creates the dataset if it is missing, trains rn50_configs/speedrun.yaml with seeds 0, 1, ... one after the other, and
writes the results to docs/results/: ``speedrun.md``, ``speedrun.json``, ``speedrun.yaml`` (the complete configuration)
and the log of each run. The same command resumes an interrupted benchmark. The reported time of a run is that of its
training steps; its accuracy is that of the last epoch, with flip TTA if the recipe enables it. Paths are relative to
the repository.
"""

import argparse
import contextlib
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from loader import check_report, describe_machine

from rebar.cli import count, run_command

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*args: str | Path) -> None:
    """Run a Python script of the repository and show its output."""
    command = [str(arg) for arg in args]
    print("$ python", *command, flush=True)
    # Limit the busy-waiting of OpenMP's threads, which slows other processes on the same cores.
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONPATH": path}
    if subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment).returncode != 0:
        raise SystemExit(f"{command[0]} failed. Fix the error and run the same command again; it resumes.")


def make_data(work: Path) -> None:
    """Write Fashion-MNIST as raw pixels to ``train.beton`` and ``val.beton``, unless they exist."""
    for split in ("train", "val"):
        target = work / f"{split}.beton"
        if not target.exists():
            run("scripts/build_fashion_mnist_tree.py", "--out", work / "tree")
            data: list[str | Path] = ["--data-dir", work / "tree", "--write-path", target, "--write-mode", "raw"]
            run("write_dataset.py", "--split", split, *data)


def train(config: Path, work: Path, seed: int, processes: int, more: list[str]) -> Path:
    """Train with one seed, or resume the run. Return the run folder."""
    folder = work / f"seed_{seed}"
    data: list[str | Path] = ["--data.train_dataset", work / "train.beton", "--data.val_dataset", work / "val.beton"]
    own: list[str | Path] = ["--training.seed", str(seed), "--logging.folder", folder]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = torchrun if processes > 1 else []
    run(*launcher, "train_imagenet.py", "--config-file", config, *data, *own, *more)
    return folder


def summarize(folder: Path, seed: int, target: float) -> dict[str, Any]:
    """Return the results of a finished run. ``target`` is an accuracy from 0 to 1."""
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    end = records[-1]
    reached = [epoch for epoch in records if epoch["event"] == "epoch" and accuracy(epoch) >= target]
    return {
        "seed": seed,
        "top1": accuracy(end),
        "top1_plain": end["val/top1"],
        "train_seconds": end["time/train_seconds"],
        "epochs": end["epoch"],
        "epoch_that_reached_the_target": reached[0]["epoch"] + 1 if reached else None,
        "seconds_to_the_target": reached[0]["time/train_seconds"] if reached else None,
    }


def accuracy(record: dict[str, Any]) -> float:
    """Return the top-1 of a record, with flip TTA if the recipe has it; 0 without an evaluation."""
    return max(record.get("val/top1") or 0.0, record.get("val/top1_tta") or 0.0)


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the deviation of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def format_markdown(report: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rows, target = report["runs"], report["target_top1"]
    machine, reached = report["machine"], sum(row["top1"] >= target for row in rows)
    hardware = f"{report['device']} ({machine['processor']}, {machine['cores']} cores)"
    title = f"{target:.0%}" if reached == len(rows) else f"{report['top1_mean']:.1%}"
    minutes = count(round(report["train_seconds_mean"] / 60), "minute")
    place = "a GPU" if report["device"] != "CPU" else count(machine["cores"], "CPU core")
    seconds = f"{report['train_seconds_mean']:,.1f} ± {report['train_seconds_deviation']:,.1f} s"
    lines = [
        f"# {title} of Fashion-MNIST in {minutes} on {place}",
        "",
        f"`{report['command']}`, {report['date']}, {hardware}, PyTorch {machine['versions']['torch']}.",
        "",
        f"Top-1 {report['top1_mean']:.2%} ± {report['top1_deviation']:.2%} in {seconds} of training, over {len(rows)} "
        f"seeds (mean and standard deviation); {reached} of them reached {target:.0%}.",
        "",
        "| seed | top-1 | without flip TTA | seconds | first epoch at the target |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        first = row["epoch_that_reached_the_target"] or ""
        lines.append(
            f"| {row['seed']} | {row['top1']:.2%} | {row['top1_plain']:.2%} | {row['train_seconds']:,.1f} | {first} |"
        )
    lines += ["", "Configuration: [speedrun.yaml](speedrun.yaml); logs: `speedrun_seed_*.jsonl`.", ""]
    return "\n".join(lines)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line. Return the options and the remaining arguments, which go to train_imagenet.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--processes", type=int, default=1, help="number of ranks, started by torchrun if above 1")
    parser.add_argument("--target", type=float, default=0.94, help="top-1 accuracy to reach, from 0 to 1")
    parser.add_argument("--config-file", type=Path, default=Path("rn50_configs/speedrun.yaml"))
    parser.add_argument(
        "--work", type=Path, default=Path("speedrun_run"), help="folder for the runs, train.beton and val.beton"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the results")
    arguments, more = parser.parse_known_args()
    for name in ("seeds", "processes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments, more


def main() -> None:
    """Train with every seed, then print and save the results."""
    arguments, more = parse_arguments()
    os.chdir(REPOSITORY)
    with contextlib.suppress(OSError):  # reported by check_report
        arguments.out.mkdir(parents=True, exist_ok=True)
    check_report(arguments.out / "speedrun.json")
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_data(arguments.work)
    folders = [
        train(arguments.config_file, arguments.work, seed, arguments.processes, more) for seed in range(arguments.seeds)
    ]
    rows = [summarize(folder, seed, arguments.target) for seed, folder in enumerate(folders)]
    results = {}
    for name in ("top1", "train_seconds"):
        results[f"{name}_mean"], results[f"{name}_deviation"] = mean_and_deviation([row[name] for row in rows])
    start = json.loads((folders[0] / "log.jsonl").read_text().splitlines()[0])
    report = {
        "benchmark": "speedrun",
        "command": " ".join(["python", "benchmarks/speedrun.py", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "device": start["device"],
        "target_top1": arguments.target,
        **results,
        "runs": rows,
    }
    for seed, folder in enumerate(folders):
        shutil.copyfile(folder / "log.jsonl", arguments.out / f"speedrun_seed_{seed}.jsonl")
    shutil.copyfile(folders[0] / "config.yaml", arguments.out / "speedrun.yaml")
    (arguments.out / "speedrun.json").write_text(json.dumps(report, indent=1) + "\n")
    page = format_markdown(report)
    (arguments.out / "speedrun.md").write_text(page)
    print(f"\n{page}\nresults: {arguments.out}/speedrun.md, .json, .yaml and the logs")


if __name__ == "__main__":
    run_command(lambda _: main())
