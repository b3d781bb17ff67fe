#!/usr/bin/env bash
#
# Write ImageNet as .beton files to an EBS volume, snapshot the volume, and restore it. Run on an EC2 instance, as root.
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

  setup      create, format and mount a volume, download ImageNet, write train.beton and val.beton
  snapshot   snapshot the volume with checksums, verify the snapshot on a copy; the volume stays unmounted
  ebs-only   create a volume from the newest snapshot and mount it read-only

  --extract             setup: also unpack the archives to IMAGENET_DIR/tree; the .beton files do not need it

  IMAGENET_SOURCE=...   the source of ImageNet; several, separated by blanks, are downloaded one after the other:
      PATH              a folder of train/<class>/*.JPEG and val/<class>/*.JPEG, or of ILSVRC's archives
      s3://BUCKET/PREFIX                       the same in S3
      hf:imagenet-1k                           Hugging Face, with HF_TOKEN
      kaggle                                   with KAGGLE_USERNAME and KAGGLE_KEY (pip install kaggle)
      FILE.torrent, https://….torrent, magnet:?…, or an info hash at academictorrents.com (apt-get install aria2)
      https://…/ILSVRC2012_img_train.tar       URLs of the archives (apt-get install aria2)
  IMAGENET_DIR=PATH     folder for downloads (default /imagenet): 155 GB, with kaggle 330
  IMAGENET_MD5=FILE     additional MD5s, in the format of md5sum
  IMAGENET_DEVKIT=URL   the development kit, which has the classes of the validation images
  ORIGINALS_SIZE=GIB    put IMAGENET_DIR on a separate volume, RUN/originals, which 'snapshot' saves too
  RUN=NAME              name of the volumes (default imagenet)
  FOLDER=PATH           mount point of the volume with the .beton files (default /data)
  SIZE=GIB              its size (default 100)
  WRITE_FLAGS=...       flags of write_dataset.py, such as --max-resolution 400

example: KAGGLE_USERNAME=me KAGGLE_KEY=… IMAGENET_SOURCE=kaggle $0 setup
Costs are in docs/aws.md. Each step can be repeated, and resumes after an interruption.
TEXT
    exit 2
}

rebar_aws() { (cd "$repo" && "$python" -m rebar.aws "$@" --yes); }

this_zone() { (cd "$repo" && "$python" -c 'from rebar.aws.instances import this_machine; print(this_machine().zone)'); }

# blank_volume ROLE GIB FOLDER: create a volume and mount it read-write.
blank_volume() {
    rebar_aws volume create --run "$run" --role "$1" --zone "$(this_zone)" --size "$2"
    rebar_aws volume attach "$run/$1"
    rebar_aws volume mount "$run/$1" "$3" --format ext4
}

# Print the value for --data-dir; all other output goes to standard error.
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
    if [[ -z ${IMAGENET_SOURCE:-} ]]; then
        echo "error: IMAGENET_SOURCE is not set. Set it to a source of ImageNet: $0 without arguments lists them" >&2
        exit 2
    fi
    read -ra flags <<<"${WRITE_FLAGS:-}"
    blank_volume beton "$size" "$folder"
    if [[ -n $originals_size ]]; then blank_volume originals "$originals_size" "$downloads"; fi
    if [[ -f $folder/train.beton && -f $folder/val.beton && -z $extract ]]; then
        echo "$folder/train.beton and $folder/val.beton exist"
    else
        images=$(obtain)
        for split in train val; do
            if [[ -f $folder/$split.beton ]]; then
                echo "$folder/$split.beton exists"
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
        rebar_aws snapshot create "$run/$role"
        rebar_aws snapshot verify "$run/$role"
        echo "the volume can be deleted: volume detach $run/$role, then volume delete $run/$role"
    done
}

# Check sizes and tables against the sidecars; 'snapshot verify' has compared every byte.
check_betons() {
    local split sheets
    sheets=$(mktemp -d)
    for split in train val; do
        (cd "$repo" && "$python" write_dataset.py --info "$folder/$split.beton" --out "$sheets/$split.png")
    done
    rm -r "$sheets"
    echo "to verify all images: python write_dataset.py --verify $folder/train.beton"
}

ebs_only() {
    rebar_aws snapshot restore "$run/beton" --zone "$(this_zone)"
    rebar_aws volume attach "$run/beton"
    rebar_aws volume mount "$run/beton" "$folder" --read-only
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
