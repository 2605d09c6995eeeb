#!/bin/bash
# Starts a SLURM of four nodes (n0..n3) on this host: munged, slurmctld, four slurmd, all state
# under DIR. Root only. usage: start.sh DIR (absolute, short: sockets live there); then
# SLURM_CONF=DIR/slurm.conf. Ends 1 with the logs when the nodes do not come up; stop.sh cleans up.
set -euo pipefail

dir=${1:?usage: start.sh DIR}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
nodes=(n0 n1 n2 n3)

# Folders of an earlier start may hold PMIx files that break a step.
rm -rf "$dir"/{state,spool.*,tmp.*}
mkdir -p "$dir/state"
for node in "${nodes[@]}"; do mkdir -p "$dir/spool.$node" "$dir/tmp.$node"; done
chmod 755 "$dir"

# Ports by process id, so that two checkouts can test at the same time.
port=$((20000 + ($$ % 2000) * 10))
sed -e "s#@DIR@#$dir#g" -e "s#@HOST@#$(hostname -s)#g" -e "s#@PORT@#$port#g" \
    -e "s#@NODE_PORTS@#$((port + 1))-$((port + ${#nodes[@]}))#g" \
    "$here/slurm.conf.in" >"$dir/slurm.conf"
export SLURM_CONF=$dir/slurm.conf
# slurmd asks for a cgroup plugin though nothing here uses one; v1 starts without any being mounted.
echo "CgroupPlugin=cgroup/v1" >"$dir/cgroup.conf"

give_up() {
    echo "start.sh: $1" >&2
    tail -n 20 "$dir"/*.log >&2
    exit 1
}

(umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" --seed-file="$dir/munge.seed" || give_up "munged does not start"
slurmctld -i -f "$SLURM_CONF" || give_up "slurmctld does not start"
# A host name of its own makes each slurmd a node to PMIx and Open MPI.
for node in "${nodes[@]}"; do
    # shellcheck disable=SC2016  # expanded by the inner shell
    unshare --uts bash -c 'hostname "$1" && exec slurmd -N "$1" -f "$SLURM_CONF"' _ "$node" ||
        give_up "slurmd of $node does not start"
done
for _ in $(seq 200); do
    idle=$(sinfo --noheader --Node --states=idle --format=%N 2>/dev/null | sort -u | wc -l)
    [ "$idle" -eq ${#nodes[@]} ] && exit 0
    sleep 0.1
done
sinfo >&2 || true
give_up "the nodes are not idle"
