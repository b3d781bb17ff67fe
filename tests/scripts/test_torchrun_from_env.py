"""scripts/torchrun_from_env.sh: each scheduler's environment variables become torchrun's flags."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "torchrun_from_env.sh"
PREFIXES = ("SKYPILOT_", "AWS_BATCH_", "SM_", "SLURM_", "MASTER_", "RESET_SCHED", "FREEZE_LR")
SECOND = "--nnodes=2 --node_rank=1 --master_addr=10.0.0.1 --master_port=29500"


def environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    return {**clean, **variables}


def flags(**variables: str) -> str:
    done = subprocess.run([SCRIPT, "--print"], env=environment(**variables), capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()


def test_single_node_is_standalone() -> None:
    assert flags().endswith("--standalone")


def test_skypilot_variables() -> None:
    ips = "10.0.0.1\n10.0.0.2"
    output = flags(
        SKYPILOT_NODE_IPS=ips, SKYPILOT_NODE_RANK="1", SKYPILOT_NUM_NODES="2", SKYPILOT_NUM_GPUS_PER_NODE="8"
    )
    assert output == f"--nproc_per_node=8 {SECOND}"
    alone = flags(SKYPILOT_NODE_IPS="10.0.0.1", SKYPILOT_NODE_RANK="0", SKYPILOT_NUM_GPUS_PER_NODE="4")
    assert alone == "--nproc_per_node=4 --standalone"


def test_aws_batch_variables() -> None:
    common = {"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0"}
    child = flags(**common, AWS_BATCH_JOB_NODE_INDEX="1", AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS="10.0.0.1")
    assert child.endswith(SECOND)
    assert "--node_rank=0 --master_addr=" in flags(**common, AWS_BATCH_JOB_NODE_INDEX="0")
    common["AWS_BATCH_JOB_MAIN_NODE_INDEX"] = "1"
    assert "mainNode must be 0" in flags(**common, AWS_BATCH_JOB_NODE_INDEX="0")


def test_sagemaker_variables() -> None:
    output = flags(SM_HOSTS='["algo-2","algo-1"]', SM_CURRENT_HOST="algo-2", SM_NUM_GPUS="8")
    assert output == "--nproc_per_node=8 --nnodes=2 --node_rank=1 --master_addr=algo-1 --master_port=29500"


def test_sagemaker_resource_config_file(tmp_path: Path) -> None:
    config = tmp_path / "opt/ml/input/config/resourceconfig.json"
    config.parent.mkdir(parents=True)
    output = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    config.write_text(json.dumps(output))
    assert flags(REBAR_ROOT=str(tmp_path)).endswith(SECOND.replace("10.0.0.1", "algo-1"))
    config.write_text(json.dumps({"current_host": "algo-1", "hosts": ["algo-1"]}))
    assert flags(REBAR_ROOT=str(tmp_path)).endswith("--standalone")


NODES = {
    "none": {},
    "SkyPilot": {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1"},
    "AWS Batch": {
        "AWS_BATCH_JOB_NUM_NODES": "2",
        "AWS_BATCH_JOB_NODE_INDEX": "1",
        "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.1",
    },
    "SageMaker": {"SM_HOSTS": '["10.0.0.1", "10.0.0.2"]', "SM_CURRENT_HOST": "10.0.0.2"},
    "Slurm": {"SLURM_JOB_NODELIST": "gpu[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NODEID": "1"},
}


def started(repo: Path, *words: str, **variables: str) -> list[str]:
    """Return the arguments of python, which is replaced, as are nvidia-smi and scontrol."""
    programs = {
        ".venv/bin/python": 'printf "%s|" "$@"',
        "bin/nvidia-smi": "printf 'GPU 0: A10G\\nGPU 1: A10G\\nGPU 2: A10G\\nGPU 3: A10G\\n'",
        "bin/scontrol": "printf '10.0.0.1\\n10.0.0.2\\n'",
    }
    for name, text in programs.items():
        (repo / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / name).write_text(f"#!/bin/sh\n{text}\n")
        (repo / name).chmod(0o755)
    (repo / "scripts").mkdir()
    script = Path(shutil.copy(SCRIPT, repo / "scripts"))
    around = environment(PATH=f"{repo}/bin:{os.environ['PATH']}", **variables)
    done = subprocess.run([script, *words], env=around, capture_output=True, text=True, check=True)
    return done.stdout.removesuffix("|").split("|")


@pytest.mark.parametrize("scheduler", NODES)
def test_torchrun_is_started_with_the_flags(scheduler: str, tmp_path: Path) -> None:
    *start, program, note, words = started(tmp_path, "train_imagenet.py", "--note", "two words", **NODES[scheduler])
    assert start[:2] == ["-m", "torch.distributed.run"]
    nodes = ["--standalone"] if scheduler == "none" else SECOND.split()
    assert start[2:] == ["--nproc_per_node=4", *nodes]
    assert (program, note, words) == ("train_imagenet.py", "--note", "two words")


def test_slurm_variables(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames gpu[1-2]" ] && printf "gpu1\\ngpu2\\n"\n')
    scontrol.chmod(0o755)
    output = flags(
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_NODELIST="gpu[1-2]",
        SLURM_NNODES="2",
        SLURM_NODEID="1",
        SLURM_GPUS_ON_NODE="4",
        MASTER_PORT="29600",
    )
    assert output == "--nproc_per_node=4 --nnodes=2 --node_rank=1 --master_addr=gpu1 --master_port=29600"


def test_missing_variables_and_arguments_fail() -> None:
    assert "SkyPilot sets it" in flags(SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2")
    done = subprocess.run([SCRIPT], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr


@pytest.mark.slow
def test_two_nodes_rendezvous(tmp_path: Path) -> None:
    """Start both nodes on this machine, as SkyPilot does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    worker = tmp_path / "worker.py"
    worker.write_text("import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])\n")
    common = {"SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2", "MASTER_PORT": str(port), "SKYPILOT_NUM_GPUS_PER_NODE": "1"}
    nodes = [
        subprocess.Popen(
            [SCRIPT, worker],
            env=environment(**common, SKYPILOT_NODE_RANK=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert ["rank 0 of 2" in said[0][0], "rank 1 of 2" in said[1][0]] == [True, True]
