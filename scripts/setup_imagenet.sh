#!/usr/bin/env bash
#
# ImageNet as .beton files on an EBS volume, and back from its snapshot; on a machine of EC2, as root.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=${RUN:-imagenet}
folder=${FOLDER:-/data}
size=${SIZE:-100}
downloads=${IMAGENET_DIR:-/imagenet}
originals_size=${ORIGINALS_SIZE:-}
extract=
python=$repo/.venv/bin/python
[[ -x $python ]] || python=python3

usage() {
    cat >&2 <<TEXT
usage: $0 setup|snapshot|ebs-only [--extract]

  setup      make a volume, format and mount it, fetch ImageNet, write train.beton and val.beton
  snapshot   snapshot it with checksums, verify the snapshot on a copy; the volume is left unmounted
  ebs-only   a volume from the newest snapshot, mounted for reading only

  --extract             setup: also unpack the archives, to IMAGENET_DIR/tree; writing the .beton files needs no tree

  IMAGENET_SOURCE=...   where ImageNet comes from; several, with blanks between them, are fetched one by one:
      PATH              a folder of train/<class>/*.JPEG and val/<class>/*.JPEG, or of ILSVRC's archives
      s3://BUCKET/PREFIX                       the same in S3
      hf:imagenet-1k                           Hugging Face, with HF_TOKEN
      kaggle                                   with KAGGLE_USERNAME and KAGGLE_KEY
      FILE.torrent, https://….torrent, magnet:?…, or a torrent's hash at academictorrents.com
      https://…/ILSVRC2012_img_train.tar       addresses of the archives
  IMAGENET_DIR=PATH     where downloads go (default /imagenet): 155 GB, with kaggle 330
  IMAGENET_MD5=FILE     MD5s besides the published ones, in the form of md5sum
  IMAGENET_DEVKIT=URL   the development kit, which tells the classes of the validation images
  ORIGINALS_SIZE=GIB    put IMAGENET_DIR on a volume of its own, RUN/originals, which 'snapshot' keeps as well
  RUN=NAME              what the volumes are called (default imagenet)
  FOLDER=PATH           where the .beton files' volume is mounted (default /data)
  SIZE=GIB              its size (default 100)
  WRITE_FLAGS=...       flags of write_dataset.py, such as --max-resolution 400

example: KAGGLE_USERNAME=me KAGGLE_KEY=… IMAGENET_SOURCE=kaggle $0 setup
It costs what docs/aws.md says; each step can be repeated, and finishes what was interrupted.
TEXT
    exit 2
}

cloud() { (cd "$repo" && "$python" -m rebar.aws "$@" --yes); }

this_zone() { (cd "$repo" && "$python" -c 'from rebar.aws.instances import this_machine; print(this_machine().zone)'); }

# blank_volume ROLE GIB FOLDER: a volume of ours, mounted for writing.
blank_volume() {
    cloud volume create --run "$run" --role "$1" --zone "$(this_zone)" --size "$2"
    cloud volume attach "$run/$1"
    cloud volume mount "$run/$1" "$3" --format ext4
}

# Prints what --data-dir is to be; everything else goes to standard error.
obtain() {
    local -a given sources=() options=()
    local source
    if [[ -e $IMAGENET_SOURCE ]]; then given=("$IMAGENET_SOURCE"); else read -ra given <<<"$IMAGENET_SOURCE"; fi
    for source in "${given[@]}"; do
        if [[ -e $source ]]; then source=$(realpath "$source"); fi
        sources+=("$source")
    done
    if [[ -n ${IMAGENET_MD5:-} ]]; then options+=(--md5 "$(realpath "$IMAGENET_MD5")"); fi
    if [[ -n ${IMAGENET_DEVKIT:-} ]]; then options+=(--devkit "$IMAGENET_DEVKIT"); fi
    (cd "$repo" && "$python" -m rebar.aws data obtain "${sources[@]}" --to "$downloads" "${options[@]}")
}

setup() {
    local split images
    local -a flags=()
    : "${IMAGENET_SOURCE:?where ImageNet comes from: $0 without arguments shows what it can be}"
    read -ra flags <<<"${WRITE_FLAGS:-}"
    blank_volume beton "$size" "$folder"
    if [[ -n $originals_size ]]; then blank_volume originals "$originals_size" "$downloads"; fi
    if [[ -f $folder/train.beton && -f $folder/val.beton && -z $extract ]]; then
        echo "$folder/train.beton and $folder/val.beton are there already"
    else
        images=$(obtain)
        for split in train val; do
            if [[ -f $folder/$split.beton ]]; then
                echo "$folder/$split.beton is there already"
            else
                (cd "$repo" && "$python" write_dataset.py --split "$split" --data-dir "$images" \
                    --write-path "$folder/" "${flags[@]}")
            fi
        done
        if [[ -n $extract ]]; then (cd "$repo" && "$python" -m rebar.sources.unpack "$images" "$downloads/tree"); fi
    fi
    echo "next: $0 snapshot"
}

snapshot() {
    local role
    local -a roles=(beton)
    if [[ -n $originals_size ]]; then roles+=(originals); fi
    for role in "${roles[@]}"; do
        cloud snapshot create "$run/$role"
        cloud snapshot verify "$run/$role"
        echo "the volume is not needed any more: volume detach $run/$role, then volume delete $run/$role"
    done
}

# Sizes and tables against the sidecars; 'snapshot verify' has compared every byte.
check_betons() {
    local split sheets
    sheets=$(mktemp -d)
    for split in train val; do
        (cd "$repo" && "$python" write_dataset.py --info "$folder/$split.beton" --out "$sheets/$split.png")
    done
    rm -r "$sheets"
    echo "to read and compare all of it: python write_dataset.py --verify $folder/train.beton"
}

ebs_only() {
    cloud snapshot restore "$run/beton" --zone "$(this_zone)"
    cloud volume attach "$run/beton"
    cloud volume mount "$run/beton" "$folder" --read-only
    check_betons
    ls -l "$folder"
}

step=
for word in "$@"; do
    case $word in
        --extract) extract=yes ;;
        setup | snapshot | ebs-only) [[ -z $step ]] || usage; step=$word ;;
        *) usage ;;
    esac
done
case $step in
    setup) setup ;;
    snapshot) snapshot ;;
    ebs-only) ebs_only ;;
    *) usage ;;
esac
