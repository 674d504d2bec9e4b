#!/usr/bin/env bash
# A Slurm of our own for tests: munge, slurmctld and a few nodes, all of them this machine.
#
#     scripts/servers/slurm.sh up DIR [NODES]     starts it (2 nodes), and prints DIR/env
#     scripts/servers/slurm.sh down DIR           cancels its jobs and ends it; DIR is left
#
# It needs (Debian) slurmctld, slurmd, slurm-client and munge; where they are missing, it says so and
# returns 77. Everything lies in DIR, which is made anew, and listens on free ports of 127.0.0.1. It
# runs as whoever starts it and takes jobs of nobody else. DIR/env has SLURM_CONF, by which
# sbatch, squeue and scontrol find it.
#
# A node has 4 cores and 8 GB, whatever the machine has: jobs are placed by these numbers only.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
    echo "usage: ${BASH_SOURCE[0]} up DIR [NODES] | down DIR" >&2
    exit 2
}
case $# in 2 | 3) ;; *) usage ;; esac
verb=$1 nodes=${3:-2}

# The process of a daemon, if it still is that: a number in a file may long be another's.
process() { # DIR PIDFILE
    local pid
    pid=$(cat "$2" 2>/dev/null) || return 1
    tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF -- "$1/" || return 1
    echo "$pid"
}

end() { # DIR PIDFILE
    local pid _
    pid=$(process "$1" "$2") || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        process "$1" "$2" >/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

down() {
    local dir=$1 file _
    export SLURM_CONF=$dir/slurm.conf
    if process "$dir" "$dir/slurmctld.pid" >/dev/null; then
        # The processes of jobs are not slurmd's to end once it has gone.

        timeout 5 scancel --quiet --user="$(id -un)" 2>/dev/null || true
        for _ in $(seq 100); do
            [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break
            sleep 0.1
        done
    fi
    for file in "$dir"/slurmd_*.pid "$dir/slurmctld.pid" "$dir/munge/pid"; do
        end "$dir" "$file"
    done
    rm -f "$dir/env" # so that nobody takes it for one that runs
}

up() {
    local dir=$1 host user control ports=() node
    read -r -a ports < <(python3 "$here/ports.py" $((nodes + 1)))
    control=${ports[nodes]}
    host=$(uname -n) user=$(id -un)
    host=${host%%.*}
    rm -rf "$dir"
    # munge refuses a socket that others cannot reach.
    mkdir -p "$dir"/{munge,state,log}
    chmod 755 "$dir" "$dir/munge"
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    cat >"$dir/slurm.conf" <<CONF
ClusterName=haul
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
# A job is started again only when the credentials of its last start are void: after so many seconds,
# 5 at least (less is taken for the default, 120).
AuthInfo=socket=$dir/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool_%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd_%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd_%n.log
# No control groups, accounting, mail or MPI: nothing that a bare machine would have to be set up for.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=15
MinJobAge=600
JobRequeue=1
# haul's codes for "run the same command again".
RequeueExit=1,11,75
CONF
    for ((node = 0; node < nodes; node++)); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=4 RealMemory=8000 State=UNKNOWN"
    done >>"$dir/slurm.conf"
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$dir/slurm.conf"

    munged --force --num-threads=2 --key-file="$dir/munge/key" --socket="$dir/munge/sock" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" \
        2>>"$dir/log/said"
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -f "$SLURM_CONF" 2>>"$dir/log/said"
    for ((node = 0; node < nodes; node++)); do
        slurmd -f "$SLURM_CONF" -N "n$node" 2>>"$dir/log/said"
    done
    local _
    for _ in $(seq 150); do
        if [ "$(timeout 5 sinfo -h -t idle -o %D 2>/dev/null)" = "$nodes" ]; then
            echo "SLURM_CONF=$SLURM_CONF" >"$dir/env"
            return 0
        fi
        sleep 0.1
    done
    return 1
}

case $verb in
up)
    # Debian keeps the daemons where only root's PATH leads.
    PATH=$PATH:/usr/sbin:/sbin
    for program in munged slurmctld slurmd sbatch squeue scontrol scancel sinfo; do
        if ! command -v "$program" >/dev/null; then
            echo "skipped: there is no $program here (Debian: slurmctld slurmd slurm-client munge)"
            exit 77
        fi
    done
    mkdir -p "$2"
    dir=$(cd "$2" && pwd)
    if [ -n "$(ls -A "$dir")" ] && ! [ -f "$dir/slurm.conf" ]; then
        echo "$dir is neither empty nor of an earlier start; it would be emptied" >&2
        exit 2
    fi
    down "$dir" # one of an earlier time, whose numbers would be lost
    # Somebody may take a port between its choice and its use, so a failure is tried once more.
    for attempt in 1 2; do
        set +e
        (
            set -e
            up "$dir"
        )
        code=$?
        set -e
        [ "$code" != 0 ] || break
        down "$dir"
        echo "Slurm did not start (attempt $attempt); the ends of the logs in $dir:" >&2
        tail -n 5 "$dir"/log/* "$dir/munge/log" >&2 || true
    done
    [ "$code" = 0 ] || exit 1
    cat "$dir/env"
    ;;
down)
    [ -d "$2" ] || exit 0
    down "$(cd "$2" && pwd)"
    ;;
*) usage ;;
esac
