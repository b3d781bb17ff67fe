"""Where pictures come from: one file a kind of source, all of them a :class:`Source`."""

from collections.abc import Sequence
from typing import Protocol

from rebar.beton.sources.image_folder import ImageFolder

__all__ = ["ImageFolder", "Source"]


class Source(Protocol):
    """Pictures with labels, found by number.

    A source is pickled once for every worker process, so it should be compact.
    """

    @property
    def class_names(self) -> Sequence[str]:
        """The name of every label, in the labels' order."""
        ...

    def __len__(self) -> int:
        """The number of pictures."""
        ...

    def label(self, index: int) -> int:
        """The label of a picture, an index into ``class_names``."""
        ...

    def read(self, index: int) -> bytes:
        """The picture as it is stored (a JPEG, PNG, ... file). Raises OSError where that fails."""
        ...

    def name(self, index: int) -> str:
        """What to call the picture in messages."""
        ...
