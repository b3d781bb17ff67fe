"""The scripts that AWS Batch, SageMaker, SkyPilot and Slurm run, with S3 on loopback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.aws.conftest import run_cli, wait_for
from tests.aws.strict_aws import StrictAws
from tests.aws.test_run_transfer import PLACE, manifest, run_folder
from tests.conftest import REPOSITORY, Data, read_events

SCHEDULERS = ("SKYPILOT_", "AWS_BATCH_", "SM_", "SLURM_", "MASTER_", "RESET_SCHED", "FREEZE_LR")
FROZEN = {"RESET_SCHED": "1", "FREEZE_LR": "1", "FREEZE_LR_VALUE": "0.01"}
PYTHON = """#!/bin/bash
# Replaces python: rebar.aws is real; training and writing record their arguments and write their output files.
if [[ $1 == -m && $2 == rebar.aws ]]; then exec "$REAL_PYTHON" "$@"; fi
echo "$*" >>"$CALLS"
if [[ $1 == write_dataset.py ]]; then
    folder=${*: -1}
    echo part >"$folder/train-00003-of-00008.beton"
    echo sidecar >"$folder/train-00003-of-00008.beton.json"
    exit
fi
RUN_FOLDER=${RUN_FOLDER:-runs/g5-16}
mkdir -p "$RUN_FOLDER/checkpoints"
echo "after $(cat "$RUN_FOLDER/checkpoints/last.pt" 2>/dev/null)" >"$RUN_FOLDER/checkpoints/last.pt"
if [[ -n $STATE ]]; then
    printf '{"state": "%s", "reason": "", "epoch": 0, "step": 5, "exit_code": 1, "time": 1}' "$STATE" \\
        >"$RUN_FOLDER/status.json"
fi
if [[ -n ${HOLD:-} ]]; then
    trap 'exit "$STATUS"' TERM
    touch "$HOLD"
    sleep 30 >/dev/null 2>&1 &
    wait
