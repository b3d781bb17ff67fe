"""Fixtures of the AWS tests: a moto server on loopback, real block devices, and the commands as a user types them."""

import contextlib
import functools
import io
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import boto3.session
import botocore.loaders
import pytest

from rebar.aws.__main__ import main
from rebar.aws.download_imagenet import DEVKIT, TRAIN, VAL
from rebar.cli import run_command
from tests.aws.archives import Web, make_archives, serving
from tests.aws.disks import Disks, fill, missing
from tests.aws.loopback_only import sitecustomize as loopback_only
from tests.aws.strict_aws import REGION, StrictAws, strict_aws
from tests.conftest import REPOSITORY
from tests.training.metadata_service import metadata_server

loopback_only.uninstall()  # importing installs it, also for tests outside this folder

ZONE = "us-east-1a"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
VOLUME = "imagenet/beton"
CREATE = ["volume", "create", "--run", "imagenet", "--role", "beton", "--zone", ZONE, "--size", "1", "--yes"]
DISKS_MISSING = missing()
ARIA2 = shutil.which("aria2c")
needs_aria2 = pytest.mark.skipif(ARIA2 is None, reason="aria2 is not installed")


@dataclass(frozen=True)
class Outcome:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def only_loopback() -> Iterator[None]:
    loopback_only.install()
    yield
    loopback_only.uninstall()


@pytest.fixture(scope="session", autouse=True)
def cached_service_models() -> Iterator[None]:
    """EC2's service model is megabytes of JSON, which every new session would parse again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", functools.lru_cache(botocore.loaders.create_loader))
        yield


@pytest.fixture(scope="session", autouse=True)
def cached_clients() -> Iterator[None]:
    """Reuse clients for the same environment: creating one takes longer than most commands."""
    made: dict[Any, Any] = {}
    make = boto3.session.Session.client

    def client(session: boto3.session.Session, service: str, **options: Any) -> Any:
        environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
        key = (service, session.region_name, environment, "config" in options)
        if key not in made:
            made[key] = make(session, service, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3.session.Session, "client", client)
        yield


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictAws]:
    """Return an empty AWS account, found by this process and its children through the environment."""
    server = strict_aws()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {
        "AWS_ENDPOINT_URL": server.url,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",  # moto answers unknown calls with 500, which would be retried
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": f"{REPOSITORY / 'tests/aws/loopback_only'}:{REPOSITORY}",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("rebar.aws.commands.POLL_SECONDS", 0.02)
    server.reset()
    yield server
    server.disks = None


@pytest.fixture
def disks(aws: StrictAws) -> Iterator[Disks]:
    """Back the account's volumes by real block devices, in memory if possible."""
    if DISKS_MISSING:
        pytest.skip(f"no real block devices here: {DISKS_MISSING}")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="rebar-disks-", dir=memory if memory.is_dir() else None) as folder:
        made = Disks(Path(folder))
        aws.disks = made
        yield made
        made.close()


@pytest.fixture
def ec2(aws: StrictAws) -> Any:
    return boto3.client("ec2")


@pytest.fixture
def s3(aws: StrictAws) -> Any:
    """Return a client of S3 with an empty bucket ``bucket``."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    return client


@pytest.fixture
def instance(ec2: Any) -> str:
    """Return a running instance in the zone."""
    return run_instance(ec2)


def run_instance(ec2: Any, zone: str = ZONE, kind: str = "g5.xlarge") -> str:
    """Start an instance; returns its id."""
    started = ec2.run_instances(
        ImageId="ami-0123456789abcdef0",
        MinCount=1,
        MaxCount=1,
        InstanceType=kind,
        Placement={"AvailabilityZone": zone},
    )
    return str(started["Instances"][0]["InstanceId"])


def tags(ec2: Any, resource: str) -> dict[str, str]:
    found = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [resource]}])["Tags"]
    return {tag["Key"]: tag["Value"] for tag in found}


def run_cli(*words: str | Path, expect: int = 0) -> Outcome:
    """Run ``python -m rebar.aws WORDS`` in this process; checks the exit status."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        run_command(main, [str(word) for word in words])
    outcome = Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())
    assert outcome.status == expect, f"exit status {outcome.status}\n{outcome.out}\n{outcome.err}"
    assert SECRET not in outcome.out + outcome.err
    return outcome


def run_failing(*words: str | Path) -> str:
    """Run a command that fails; returns its stderr, whose last line is the error."""
    outcome = run_cli(*words, expect=1)
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in outcome.err
    return outcome.err


def assert_fails(code: str, *words: str | Path) -> str:
    """Run a command that fails with an error code; returns its stderr."""
    message = run_failing(*words)
    assert message.rstrip().endswith(f"[{code}]"), message
    return message


def start_cli(*words: str | Path) -> "subprocess.Popen[str]":
    """Start ``python -m rebar.aws WORDS`` in its own process."""
    return subprocess.Popen(
        [sys.executable, "-m", "rebar.aws", *map(str, words)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_at(aws: StrictAws, action: str, *words: str | Path) -> str:
    """Run a command that is killed after its first ``action`` took effect; returns its output."""
    process = start_cli(*words)
    aws.kill_after = (action, process.pid)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == -9, f"not killed at {action}, but ended: {process.returncode}\n{out}"
    return out


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, str]]]:
    """Start an instance metadata service; the returned dict of its values may be changed."""
    with metadata_server() as server:
        server.notice_after = math.inf

        def start(**values: str) -> dict[str, str]:
            server.values = values
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
            monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
            return values

        yield start


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for a condition; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


# ------------------------------------------------------------------ volumes


@pytest.fixture
def folder(tmp_path: Path, disks: Disks) -> Path:
    return tmp_path / "data"


@pytest.fixture
def attached(disks: Disks, instance: str) -> str:
    """Create a blank volume attached to this machine. Returns its id."""
    run_cli(*CREATE)
    run_cli("volume", "attach", VOLUME, "--instance", instance, "--yes")
    return next(iter(disks.loops))


@pytest.fixture
def mounted(attached: str, folder: Path) -> str:
    """Format and mount the attached volume, and write some files to it. Returns its id."""
    run_cli("volume", "mount", VOLUME, folder, "--format", "ext4", "--yes")
    fill(folder)
    return attached


# ------------------------------------------------------------------ downloads


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    return make_archives(tmp_path / "archives")


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server, and an aria2 that does not look for peers beyond loopback."""
    monkeypatch.setattr("rebar.aws.download.RETRY_SECONDS", 0)
    settings = tmp_path / "config" / "aria2"
    settings.mkdir(parents=True)
    (settings / "aria2.conf").write_text(
        "enable-dht=false\nenable-dht6=false\nbt-enable-lpd=false\nenable-peer-exchange=false\n"
        "interface=127.0.0.1\nbt-max-peers=2\nbt-tracker-interval=1\n"
    )
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving() as started:
        yield started


@pytest.fixture
def served(web: Web, archives: Path) -> Web:
    web.files |= {f"/{name}": (archives / name).read_bytes() for name in (TRAIN, VAL, DEVKIT)}
    return web
