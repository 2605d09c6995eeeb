# shellcheck shell=bash
# Shared by the batch scripts: the site's environment, one srun step, the signal before the time
# limit, the requeue, and the nodes that are left when one fails. Sourced; then
# `run_step clt-arguments...` ends the batch script.

requeue_code=85  # clt: "stopped with the state saved, start me again"

if [ -r slurm/site.env ]; then
    # shellcheck source=slurm/site.env.example
    source slurm/site.env
fi
read -ra launcher <<<"${CLT_LAUNCHER:-srun --mpi=pmix}"
binary=${CLT_BINARY:-build/release/clt}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since 22.05 srun no longer inherits it

# The step runs in the background, so that the trap runs at once; srun passes the signal to the ranks.
signalled=  # since the last look
asked=      # ever: then nothing is started any more
step=
forward_signal() {
    signalled=yes
    asked=yes
    [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true
}
trap forward_signal USR1 TERM

# One srun step, to its end; its exit code is in `code`.
one_step() {
    local status
    code=$requeue_code
    [ -z "$asked" ] || return 0
    "${launcher[@]}" "$@" &
    step=$!
    while :; do
        signalled=
        status=0
        wait "$step" || status=$?
        [ "$status" -eq 127 ] && [ "$code" -ne "$requeue_code" ] || code=$status
        [ -n "$signalled" ] || break
    done
}

# The nodes that the job still has: with --no-kill a node that fails leaves it, and only the step dies.
nodes() { squeue --noheader --job="$SLURM_JOB_ID" --format=%D; }

run_step() {
    local code before=$SLURM_JOB_NUM_NODES left
    one_step "$binary" "$@"
    # Where a node was lost the job goes on at once on those that are left, from its last checkpoint.
    while [ "$code" -ne 0 ] && [ -z "$asked" ] && left=$(nodes) && [ "${left:-0}" -gt 0 ] &&
        [ "$left" -lt "$before" ]; do
        echo "a node failed: $left of $before are left, going on there"
        before=$left
        code=2
        [[ ${launcher[0]} != srun ]] ||
            one_step --nodes="$left" --ntasks="$((left * SLURM_NTASKS_PER_NODE))" \
                --nodelist="$(squeue --noheader --job="$SLURM_JOB_ID" --format=%N)" "$binary" "$@"
        # Not on so few ranks (a fixed grid, too little memory), or no such launcher: all nodes again.
        [ "$code" -ne 2 ] || code=$requeue_code
    done
    if [ "$code" -eq "$requeue_code" ]; then
        echo "clt stopped and can go on where it was; requeueing job $SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
