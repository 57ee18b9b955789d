#!/usr/bin/env bash
# Try PROFILE=slurm for real: set up a one-node Slurm of Debian's packages, measure a study of six
# parts with it, kill one part on the way, go on, and take it all down. Needs root; not in `make test`.
#     tests/slurm/try.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "try.sh: it sets up services: run it as root, in a container"; exit 1; }
command -v slurmctld munged > /dev/null || apt-get install -y --no-install-recommends slurm-wlm munge
[ -x .venv/bin/python ] || make .venv/ready

place=$(mktemp -d) conf=/etc/slurm/slurm.conf # where jobs look, which lose SLURM_CONF
[ ! -e "$conf" ] || { echo "try.sh: there is a Slurm here already: $conf"; exit 1; }
down() {
  for daemon in slurmd slurmctld munged; do pkill -x "$daemon" || true; done
  rm -rf "$place" "$conf"
}
trap down EXIT

# The node: what this machine has, nobody but root, no accounting.
[ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2> /dev/null
chown munge:munge /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
install -d -o munge -g munge /run/munge && runuser -u munge -- munged
mkdir "$place/state" "$place/spool"
cat > "$conf" << EOF
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=600
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * .9)}' /proc/meminfo)
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=INFINITE
EOF
slurmctld && slurmd
for _ in $(seq 30); do sinfo -h -o %t | grep -q idle && break; sleep 1; done
sinfo

# A study of six cells, in a copy of the tree, of which the first time one part is killed.
copy=$place/book
mkdir "$copy" && git ls-files -z | xargs -0 cp --parents -t "$copy" && ln -s "$PWD/.venv" "$copy/.venv"
cat > "$copy/studies/six.py" << 'EOF'
"""Six cells of some seconds each."""

import time

TOLERANCE = {"square": 0.0}


def cells():
    return [{"seed": seed} for seed in range(6)]


def measure(seed):
    time.sleep(8)
    return {"square": seed**2}
EOF
# There is no accounting on this node, so `sacct` knows no job; `squeue` remembers them for MinJobAge.
cat >> "$copy/profiles/slurm/config.yaml" << EOF
slurm-status-command: squeue
slurm-init-seconds-before-status-checks: 5
EOF
study() { (cd "$copy" && .venv/bin/python -m workflow study --profile slurm -- six); }
study &
run=$!
for _ in $(seq 120); do
  job=$(squeue -h -t R -o %A | head -1)
  [ -n "$job" ] && break
  sleep 1
done
sleep 3 && echo "killing job $job" && scancel --signal=KILL --full "$job"
if wait "$run"; then echo "try.sh: the run did not tell that a part was killed"; exit 1; fi
kept=$(find "$copy/build/studies" -name '*.pickle' | wc -l)
echo "$kept parts are there; the same command goes on"
[ "$kept" -lt 6 ]
study
cat "$copy/book/studies/six.csv"
[ "$(wc -l < "$copy/book/studies/six.csv")" = 7 ]
echo "A study of six parts ran on Slurm $(sinfo --version | cut -d' ' -f2), one part killed, and went on."
