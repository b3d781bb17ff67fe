"""Datasets of the Hugging Face Hub, downloaded as Parquet files into the cache of huggingface_hub.

Addresses are ``hf:imagenet-1k`` or ``hf:OWNER/NAME``, optionally followed by ``:CONFIG`` and ``@REVISION``.
"""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rebar.cli import count
from rebar.errors import RebarError
from rebar.sources.layout import filter_split
from rebar.sources.parquet import ParquetFiles, count_rows
from rebar.storage.huggingface import http_status, hub_url, steps_to_access

PREFIX = "hf:"
SHORT_NAMES = {"imagenet-1k": "ILSVRC/imagenet-1k"}
CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's automatic Parquet conversion of a dataset in another format."""
NUM_DOWNLOADS = 4
TIMEOUT = 30
"""Seconds within which the Hub must list the files of a dataset."""
SUBSET_FACTOR = 2
"""For a subset of n images, files with at least ``SUBSET_FACTOR * n`` are downloaded, so that no class runs out."""

_ADDRESS = re.compile(r"(?:hf:)?(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class HubAddress:
    """A parsed ``hf:`` address."""

    name: str
    config: str | None
    revision: str | None

    @staticmethod
    def parse(text: str) -> "HubAddress":
        """Parse an address, with or without the prefix. Raises RebarError."""
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise RebarError(
                f"{text} is not a valid Hub address. Pass hf:imagenet-1k, or hf:OWNER/NAME[:CONFIG][@REVISION].",
                code="hub-address-invalid",
            )
        name = found["name"]
        return HubAddress(SHORT_NAMES.get(name, name), found["config"], found["revision"])

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}"


class _File(NamedTuple):
    path: str
    size: int


def open_hub_dataset(text: str, split: str, max_images: int | None = None) -> ParquetFiles:
    """Download the Parquet files of a split and open them. Files in the Hub's cache are not downloaded again.

    With ``max_images``, only the files that a subset of that size requires are downloaded. Raises RebarError.
    """
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise RebarError(
            f"{text}: downloading from the Hub requires two packages. Run: pip install huggingface_hub pyarrow",
            code="source-package-missing",
        ) from None
    address = HubAddress.parse(text)
    files, revision = _list_files(address, split)
    if max_images is not None:
        return ParquetFiles(_download_rows(address, revision, files, SUBSET_FACTOR * max_images))
    _check_space(address, revision, files)
    with ThreadPoolExecutor(NUM_DOWNLOADS) as pool:
        return ParquetFiles(list(pool.map(lambda file: _download(address, revision, file.path), files)))


def _list_files(address: HubAddress, split: str) -> tuple[list[_File], str | None]:
    """Return the Parquet files of the split, and their revision."""
    revisions = [address.revision] if address.revision else [None, CONVERTED]
    for revision in revisions:
        if sizes := _list_sizes(address, revision):
            paths = filter_split(_filter_config(address, sorted(sizes)), split, str(address))
            return [_File(path, sizes[path]) for path in paths], revision
    raise RebarError(
        f"{address}: the Hub has no Parquet files of this dataset. Download it and pass its folder.",
        code="hub-no-parquet",
    )


def _list_sizes(address: HubAddress, revision: str | None) -> dict[str, int]:
    """Return path -> size in bytes of all Parquet files at a revision; empty if there is no converted branch."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        with _translate_errors(address):
            # Unlike list_repo_tree(), it does not retry for half a minute if the Hub cannot be reached.
            info = HfApi().dataset_info(address.name, revision=revision, files_metadata=True, timeout=TIMEOUT)
            files = info.siblings or ()
            return {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(".parquet")}
    except RevisionNotFoundError:
        if revision == CONVERTED:
            return {}
        raise RebarError(
            f"{address} has no revision {revision}. Choose one listed on {hub_url()}/datasets/{address.name}.",
            code="hub-not-found",
        ) from None


def _filter_config(address: HubAddress, paths: Sequence[str]) -> list[str]:
    """Return the files of the configuration. Each configuration has its own top-level folder."""
    configs = sorted({path.split("/")[0] for path in paths if "/" in path})
    if address.config:
        if address.config not in configs:
            raise RebarError(
                f"{address} has no configuration {address.config}. Choose one of {', '.join(configs)}.",
                code="hub-config-invalid",
            )
        return [path for path in paths if path.startswith(f"{address.config}/")]
    if len(configs) > 1:
        for default in ("default", "data"):
            if default in configs:
                return [path for path in paths if path.startswith(f"{default}/")]
        raise RebarError(
            f"{address} has the configurations {', '.join(configs)}. Choose one: {address}:{configs[0]}",
            code="hub-config-invalid",
        )
    return list(paths)


def _download_rows(address: HubAddress, revision: str | None, files: Sequence[_File], rows: int) -> list[Path]:
    """Download files in a fixed random order until they contain ``rows`` rows; return them in dataset order."""
    paths: list[tuple[int, Path]] = []
    num_rows = 0
    for number in np.argsort(np.random.Philox(key=0).random_raw(len(files)), kind="stable"):
        _check_space(address, revision, [files[number]])
        path = _download(address, revision, files[number].path)
        paths.append((int(number), path))
        num_rows += count_rows(path)
        if num_rows >= rows:
            break
    return [path for _, path in sorted(paths)]


def _download(address: HubAddress, revision: str | None, path: str) -> Path:
    from huggingface_hub import hf_hub_download

    with _translate_errors(address):
        return Path(hf_hub_download(address.name, path, repo_type="dataset", revision=revision))


def _check_space(address: HubAddress, revision: str | None, files: Sequence[_File]) -> None:
    """Print the size of the files to download. Raises RebarError if they do not fit into the Hub's cache."""
    from huggingface_hub import constants, try_to_load_from_cache

    missing = [
        file.size
        for file in files
        if not isinstance(try_to_load_from_cache(address.name, file.path, revision=revision, repo_type="dataset"), str)
    ]
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if sum(missing) > free:
        raise RebarError(
            f"{address}: the download takes {sum(missing) / 1e9:,.1f} GB, but {folder} has only {free / 1e9:,.1f} GB "
            "free. Set HF_HOME to a folder on a larger disk, or write a --subset.",
            code="disk-full",
        )
    if missing:
        print(
            f"download  {count(len(missing), 'file')}, {sum(missing) / 1e9:,.2f} GB, of {address.name} to {folder}",
            flush=True,
        )


@contextmanager
def _translate_errors(address: HubAddress) -> Iterator[None]:
    """Translate the client's exceptions to RebarError, except RevisionNotFoundError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.RevisionNotFoundError:
        raise
    except (errors.HTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        status = http_status(error)
        if status in (401, 403) or isinstance(error, errors.GatedRepoError):
            raise _access_denied(address, status) from None
        if status == 404:
            raise RebarError(
                f"{address}: no such dataset on the Hub. Look it up at {hub_url()}/datasets.", code="hub-not-found"
            ) from None
        raise RebarError(
            f"{address}: the request to {hub_url()} failed: {_first_line(error)}. Check the connection and the proxy "
            "(HTTPS_PROXY), set HF_TOKEN for a gated dataset, or pass a dataset on a local disk instead.",
            code="hub-unreachable",
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _access_denied(address: HubAddress, status: int | None) -> RebarError:
    token = "the token in HF_TOKEN was rejected" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    return RebarError(
        f"{address}: access denied (HTTP {status or 403}; {token}). To get access:\n{steps_to_access(address.name)}",
        code="hub-access-denied",
    )
