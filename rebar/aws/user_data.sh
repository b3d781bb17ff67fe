#!/usr/bin/env bash
#
# User data of a launched instance, rendered by 'python -m rebar.aws userdata render'. Secrets are not in this script:
# the machine reads them from SSM. On every exit the run folder is uploaded to S3, and the machine shuts down, which
# terminates it.
set -euo pipefail

#VARIABLES#

export HOME=${HOME:-/root}
root=${REBAR_ROOT:-}          # tests use a folder instead of /
log=$root/var/log/rebar.log
repo=$root/opt/rebar
run_folder=$root/opt/rebar-run
secrets=$root/run/rebar/environment
copy=$root/mnt/rebar-copy
python=$repo/.venv/bin/python
data_folder=
uploader=

say() { printf '%s rebar: %s\n' "$(date -u +%FT%TZ)" "$*"; }

# ---------------------------------------------------------------------------- exit

# Called first, so that the machine shuts down even if a later step hangs.
arm_timer() {
    shutdown -P "+$max_minutes" "rebar: the maximum of $max_minutes minutes is over"
}

# Checkpoints are replaced by renaming: a hard link keeps the old version unchanged during its upload.
upload() {
    local copy_of_run=$root/opt/rebar-upload
    [[ -d $run_folder ]] || return 0
    rm -rf "$copy_of_run"
    cp --archive --link "$run_folder" "$copy_of_run"
    aws s3 sync --region "$region" --only-show-errors --exclude '*.partial-*' "$copy_of_run" "$results/run"
    if [[ -f $log ]]; then aws s3 cp --region "$region" --only-show-errors "$log" "$results/machine.log"; fi
}

upload_periodically() {
    while sleep "${REBAR_UPLOAD_SECONDS:-60}" >/dev/null 2>&1; do  # sleep outlives this script and must not keep the log open
        upload || say "upload failed, retrying in a minute"
    done
}

finish() {
    local status=$? attempt
    trap - EXIT
    set +e
    say "exit status $status"
    if [[ -n $uploader ]]; then kill "$uploader"; wait "$uploader"; fi 2>/dev/null
    for attempt in 1 2 3; do
        upload && break
        say "upload failed ($attempt of 3)"
        sleep "${REBAR_RETRY_SECONDS:-10}"
    done
    echo "$status" | aws s3 cp --region "$region" --only-show-errors - "$results/exit-status"
    delete_copy_volume
    shutdown -P now
    exit "$status"
}

# ---------------------------------------------------------------------------- rebar

install_rebar() {
    say "installing $source"
    mkdir -p "$repo"
    if [[ $source == s3://* ]]; then
        aws s3 cp --region "$region" --only-show-errors "$source" - | tar -xzf - -C "$repo"
    else
        git clone --quiet "$source" "$repo"
    fi
    if [[ -n $revision ]]; then git -C "$repo" checkout --quiet "$revision"; fi
    (cd "$repo" && ./scripts/setup.sh && .venv/bin/python -m pip install --quiet boto3)
}

fetch_secrets() {
    local pair
    install -d -m 700 "$(dirname "$secrets")"
    install -m 600 /dev/null "$secrets"
    for pair in "${secret_names[@]}"; do
        printf '%s=%s\n' "${pair%%=*}" "$(aws ssm get-parameter --region "$region" --with-decryption \
            --name "${pair#*=}" --query Parameter.Value --output text)" >>"$secrets"
    done
}

# ---------------------------------------------------------------------------- data

choose_data_folder() {
    if mountpoint --quiet "$root/opt/dlami/nvme"; then  # AWS's Deep Learning AMIs mount the instance store
        data_folder=$root/opt/dlami/nvme/rebar
    else
        data_folder=$root/opt/rebar-data
        "$python" -m rebar.aws data disks "$data_folder" --yes
    fi
    mkdir -p "$data_folder"
}

copy_data() {
    choose_data_folder
    [[ -n $data ]] || return 0
    say "copying data to $data_folder"
    if [[ $data == s3://* ]]; then
        local name
        for name in train.beton val.beton; do
            "$python" -m rebar.aws data stage --region "$region" "$data/$name" "$data_folder/$name"
        done
    else
        copy_from_snapshot
    fi
}

copy_from_snapshot() {
    local zone name
    zone=$("$python" -c 'from rebar.aws.instances import this_machine; print(this_machine().zone)')
    "$python" -m rebar.aws snapshot restore --region "$region" --project "$project" "$data" --zone "$zone" \
        --run "$run" --role copy --throughput 500 --expires-days 1 --yes
    "$python" -m rebar.aws volume attach --region "$region" --project "$project" "$run/copy" --yes
    "$python" -m rebar.aws volume mount --region "$region" --project "$project" "$run/copy" "$copy" --read-only --yes
    "$repo/scripts/stage_dataset.sh" "$copy" "$data_folder"
    for name in "$copy"/*.beton; do  # without a sidecar, the volume's manifest has the checksum
        if [[ ! -f $name.json ]]; then
            grep -F "  ${name##*/}" "$copy/rebar.sha256" | (cd "$data_folder" && sha256sum --check --quiet)
        fi
    done
}

# The volume was only read, so 'volume delete' permits it if the snapshot is verified. Otherwise 'cost sweep' lists it.
delete_copy_volume() {
    [[ $data == snap-* && -x $python ]] || return 0
    local -a target=(--region "$region" --project "$project" "$run/copy" --yes)
    "$python" -m rebar.aws volume umount "${target[@]}" && "$python" -m rebar.aws volume detach "${target[@]}" &&
        "$python" -m rebar.aws volume delete "${target[@]}"
}

# ---------------------------------------------------------------------------- training

download_run() {
    mkdir -p "$run_folder"
    aws s3 sync --region "$region" --only-show-errors "$results/run" "$run_folder"
    if [[ -n $(ls -A "$run_folder") ]]; then say "resuming the run in $results"; fi
}

# Training is stopped ten minutes before the timer, so that its checkpoint is uploaded in time.
run_command() {
    local minutes=$((max_minutes > 20 ? max_minutes - 10 : max_minutes))
    say "${command[*]}"
    systemd-run --unit=rebar-work --wait --collect --working-directory="$repo" \
        --property=EnvironmentFile="$secrets" --property=KillMode=mixed --property=TimeoutStopSec=180 \
        --property=StandardOutput=append:"$log" --property=StandardError=append:"$log" \
        --setenv=RUN_FOLDER="$run_folder" --setenv=DATA_FOLDER="$data_folder" --setenv=PATH="$repo/.venv/bin:$PATH" \
        timeout --signal=TERM --kill-after=180 "${minutes}m" "${command[@]}"
}

main() {
    arm_timer
    trap finish EXIT
    install_rebar
    fetch_secrets
    copy_data
    download_run
    upload_periodically &
    uploader=$!
    run_command
}

mkdir -p "$(dirname "$log")"
exec > >(tee -a "$log") 2>&1
main
