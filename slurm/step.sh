# shellcheck shell=bash
# Shared by the batch scripts: the site's environment, one srun step, the signal before the time
# limit, and the requeue. Sourced; then `run_step clt-arguments...` ends the batch script.

requeue_code=85  # clt: "stopped on a signal, state saved, start me again"

if [ -r slurm/site.env ]; then
    # shellcheck source=slurm/site.env.example
    source slurm/site.env
fi
read -ra launcher <<<"${CLT_LAUNCHER:-srun --mpi=pmix}"
binary=${CLT_BINARY:-build/release/clt}
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # since 22.05 srun no longer inherits it

# The step runs in the background, so that the trap runs at once; srun passes the signal to the ranks.
signalled=
step=
forward_signal() {
    signalled=yes
    [ -z "$step" ] || kill -USR1 "$step" 2>/dev/null || true
}
trap forward_signal USR1 TERM

run_step() {
    local code=$requeue_code status
    if [ -z "$signalled" ]; then
        "${launcher[@]}" "$binary" "$@" &
        step=$!
        while :; do
            signalled=
            status=0
            wait "$step" || status=$?
            [ "$status" -eq 127 ] && [ "$code" -ne "$requeue_code" ] || code=$status
            [ -n "$signalled" ] || break
        done
    fi
    if [ "$code" -eq "$requeue_code" ]; then
        echo "clt stopped on a signal with its state saved; requeueing job $SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
