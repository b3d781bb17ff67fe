"""Log to Weights & Biases. Its failures become warnings: they neither end nor delay training."""

import os
import secrets
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write

_REACH_SECONDS = 5.0
_TIMEOUTS = {"WANDB_INIT_TIMEOUT": "10", "WANDB_FINISH_TIMEOUT": "15"}
"""Seconds that wandb waits for its server, unless the user sets these variables. wandb's defaults are 90 and none."""


class WandbRun:
    """A wandb run. After the first failure it warns, and logs no more."""

    def __init__(self, run: Any, folder: Path) -> None:
        self._run, self._folder = run, folder
        self._failed = False

    def log(self, values: Mapping[str, Any]) -> None:
        """Log metrics by their names."""
        self._or_warn(lambda: self._run.log(dict(values)))

    def finish(self, exit_code: int = 0) -> None:
        """End the run: upload what is left."""
        self._or_warn(lambda: self._run.finish(exit_code=exit_code))

    def _or_warn(self, act: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            act()
        except Exception as error:  # wandb raises exceptions of many types
            self._failed = True
            warn(f"logging.wandb: {_first_line(error)}. {_advice(self._folder)}")


def check_wandb_installed() -> None:
    """Raise RebarError if wandb is not installed."""
    try:
        import wandb  # noqa: F401  only to check, before the run starts
    except ImportError:
        message = "logging.wandb: wandb is not installed. Run 'pip install wandb'."
        raise RebarError(message, code="wandb-not-installed") from None


def start_wandb(folder: Path, *, project: str, name: str, tags: str, options: Mapping[str, Any]) -> WandbRun | None:
    """Start or resume the wandb run of a run folder; None, with a warning, if wandb fails.

    The run is offline if the user is not logged in, or if the server cannot be reached within a few seconds.

    - project, name: if empty, those of WANDB_PROJECT and WANDB_NAME, or ``rebar`` and the folder's name.
    - tags: separated by commas.
    - options: wandb's config.

    Raises RebarError if wandb is not installed.
    """
    check_wandb_installed()
    for variable, seconds in _TIMEOUTS.items():
        os.environ.setdefault(variable, seconds)
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:  # wandb would prompt on the terminal and block
        warn("not logged in to Weights & Biases: logging offline; run 'wandb sync' in the run folder to upload")
        mode = "offline"
    server = wandb.setup().settings.base_url
    if mode in (None, "online") and not is_reachable(server):
        warn(f"logging.wandb: {server} cannot be reached. {_advice(folder)}")
        mode = "offline"
    settings: dict[str, Any] = {
        "project": project or os.environ.get("WANDB_PROJECT") or "rebar",
        "name": name or os.environ.get("WANDB_NAME") or folder.name,
        "tags": [tag.strip() for tag in tags.split(",") if tag.strip()],
        "id": _wandb_id(folder),
        "resume": "allow",
        "dir": str(folder),
        "config": dict(options),
    }
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            run = wandb.init(**settings, mode=attempt)
            run.define_metric("*", step_metric="epoch")  # wandb's step only increases; a resumed run repeats some steps
            return WandbRun(run, folder)
        except Exception as error:  # raised by the server, the account, or the service process
            warn(f"logging.wandb: {_first_line(error)}. {_advice(folder)}")
    return None


def is_reachable(url: str, seconds: float = _REACH_SECONDS) -> bool:
    """Return whether an HTTP server answers, with any status, within a time that includes the name lookup."""
    answered: list[bool] = []

    def request() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
        except (urllib.error.HTTPError, ssl.SSLError):
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # wandb may use other certificates
                return
        except (OSError, ValueError):
            return
        answered.append(True)

    thread = threading.Thread(target=request, name="rebar-wandb-check", daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answered)


def _advice(folder: Path) -> str:
    return f"Training continues without the server. To upload later: wandb sync {folder}/wandb/*run-*"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _wandb_id(folder: Path) -> str:
    """Return the wandb run id: WANDB_RUN_ID, or the one in the run folder, so that a resumed run continues it."""
    path, given = RunFolder(folder).wandb_id, os.environ.get("WANDB_RUN_ID")
    if given or not path.is_file():
        with atomic_write(path) as (file,):
            file.write((given or secrets.token_hex(8)).encode())
    return path.read_text().strip()
