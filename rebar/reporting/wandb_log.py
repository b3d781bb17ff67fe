"""Log to Weights & Biases."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rebar.cli import warn
from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.files import atomic_write


def check_wandb_installed() -> None:
    """Raise RebarError if wandb is not installed."""
    try:
        import wandb  # noqa: F401  only to check, before the run starts
    except ImportError:
        message = "logging.wandb: wandb is not installed. Run 'pip install wandb'."
        raise RebarError(message, code="wandb-not-installed") from None


def start_wandb(folder: Path, *, project: str, name: str, tags: str, options: Mapping[str, Any]) -> Any:
    """Start or resume the wandb run of a run folder, offline if not logged in. Returns wandb's run object."""
    check_wandb_installed()
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:  # wandb would prompt on the terminal and block
        warn("not logged in to Weights & Biases: logging offline; run 'wandb sync' in the run folder to upload")
        mode = "offline"
    try:
        run = wandb.init(
            project=project,
            name=name or folder.name,
            tags=[tag.strip() for tag in tags.split(",") if tag.strip()],
            id=_wandb_id(folder),
            resume="allow",
            dir=str(folder),
            config=dict(options),
            mode=mode,
        )
        run.define_metric("*", step_metric="epoch")  # wandb's step only increases; a resumed run repeats some steps
        return run
    except wandb.Error as error:
        message = f"logging.wandb: {error}. Check the project's name and your permissions."
        raise RebarError(message, code="wandb-failed") from None


def _wandb_id(folder: Path) -> str:
    """Return the wandb run id. It is stored in the run folder, so that a resumed run continues the wandb run."""
    path = RunFolder(folder).wandb_id
    if not path.is_file():
        with atomic_write(path) as (file,):
            file.write(secrets.token_hex(8).encode())
    return path.read_text().strip()
