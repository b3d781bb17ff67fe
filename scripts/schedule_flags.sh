#!/usr/bin/env bash
#
# Sourced by what starts a training: puts what the environment asks of the schedule into the array "schedule", as flags
# of train_imagenet.py. Flags on the command line come after them, and win.
#
#   RESET_SCHED=1         --reset-schedule: going on with other epochs, a schedule for what is left
#   FREEZE_LR=1           --freeze-lr: hold the learning rate, at the last one or at
#   FREEZE_LR_VALUE=RATE  this one

is_on() { [[ ${1,,} =~ ^(1|true|yes|on)$ ]]; }

schedule=()
if is_on "${RESET_SCHED:-}"; then schedule+=(--reset-schedule); fi
if is_on "${FREEZE_LR:-}"; then
    schedule+=("--freeze-lr=${FREEZE_LR_VALUE:-0}")
elif [[ -n ${FREEZE_LR_VALUE:-} ]]; then
    echo "warning: FREEZE_LR_VALUE has no effect without FREEZE_LR=1" >&2
fi
