"""Download an uploaded run in order to resume it on another machine."""

from rebar.errors import RebarError
from rebar.reporting.run_folder import RunFolder
from rebar.storage.boto import make_client
from rebar.storage.files import sha256_of
from rebar.storage.run_store import RunStore
from rebar.storage.s3 import S3Prefix
from rebar.training.distributed import World, gather_from_all, wait_for_all


def run_store(address: str, folder: RunFolder) -> RunStore:
    """Return the store of this folder's run below ``address``. Raises AwsError if that is not an S3 URL."""
    prefix = S3Prefix.parse(address, "logging.upload").below(folder.path.resolve().name)
    return RunStore(make_client("s3"), prefix, threads=0)  # the upload thread is a daemon: it starts no others


def fetch_run(address: str, folder: RunFolder, world: World, *, resume: str, overwrite: bool) -> None:
    """Download the uploaded run if the folder has no checkpoint. ``resume`` is the value of --resume.

    Every rank must call it; the first rank of each node downloads. If nodes with separate folders do not all
    have the same checkpoint, all of them use the uploaded one. Raises RebarError if S3 cannot be read
    (``aws-*``, ``s3-*``), if ``--resume none`` would replace an uploaded run (``run-exists``), or if the nodes have
    different checkpoints and nothing is uploaded (``checkpoint-differs-between-nodes``).
    """
    if not address or (resume != "auto" and (resume != "none" or overwrite)):
        return
    gathered = gather_from_all(_checksum(folder) if world.is_local_main else None, world)
    present = {checksum for checksum in gathered if checksum is not None}
    if len(present) == 1 and all(present) and resume == "auto":
        return
    store = run_store(address, folder)
    for is_turn in (world.is_main, world.is_local_main and not world.is_main):  # the nodes may share the folder
        if is_turn:
            manifest = store.read_manifest()
            if manifest is not None and resume == "none":
                raise RebarError(
                    f"{store.url} contains an earlier run. Omit --resume none to resume it, add --overwrite to "
                    "replace it, or choose another --logging.folder.",
                    code="run-exists",
                )
            if manifest is not None and _checksum(folder) != manifest.last.sha256:
                fetched = store.fetch(folder.path)
                assert fetched is not None
                print(f"fetched   {store.url}/{fetched.last.object}, uploaded by {fetched.host}", flush=True)
            if manifest is None and any(present):
                raise RebarError(
                    f"{folder.path}: the nodes have different checkpoints, and {store.url} has none. Put the folder "
                    "on a shared file system, or copy it to all nodes.",
                    code="checkpoint-differs-between-nodes",
                )
        wait_for_all(world)


def _checksum(folder: RunFolder) -> str:
    """Return the SHA-256 of the last checkpoint; empty if there is none."""
    if not folder.last_checkpoint.is_file():
        return ""
    with folder.last_checkpoint.open("rb") as file:
        return sha256_of(file)
