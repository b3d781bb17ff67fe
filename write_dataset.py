"""Write images of any source to a .beton file for training.

    export IMAGENET_DIR=/data/imagenet WRITE_DIR=/data/betons && mkdir -p $WRITE_DIR
    python write_dataset.py --split train
    python write_dataset.py --split val
    python write_dataset.py --split train --data-dir hf:imagenet-1k --subset small

Training images are shuffled with the seed, so that sequential reads return mixed classes; validation images are ordered
by class. The sidecar, train.beton.json, contains class names, the image policy and checksums; the report,
train.beton.report.json, lists irregular and bad images. After an interruption, the same command resumes.

    python write_dataset.py --verify FILE    # check every page, offset, label and image
    python write_dataset.py --info FILE      # describe the file, and draw a contact sheet
    python write_dataset.py --stats FILE     # channel mean and std, for training's --stats-file
"""

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebar.beton import Estimate, ImagePolicy, Source, WriteReport, read_sidecar, write_beton
from rebar.beton.inspect import COMMANDS, is_inspect_command, value_range
from rebar.beton.inspect import main as inspect
from rebar.beton.partial_file import journal_path, partial_path
from rebar.beton.selection import Selection, select_shard, shard_path
from rebar.beton.write_report import report_path
from rebar.cli import count, display_name, escape_undecodable, raise_terminated, run_command, warn
from rebar.config import option, parse_config, section
from rebar.errors import RebarError, Terminated
from rebar.sources import Request, open_source
from rebar.storage.files import check_output


@dataclass(frozen=True)
class WriterSection:
    """The images to write, the target file, and how images are stored."""

    dataset: Literal[
        "auto", "imagenet", "hf", "s3", "beton", "tar", "webdataset", "parquet", "arrow", "folder", "flat"
    ] = option("auto", help="kind of source; auto and imagenet detect it")
    split: Literal["train", "val"] = option(required=True, help="train is shuffled, val keeps the order of the source")
    data_dir: str = option(
        "", help="folder, tar, shards, .beton, hf:NAME or s3://...; default: $IMAGENET_DIR", metavar="PATH"
    )
    labels: str = option(
        "", help="list of labels for images without class folders; default: search near the images", metavar="FILE"
    )
    image_key: str = option(
        "", help="extension of the image in WebDataset samples with several, such as jpg or png", metavar="EXT"
    )
    write_path: str = option(
        "", help="file to write, or a folder for <split>.beton; default: $WRITE_DIR", metavar="PATH"
    )
    write_mode: Literal["jpg", "raw", "proportion"] = option(
        "jpg", help="proportion: JPEG with probability compress_probability, otherwise raw"
    )
    max_resolution: int = option(
        500, help="limit of the long (or short) side in pixels; larger images are downscaled; 0: no limit", minimum=0
    )
    limit_side: Literal["long", "short"] = option("long", help="side that max_resolution limits")
    jpeg_quality: int = option(
        90, help="quality of re-encoded images; JPEGs of higher quality are requantized", minimum=1, maximum=100
    )
    keep_quality: bool = option(False, help="do not requantize JPEGs within the resolution")
    compress_probability: float = option(
        0.5, help="probability of JPEG with write_mode=proportion", minimum=0, maximum=1
    )
    restart_markers: bool = option(True, help="insert restart markers into JPEGs; crops decode faster")
    subset: str = option(
        "full",
        help="number of images, balanced across classes: tiny (1k), small (10k), medium (100k), "
        "large (500k), full, or a number",
        metavar="SIZE",
    )
    max_classes: int = option(0, help="number of classes, drawn at random; 0: all", minimum=0)
    max_samples_per_class: int = option(0, help="maximum number of images per class; 0: all", minimum=0)
    shard: str = option("", help="I/N: write only shard I of N, with I from 0, to a separate file", metavar="I/N")
    on_bad_image: Literal["fail", "skip", "repair"] = option(
        "fail", help="how to handle undecodable images: stop, skip them, or store the part that can be decoded"
    )
    seed: int = option(0, help="seed of the order, the subset and all other random choices", minimum=0)
    num_workers: int = option(0, help="worker processes that encode; 0: one per core", minimum=0)
    chunk_size: int = option(0, help="images per task of a worker; 0: about a megabyte", minimum=0)
    overwrite: bool = option(False, help="replace an existing file")
    restart: bool = option(False, help="discard an unfinished file instead of resuming it")


@dataclass(frozen=True)
class WriteConfig:
    """All options of write_dataset.py."""

    cfg: WriterSection = section(WriterSection)


