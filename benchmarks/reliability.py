"""Fuzz JPEGs, betons and sidecars, and kill training and the writer at random times. Prints the cases and the faults.

    python benchmarks/reliability.py jpeg beton sidecar kill-training kill-writer --seconds 120

A fault of ``jpeg`` is an image about which the writer, ``--verify`` and the loader disagree. A fault of a kill loop is
a final file that differs from that of an uninterrupted run. Every error of damaged files must be a RebarError: another
exception or a crash ends the command. The exit status is not 0 if there are faults.
"""

import argparse
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rebar.beton import BetonFile, ImagePolicy, write_beton
from rebar.beton.decode import ImageError
from rebar.beton.encode import encode_image
from rebar.beton.sidecar import parse_sidecar, sidecar_path
from rebar.beton.verify import verify
from rebar.errors import RebarError
from rebar.jpeg.decode import decode_rgb, read_size
from rebar.loading import CenterCrop, Loader
from rebar.sources import ImageFolder

REPOSITORY = Path(__file__).resolve().parents[1]
SIDE = 64
CLASSES, IMAGES_PER_CLASS = 4, 24
Outcome = str
"""What a case resulted in; faults start with ``FAULT``."""


@dataclass(frozen=True)
class Setup:
    """The files that the cases start from."""

    folder: Path
    faults: Path
    """A folder for the cases that show a fault."""

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def beton(self) -> Path:
        return self.folder / "train.beton"


def prepare(folder: Path, faults: Path) -> Setup:
    """Write class folders of smooth random images, and a beton of them."""
    setup, rng = Setup(folder, faults), np.random.default_rng(0)
    for number in range(CLASSES * IMAGES_PER_CLASS):
        path = setup.tree / "train" / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.resize(rng.integers(0, 256, (9, 9, 3), np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        options = [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]][number % 3]
        path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1].tobytes())
    source = ImageFolder(setup.tree / "train")
    order = np.random.default_rng(1).permutation(len(source))
    write_beton(source, setup.beton, policy=ImagePolicy(), order=order, num_workers=1, progress=False)
    return setup


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, remove, insert or truncate bytes, one to four times."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(changed)), rng.randint(1, 40)
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[place : place + length] = rng.randbytes(len(changed[place : place + length]))
        elif kind == 2:
            del changed[place : place + length]
        elif kind == 3:
            changed[place:place] = rng.randbytes(length)
        elif rng.random() < 0.2:
            del changed[max(place, 1) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def fuzz_jpeg(setup: Setup, rng: random.Random) -> Iterator[Outcome]:
    """Compare the verdicts of the writer, with three policies, and of full-image decoding."""
    jpegs = [path.read_bytes() for path in sorted(setup.tree.glob("*/*/*.jpg"))]
    policies = (ImagePolicy(), ImagePolicy(keep_quality=True), ImagePolicy(write_mode="raw"))
    while True:
        content = mutate(rng.choice(jpegs), rng)
        if not content.startswith(b"\xff\xd8\xff"):
            continue  # to Pillow, it may be an image of another format
        data = np.frombuffer(content, np.uint8)
        verdicts: dict[str, bool] = {}
        try:
            if max(read_size(data)) > 4096:
                continue  # the verdict may be that it is too large
            verdicts["decode_rgb"] = decode_rgb(data).size > 0
        except RebarError as error:
            if error.code == "jpeg-unsupported":
                continue  # such as CMYK, which Pillow decodes
            verdicts["decode_rgb"] = False
        for policy in policies:
            try:
                verdicts[str(policy)] = encode_image(content, policy, 0).data.size > 0
            except ImageError:
                verdicts[str(policy)] = False
        if len(set(verdicts.values())) > 1:
            setup.faults.mkdir(parents=True, exist_ok=True)
            path = setup.faults / f"{hashlib.sha256(content).hexdigest()[:12]}.jpg"
            path.write_bytes(content)
            yield f"FAULT: {path}: {verdicts}"
        else:
            yield "accepted" if all(verdicts.values()) else "refused"


def _read_everything(path: Path) -> Outcome:
    """Verify and load a beton."""
    outcomes = []
    try:
        outcomes.append("refused" if verify(path, num_threads=1).problems else "accepted")
    except RebarError:
        outcomes.append("refused")
    try:
        for images, labels in Loader(path, 16, num_workers=1, cropper=CenterCrop(), resolution=32):
            if len(images) != len(labels):
                return "FAULT: lengths differ"
        outcomes.append("loaded")
    except RebarError:
        outcomes.append("error")
    return ", ".join(outcomes)


def fuzz_beton(setup: Setup, rng: random.Random) -> Iterator[Outcome]:
    """Verify and load a damaged beton, with and without its sidecar."""
    content, sidecar = setup.beton.read_bytes(), sidecar_path(setup.beton).read_bytes()
    file = BetonFile.open(setup.beton)
    first, last = int(file.offsets.min()), int((file.offsets + file.sizes).max())
    used = [*range(4096), *range(first, last), *range(len(content) - 4096, len(content))]
    path = setup.folder / "damaged.beton"
    while True:
        changed = bytearray(content)
        for place in rng.choices(used, k=rng.choice((1, 4, 30))):
            changed[place] = rng.randrange(256)
        path.write_bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)
        sidecar_path(path).unlink(missing_ok=True)
        if rng.random() < 0.5:
            sidecar_path(path).write_bytes(sidecar)
        yield _read_everything(path)


