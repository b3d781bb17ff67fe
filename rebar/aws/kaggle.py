"""Kaggle's archive is a zip of single images: unpacked, gone on with after a kill, every CRC compared.

ImageNet from Kaggle's competition, by the interface that Kaggle's own tool uses.
"""

import base64
import json
import os
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from rebar.aws.client import AwsError
from rebar.aws.download import SILENCE_SECONDS, Address, require_space
from rebar.aws.progress import Progress

THREADS = 8


def unzip(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the members whose names are wanted; those already there in full size are left.

    Raises AwsError for an archive that is damaged or cut short, and for too little space.
    """
    status = archive.stat()
    note, stamp = archive.with_name(f".{archive.name}.unpacked"), f"{status.st_size} {status.st_mtime_ns}"
    if note.is_file() and note.read_text() == stamp:
        return
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [each for each in opened.infolist() if not each.is_dir() and wanted(each.filename)]
            for each in members:
                if ".." in PurePosixPath(each.filename).parts or each.filename.startswith("/"):
                    raise AwsError(f"{archive}: holds {each.filename!r}, which would lie outside of {folder}")
            missing = [each for each in members if not _is_there(folder / each.filename, each.file_size)]
            require_space(folder, sum(each.file_size for each in missing), f"what is in {archive.name}")
            _extract(opened, missing, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise AwsError(f"{archive}: is damaged ({error}): delete it and run the command again") from None
    except OSError as error:
        raise AwsError(f"{folder}: {archive.name} cannot be unpacked: {error.strerror or error}") from None
    os.sync()
    note.write_text(stamp)


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _extract(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    progress = Progress("unpacking", sum(each.file_size for each in members))
    stop = threading.Event()

    def extract(member: zipfile.ZipInfo) -> None:
        if stop.is_set():
            return
        target = folder / member.filename
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        with archive.open(member) as packed, partial.open("wb") as file:  # its CRC is compared at its end
            shutil.copyfileobj(packed, file)
        os.replace(partial, target)
        progress.add(member.file_size)

    with ThreadPoolExecutor(THREADS) as threads:
        try:
            for _ in threads.map(extract, members):
                pass
        except BaseException:
            stop.set()
            raise
    progress.end()


COMPETITION = "imagenet-object-localization-challenge"
ARCHIVE = f"{COMPETITION}.zip"
ENDPOINT = "https://www.kaggle.com"
RULES = f"{ENDPOINT}/competitions/{COMPETITION}/rules"
REDIRECTS = (301, 302, 303, 307, 308)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the credentials are for Kaggle, not for the store it leads to."""

    def redirect_request(self, *_: Any) -> None:
        return None


def find_archive() -> Address:
    """Where the competition's zip lies now, by the credentials in the environment or in ``kaggle.json``.

    Raises AwsError where there are none, or where Kaggle refuses them.
    """
    endpoint = os.environ.get("KAGGLE_API_ENDPOINT", ENDPOINT).rstrip("/")
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost"):
        raise AwsError("KAGGLE_API_ENDPOINT must begin with https://: credentials are sent there")
    address = Address(
        f"{endpoint}/api/v1/competitions/data/download-all/{COMPETITION}", {"Authorization": _authorization()}
    )
    request = urllib.request.Request(address.url, headers=dict(address.headers))
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=SILENCE_SECONDS):
            return address  # it sends the file itself
    except urllib.error.HTTPError as error:
        error.close()
        location = error.headers.get("Location")
        if error.code in REDIRECTS and location:
            return Address(urllib.parse.urljoin(address.url, location))
        raise AwsError(_told(error.code)) from None
    except OSError as error:
        raise AwsError(f"{endpoint} cannot be reached: {getattr(error, 'reason', error)}") from None


def _authorization() -> str:
    if token := os.environ.get("KAGGLE_API_TOKEN"):
        return f"Bearer {token}"
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if not (user and key):
        user, key = _stored()
    return "Basic " + base64.b64encode(f"{user}:{key}".encode()).decode()


def _stored() -> tuple[str, str]:
    folders = [os.environ.get("KAGGLE_CONFIG_DIR", ""), "~/.kaggle", "~/.config/kaggle"]
    for folder in filter(None, folders):
        path = Path(folder).expanduser() / "kaggle.json"
        if path.is_file():
            try:
                content = json.loads(path.read_text())
                return str(content["username"]), str(content["key"])
            except (OSError, ValueError, KeyError, TypeError):
                raise AwsError(f"{path} is not as Kaggle gives it: take a new one ({ENDPOINT}/settings)") from None
    raise AwsError(
        "no credentials for Kaggle: make a token (https://www.kaggle.com/settings) and set KAGGLE_USERNAME and "
        f"KAGGLE_KEY, and accept the rules on {RULES}"
    )


def _told(status: int) -> str:
    if status == 401:
        return f"Kaggle does not accept the credentials: make a new token ({ENDPOINT}/settings)"
    if status == 403:
        return f"Kaggle refuses the data: accept the rules on {RULES}, and confirm the account's telephone number"
    return f"Kaggle answered {status} instead of the archive"
