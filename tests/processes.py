"""Run commands in separate, killable processes, optionally with several ranks.

Importing torch takes seconds. The processes are therefore forked from a server that has imported it. Everything else is
as in a process started by a shell or by torchrun: arguments, environment, signals, exit status and end of the
interpreter.
"""

import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
Args = Sequence[str | Path]


class _Server:
    """The client's side of the process that forks the others."""

    def __init__(self) -> None:
        self.outputs = tempfile.TemporaryDirectory(prefix="rebar-tests-")
        command = [sys.executable, "-m", "tests.processes"]
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def request(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


_server = functools.cache(_Server)


@dataclass
class Process:
    """A running command. ``returncode`` is None until it has ended, and minus the number of a signal that killed it."""

    pid: int
    _output: Path
    returncode: int | None = None

    @property
    def output(self) -> str:
        """What it has printed to stdout and stderr so far."""
        return self._output.read_text()

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = _server().request(poll=self.pid)
        return self.returncode

    def wait(self, timeout: float = 200) -> int:
        """Wait for the end of the process and return its exit status. Kill it and fail after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {timeout} s:\n{self.output}")
            time.sleep(0.01)
        return status

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


def start(command: Args, **environment: str) -> Process:
    """Start ``python COMMAND`` in the repository, where COMMAND is a script and its arguments."""
    descriptor, output = tempfile.mkstemp(dir=_server().outputs.name)
    os.close(descriptor)
    words, variables = [str(word) for word in command], {**os.environ, **environment}
    pid = _server().request(command=words, environment=variables, output=output)
    return Process(pid, Path(output))


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def start_ranks(count: int, command: Args, **environment: str) -> list[Process]:
    """Start ``count`` ranks on one node, with the variables that torchrun sets."""
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = ({"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count))
    return [start(command, **size, **address, **rank, **environment) for rank in ranks]


def wait_for_step(folder: Path, step: int, processes: Sequence[Process]) -> None:
    """Wait until the run in ``folder`` has logged a step; fail if a process ends before."""
    log, deadline = folder / "log.jsonl", time.monotonic() + 200
    while not (log.exists() and any(number >= step for number in _logged_steps(log))):
        for process in processes:
            assert process.poll() is None, f"ended before step {step}:\n{process.output}"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _logged_steps(log: Path) -> list[int]:
    complete = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [record["step"] for record in map(json.loads, complete) if record["event"] == "step"]


def interrupt(command: Args, folder: Path, at_step: int, how: Callable[[int], None], **environment: str) -> int:
    """Start a run, and call ``how`` with its process id once a step is logged. Returns its exit status."""
    process = start(command, **environment)
    try:
        wait_for_step(folder, at_step, [process])
        how(process.pid)
        return process.wait()
    finally:
        process.kill()


def send(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


# ------------------------------------------------------------------ the server


def _serve() -> None:
    import torchvision  # noqa: F401

    import evaluate  # noqa: F401
    import train_imagenet  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            _exec_script(**request)
            return
        print(json.dumps(answer), flush=True)


def _exec_script(command: list[str], environment: dict[str, str], output: str) -> None:
    """Run ``python COMMAND`` in this process."""
    stdin, printed = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_APPEND)
    for target, source in ((0, stdin), (1, printed), (2, printed)):
        os.dup2(source, target)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    _serve()
