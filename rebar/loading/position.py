"""Where in which epoch a loader stands, in samples of the whole job: no number of processes in it."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from rebar.errors import RebarError

_VERSION = 1


@dataclass(frozen=True)
class Position:
    """The epoch, and how many samples of its order all processes together have used."""

    epoch: int
    samples: int


@dataclass(frozen=True)
class OrderIdentity:
    """What an epoch's order depends on besides the epoch. A state fits only a loader of the same identity."""

    seed: int
    order: str
    num_samples: int
    copies: int
    window_pages: int
    indices_digest: str


@dataclass
class Progress:
    """One pass through an epoch, as far as it has come on this process."""

    start: Position
    batches: int
    """Those of this pass."""
    global_batch: int
    taken: int = 0
    """Batches that the consumer has got."""

    def position(self, batches_used: int | None) -> Position:
        """After the batches taken so far, or the first ``batches_used`` of this pass."""
        used = self.taken if batches_used is None else batches_used
        if not 0 <= used <= self.taken:
            raise RebarError(f"batches_used is {used}, but this pass has given out {self.taken} batches")
        if used == self.batches:
            return Position(self.start.epoch + 1, 0)
        return Position(self.start.epoch, self.start.samples + used * self.global_batch)


def to_state(position: Position, identity: OrderIdentity) -> dict[str, Any]:
    """As a dictionary of numbers and strings, for a checkpoint."""
    return {"version": _VERSION, **asdict(position), **asdict(identity)}


def from_state(state: dict[str, Any], expected: OrderIdentity) -> Position:
    """The position in a state. Raises RebarError for a state of another order of samples."""
    names = {"version", *(field.name for kind in (Position, OrderIdentity) for field in fields(kind))}
    if not isinstance(state, dict) or set(state) != names or state["version"] != _VERSION:
        raise RebarError("the loader's state is none that this version of Loader.state_dict() gives")
    for name, value in asdict(expected).items():
        if state[name] != value:
            raise RebarError(
                f"the loader's state is of another order of samples: its {name} is {state[name]!r}, this loader's "
                f"{value!r}"
            )
    return Position(int(state["epoch"]), int(state["samples"]))
