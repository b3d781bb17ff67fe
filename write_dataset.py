"""Turn images from anywhere into a .beton file, which training reads.

    export IMAGENET_DIR=/data/imagenet WRITE_DIR=/data/betons
    python write_dataset.py --split train
    python write_dataset.py --split val
    python write_dataset.py --split train --data-dir hf:imagenet-1k --subset small

The training images are shuffled once here, by the seed, so that reading the file from front to back is
already mixed; validation keeps the order of the classes. Beside the file goes a sidecar, train.beton.json,
with the names of the classes, how the images were stored, and checksums; and a report on the images that
were odd or bad. After a kill the same command goes on where it was.

    python write_dataset.py --verify FILE    # every page, offset, image and label
    python write_dataset.py --info FILE      # what is inside, with a sheet of images
    python write_dataset.py --stats FILE     # mean and deviation of the channels, for training's --stats-file
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rebar.beton import Estimate, ImagePolicy, Source, WriteReport, read_sidecar, write_beton
from rebar.beton.inspect import COMMANDS, asks_to_inspect, inspect
from rebar.beton.partial_file import journal_path
from rebar.beton.selection import Selection, shard_of, shard_path
from rebar.beton.write_report import report_path
from rebar.cli import run_command
from rebar.config import option, parse_config, section
from rebar.errors import RebarError
from rebar.sources import Request, open_source


@dataclass(frozen=True)
class WriterSection:
    """Which images to write, where to, and how they are stored."""

    dataset: Literal["auto", "imagenet", "hf", "s3", "beton", "tar", "webdataset", "parquet", "folder", "flat"] = (
        option("auto", help="kind of source; auto and imagenet recognise it")
    )
    split: Literal["train", "val"] = option(required=True, help="train is shuffled, val stays in order")
    data_dir: str = option("", help="folder, tar, shards, .beton, hf:NAME, s3://...; else $IMAGENET_DIR")
    labels: str = option("", help="list of the classes of images without class folders; else one near them")
    write_path: str = option("", help="file to write, or a folder for <split>.beton; else $WRITE_DIR")
    write_mode: Literal["jpg", "raw", "proportion"] = option(
        "jpg", help="proportion: JPEG with compress_probability, else raw"
    )
    max_resolution: int = option(500, help="pixels of the limited side, larger is shrunk; 0: no limit", minimum=0)
    limit_side: Literal["long", "short"] = option("long", help="the side that max_resolution limits")
    jpeg_quality: int = option(90, help="quality of JPEGs encoded anew; finer ones are", minimum=1, maximum=100)
    keep_quality: bool = option(False, help="pass JPEGs within the resolution through, whatever their quality")
    compress_probability: float = option(0.5, help="share of JPEGs with write_mode=proportion", minimum=0, maximum=1)
    restart_markers: bool = option(True, help="let JPEGs be entered in the middle, so that crops decode faster")
    subset: str = option(
        "full",
        help="images, balanced over the classes: tiny (1k), small (10k), medium (100k), "
        "large (500k), full, or a number",
    )
    max_classes: int = option(0, help="so many classes, drawn by the seed; 0: all", minimum=0)
    max_samples_per_class: int = option(0, help="so many images of a class; 0: all", minimum=0)
    shard: str = option("", help="I/N: only part I of N, I from 0 on, to a file of its own; all parts are the whole")
    on_bad_image: Literal["fail", "skip", "repair"] = option(
        "fail", help="images that cannot be decoded: stop, leave them out, or take what there is of them"
    )
    seed: int = option(0, help="of the order and every other draw", minimum=0)
    num_workers: int = option(0, help="processes that encode; 0: one for every core", minimum=0)
    chunk_size: int = option(0, help="images a process takes at a time; 0: about a megabyte of them", minimum=0)
    overwrite: bool = option(False, help="replace an existing file")
    restart: bool = option(False, help="begin anew where an unfinished file could be gone on with")


@dataclass(frozen=True)
class WriteConfig:
    """Everything write_dataset.py can be told."""

    cfg: WriterSection = section(WriterSection)


def main(argv: Sequence[str]) -> None:
    """Write one split, or look at a file, as the command line says."""
    if asks_to_inspect(argv):
        inspect(argv)
        return
    config = parse_config(
        WriteConfig,
        argv,
        description=f"{__doc__.splitlines()[0]} With {', '.join(COMMANDS)} FILE: look at one.",
        example="python write_dataset.py --split train",
    ).cfg
    where = given("--data-dir", config.data_dir, "IMAGENET_DIR")
    target = find_target(given("--write-path", config.write_path, "WRITE_DIR"), config.split, config.shard)
    refuse_existing(target, overwrite=config.overwrite)

    selection = Selection(
        subset=config.subset,
        max_classes=config.max_classes or None,
        max_samples_per_class=config.max_samples_per_class or None,
        shuffle=config.split == "train",
        seed=config.seed,
    )
    print(f"source    {where}", flush=True)
    kind, source = open_source(Request(where, config.split, config.labels, selection.at_most), config.dataset)
    num_found = len(source)
    source, order = selection.apply(source)
    if config.shard:
        order = shard_of(order, config.shard)
    if config.split == "val":
        check_classes_agree(where, source, target.with_name("train.beton"))
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

    print(f"images  {len(order):,} of {num_found:,} in {len(source.class_names):,} classes ({kind})")
    print(f"stored    {in_words(policy)}")
    print(f"order     {'shuffled' if config.split == 'train' else 'as in the source'}, seed {config.seed}")
    print(f"target    {target}, {num_workers} processes", flush=True)
    with telling_what_is_kept(target):
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
    print_report(report, config.split)


def given(flag: str, value: str, variable: str) -> str:
    """A path from the command line, else from the environment. Raises RebarError where neither has it."""
    if chosen := value or os.environ.get(variable, ""):
        return chosen
    raise RebarError(f"{flag} is missing: give {flag} PATH, or set the environment variable {variable}")


def find_target(write_path: str, split: str, shard: str = "") -> Path:
    """The file to write: ``write_path`` itself, or ``<split>.beton`` in it where it means a folder.

    It does where it is one, ends in a slash, or has no suffix. A shard's number becomes part of the name. Raises
    RebarError where the folder is missing.
    """
    path = Path(write_path)
    if path.is_dir() or write_path.endswith("/") or not path.suffix:
        path = path / f"{split}.beton"
    if not path.parent.is_dir():
        raise RebarError(f"{path.parent}: no such folder to write to; make it first: mkdir -p {path.parent}")
    return shard_path(path, shard) if shard else path


def refuse_existing(target: Path, *, overwrite: bool) -> None:
    """Raises RebarError where the target exists and may not be replaced."""
    if target.is_dir():
        raise RebarError(f"{target}: is a folder, so no file of this name can be written")
    if target.exists() and not overwrite:
        raise RebarError(f"{target}: exists already; add --overwrite to replace it, or write elsewhere")


def check_classes_agree(where: str, source: Source, train_file: Path) -> None:
    """Raises RebarError where a training file has other classes, so that labels would not mean the same."""
    sidecar = read_sidecar(train_file) if train_file.exists() else None
    if sidecar is None or list(sidecar.class_names) == list(source.class_names):
        return
    differing = sorted(set(sidecar.class_names) ^ set(source.class_names))
    shown = ", ".join(differing[:5]) + (", ..." if len(differing) > 5 else "")
    raise RebarError(
        f"{where}: its {len(source.class_names)} classes are not the {len(sidecar.class_names)} of "
        f"{train_file} (differing: {shown}), so labels would not mean the same; write from the folder that "
        "matches, or elsewhere"
    )


def in_words(policy: ImagePolicy) -> str:
    """How images are stored, for people."""
    side = {"long": "longer", "short": "shorter"}[policy.limit_side]
    size = f"{side} side at most {policy.max_resolution} px" if policy.max_resolution else "full size"
    jpeg = f"JPEG quality {policy.jpeg_quality}, JPEGs no finer than that as they are"
    if policy.keep_quality:
        jpeg = f"JPEGs as they are, others at JPEG quality {policy.jpeg_quality}"
    kinds = {
        "jpg": jpeg,
        "raw": "raw RGB",
        "proportion": f"{policy.compress_probability:.0%} {jpeg}, the rest raw RGB",
    }
    return f"{kinds[policy.write_mode]}, {size}"


def print_estimate(expected: Estimate) -> None:
    """What is to be expected, before the writing begins."""
    gigabytes = expected.bytes / 1e9
    last = f"{expected.seconds / 60:,.0f} min" if expected.seconds >= 120 else f"{expected.seconds:,.0f} s"
    print(f"expected  {gigabytes:,.3f} GB, {last} of encoding, by {expected.num_sampled} images")
    if expected.kept_quality_factor != 1:
        factor = expected.kept_quality_factor
        print(
            f"          {expected.bytes_a_image:,.0f} bytes an image, {factor:.1f} times as many as without "
            "--keep-quality: that much more to read and to decode in every epoch"
        )
    sys.stdout.flush()


@contextmanager
def telling_what_is_kept(target: Path) -> Iterator[None]:
    """After Ctrl-C, say that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if journal_path(target).exists():
            print("what was written is kept: the same command goes on from there", file=sys.stderr)
        raise


