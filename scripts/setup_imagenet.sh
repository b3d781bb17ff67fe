#!/usr/bin/env bash
#
# ImageNet as .beton files on an EBS volume, and back from its snapshot; on a machine of EC2, as root.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=${RUN:-imagenet}
folder=${FOLDER:-/data}
size=${SIZE:-100}
name=$run/beton
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3

usage() {
    cat >&2 <<TEXT
usage: $0 setup|snapshot|ebs-only

  setup      make a volume, format and mount it, write train.beton and val.beton from IMAGENET_SOURCE
  snapshot   snapshot it with checksums, verify the snapshot on a copy; the volume is left unmounted
  ebs-only   a volume from the newest snapshot, mounted for reading only

  IMAGENET_SOURCE=PATH  train/<class>/*.JPEG and val/<class>/*.JPEG: a folder, or s3://BUCKET/PREFIX, which is
                        copied to IMAGENET_DIR (default /imagenet) first
  RUN=NAME              what the volume is called (default imagenet)
  FOLDER=PATH           where it is mounted (default /data)
  SIZE=GIB              its size (default 100)

example: IMAGENET_SOURCE=s3://my-bucket/imagenet $0 setup
It costs what docs/aws.md says; each step can be repeated, and finishes what was interrupted.
TEXT
    exit 2
}

cloud() { (cd "$repo" && "$python" -m rebar.cloud "$@" --yes); }

this_zone() { (cd "$repo" && "$python" -c 'from rebar.cloud.metadata import this_machine; print(this_machine().zone)'); }

source_folder() {
    if [[ $IMAGENET_SOURCE == s3://* ]]; then
        aws s3 sync --only-show-errors "$IMAGENET_SOURCE" "${IMAGENET_DIR:-/imagenet}" >&2
        echo "${IMAGENET_DIR:-/imagenet}"
    else
        realpath "$IMAGENET_SOURCE"
    fi
}

setup() {
    local source split zone
    : "${IMAGENET_SOURCE:?a folder or s3://BUCKET/PREFIX with train/ and val/}"
    zone=$(this_zone)
    cloud volume create --run "$run" --role beton --zone "$zone" --size "$size"
    cloud volume attach "$name"
    cloud volume mount "$name" "$folder" --format ext4
    source=$(source_folder)
    for split in train val; do
        if [[ -f $folder/$split.beton ]]; then
            echo "$folder/$split.beton is there already"
        else
            (cd "$repo" && "$python" write_dataset.py --split "$split" --data-dir "$source" --write-path "$folder/")
        fi
    done
    echo "next: $0 snapshot"
}

snapshot() {
    cloud snapshot create "$name"
    cloud snapshot verify "$name"
    echo "the volume is not needed any more: volume detach $name, then volume delete $name"
}

ebs_only() {
    local zone
    zone=$(this_zone)
    cloud snapshot restore "$name" --zone "$zone"
    cloud volume attach "$name"
    cloud volume mount "$name" "$folder" --read-only
    ls -l "$folder"
}

(($# == 1)) || usage
case $1 in
    setup) setup ;;
    snapshot) snapshot ;;
    ebs-only) ebs_only ;;
    *) usage ;;
esac
