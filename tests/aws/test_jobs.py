"""The user data of a launched instance: checked by shellcheck, and run in a folder instead of /.

S3 is moto, over HTTP, through the AWS CLI. Programs that would change this machine (shutdown, systemd-run) are replaced
by stubs that record their arguments.
"""

import base64
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.aws.conftest import ZONE, run_cli
from tests.aws.disks import Disks
from tests.aws.strict_aws import StrictAws
from tests.conftest import REPOSITORY, Data

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
SHELLCHECK = shutil.which("shellcheck", path=PATH)
AWS = shutil.which("aws", path=PATH)
JOB = ["--run", "g5-16", "--source", "s3://bucket/rebar.tar.gz", "--data", "s3://bucket/betons"]
JOB += ["--results", "s3://bucket/runs", "--max-hours", "2", "--instance-type", "g5.xlarge"]

VALIDATE = [*JOB[:-4], "--max-hours", "2"]


def render(*words: str) -> str:
    return run_cli("userdata", "render", *JOB, *words).out


def validation_script(aws: StrictAws, *words: str) -> str:
    """Return the user data of 'launch validate'."""
    boto3.client("iam").create_instance_profile(InstanceProfileName="rebar")
    aws.quotas["L-DB2E81BA"] = 64
    rent = ["--instance-profile", "rebar", "--scheduler-role", "arn:aws:iam::123456789012:role/rebar-scheduler"]
    run_cli("launch", "validate", *VALIDATE, *rent, "--out", "report", "--check", *words)
    requests = [each.parameters for each in aws.requests if each.action == "RunInstances"]
    return base64.b64decode(requests[-1]["UserData"]).decode()


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
@pytest.mark.parametrize(
    "words",
    [
        ["--", "--epochs", "16"],
        ["--data", "snap-0123456789abcdef0"],
        ["--source", "https://example.com/rebar.git", "--revision", "v1", "--secret", "WANDB_API_KEY=/rebar/wandb"],
        ["--", "--note", 'it\'s "quoted" $HOME `date`'],
    ],
)
def test_user_data_passes_shellcheck(aws: StrictAws, tmp_path: Path, words: list[str]) -> None:
    script = tmp_path / "user_data.sh"
    script.write_text(render(*words))
    done = subprocess.run([str(SHELLCHECK), script], capture_output=True, text=True)
    assert done.stdout == ""


def test_render_arms_the_timer_first(aws: StrictAws) -> None:
    script = render()
    body = script[script.index("main() {") :]
    steps = [line.strip() for line in body.splitlines()[1:4]]
    assert steps == ["arm_timer", "trap finish EXIT", "install_rebar"]
    assert aws.requests == []


# ------------------------------------------------------------------------------------------ running the script

PROGRAMS = {
    "shutdown": 'echo "shutdown $*" >>"$CALLS"',
    "mountpoint": "false",
    # runs the command after the options
    "systemd-run": """
echo "systemd-run $*" >>"$CALLS"
while [[ $1 == --* ]]; do
    case $1 in
        --setenv=*) export "${1#--setenv=}" ;;
        --property=EnvironmentFile=*) set -a; source "${1#--property=EnvironmentFile=}"; set +a ;;
        --working-directory=*) cd "${1#*=}" ;;
    esac
    shift
done
exec "$@"
""",
}
SETUP = """#!/bin/bash
mkdir -p .venv/bin
cat >.venv/bin/python <<'PYTHON'
#!/bin/bash
if [[ $1 == -m && $2 == pip ]]; then exit; fi
if [[ $* == "-m rebar.aws data disks "* ]]; then echo "$*" >>"$CALLS"; exit; fi
exec "$REAL_PYTHON" "$@"
PYTHON
chmod +x .venv/bin/python
[[ -z ${SETUP_FAILS:-} ]]
"""
TRAIN = """#!/bin/bash
# --logging.folder comes after the two data files
echo "train $*" >>"$CALLS"
echo "token $WANDB_API_KEY" >>"$CALLS"
cat "$DATA_FOLDER/train.beton" "$DATA_FOLDER/val.beton" >/dev/null || exit 9
mkdir -p "$RUN_FOLDER/checkpoints"
echo "after $(cat "$RUN_FOLDER/checkpoints/last.pt" 2>/dev/null)" >"$RUN_FOLDER/checkpoints/last.pt.new"
mv "$RUN_FOLDER/checkpoints/last.pt.new" "$RUN_FOLDER/checkpoints/last.pt"
exit "${TRAIN_STATUS:-0}"
"""