def main(argv: Sequence[str]) -> None:
    """Write one split, or inspect a file, as given on the command line."""
    if is_inspect_command(argv):
        inspect(argv)
        return
    config = parse_config(
        WriteConfig,
        argv,
        description=f"{__doc__.splitlines()[0]} To inspect one: {', '.join(COMMANDS)} FILE.",
        examples=["python write_dataset.py --split train"],
    ).cfg
    location = require_path("--data-dir", config.data_dir, "IMAGENET_DIR", code="data-not-given")
    folder = require_path("--write-path", config.write_path, "WRITE_DIR", code="write-path-missing")
    target = find_target(folder, config.split, config.shard)
    check_target(target, overwrite=config.overwrite)
    with raise_terminated(), print_resume_hint(target):
        write(config, location, target)


def write(config: WriterSection, location: str, target: Path) -> None:
    """Write the images at ``location`` to ``target``."""
    selection = Selection(
        subset=config.subset,
        max_classes=config.max_classes or None,
        max_samples_per_class=config.max_samples_per_class or None,
        shuffle=config.split == "train",
        seed=config.seed,
    )
    selection.validate()
    print(f"source    {location}", flush=True)
    request = Request(location, config.split, config.labels, config.image_key, selection.max_images)
    kind, source = open_source(request, config.dataset)
    num_found = len(source)
    source, order = selection.apply(source)
    if config.shard:
        order = select_shard(order, config.shard)
    check_classes(location, source, target, config.split)
    policy = ImagePolicy(
        max_resolution=config.max_resolution,
        limit_side=config.limit_side,
        jpeg_quality=config.jpeg_quality,
        keep_quality=config.keep_quality,
        write_mode=config.write_mode,
        compress_probability=config.compress_probability,
        restart_markers=config.restart_markers,
        seed=config.seed,
    )
    num_workers = config.num_workers or len(os.sched_getaffinity(0))

    print(f"images    {len(order):,} of {num_found:,} in {count(len(source.class_names), 'class', 'classes')} ({kind})")
    print(f"stored    {describe_policy(policy)}")
    print(f"order     {'shuffled' if config.split == 'train' else 'as in the source'}, seed {config.seed}")
    print(f"target    {target}, {count(num_workers, 'worker process', 'worker processes')}", flush=True)
    report = write_beton(
        source,
        target,
        policy=policy,
        order=order,
        on_bad_image=config.on_bad_image,
        num_workers=num_workers,
        chunk_size=config.chunk_size,
        restart=config.restart,
        on_estimate=print_estimate,
    )
    print_report(report, config)


def require_path(flag: str, value: str, variable: str, *, code: str) -> str:
    """Return a path from the command line or the environment. Raises RebarError if neither specifies it."""
    if chosen := value or os.environ.get(variable, ""):
        return chosen
    raise RebarError(
        f"{flag} is required. Pass {flag} PATH, or set the environment variable {variable}.",
        code=code,
    )


