"""A volume is mounted on this machine, formatted before only if it is blank and ours."""

from pathlib import Path

from rebar.cloud.attaching import detach_volume
from rebar.cloud.clients import Clients
from rebar.cloud.clock import SECOND, aws_time
from rebar.cloud.devices import device_of, is_here
from rebar.cloud.errors import CloudError
from rebar.cloud.formatting import KINDS, format_volume, probe, require_formattable
from rebar.cloud.mounts import OPTIONS, PURE_READING, mount, mounts_of, only_mount_of, require_free_target, unmount
from rebar.cloud.plan import Mode, Step, agreed
from rebar.cloud.tags import LAST_MOUNT, as_text
from rebar.cloud.volumes import Volume, attachment, require_attached, set_tags


def mount_volume(
    clients: Clients, volume: Volume, target: Path, mode: Mode, *, kind: str | None = None, read_only: bool = False
) -> None:
    """Mount a volume that is attached to this machine; ``kind``: make this file system first, where all is blank.

    Mounting for writing is noted in a tag before: only snapshots taken later vouch for the volume's content.
    """
    volume_id = volume["VolumeId"]
    require_attached(volume)
    device, target = device_of(volume_id), target.absolute()
    mounted = only_mount_of(device)
    if mounted is not None:
        _require_same_mount(volume_id, mounted.target, target, mounted.writable, read_only)
        print(f"{volume_id} is mounted on {target} already")
        return
    require_free_target(target)
    found = probe(device).get("TYPE")
    steps = []
    if found is None:
        if kind is None:
            raise CloudError(f"{volume_id} holds no file system: --format ext4 makes one, if it was created blank")
        require_formattable(volume)
        steps.append(Step(f"make {kind} on {device}, after checking that all of it is blank"))
    elif found not in KINDS:
        raise CloudError(f"{volume_id} holds {found}, which is not mounted: only {' and '.join(KINDS)} are")
    elif kind is not None:
        require_formattable(volume)  # what an interrupted command began is finished; anything else stops below
    access = "for reading only" if read_only else "for reading and writing"
    steps.append(Step(f"mount {device} on {target}, {access}"))
    if not agreed(mode, f"volume {volume_id}", steps):
        return
    if kind is not None:
        format_volume(clients, volume, device, kind)
    mount_device(clients, volume, device, target, read_only=read_only)
    print(f"{volume_id} is mounted on {target}")


def mount_device(clients: Clients, volume: Volume, device: Path, target: Path, *, read_only: bool) -> None:
    """Mount a volume's device; tags the volume first where it becomes writable."""
    kind = probe(device).get("TYPE", "")
    if kind not in KINDS:
        raise CloudError(f"{device} holds {kind or 'nothing'} that could be mounted")
    if not read_only:
        set_tags(clients, volume["VolumeId"], {LAST_MOUNT: as_text(aws_time(clients) + SECOND)})
    mount(device, target, kind, options=PURE_READING[kind] if read_only else OPTIONS[kind])


def _require_same_mount(volume_id: str, at: Path, target: Path, writable: bool, read_only: bool) -> None:
    if at != target:
        raise CloudError(f"{volume_id} is mounted on {at}: unmount it there first (volume umount {volume_id})")
    if writable == read_only:
        access = "for writing" if writable else "for reading only"
        raise CloudError(f"{volume_id} is mounted on {at} {access}: unmount it first (volume umount {volume_id})")


def unmount_volume(volume: Volume, mode: Mode) -> None:
    """Unmount a volume from wherever on this machine it is mounted."""
    volume_id = volume["VolumeId"]
    places = mounts_of(device_of(volume_id, seconds=0)) if is_here(volume_id) else []
    if not places:
        print(f"{volume_id} is not mounted on this machine")
        return
    steps = [Step(f"write everything out and unmount {place.target}") for place in places]
    if agreed(mode, f"volume {volume_id}", steps):
        for place in places:
            unmount(place.target)
            print(f"unmounted {place.target}")


def detach_unmounted(clients: Clients, volume: Volume, mode: Mode, *, instance_is_down: bool) -> None:
    """Detach a volume that is on this machine and not mounted, or whose machine is stopped.

    Raises CloudError for any other: what another running machine has mounted cannot be seen from here.
    """
    volume_id = volume["VolumeId"]
    if attachment(volume) is not None and not instance_is_down:
        if not is_here(volume_id):
            raise CloudError(
                f"{volume_id} is attached to a running machine that is not this one: unmount and detach it there, "
                "or stop that machine first"
            )
        if places := mounts_of(device_of(volume_id, seconds=0)):
            raise CloudError(f"{volume_id} is mounted on {places[0].target}: volume umount {volume_id} first")
    detach_volume(clients, volume, mode)