# Python, and the scripts of the repository that the validation runs
PYTHON_STUB = """import os, sys
with open(os.environ["CALLS"], "a") as calls:
    print(os.path.basename(sys.argv[0]), *sys.argv[1:], file=calls)
if "--write-path" in sys.argv:
    open(sys.argv[sys.argv.index("--write-path") + 1], "w").write("packed")
else:
    print("top-1 12.3 %")
"""
TESTS = """#!/bin/bash
echo "tests $*" >>"$CALLS"
echo "7 passed"
exit "${TESTS_STATUS:-0}"
"""


@pytest.fixture
def bucket(s3: Any, tmp_path: Path) -> Any:
    """Return S3 with the data and a small repository; SSM has a secret."""
    if AWS is None:
        pytest.skip("the AWS CLI is not installed")
    for name in ("train", "val"):
        s3.put_object(Bucket="bucket", Key=f"betons/{name}.beton", Body=f"{name} images".encode())
    tree = tmp_path / "tree" / "scripts"
    tree.mkdir(parents=True)
    for name, text in (("setup.sh", SETUP), ("torchrun_from_env.sh", TRAIN), ("test.sh", TESTS)):
        (tree / name).write_text(text)
        (tree / name).chmod(0o755)
    for name in ("validation_run.sh", "stage_dataset.sh"):
        shutil.copy(REPOSITORY / "scripts" / name, tree)
    for name in ("write_dataset.py", "evaluate.py"):
        (tree.parent / name).write_text(PYTHON_STUB)
    with tarfile.open(tmp_path / "rebar.tar.gz", "w:gz") as archive:
        archive.add(tree.parent, ".")
    s3.upload_file(str(tmp_path / "rebar.tar.gz"), "bucket", "rebar.tar.gz")
    boto3.client("ssm").put_parameter(Name="/rebar/wandb", Value="the-secret", Type="SecureString")
    return s3


@pytest.mark.nightly
def test_data_from_a_snapshot_are_copied_and_the_volume_deleted(
    aws: StrictAws, bucket: Any, disks: Disks, instance: str, metadata: Any, data: Data, tmp_path: Path
) -> None:
    metadata(**{"instance-id": instance, "placement/availability-zone": ZONE})
    volume, folder = "imagenet/beton", tmp_path / "volume"
    create = ["volume", "create", "--run", "imagenet", "--role", "beton", "--zone", ZONE, "--size", "1"]
    for words in (create, ["volume", "attach", volume], ["volume", "mount", volume, folder, "--format", "ext4"]):
        run_cli(*words, "--yes")
    for path in data.folder.glob("*.beton*"):
        shutil.copy(path, folder)
    (folder / "val.beton.json").unlink()  # as files of stock FFCV are
    for words in (["snapshot", "create"], ["snapshot", "verify"], ["volume", "detach"], ["volume", "delete"]):
        run_cli(*words, volume, "--yes")
    (snapshot,) = aws._snapshots
    status, _, root = boot(tmp_path, render("--data", snapshot))
    assert status == 0, (root / "var/log/rebar.log").read_text()
    for name in ("train", "val"):
        copied = root / "opt/rebar-data" / f"{name}.beton"
        assert copied.read_bytes() == (data.folder / f"{name}.beton").read_bytes()
    output = (root / "var/log/rebar.log").read_text()
    assert "train.beton: copied, " in output
    assert disks.loops == {}
    assert len(aws.sent("DeleteVolume")) == 3  # the original, the copy of 'verify', the machine's


