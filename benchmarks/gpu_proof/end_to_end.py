"""A complete run: two epochs with progressive resizing that are killed, resumed and evaluated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.job import REPOSITORY, Job

RAMP = ("--resolution.start_ramp", "0", "--resolution.end_ramp", "1")


def run(job: Job) -> None:
    """Add a row for each stage."""
    train, val, tree = (job.wait_for(name) for name in ("train.beton", "val.beton", "photographs"))
    folder = job.work / "run"
    (job.work / "w").mkdir(exist_ok=True)
    stage(
        job,
        "write_dataset.py",
        ["write_dataset.py", "--split", "val", "--data-dir", tree, "--write-path", job.work / "w"],
    )
    recipe = ["--arch", "resnet50", "--training.batch_size", "256", "--training.precision", "bf16"]
    sizes = ["--min-res", "128", "--max-res", "160", *RAMP, "--validation.resolution", "160"]
    often, stop_at = "10", 70
    if job.rehearse:
        recipe = ["--arch", "resnet20", "--training.batch_size", "8", "--training.precision", "32"]
        sizes = ["--min-res", "24", "--max-res", "32", *RAMP, "--validation.resolution", "32"]
        often, stop_at = "2", 8
    command: list[Any] = ["train_imagenet.py", "--data.train_dataset", train, "--data.val_dataset", val]
    command += [*recipe, *sizes, "--training.epochs", "2", "--training.use_blurpool", "1", "--lr.lr", "0.1"]
    command += ["--lr.lr_peak_epoch", "1", "--validation.batch_size", "250", "--logging.folder", folder]
    command += ["--checkpoint.every_steps", often, "--logging.log_every", "1", "--checkpoint.export", "both"]
    killed_after = kill_at(job, command, folder, stop_at)
    steps = logged(folder, "step")
    job.add(stage="killed (SIGKILL)", seconds=killed_after, last_step=steps[-1]["step"], loss=steps[-1]["train/loss"])
    stage(job, "the same command resumes", command)
    numbers = [record["step"] for record in logged(folder, "step")]
    epochs, (end,) = logged(folder, "epoch"), logged(folder, "end")
    job.note(every_step_once=numbers == list(range(len(numbers))), steps=len(numbers), epochs=epochs, end=end)
    evaluation = ["evaluate.py", "--checkpoint", folder, "--data", val]
    output = stage(job, "evaluate.py", evaluation)
    job.note(
        evaluation=output.strip().splitlines()[-1] if output.strip() else "",
        agrees=f"{end['val/top1']:.2%}" in output,
        report=sorted(path.name for path in folder.iterdir()),
    )
    stage(job, "evaluate.py --weights", ["evaluate.py", "--weights", folder / "weights.pth", "--arch", recipe[1],
          "--use-blurpool", "1", "--data", val, "--resolution", sizes[-1]])  # fmt: skip


def stage(job: Job, name: str, command: list[Any]) -> str:
    """Run a command of the repository, and add a row with its duration and exit status. Return its output."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=max(job.seconds_left, 1),
    )
    print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
    job.add(stage=name, exit_status=done.returncode, seconds=time.monotonic() - began)
    if done.returncode:
        job.note(**{f"failure of {name}": done.stderr[-600:]})
    return done.stdout


def kill_at(job: Job, command: list[Any], folder: Path, step: int) -> float:
    """Start a run and kill it once a step is logged. Return the seconds until then."""
    began = time.monotonic()
    with (job.out / "end_to_end_first.log").open("w") as log:
        process = subprocess.Popen([sys.executable, *map(str, command)], cwd=REPOSITORY, stdout=log, stderr=log)
    try:
        while not (folder / "log.jsonl").exists() or not any(r["step"] >= step for r in logged(folder, "step")):
            if process.poll() is not None:
                raise RuntimeError(f"the run exited with status {process.returncode}; see end_to_end_first.log")
            if job.seconds_left < 5:
                raise TimeoutError("the run did not reach the step in time")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    return time.monotonic() - began


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    """Return the records of one event in the run's log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a partial line that is still being written
        if record["event"] == event:
            records.append(record)
    return records
