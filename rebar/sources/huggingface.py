"""Data sets of the Hugging Face hub: their Parquet files, downloaded into the hub's own cache.

``hf:imagenet-1k``, or ``hf:OWNER/NAME``, then ``:CONFIG`` and ``@REVISION`` where wanted.
"""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from rebar.errors import RebarError
from rebar.sources.folder import of_split
from rebar.sources.parquet import Parquet, count_rows
from rebar.storage.huggingface import http_status, hub_url

PREFIX = "hf:"
SHORT_NAMES = {"imagenet-1k": "ILSVRC/imagenet-1k"}
CONVERTED = "refs/convert/parquet"
"""The branch where the hub keeps Parquet files of data sets that are stored in another form."""
DOWNLOADS = 4
SPARE = 2
"""How many times a subset's images are downloaded, so that there are enough of every class to choose from."""

_ADDRESS = re.compile(r"(?:hf:)?(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")
Result = TypeVar("Result")


@dataclass(frozen=True)
class HubAddress:
    """What ``hf:...`` means."""

    name: str
    config: str | None
    revision: str | None

    @staticmethod
    def parse(text: str) -> "HubAddress":
        """Raises RebarError where the text is no such address."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise RebarError(f"{text}: expected hf:imagenet-1k, or hf:OWNER/NAME[:CONFIG][@REVISION]")
        name = found["name"]
        return HubAddress(SHORT_NAMES.get(name, name), found["config"], found["revision"])


def open_hub_dataset(text: str, split: str, at_most: int | None = None) -> Parquet:
    """Download a split's Parquet files, or for ``at_most`` images only some of them, and open them.

    What is there already is not downloaded again. Raises RebarError.
    """
    try:
        import huggingface_hub  # noqa: F401  its absence is said before anything else
    except ImportError:
        raise RebarError(f"{text}: takes two packages more: pip install huggingface_hub pyarrow") from None
    address = HubAddress.parse(text)
    files, revision = _list_files(address, split)
    if at_most is not None:
        return Parquet(_download_enough(address, revision, files, SPARE * at_most))
    _check_space(address, revision, files)
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return Parquet(list(pool.map(lambda file: _download(address, revision, file[0]), files)))


def _list_files(address: HubAddress, split: str) -> tuple[list[tuple[str, int]], str | None]:
    """(path, bytes) of the split's Parquet files, and the revision they are of."""
    revisions = [address.revision] if address.revision else [None, CONVERTED]
    for revision in revisions:
        sizes = _sizes(address, revision)
        if sizes:
            paths = _of_config(address, sorted(sizes))
            return [(path, sizes[path]) for path in of_split(paths, split, f"hf:{address.name}")], revision
    raise RebarError(f"hf:{address.name}: the hub has no Parquet files of it; download it and give its folder")


def _sizes(address: HubAddress, revision: str | None) -> dict[str, int]:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    def ask() -> dict[str, int]:
        tree = HfApi().list_repo_tree(address.name, recursive=True, revision=revision, repo_type="dataset")
        return {e.path: getattr(e, "size", 0) for e in tree if e.path.endswith(".parquet")}

    try:
        return _explained(address, ask)
    except RevisionNotFoundError:
        if revision == CONVERTED:
            return {}
        raise RebarError(f"hf:{address.name}: has no revision {revision}") from None


def _of_config(address: HubAddress, paths: Sequence[str]) -> list[str]:
    """The files of the configuration: data sets with several keep each in a folder of its own."""
    configs = sorted({path.split("/")[0] for path in paths if "/" in path})
    if address.config:
        if address.config not in configs:
            raise RebarError(f"hf:{address.name}: has no configuration {address.config}, only {', '.join(configs)}")
        return [path for path in paths if path.startswith(f"{address.config}/")]
    if len(configs) > 1:
        for usual in ("default", "data"):
            if usual in configs:
                return [path for path in paths if path.startswith(f"{usual}/")]
        raise RebarError(
            f"hf:{address.name}: has the configurations {', '.join(configs)}; choose one: "
            f"hf:{address.name}:{configs[0]}"
        )
    return list(paths)


def _download_enough(
    address: HubAddress, revision: str | None, files: Sequence[tuple[str, int]], rows: int
) -> list[Path]:
    """As many of the files, drawn from all by a fixed seed, as have so many rows."""
    paths: list[tuple[int, Path]] = []
    have = 0
    for number in np.argsort(np.random.Philox(key=0).random_raw(len(files)), kind="stable"):
        _check_space(address, revision, [files[number]])
        path = _download(address, revision, files[number][0])
        paths.append((int(number), path))
        have += count_rows(path)
        if have >= rows:
            break
    return [path for _, path in sorted(paths)]


def _download(address: HubAddress, revision: str | None, path: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        _explained(address, lambda: hf_hub_download(address.name, path, repo_type="dataset", revision=revision))
    )


def _check_space(address: HubAddress, revision: str | None, files: Sequence[tuple[str, int]]) -> None:
    """Raises RebarError where what is still to be downloaded does not fit into the hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    missing = [
        size
        for path, size in files
        if not isinstance(try_to_load_from_cache(address.name, path, revision=revision, repo_type="dataset"), str)
    ]
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if sum(missing) > free:
        raise RebarError(
            f"hf:{address.name}: {sum(missing) / 1e9:,.1f} GB are to be downloaded to {folder}, but only "
            f"{free / 1e9:,.1f} GB are free; set HF_HOME to a folder on a larger disk, or take a --subset"
        )
    if missing:
        print(
            f"download  {len(missing)} files, {sum(missing) / 1e9:,.2f} GB, of {address.name} to {folder}", flush=True
        )


def _explained(address: HubAddress, ask: Callable[[], Result]) -> Result:
    """The answer to a question to the hub; where it refuses or is not there, a RebarError that says what to do."""
    from huggingface_hub import errors

    try:
        return ask()
    except errors.RevisionNotFoundError:
        raise
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        status = http_status(error)
        if status in (401, 403) or isinstance(error, errors.GatedRepoError):
            raise RebarError(_access(address, status)) from None
        if status == 404:
            raise RebarError(
                f"hf:{address.name}: the hub has no such data set; look it up on {hub_url()}/datasets"
            ) from None
        raise RebarError(f"hf:{address.name}: {hub_url()} cannot be asked for it: {error}") from None


def _access(address: HubAddress, status: int | None) -> str:
    page = f"{hub_url()}/datasets/{address.name}"
    token = "the token in use was refused" if os.environ.get("HF_TOKEN") else "no token is set in HF_TOKEN"
    return (
        f"hf:{address.name}: the hub does not let you download it (HTTP {status or 403}; {token}). Four steps give "
        f"access:\n  1. make an account: {hub_url()}/join\n  2. log in, open {page} and accept its terms\n"
        f"  3. make a token that may read: {hub_url()}/settings/tokens\n"
        "  4. export HF_TOKEN=hf_... and run the same command again"
    )