fi
exit "$STATUS"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a repository with the scripts and the python above."""
    repo = tmp_path / "repo"
    (repo / "scripts").mkdir(parents=True)
    for name in ("train_job.sh", "write_job.sh", "torchrun_from_env.sh", "train.sbatch"):
        shutil.copy(REPOSITORY / "scripts" / name, repo / "scripts" / name)
    python = repo / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    return repo


def job(script: Path, *words: str | Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a script as a scheduler does."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(SCHEDULERS)}
    more = {
        "RETRY_SECONDS": "0",
        "REAL_PYTHON": sys.executable,
        "STATE": "finished",
        "STATUS": "0",
        "REBAR_ROOT": "/nonexistent",
    }
    return subprocess.run(
        [str(script), *map(str, words)],
        env={**clean, **more, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(tree: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    folder = tree / "runs/g5-16"
    more = {"RUN_FOLDER": str(folder), "CALLS": str(tree / "calls"), "DATA_FOLDER": str(tree / "data")}
    script = tree / "scripts/train_job.sh"
    return job(script, "--config-file", "rn50_configs/g5_1gpu.yaml", "--epochs", "16", **{**more, **environment})


def put_data(s3: Any) -> None:
    for name in ("train", "val"):
        s3.put_object(Bucket="bucket", Key=f"betons/{name}.beton", Body=f"{name} images".encode())


def test_train_job_stages_trains_and_uploads(s3: Any, tree: Path) -> None:
    put_data(s3)
    done = train(tree, DATA="s3://bucket/betons/", RUN_URL=PLACE, RUN_FOLDER="")
    assert done.returncode == 0, done.stderr
    assert (tree / "data/val.beton").read_text() == "val images"
    called = (tree / "calls").read_text()
    assert "-m torch.distributed.run --nproc_per_node=1 --standalone train_imagenet.py --config-file" in called
    assert f"--epochs 16 --data.train_dataset {tree}/data/train.beton" in called
    assert f"--logging.folder {tree}/runs/g5-16 --logging.upload s3://bucket/runs" in called
    assert manifest(s3)["step"] == 5


def test_train_job_exits_with_75_if_interrupted(s3: Any, tree: Path) -> None:
    assert train(tree, RUN_URL=PLACE, STATE="interrupted", STATUS="1").returncode == 75
    assert "must end in the same name" in train(tree, RUN_URL=PLACE, RUN_FOLDER=str(tree / "other")).stderr


def test_train_job_keeps_the_exit_status_of_a_failure(s3: Any, tree: Path) -> None:
    assert train(tree, RUN_URL=PLACE, STATE="failed", STATUS="1").returncode == 1
    run_folder(tree / "runs/g5-16", step=5, last=b"x", state="interrupted")  # the previous attempt's
    assert train(tree, RUN_URL=PLACE, STATE="", STATUS="3").returncode == 3


@pytest.mark.parametrize("status", [0, 4])
def test_train_job_forwards_sigterm_and_the_exit_status(status: int, aws: StrictAws, tree: Path) -> None:
    started_file = tree / "started"
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(
            train, tree, HOLD=str(started_file), STATUS=str(status), AWS_ENDPOINT_URL="http://127.0.0.1:9"
        )
        wait_for(started_file.exists, 30)
        children = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
        (job,) = [each for each in children if "train_job.sh" in " ".join(each.cmdline())]
        job.terminate()
        assert pending.result(timeout=30).returncode == status


def test_train_job_without_run_place_uses_no_s3(aws: StrictAws, tree: Path) -> None:
    """SageMaker copies data and checkpoints itself."""
    assert train(tree, AWS_ENDPOINT_URL="http://127.0.0.1:9").returncode == 0
    assert aws.requests == []


def test_train_job_uploads_from_the_first_node_only(aws: StrictAws, s3: Any, tree: Path) -> None:
    node = {"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.1"}
    assert train(tree, RUN_URL=PLACE, AWS_BATCH_JOB_NODE_INDEX="1", **node).returncode == 0
    assert "--node_rank=1" in (tree / "calls").read_text()
    assert [each for each in aws.requests if each.action.startswith("PUT /bucket/runs")] == []
    assert train(tree, RUN_URL=PLACE, AWS_BATCH_JOB_NODE_INDEX="0", **node).returncode == 0
    assert manifest(s3)["step"] == 5


def test_train_job_fails_if_the_upload_fails(aws: StrictAws, s3: Any, tree: Path) -> None:
    from tests.aws.strict_aws import ErrorResponse

    aws.refuse["PUT /bucket/runs"] = ErrorResponse("AccessDenied", "no", 403)
    done = train(tree, RUN_URL=PLACE)
    assert done.returncode == 1
    assert "could not be uploaded" in done.stderr


@pytest.mark.nightly
def test_train_job_stops_and_uploads_on_sigterm(s3: Any, data: Data, tmp_path: Path) -> None:
    """AWS Batch stops a container with SIGTERM. tests/test_upload.py resumes on another machine."""
    run_cli("data", "send", data.train, data.val, "s3://bucket/betons")
    words = ["--config-file", "rn50_configs/tiny.yaml", "--epochs", "50", "--spot-notice", "off"]
    folders = {"RUN_FOLDER": str(tmp_path / "g5-16"), "DATA_FOLDER": str(tmp_path / "data")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(SCHEDULERS)}
    training = subprocess.Popen(
        [REPOSITORY / "scripts/train_job.sh", *words],
        env={**clean, **folders, "DATA": "s3://bucket/betons", "RUN_URL": PLACE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    log = tmp_path / "g5-16/log.jsonl"

    def has_started() -> bool:
        assert training.poll() is None
        return log.exists() and any(each["step"] >= 3 for each in read_events(log.parent, "step"))

    wait_for(has_started, 100)
    training.send_signal(signal.SIGTERM)
    output, _ = training.communicate(timeout=100)
    assert training.returncode == 75, output
    assert manifest(s3)["step"] == json.loads((tmp_path / "g5-16/status.json").read_text())["step"] > 3


def test_write_job_writes_and_uploads_its_shard(s3: Any, tree: Path) -> None:
    more = {"AWS_BATCH_JOB_ARRAY_INDEX": "3", "SHARDS": "8", "RESULTS": "s3://bucket/parts"}
    words = ["--data-dir", "s3://bucket/imagenet", "--split", "train"]
    done = job(tree / "scripts/write_job.sh", *words, CALLS=str(tree / "calls"), **more)
    assert done.returncode == 0, done.stderr
    called = (tree / "calls").read_text()
    assert called == f"write_dataset.py {' '.join(words)} --shard 3/8 --write-path {tree}/data/part-3/\n"
    part = s3.head_object(Bucket="bucket", Key="parts/train-00003-of-00008.beton")
    assert len(part["Metadata"]["sha256"]) == 64
    assert s3.get_object(Bucket="bucket", Key="parts/train-00003-of-00008.beton.json")["Body"].read() == b"sidecar\n"


# ------------------------------------------------------------------------------------------ SkyPilot, Slurm

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NODEID=0
exec "$@"
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo localhost ;;
    *) echo "scontrol $*" >>"$CALLS" ;;
esac
"""


