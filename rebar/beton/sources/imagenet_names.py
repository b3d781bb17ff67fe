"""ImageNet-1k's classes under one name, whichever source they come from.

Hugging Face calls them in words ("tench, Tinca tinca"), folders and archives by their synsets (n01440764). Their
numbers are the same, so files of either can be used together once the names are.
"""

from collections.abc import Sequence
from pathlib import Path

SYNSETS_FILE = Path(__file__).with_name("imagenet_1k_synsets.txt")
_FIRST, _LAST = "tench", "toilet tissue"


def as_synsets(names: Sequence[str]) -> list[str]:
    """The synsets, where these are ImageNet-1k's names in words, in the order of the synsets; else the names."""
    if len(names) == 1000 and names[0].startswith(_FIRST) and names[-1].startswith(_LAST):
        return SYNSETS_FILE.read_text(encoding="ascii").split()
    return list(names)