def find_target(write_path: str, split: str, shard: str = "") -> Path:
    """Return the path to write: ``write_path``, or ``<split>.beton`` in it if it is a folder.

    A path that ends in a slash or has no suffix is a folder. For a shard, its number is appended to the name. Raises
    RebarError if the folder is missing.
    """
    path = Path(write_path)
    if path.is_dir() or write_path.endswith("/") or not path.suffix:
        path = path / f"{split}.beton"
    if not path.parent.is_dir():
        raise RebarError(
            f"{path.parent}: no such folder. Create it: mkdir -p {path.parent}", code="write-target-invalid"
        )
    return shard_path(path, shard) if shard else path


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise RebarError if the target cannot be written, or exists and may not be replaced."""
    if target.is_dir():
        raise RebarError(f"{target} is a folder. Pass the path of a file.", code="write-target-invalid")
    check_output(target, overwrite=overwrite)


def check_classes(location: str, source: Source, target: Path, split: str) -> None:
    """Compare the classes of a source with an existing file of the other split next to the target.

    Raises RebarError if train.beton has other classes; warns if val.beton does, because it may be written next.
    """
    other = target.with_name("train.beton" if split == "val" else "val.beton")
    sidecar = read_sidecar(other) if other.exists() else None
    class_names = [escape_undecodable(name) for name in source.class_names]
    if sidecar is None or list(sidecar.class_names) == class_names:
        return
    differing = sorted(set(sidecar.class_names) ^ set(class_names))
    shown = ", ".join(map(display_name, differing[:5])) + (", ..." if len(differing) > 5 else "")
    message = (
        f"{location}: its {len(source.class_names)} classes differ from the {len(sidecar.class_names)} of {other} "
        f"(differing: {shown}), so their labels are incompatible. Pass the matching source, or write elsewhere."
    )
    if split == "val":
        raise RebarError(message, code="beton-classes-differ")
    warn(message)


def describe_policy(policy: ImagePolicy) -> str:
    """Return a one-line description of how images are stored."""
    side = {"long": "longer", "short": "shorter"}[policy.limit_side]
    size = f"{side} side at most {policy.max_resolution} px" if policy.max_resolution else "full size"
    jpeg = f"JPEG quality {policy.jpeg_quality}, lossless for JPEGs up to that quality"
    if policy.keep_quality:
        jpeg = f"JPEGs lossless, others at JPEG quality {policy.jpeg_quality}"
    modes = {
        "jpg": jpeg,
        "raw": "raw RGB",
        "proportion": f"{policy.compress_probability:.0%} {jpeg}, the rest raw RGB",
    }
    return f"{modes[policy.write_mode]}, {size}"


def print_estimate(expected: Estimate) -> None:
    """Print the expected size and duration."""
    duration = f"{expected.seconds / 60:,.0f} min" if expected.seconds >= 120 else f"{expected.seconds:,.0f} s"
    sampled = count(expected.num_sampled, "image")
    print(f"expected  {expected.bytes / 1e9:,.3f} GB, {duration} of encoding, estimated from {sampled}")
    if expected.keep_quality_factor != 1:
        print(
            f"          {expected.bytes_per_image:,.0f} bytes per image, {expected.keep_quality_factor:.1f} times as "
            "many as without --keep-quality; every epoch reads and decodes them"
        )
    sys.stdout.flush()


@contextmanager
def print_resume_hint(target: Path) -> Iterator[None]:
    """After Ctrl-C or a signal, print what is kept and how to resume."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        kept = "nothing is written yet"
        if journal_path(target).exists():
            kept = f"the pages written so far are kept in {partial_path(target)}: the same command resumes"
        with suppress(OSError):  # the terminal may be gone
            print(kept, file=sys.stderr, flush=True)
        raise


def print_report(report: WriteReport, config: WriterSection) -> None:
    """Print what was written, and the next command."""
    per_image, per_second = report.image_bytes / report.num_samples, report.num_encoded / report.seconds
    expected, tally = report.expected, report.tally
    print(f"written   {report.path}: {report.bytes / 1e9:,.3f} GB in {report.seconds:,.1f} s")
    print(f"          {count(report.num_samples, 'image')}, {value_range(report.class_counts)} per class")
    print(f"          {tally.transcoded:,} transcoded losslessly, {tally.encoded:,} re-encoded")
    print(f"          {per_image:,.0f} bytes per image, {count(round(per_second), 'image')}/s")
    if expected.marker_overhead:
        sampled = count(expected.num_sampled, "image")
        print(f"          restart markers add {expected.marker_overhead:.1%}, estimated from {sampled}")
    if tally.counts:
        print(f"irregular {', '.join(f'{number:,} {kind}' for kind, number in sorted(tally.counts.items()))}")
    if tally.repaired or tally.skipped:
        print(f"bad       {len(tally.repaired):,} repaired, {len(tally.skipped):,} skipped")
    if report.omitted:
        print(f"omitted   {', '.join(f'{number:,} x {kind}' for kind, number in report.omitted.items())}")
    if tally.counts or tally.repaired or tally.skipped:
        print(f"          listed in {report_path(report.path)}")
    train, val = (report.path.with_name(f"{name}.beton") for name in ("train", "val"))
    if report.path not in (train, val):
        return
    if config.split == "train" and not val.exists():
        words = ["write_dataset.py", "--split", "val", *flags_of_source(config), "--write-path", str(val)]
    else:
        words = ["train_imagenet.py", "--train-dataset", str(train), "--val-dataset", str(val)]
    print(f"next      python {shlex.join(words)}")


def flags_of_source(config: WriterSection) -> list[str]:
    """Return the flags that select the source and its classes, without those that have their default values."""
    names = ["data_dir", "dataset", "labels", "image_key", *(["max_classes", "seed"] if config.max_classes else [])]
    changed = [name for name in names if getattr(config, name) != getattr(WriterSection(split="val"), name)]
    return [word for name in changed for word in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]


def command() -> None:
    """Run :func:`main` as the console command ``rebar-write``."""
    run_command(main)


if __name__ == "__main__":
    command()