def sbatch(tree: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the batch script as Slurm does, with replacements of srun and scontrol."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tree / "bin").mkdir(exist_ok=True)
        (tree / "bin" / name).write_text(text)
        (tree / "bin" / name).chmod(0o755)
    (tree / "run").mkdir(exist_ok=True)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "8"}
    folders = {"DATA_FOLDER": "/data", "RUN_FOLDER": str(tree / "run"), "SLURM_SUBMIT_DIR": str(tree)}
    path = {"PATH": f"{tree / 'bin'}:{os.environ['PATH']}", "CALLS": str(tree / "calls")}
    return job(tree / "scripts/train.sbatch", "--config-file", "x.yaml", **{**slurm, **folders, **path, **environment})


@pytest.mark.parametrize(
    ("state", "status", "requeued"), [("finished", 0, False), ("interrupted", 75, True), ("failed", 1, False)]
)
def test_sbatch_requeues_an_interrupted_job(
    state: str, status: int, requeued: bool, aws: StrictAws, tree: Path
) -> None:
    done = sbatch(tree, STATE=state, STATUS=str(min(status, 1)))
    assert done.returncode == status, done.stderr
    called = (tree / "calls").read_text()
    assert "--nproc_per_node=8 --standalone train_imagenet.py --config-file x.yaml" in called
    assert "--data.train_dataset /data/train.beton --data.val_dataset /data/val.beton" in called
    assert ("scontrol requeue 17" in called) == requeued


SBATCH = {  # option: pattern of its value, from sbatch(1)
    "job-name": r"\S+",
    "nodes": r"\d+",
    "ntasks-per-node": "1",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "exclusive": "",
    "requeue": "",
    "signal": r"TERM@\d+",
    "open-mode": "append",
    "output": r"\S+%j\S*",
}


def test_sbatch_options_are_valid() -> None:

    lines = (REPOSITORY / "scripts/train.sbatch").read_text().splitlines()
    block = [line for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(block)] == block  # Slurm stops reading at the first other line
    for line in block:
        option = re.fullmatch(r"#SBATCH --([\w-]+)(?:=(.*))?", line)
        assert option is not None, line
        assert re.fullmatch(SBATCH[option[1]], option[2] or ""), line


def test_skypilot_run_starts_the_job(s3: Any, tree: Path) -> None:
    """Run the task's ``run`` with SkyPilot's variables and those of ``envs``."""
    put_data(s3)
    task = yaml.safe_load((REPOSITORY / "scripts/skypilot.yaml").read_text())
    script = tree / "run.sh"
    script.write_text(f"#!/bin/bash\ncd {tree}\n{task['run']}")
    script.chmod(0o755)
    sky = {"SKYPILOT_NODE_IPS": "10.0.0.1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "4"}
    assert FROZEN.keys() <= task["envs"].keys()  # SkyPilot rejects others
    variables = task["envs"] | {"BUCKET": "bucket", "HOME": str(tree / "home")} | FROZEN
    more = {"CALLS": str(tree / "calls"), "RUN_FOLDER": str(tree / "runs/g5-16")}
    done = job(script, **sky, **variables, **more)
    assert done.returncode == 0, done.stderr
    called = (tree / "calls").read_text()
    assert f"--nproc_per_node=4 --standalone train_imagenet.py --config-file {task['envs']['CONFIG']}" in called
    assert manifest(s3)["step"] == 5
