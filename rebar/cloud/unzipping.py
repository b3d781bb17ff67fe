"""Kaggle's archive is a zip of single pictures: unpacked, gone on with after a kill, every CRC compared."""

import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from rebar.cloud.downloading import require_space
from rebar.cloud.errors import CloudError
from rebar.cloud.progress import Progress

THREADS = 8


def unzip(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Unpack the members whose names are wanted; those already there in full size are left.

    Raises CloudError for an archive that is damaged or cut short, and for too little space.
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
                    raise CloudError(f"{archive}: holds {each.filename!r}, which would lie outside of {folder}")
            missing = [each for each in members if not _is_there(folder / each.filename, each.file_size)]
            require_space(folder, sum(each.file_size for each in missing), f"what is in {archive.name}")
            _extract(opened, missing, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CloudError(f"{archive}: is damaged ({error}): delete it and run the command again") from None
    except OSError as error:
        raise CloudError(f"{folder}: {archive.name} cannot be unpacked: {error.strerror or error}") from None
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
