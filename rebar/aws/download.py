"""Download files with aria2 (HTTP and BitTorrent) and with Kaggle's command line."""

import os
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from rebar.cli import progress_bar
from rebar.storage.aws import AwsError
from rebar.storage.files import check_output, require_space

INSTALL = {"aria2c": "apt-get install aria2", "kaggle": "pip install kaggle"}
ACADEMIC_TORRENTS = "https://academictorrents.com/download/"
INFO_HASH = re.compile(r"[0-9a-fA-F]{40}")
STALLED_SECONDS = 900
"""aria2 stops a torrent after this time without data."""
RETRY_SECONDS = 2
PROBE_SECONDS = 30
UNZIP_THREADS = 8
_ARIA2_EXIT_STATUS = {
    3: "the server answered 404 Not Found",
    7: "the download is unfinished: it was interrupted, or no peer sends the missing pieces",
    9: "the disk is full",
    24: "the server requires a login",
    28: "the torrent, or an option, is not valid",
}
"""https://aria2.github.io/manual/en/html/aria2c.html#exit-status"""


def redacted_url(url: str) -> str:
    """Return a URL without user, password and query, which may be secret."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def download(url: str, target: Path) -> None:
    """Download a file with aria2. An interrupted download resumes, unless the file on the server has changed.

    ``target`` appears once it is complete. Raises AwsError ``program-missing`` or ``download-failed``, and RebarError
    ``disk-full``.
    """
    if target.is_file():
        return
    _require("aria2c")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    version_file = partial.with_name(f"{partial.name}.version")
    size, version = _size_and_version(url)
    is_changed = bool(version) and version_file.is_file() and version_file.read_text() != version
    if is_changed:  # these bytes cannot be completed any more
        partial.with_name(f"{partial.name}.aria2").unlink(missing_ok=True)
        partial.unlink(missing_ok=True)
    require_space(target, size - (partial.stat().st_blocks * 512 if partial.is_file() else 0))
    if version:
        version_file.write_text(version)
    options = [f"--dir={target.parent}", "--continue=true", "--auto-file-renaming=false"]
    options += [f"--retry-wait={RETRY_SECONDS}", "--always-resume=false"]
    _run_aria2(redacted_url(url), f"{url}\n  out={partial.name}\n", *options)
    version_file.unlink(missing_ok=True)
    with partial.open("rb") as file:
        if file.read(64).lstrip().lower().startswith((b"<!doctype html", b"<html")):
            partial.unlink()
            raise AwsError(
                f"{redacted_url(url)}: the server sent an HTML page, not a file. Log in there and copy a new link.",
                code="download-failed",
            )
    os.replace(partial, target)


def _size_and_version(url: str) -> tuple[int, str]:
    """Return the size of a file on a server, and its ETag or modification time; 0 and "" if they are unknown."""
    request = urllib.request.Request(url, headers={"Range": "bytes=0-0"})  # signed URLs do not permit HEAD
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS) as response:
            headers = response.headers
    except (OSError, ValueError, HTTPException):  # aria2 reports it
        return 0, ""
    size = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length", "")
    return int(size) if size.isdigit() else 0, headers.get("ETag") or headers.get("Last-Modified") or ""


def is_torrent(source: str) -> bool:
    """Return whether a source is a .torrent file or URL, a magnet link, or an info hash at Academic Torrents."""
    return source.startswith("magnet:?") or source.endswith(".torrent") or bool(INFO_HASH.fullmatch(source))


def download_torrent(source: str, folder: Path) -> None:
    """Download the files of a torrent into a folder with aria2, which compares every piece with its hash.

    Existing files are checked, and only missing pieces are downloaded. Raises AwsError ``program-missing`` or
    ``download-failed``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if INFO_HASH.fullmatch(source):
        source = f"{ACADEMIC_TORRENTS}{source.lower()}.torrent"
    options = [
        "--check-integrity=true",
        "--seed-time=0",
        "--follow-torrent=mem",
        f"--bt-stop-timeout={STALLED_SECONDS}",
    ]
    options += ["--bt-save-metadata=true", "--bt-load-saved-metadata=true"]  # keeps the metadata of a magnet link
    if source.startswith("magnet:?") and "xt=urn:btih:" not in source:
        raise AwsError("The magnet link has no xt=urn:btih:... Copy the complete link.", code="download-not-found")
    if "://" in source or source.startswith("magnet:?"):
        name = redacted_url(source) if "://" in source else "the magnet link"
        _run_aria2(name, f"{source}\n", f"--dir={folder}", *options)
    elif Path(source).is_file():
        _run_aria2(source, "", f"--dir={folder}", *options, f"--torrent-file={Path(source).absolute()}")
    else:
        raise AwsError(f"{source}: the file does not exist.", code="download-not-found")


