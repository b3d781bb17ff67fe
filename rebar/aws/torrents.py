"""ImageNet by BitTorrent: aria2 does it; which torrent is for the user to say."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from rebar.aws.client import AwsError
from rebar.aws.download import Address, download, require_space

ACADEMIC = "https://academictorrents.com/download/"
INFO_HASH = re.compile(r"[0-9a-fA-F]{40}")
IN_MAGNET = re.compile(r"xt=urn:btih:([0-9a-zA-Z]+)")
LISTED = re.compile(r"^\s*\d+\|(.+)\n\s*\|.*\(([\d,]+)\)", re.MULTILINE)
FOLDER = ".torrents"
STANDARD_ERROR = 2
STALLED_SECONDS = 900
"""aria2 gives up where nothing arrived for so long: nobody has the file any more."""


def is_torrent(source: str) -> bool:
    """Whether a source is a .torrent file or URL, a magnet link, or a torrent's hash at Academic Torrents."""
    return source.startswith("magnet:?") or source.endswith(".torrent") or bool(INFO_HASH.fullmatch(source))


def fetch_torrent(source: str, folder: Path) -> list[Path]:
    """Fetch all files of a torrent into a folder, every piece compared with its hash; returns the files.

    Goes on after a kill, and does nothing where the files are there. Raises AwsError.
    """
    if shutil.which("aria2c") is None:
        raise AwsError("the program aria2c is missing: install aria2 (apt-get install aria2)")
    torrent = _torrent_file(source, folder / FOLDER)
    listed = {folder / name: int(size.replace(",", "")) for name, size in LISTED.findall(_listing(torrent))}
    if not listed:
        raise AwsError(f"{torrent}: aria2 finds no files in it: it is no torrent")
    outside = [path for path in listed if not path.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise AwsError(f"{torrent}: holds {outside[0]}, which would lie outside of {folder}")
    if not _lacking(folder, listed):
        return list(listed)
    present = sum(path.stat().st_blocks * 512 for path in listed if path.is_file())
    require_space(folder, sum(listed.values()) - present, f"the torrent {torrent.name}")
    _aria2("--dir", folder, "--check-integrity=true", "--seed-time=0", "--file-allocation=none", torrent)
    if lacking := _lacking(folder, listed):
        raise AwsError(f"aria2 ended, but {', '.join(lacking)} is not whole: run the command again, it goes on")
    return list(listed)


def _lacking(folder: Path, listed: Mapping[Path, int]) -> list[str]:
    """The files that are not whole; aria2 keeps a control file beside the file or folder it has not finished."""

    def is_whole(path: Path, size: int) -> bool:
        control = folder / f"{path.relative_to(folder).parts[0]}.aria2"
        return path.is_file() and path.stat().st_size == size and not control.exists()

    return [path.name for path, size in listed.items() if not is_whole(path, size)]


def _torrent_file(source: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if source.startswith("magnet:?"):
        found = IN_MAGNET.search(source)
        if found is None:
            raise AwsError("the magnet link names no torrent: xt=urn:btih:… is missing")
        before = set(folder.glob("*.torrent"))
        named = folder / f"{found[1].lower()}.torrent"
        if not named.is_file():
            _aria2("--dir", folder, "--bt-metadata-only=true", "--bt-save-metadata=true", source)
        made = [named] if named.is_file() else sorted(set(folder.glob("*.torrent")) - before)
        if not made:
            raise AwsError(
                "aria2 did not find out what the magnet link holds: run the command again, or give a .torrent"
            )
        return made[0]
    if INFO_HASH.fullmatch(source):
        source = f"{ACADEMIC}{source.lower()}.torrent"
    if source.startswith(("http://", "https://")):
        target = folder / source.rpartition("/")[2]
        download(lambda: Address(source), target)
        return target
    path = Path(source)
    if not path.is_file():
        raise AwsError(f"{path}: no such file")
    return path


def _listing(torrent: Path) -> str:
    done = subprocess.run(["aria2c", "--show-files", str(torrent)], capture_output=True, text=True)
    if done.returncode != 0:
        raise AwsError(f"{torrent}: is no torrent that aria2 can read: fetch it again")
    return done.stdout


def _aria2(*words: str | Path) -> None:
    """Run aria2, its progress to standard error; Ctrl-C ends both."""
    always = [f"--bt-stop-timeout={STALLED_SECONDS}", "--summary-interval=60", "--console-log-level=warn"]
    always.append(f"--stop-with-process={os.getpid()}")  # if we are killed, it does not go on alone
    done = subprocess.run(["aria2c", *always, *map(str, words)], stdin=subprocess.DEVNULL, stdout=STANDARD_ERROR)
    if done.returncode == 7:
        raise AwsError("aria2 was interrupted, or nobody sends the torrent's files: run the command again, it goes on")
    if done.returncode != 0:
        raise AwsError(f"aria2 ended with status {done.returncode}: what it says stands above")
