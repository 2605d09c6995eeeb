#!/bin/bash
# A training job on a real SLURM, two nodes of one rank: stopped by the signal of the time limit in
# mid-run, requeued, finished; its loss curve equals, bit for bit, that of a job left alone, with no
# step twice and none missing. usage: slurm_test.sh CLT. Exit 77: skipped, no SLURM or not root.
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

steps=250
submit() { # NAME: a training job whose run folder is $folder/NAME; prints its id
    sbatch --parsable --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --output="$folder/$1.log" \
        slurm/train.sbatch jobs/train-tiny.toml --set job.output="$folder/$1" \
        --set data.path="$folder/data" --set data.evaluation_path= --set data.batch_tokens=512 \
        --set schedule.steps=$steps --set log.interval=1
}
field() { scontrol show job "$1" | sed -n "s/.* *$2=\([^ ]*\).*/\1/p"; }
wait_until() { # a minute for a command to succeed
    local deadline=$((SECONDS + 60))
    until "$@"; do
        [ $SECONDS -lt $deadline ] || fail "no success within a minute: $*"
        sleep 0.05
    done
}
ended() { [[ $(field "$1" JobState) =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]; }
has_lines() { [ -f "$1" ] && [ "$(wc -l <"$1")" -ge "$2" ]; }

whole=$(submit whole)
wait_until ended "$whole"
[ "$(field "$whole" JobState)" = COMPLETED ] || fail "the job left alone ended $(field "$whole" JobState)"

cut=$(submit cut)
wait_until has_lines "$folder/cut/metrics.jsonl" 20
scancel --batch --signal=USR1 "$cut"  # what --signal=B:USR1@120 does before the time limit
wait_until ended "$cut"
[ "$(field "$cut" JobState)" = COMPLETED ] || fail "the requeued job ended $(field "$cut" JobState)"
[ "$(field "$cut" Restarts)" = 1 ] || fail "the job was requeued $(field "$cut" Restarts) times, expected once"

python3 - "$folder" $steps <<'EOF' || fail "the loss curves differ"
import json
import sys

folder, steps = sys.argv[1], int(sys.argv[2])
whole, cut = ([json.loads(line) for line in open(f"{folder}/{name}/metrics.jsonl")] for name in ("whole", "cut"))
for name, run in (("whole", whole), ("cut", cut)):
    assert [r["step"] for r in run] == list(range(1, steps + 1)), f"{name}: a step is missing or there twice"
for key in ("loss", "reconstruction", "threshold", "l0", "learning_rate"):
    for a, b in zip(whole, cut):
        assert a[key] is not None and a[key] == b[key], f"step {a['step']}: {key} {a[key]} and {b[key]}"
assert 1e-3 < whole[-1]["loss"] < whole[0]["loss"], "this is no real training"
EOF
echo "requeued once; $steps losses equal bit for bit"