def _run_aria2(name: str, downloads: str, *options: str) -> None:
    """Run aria2. URLs are written to its standard input (``downloads``), since other users can read command lines."""
    always = [f"--stop-with-process={os.getpid()}", "--file-allocation=none", "--summary-interval=60"]
    always += ["--auto-save-interval=1"]  # seconds of progress that a kill can lose
    always += ["--download-result=hide", "--console-log-level=error", "--allow-overwrite=true"]
    always += ["--input-file=-"] if downloads else []
    command = [_require("aria2c"), *always, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(downloads)
        process.stdin.close()
        for line in process.stdout:
            sys.stderr.write(re.sub(r"(?<=[?@])\S+|(?<=://)[^/\s]+@", "***", line))  # secrets in URLs
    if process.returncode:
        reason = _ARIA2_EXIT_STATUS.get(process.returncode, f"aria2c ended with status {process.returncode}")
        raise AwsError(f"{name}: {reason}. The same command resumes the download.", code="download-failed")


def _require(program: str) -> str:
    if shutil.which(program) is None:
        raise AwsError(f"{program} is not installed. Run {INSTALL[program]}.", code="program-missing")
    return program


def download_competition(competition: str, folder: Path) -> Path:
    """Download the zip of a Kaggle competition with ``kaggle competitions download``, which resumes. Returns its path.

    Raises AwsError ``program-missing`` or ``download-failed``.
    """
    archive = folder / f"{competition}.zip"
    done = subprocess.run(
        [_require("kaggle"), "competitions", "download", "--competition", competition, "--path", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=sys.__stderr__,
    )
    if done.returncode or not archive.is_file():
        raise AwsError(
            f"kaggle: exit status {done.returncode}. Set KAGGLE_USERNAME and KAGGLE_KEY "
            "(https://www.kaggle.com/settings), and accept the rules on "
            f"https://www.kaggle.com/competitions/{competition}/rules. The same command resumes the download.",
            code="download-failed",
        )
    return archive


def unzip(archive: Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Extract the members for which ``wanted(name)`` is true, in parallel. Skips files that have their final size.

    Files appear once they are complete. Raises AwsError ``archive-damaged`` if a CRC is wrong, ``write-target-exists``
    if a file of another size exists, and RebarError ``disk-full``.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir() and wanted(member.filename)]
            missing = [member for member in members if not _is_extracted(folder / member.filename, member.file_size)]
            for member in missing:
                if ".." in Path(member.filename).parts:
                    raise zipfile.BadZipFile(f"it contains the path {member.filename}")
                if (folder / member.filename).exists():
                    check_output(folder / member.filename, overwrite=False)
            require_space(folder / archive.name, sum(member.file_size for member in missing))
            for parent in {(folder / member.filename).parent for member in missing}:
                parent.mkdir(parents=True, exist_ok=True)
            with (
                ThreadPoolExecutor(UNZIP_THREADS) as pool,
                progress_bar(f"extracting {archive.name}", len(missing), "files") as bar,
            ):
                for _ in pool.map(lambda member: _extract(opened, member, folder / member.filename), missing):
                    bar.update()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise AwsError(
            f"{archive} is damaged ({error}). Delete it and run the command again.", code="archive-damaged"
        ) from None


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    with archive.open(member) as content, partial.open("wb") as file:
        shutil.copyfileobj(content, file)
    os.replace(partial, target)


def _is_extracted(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
