#!/bin/bash
# Training jobs on a real SLURM, two nodes of one rank by srun --mpi=pmix. One is stopped by the
# signal of the time limit in mid-run, requeued, finished: its loss curve equals, bit for bit, that
# of a job left alone. Another loses a node in mid-run and goes on, in the same job, on the one that
# is left: the curve within rounding. No step twice, none missing.
# usage: slurm_test.sh CLT. Exit 77: skipped, no SLURM or not root.
set -euo pipefail

export CLT_BINARY=${1:?usage: slurm_test.sh CLT}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for tool in slurmctld slurmd munged; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || { echo "skipped: no $tool"; exit 77; }
done
[ "$(id -u)" -eq 0 ] || { echo "skipped: SLURM's daemons need root"; exit 77; }
PATH=$PATH:/usr/sbin

folder=$(mktemp -d /tmp/clt-slurm.XXXXXX)  # short: sockets live in it
cleanup() {
    tests/support/slurm/stop.sh "$folder/slurm"
    rm -rf "$folder"
}
trap cleanup EXIT
fail() {
    echo "FAILED: $*" >&2
    tail -n 30 "$folder"/*.log "$folder"/slurm/slurmctld.log >&2
    exit 1
}

# shellcheck source=tools/one_host.env
source tools/one_host.env
mkdir "$folder/slurm"
tests/support/slurm/start.sh "$folder/slurm"
export SLURM_CONF=$folder/slurm/slurm.conf

OMPI_MCA_ess_singleton_isolated=1 "$CLT_BINARY" generate jobs/generate-tiny.toml \
    --set job.output="$folder/data" --set data.target_tokens=8192

steps=200
submit() { # NAME [OPTION...]: a training job whose run folder is $folder/NAME; prints its id
    sbatch --parsable --exclusive --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --output="$folder/$1.log" \
        "${@:2}" slurm/train.sbatch jobs/train-tiny.toml --set job.output="$folder/$1" \
        --set data.path="$folder/data" --set data.evaluation_path= --set data.batch_tokens=512 --set model.features=256 \
        --set schedule.steps=$steps --set checkpoint.interval=20 --set log.interval=1
}
field() { scontrol show job "$1" | sed -n "s/.* *$2=\([^ ]*\).*/\1/p"; }
wait_until() { # three minutes for a command to succeed: other tests may share the two cores
    local deadline=$((SECONDS + 180))
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "no success within three minutes: $*"
        sleep 0.05
    done
}
ended() { [[ $(field "$1" JobState) =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]; }
has_lines() { [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }

finished() { # NAME ID
    wait_until ended "$2"
    [ "$(field "$2" JobState)" = COMPLETED ] || fail "the job '$1' ended $(field "$2" JobState)"
}

whole=$(submit whole)
cut=$(submit cut)
wait_until has_lines "$folder/cut/metrics.jsonl" 20
scancel --batch --signal=USR1 "$cut"  # what --signal=B:USR1@120 does before the time limit
finished whole "$whole"
lost=$(submit lost --no-kill)
wait_until has_lines "$folder/lost/metrics.jsonl" 20
scontrol update nodename="$(scontrol show hostnames "$(field "$lost" NodeList)" | tail -n 1)" state=down reason=test
finished cut "$cut"
[ "$(field "$cut" Restarts)" = 1 ] || fail "the job was requeued $(field "$cut" Restarts) times, expected once"
finished lost "$lost"
[ "$(field "$lost" Restarts)" = 0 ] || fail "the job that lost a node was requeued"
grep -q "a node failed: 1 of 2 are left" "$folder/lost.log" || fail "the job lost no node"
grep -q "on 1 rank:" "$folder/lost.log" || fail "the job did not go on on one node"

python3 - "$folder" $steps <<'EOF' || fail "the loss curves differ"
import json
import sys

folder, steps = sys.argv[1], int(sys.argv[2])
whole, cut, lost = ([json.loads(line) for line in open(f"{folder}/{name}/metrics.jsonl")] for name in ("whole", "cut", "lost"))
for name, run in (("whole", whole), ("cut", cut), ("lost", lost)):
    assert [r["step"] for r in run] == list(range(1, steps + 1)), f"{name}: a step is missing or there twice"
for key in ("loss", "reconstruction", "l0", "learning_rate"):
    for a, b, c in zip(whole, cut, lost):
        assert a[key] is not None and a[key] == b[key], f"step {a['step']}: {key} {a[key]} and {b[key]}"
        # Sums in another order from where the node was lost, and near-ties of the selection with them.
        assert abs(a[key] - c[key]) <= 1e-2 * abs(a[key]), f"step {a['step']}: {key} {a[key]} and {c[key]} on one node"
assert 1e-3 < whole[-1]["loss"] < whole[0]["loss"], "this is no real training"
EOF
echo "requeued once, a node lost once; $steps losses equal"
