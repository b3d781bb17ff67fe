"""What the worker processes do: read pictures from the source and encode them, by the policy for bad ones."""

import os
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from rebar.beton.decoding import PictureError
from rebar.beton.images import EncodedPicture, ImagePolicy, encode_picture
from rebar.beton.sources import Source
from rebar.errors import RebarError

OnBadImage = Literal["fail", "skip", "repair"]
"""What becomes of a picture that cannot be decoded whole: the writing ends with its name; it is left out; or what there
is of it is stored, and it is left out where there is nothing."""


@dataclass(frozen=True)
class Outcome:
    """What became of one picture."""

    label: int
    picture: EncodedPicture | None
    """None where it was left out."""
    fault: str = ""
    """Why it was left out, or had to be repaired."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What was odd about the picture."""
        return self.picture.oddities if self.picture else ()


@dataclass(frozen=True)
class Encoder:
    """Encodes a run of ``order``, positions from and to; it is sent to the worker processes."""

    source: Source
    policy: ImagePolicy
    order: np.ndarray
    on_bad_image: OnBadImage
    page_size: int
    """Bytes; a picture must fit into a page."""

    def __call__(self, run: tuple[int, int]) -> list[Outcome]:
        cv2.setNumThreads(1)  # there is a process for every core already
        return [self.encode(int(index)) for index in self.order[slice(*run)]]

    def encode(self, index: int) -> Outcome:
        """The label and the picture of source index ``index``. Raises RebarError naming the picture."""
        name = self.source.name(index)
        try:
            content = self.source.read(index)
        except OSError as error:
            raise RebarError(f"{name}: cannot be read: {error.strerror or error}") from None
        label = self.source.label(index)
        try:
            return Outcome(label, self._encode(content, name, index, repair=False))
        except PictureError as error:
            fault = str(error)
        if self.on_bad_image == "fail":
            raise RebarError(f"{name}: {fault}. With --on-bad-image skip or repair the others are written")
        if self.on_bad_image == "repair":
            try:
                return Outcome(label, self._encode(content, name, index, repair=True), fault)
            except PictureError:
                pass
        return Outcome(label, None, fault)

    def _encode(self, content: bytes, name: str, index: int, *, repair: bool) -> EncodedPicture:
        picture = encode_picture(content, self.policy, index, repair=repair)
        if picture.data.nbytes > self.page_size:
            raise PictureError(
                f"takes {picture.data.nbytes:,} bytes ({picture.width} x {picture.height} pixels), more than a page of "
                f"{self.page_size:,}; limit the resolution, or store it as JPEG"
            )
        return replace(picture, oddities=tuple(_named(kind, name) for kind in picture.oddities))


def _named(kind: str, name: str) -> str:
    """A kind of file with what it pretends to be: ``PNG named .JPEG``."""
    suffix = os.path.splitext(name)[1]
    pretends = kind.isupper() and kind != "CMYK" and suffix.lower() in (".jpg", ".jpeg")
    return f"{kind} named {suffix}" if pretends else kind
