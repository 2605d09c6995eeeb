#!/bin/bash
# Stops what start.sh started in DIR, and nothing else: the processes named by its pid files, and
# the steps of its jobs.
# usage: stop.sh DIR
set -uo pipefail

dir=${1:?usage: stop.sh DIR}
export SLURM_CONF=$dir/slurm.conf

wait_for() { # up to 8 s for a command to succeed
    for _ in $(seq 80); do
        "$@" && return 0
        sleep 0.1
    done
    return 1
}
no_jobs() { [ -z "$(squeue --noheader 2>/dev/null)" ]; }
gone() { ! kill -0 "$1" 2>/dev/null; }

stop() { # TERM to the processes of these pid files, all at once; KILL to what stays
    local file pids=()
    for file in "$@"; do
        [ -s "$file" ] && pids+=("$(<"$file")")
    done
    [ ${#pids[@]} -gt 0 ] || return 0
    kill -TERM "${pids[@]}" 2>/dev/null
    local pid
    for pid in "${pids[@]}"; do
        wait_for gone "$pid" || kill -KILL "$pid" 2>/dev/null
    done
}

scancel --user=root 2>/dev/null
wait_for no_jobs
stop "$dir"/slurmctld.pid "$dir"/slurmd.*.pid
stop "$dir"/munged.pid  # the others still sign their last messages
# Steps that a killed slurmd or a slow end left behind: nothing else has this configuration.
left=$(grep -lz "^SLURM_CONF=$dir/slurm.conf$" /proc/[0-9]*/environ 2>/dev/null | grep -o '[0-9]*')
for pid in $left; do
    [ "$pid" -eq $$ ] || [ "$pid" -eq "$PPID" ] || kill -KILL "$pid" 2>/dev/null
done
exit 0
