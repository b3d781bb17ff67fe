"""ILSVRC's validation pictures as they come: in one folder, their classes in a list beside it."""

import os
from pathlib import Path

import numpy as np

from rebar.beton.sources.labelled_files import LabelledFiles, is_picture
from rebar.beton.sources.validation_labels import find_labels
from rebar.errors import RebarError


def open_flat_folder(folder: Path, labels: str = "") -> LabelledFiles:
    """The pictures in ``folder``, ordered by class and name as they would be in class folders.

    ``labels`` is the list of their classes, else one near the folder is taken. Raises RebarError.
    """
    names = sorted(name for name in os.listdir(folder) if is_picture(name))
    if not names:
        raise RebarError(f"{folder}: holds no pictures")
    found = find_labels(folder, labels)
    synsets, class_names = found.of(names, str(folder)), found.class_names
    pairs = sorted(zip(synsets, names, strict=True))
    numbers = {synset: number for number, synset in enumerate(class_names)}
    return LabelledFiles(
        folder, class_names, (name for _, name in pairs), np.array([numbers[synset] for synset, _ in pairs])
    )
