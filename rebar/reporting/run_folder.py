"""The folder of a run: which files it holds, and when it may be written to."""

from dataclasses import dataclass
from pathlib import Path

from rebar.errors import RebarError


@dataclass(frozen=True)
class RunFolder:
    """``config.yaml``, ``log.jsonl``, ``checkpoints/last.pt`` and ``plot.png`` under one path."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def last_checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def plot(self) -> Path:
        return self.path / "plot.png"

    def _earlier_run(self) -> list[Path]:
        return [file for file in (self.config, self.log, self.last_checkpoint, self.plot) if file.exists()]

    def checkpoint_to_resume(self, resume: str) -> Path | None:
        """The file that ``resume`` ('auto', 'none' or a path) means, or None to start afresh."""
        if resume == "none":
            return None
        if resume != "auto":
            return Path(resume)
        return self.last_checkpoint if self.last_checkpoint.exists() else None

    def check_free(self, resume: str, *, overwrite: bool) -> None:
        """Raise RebarError where starting afresh would destroy an earlier run unasked."""
        if resume == "none" and not overwrite and self.last_checkpoint.exists():
            raise RebarError(
                f"{self.path} holds an earlier run with a checkpoint: leave out --resume none to go on with it, "
                "add --overwrite to delete it, or choose another --logging.folder"
            )

    def prepare(self, *, afresh: bool) -> None:
        """Make the folder; starting afresh, remove an earlier run's files (and no others)."""
        try:
            self.last_checkpoint.parent.mkdir(parents=True, exist_ok=True)
            if afresh:
                for file in self._earlier_run():
                    file.unlink()
            for leftover in self.last_checkpoint.parent.glob(".*.partial-*"):  # of a run killed while saving
                leftover.unlink()
        except OSError as error:
            raise RebarError(f"logging.folder {self.path} cannot be written to: {error.strerror}") from None
