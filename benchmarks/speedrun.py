"""Fashion-MNIST to a wanted accuracy: a recipe with several seeds, the mean and the deviation.

    python benchmarks/speedrun.py --seeds 5
    python benchmarks/speedrun.py --seeds 3 --epochs 12 --max-lr 0.3      # other flags go to train_imagenet.py
    python benchmarks/speedrun.py --processes 2 --training.batch_size 64  # a process for each of two GPUs or CPU cores

Makes the data set where it is not there, trains rn50_configs/speedrun.yaml with the seeds 0, 1, ..., one run after the
other, and writes into docs/results/ what came out: ``speedrun.md`` and ``speedrun.json``, ``speedrun.yaml`` (the
complete configuration) and the log of each run. Stopped in the middle, the same command goes on. A run's seconds are
those of its training steps; its accuracy is that after the last epoch, averaged with flip TTA where the recipe
says so. Paths are relative to the repository.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from loader import describe_machine

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*words: str | Path) -> None:
    """Run a Python script of the repository; what it prints is seen."""
    command = [str(word) for word in words]
    print("$ python", *command, flush=True)
    # OpenMP's threads wait by spinning; where something else wants a core that costs more than it saves.
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"GOMP_SPINCOUNT": "1000", **os.environ, "PYTHONPATH": path}
    if subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment).returncode != 0:
        raise SystemExit("that failed; the same command goes on from there")


def make_data(work: Path) -> None:
    """Fashion-MNIST, pixel by pixel, as ``train.beton`` and ``val.beton``, where they are not there yet."""
    for split in ("train", "val"):
        target = work / f"{split}.beton"
        if not target.exists():
            run("scripts/build_fashion_mnist_tree.py", "--out", work / "tree")
            data = ["--data-dir", work / "tree", "--write-path", target, "--write-mode", "raw"]
            run("write_dataset.py", "--split", split, *data)


def train(config: Path, work: Path, seed: int, processes: int, more: list[str]) -> Path:
    """One run, or what is left of it; its folder."""
    folder = work / f"seed_{seed}"
    data = ["--data.train_dataset", work / "train.beton", "--data.val_dataset", work / "val.beton"]
    own = ["--training.seed", str(seed), "--logging.folder", folder]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    launcher = torchrun if processes > 1 else []
    run(*launcher, "train_imagenet.py", "--config-file", config, *data, *own, *more)
    return folder


def summarise(folder: Path, seed: int, target: float) -> dict[str, Any]:
    """What a finished run came to; ``target`` is a share of 1."""
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
    """The deviation of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def as_page(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows, target = report["runs"], report["target_top1"]
    machine, reached = report["machine"], sum(row["top1"] >= target for row in rows)
    machine_in_words = f"{report['device']} ({machine['processor']}, {machine['cores']} cores)"
    seconds = f"{report['train_seconds_mean']:,.1f} ± {report['train_seconds_deviation']:,.1f} s"
    lines = [
        "# Fashion-MNIST in seconds",
        "",
        f"`{report['command']}`, {report['date']}, {machine_in_words}, PyTorch {machine['versions']['torch']}.",
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
    """The command line, and what of it is for train_imagenet.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many")
    parser.add_argument("--processes", type=int, default=1, help="train in so many, started by torchrun")
    parser.add_argument("--target", type=float, default=0.94, help="top-1 to reach, a share of 1")
    parser.add_argument("--config-file", type=Path, default=Path("rn50_configs/speedrun.yaml"))
    parser.add_argument(
        "--work", type=Path, default=Path("speedrun_run"), help="folder of the runs, and of train.beton and val.beton"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the results")
    arguments, more = parser.parse_known_args()
    for name in ("seeds", "processes"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return arguments, more


def main() -> None:
    """Train with every seed, print and save."""
    arguments, more = parse_arguments()
    os.chdir(REPOSITORY)
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_data(arguments.work)
    folders = [
        train(arguments.config_file, arguments.work, seed, arguments.processes, more) for seed in range(arguments.seeds)
    ]
    rows = [summarise(folder, seed, arguments.target) for seed, folder in enumerate(folders)]
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
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed, folder in enumerate(folders):
        shutil.copyfile(folder / "log.jsonl", arguments.out / f"speedrun_seed_{seed}.jsonl")
    shutil.copyfile(folders[0] / "config.yaml", arguments.out / "speedrun.yaml")
    (arguments.out / "speedrun.json").write_text(json.dumps(report, indent=1) + "\n")
    page = as_page(report)
    (arguments.out / "speedrun.md").write_text(page)
    print(f"\n{page}\nwritten: {arguments.out}/speedrun.md, .json, .yaml and the logs")


if __name__ == "__main__":
    main()
