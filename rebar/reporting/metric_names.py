"""The names under which a log holds accuracies at several resolutions: ``val/top1_224px``."""

import re
from collections.abc import Iterable


def resolutions(names: Iterable[str]) -> list[int]:
    """The pixels at which top-1 is among ``names``, in their order."""
    return [int(match[1]) for name in names if (match := re.fullmatch(r"val/top1_(\d+)px", name))]
