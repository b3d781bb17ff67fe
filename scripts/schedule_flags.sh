#!/usr/bin/env bash
#
# Sourced by the launchers: sets the array "schedule" to flags of train_imagenet.py. Flags on the command line follow
# them, and take precedence.
#
#   RESET_SCHED=1         --reset-schedule: a new schedule for the remaining epochs
#   FREEZE_LR=1           --freeze-lr: keep the last learning rate
#   FREEZE_LR_VALUE=RATE  use this rate instead (with FREEZE_LR=1)

is_on() { [[ ${1,,} =~ ^(1|true|yes|on)$ ]]; }

schedule=()
if is_on "${RESET_SCHED:-}"; then schedule+=(--reset-schedule); fi
if is_on "${FREEZE_LR:-}"; then
    schedule+=("--freeze-lr=${FREEZE_LR_VALUE:-0}")
elif [[ -n ${FREEZE_LR_VALUE:-} ]]; then
    echo "warning: FREEZE_LR_VALUE has no effect without FREEZE_LR=1" >&2
fi