def boot(tmp_path: Path, text: str = "", **environment: str) -> tuple[int, list[str], Path]:
    """Run the script; returns its exit status, the recorded calls, and the folder used as /."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, body in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    root, calls, script = tmp_path / "root", tmp_path / "calls", tmp_path / "user_data.sh"
    calls.unlink(missing_ok=True)
    shutil.rmtree(root, ignore_errors=True)
    script.write_text(text or render("--secret", "WANDB_API_KEY=/rebar/wandb", "--", "--epochs", "16"))
    variables = {
        **os.environ,
        "PATH": f"{programs}:{PATH}",
        "REBAR_ROOT": str(root),
        "REBAR_RETRY_SECONDS": "0",
        "CALLS": str(calls),
        "REAL_PYTHON": sys.executable,
        **environment,
    }
    done = subprocess.run(["bash", script], env=variables, capture_output=True, text=True, timeout=120)
    assert "the-secret" not in done.stdout + done.stderr
    return done.returncode, calls.read_text().splitlines(), root


def stored(s3: Any, key: str) -> str:
    text: str = s3.get_object(Bucket="bucket", Key=f"runs/rebar/g5-16/{key}")["Body"].read().decode()
    return text


@pytest.mark.slow
def test_instance_trains_uploads_and_shuts_down(bucket: Any, tmp_path: Path) -> None:
    status, calls, root = boot(tmp_path)
    assert status == 0, calls
    assert calls[0].startswith("shutdown -P +120")
    assert calls[-1] == "shutdown -P now"
    (trained,) = [call for call in calls if call.startswith("train ")]
    assert "train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml" in trained
    assert f"--data.train_dataset {root}/opt/rebar-data/train.beton" in trained
    assert trained.endswith("--epochs 16")
    assert "token the-secret" in calls
    (started,) = [call for call in calls if call.startswith("systemd-run ")]
    assert "the-secret" not in started
    assert "timeout --signal=TERM --kill-after=180 110m" in started
    assert stored(bucket, "run/checkpoints/last.pt") == "after \n"
    assert stored(bucket, "exit-status") == "0\n"
    assert "exit status 0" in stored(bucket, "machine.log") + (root / "var/log/rebar.log").read_text()
    assert f"-m rebar.aws data disks {root}/opt/rebar-data --yes" in calls
    assert (root / "run/rebar/environment").stat().st_mode & 0o077 == 0


@pytest.mark.nightly
def test_next_instance_resumes_an_interrupted_run(bucket: Any, tmp_path: Path) -> None:
    status, calls, _ = boot(tmp_path, TRAIN_STATUS="75")
    assert status == 75
    assert stored(bucket, "exit-status") == "75\n"
    assert calls[-1] == "shutdown -P now"
    boot(tmp_path)
    assert stored(bucket, "run/checkpoints/last.pt") == "after after \n"
    assert stored(bucket, "exit-status") == "0\n"


def test_instance_shuts_down_after_a_failed_setup(bucket: Any, tmp_path: Path) -> None:
    status, calls, _ = boot(tmp_path, SETUP_FAILS="yes")
    assert status == 1
    assert calls[-1] == "shutdown -P now"
    assert stored(bucket, "exit-status") == "1\n"


def test_instance_shuts_down_if_the_bucket_is_missing(bucket: Any, tmp_path: Path) -> None:
    bucket.delete_object(Bucket="bucket", Key="rebar.tar.gz")
    for name in ("betons/train.beton", "betons/val.beton"):
        bucket.delete_object(Bucket="bucket", Key=name)
    bucket.delete_bucket(Bucket="bucket")
    status, calls, _ = boot(tmp_path)
    assert status != 0
    assert calls[-1] == "shutdown -P now"
    assert str(REPOSITORY) not in " ".join(calls)


@pytest.mark.slow
def test_validation_uploads_its_report_and_shuts_down(aws: StrictAws, bucket: Any, tmp_path: Path) -> None:
    script = validation_script(aws, "--secret", "WANDB_API_KEY=/rebar/wandb")
    status, calls, root = boot(tmp_path, script, TESTS_STATUS="1")  # the next steps run nevertheless
    assert (status, calls[-1]) == (1, "shutdown -P now")
    data = f"{root}/opt/rebar-data"
    done = [call for call in calls if call.startswith(("tests", "write_dataset", "train ", "evaluate"))]
    assert done[0] == "tests -m gpu"
    assert done[1].startswith(f"write_dataset.py --split train --data-dir {data} --subset 25000")
    assert done[2].startswith(f"write_dataset.py --split val --data-dir {data} --subset 5000")
    assert "train_imagenet.py --config-file rn50_configs/validation_run.yaml" in done[3]
    assert f"--data.train_dataset {data}/validation_run/train.beton" in done[3]
    assert done[4].startswith("evaluate.py --checkpoint")
    output = stored(bucket, "run/summary.txt")
    assert "GPU tests   failed" in output
    assert "evaluation  top-1 12.3 %" in output
    assert stored(bucket, "run/gpu_tests.txt") == "7 passed\n"
    assert stored(bucket, "exit-status") == "1\n"


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_validation_user_data_passes_shellcheck(aws: StrictAws, bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "user_data.sh").write_text(validation_script(aws))
    done = subprocess.run([str(SHELLCHECK), tmp_path / "user_data.sh"], capture_output=True, text=True)
    assert done.stdout == ""