_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    "",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
    "x" * 5000,
    float("inf"),
)


def fuzz_sidecar(setup: Setup, rng: random.Random) -> Iterator[Outcome]:
    """Replace values of a sidecar, at any depth, or damage its text."""
    original = sidecar_path(setup.beton).read_text()
    path = setup.folder / "damaged.beton"
    path.write_bytes(setup.beton.read_bytes())
    while True:
        content: Any = json.loads(original)
        for _ in range(rng.randint(1, 3)):
            checksums = content.get("checksums")
            target = checksums if isinstance(checksums, dict) and checksums and rng.random() < 0.4 else content
            target[rng.choice(list(target))] = rng.choice(_VALUES)
        text = json.dumps(content).encode()
        sidecar_path(path).write_bytes(mutate(text, rng) if rng.random() < 0.4 else text)
        with suppress(ValueError):
            parse_sidecar(content)
        yield _read_everything(path)


def _kill_after(command: list[str], seconds: float) -> bool:
    """Run a command, and kill it after a time; return whether it ended before."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    if process.returncode != 0:
        raise RuntimeError(output.decode(errors="replace"))
    return True


def _kill_until_complete(command: list[str], complete_seconds: float, rng: random.Random, target: str = "") -> int:
    """Repeat a command, killed at random times, until it ends or ``target`` exists; return the number of kills."""
    kills = 0
    while not _kill_after(command, rng.uniform(0.3, 1.2) * complete_seconds):
        kills += 1
        if target and Path(target).exists():
            break
    return kills


def kill_writer(setup: Setup, rng: random.Random) -> Iterator[Outcome]:
    """Kill write_dataset.py until a file is complete, and compare it with that of an uninterrupted run."""
    options = ["--split", "train", "--data-dir", str(setup.tree), "--num-workers", "2"]
    script = [sys.executable, "write_dataset.py", *options]

    def write(name: str) -> tuple[list[str], Path]:
        path = setup.folder / f"{name}.beton"
        return [*script, "--write-path", str(path)], path

    command, path = write("reference")
    start = time.monotonic()
    _kill_after(command, 600)
    seconds, expected = time.monotonic() - start, path.read_bytes() + sidecar_path(path).read_bytes()
    while True:
        command, path = write(f"killed-{rng.getrandbits(32):x}")
        kills = _kill_until_complete(command, seconds, rng, str(path))
        same = path.read_bytes() + sidecar_path(path).read_bytes() == expected
        yield f"equal after {kills} kills" if same else f"FAULT: differs after {kills} kills"


def kill_training(setup: Setup, rng: random.Random) -> Iterator[Outcome]:
    """Kill train_imagenet.py until it ends, and compare the weights with those of an uninterrupted run."""
    data = ["--train-dataset", str(setup.beton), "--val-dataset", str(setup.beton), "--batch-size", "8"]
    script = [sys.executable, "train_imagenet.py", "--config-file", "rn50_configs/tiny.yaml", "--epochs", "3", *data]

    def train(name: str) -> tuple[list[str], Path]:
        folder = setup.folder / name
        return [*script, "--every-steps", "3", "--logging.folder", str(folder)], folder / "checkpoints" / "last.pt"

    def weights(path: Path) -> dict[str, torch.Tensor]:
        return dict(torch.load(path, weights_only=True)["model"])

    command, path = train("reference-run")
    start = time.monotonic()
    _kill_after(command, 600)
    seconds, expected = time.monotonic() - start, weights(path)
    while True:
        command, path = train(f"killed-{rng.getrandbits(32):x}")
        kills = _kill_until_complete(command, seconds, rng)
        found = weights(path)
        same = found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
        yield f"equal after {kills} kills" if same else f"FAULT: differs after {kills} kills"


LOOPS: dict[str, Callable[[Setup, random.Random], Iterator[Outcome]]] = {
    "jpeg": fuzz_jpeg,
    "beton": fuzz_beton,
    "sidecar": fuzz_sidecar,
    "kill-writer": kill_writer,
    "kill-training": kill_training,
}


def main() -> None:
    """Run the loops named on the command line, each for the given time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("loops", nargs="+", choices=LOOPS)
    parser.add_argument("--seconds", type=float, default=120, help="of each loop; the case in progress is completed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=Path, default=Path("reliability_faults"), help="folder for JPEGs with a fault")
    options = parser.parse_args()
    faults = 0
    for name in options.loops:
        with tempfile.TemporaryDirectory() as folder:
            outcomes: Counter[str] = Counter()
            cases = LOOPS[name](prepare(Path(folder), options.faults), random.Random(options.seed))
            end = time.monotonic() + options.seconds
            for outcome in cases:
                outcomes[outcome] += 1
                if time.monotonic() > end:
                    break
        found = sum(number for outcome, number in outcomes.items() if outcome.startswith("FAULT"))
        faults += found
        print(f"{name}: {outcomes.total():,} cases, {found} faults: {dict(outcomes)}", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