def print_report(report: WriteReport, split: str) -> None:
    """What was written, and what to do next."""
    per_image, per_second = report.image_bytes / report.num_samples, report.num_encoded / report.seconds
    fewest, most = report.class_counts.min(), report.class_counts.max()
    tally = report.tally
    print(f"written   {report.path}: {report.bytes / 1e9:,.3f} GB in {report.seconds:,.1f} s")
    print(f"          {report.num_samples:,} images, {fewest:,} to {most:,} a class")
    print(f"          {tally.passed_through:,} as they were, {tally.encoded:,} encoded anew")
    print(f"          {per_image:,.0f} bytes an image, {per_second:,.0f} images/s")
    if report.expected.marker_share:
        share, sampled = report.expected.marker_share, report.expected.num_sampled
        print(f"          {share:.1%} more bytes for restart markers, by {sampled} images")
    if tally.counts:
        print(f"odd       {', '.join(f'{count:,} {kind}' for kind, count in sorted(tally.counts.items()))}")
    if tally.repaired or tally.skipped:
        print(f"bad       {len(tally.repaired):,} repaired, {len(tally.skipped):,} left out")
    if tally.counts or tally.repaired or tally.skipped:
        print(f"          which: {report_path(report.path)}")
    train, val = (report.path.with_name(f"{name}.beton") for name in ("train", "val"))
    if report.path not in (train, val):
        return
    if split == "train" and not val.exists():
        print(f"next      python write_dataset.py --split val --write-path {val}")
    else:
        print(f"next      python train_imagenet.py --train-dataset {train} --val-dataset {val}")


def command() -> None:
    """Run as the console command ``rebar-write``."""
    run_command(main)


if __name__ == "__main__":
    command()
