#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests/test_slurm.py: `slurm.sh` starts it, `slurm.sh stop` ends it, and
# `slurm.sh check` fails where its node does not take jobs.
# Needs root and Debian's packages slurm-wlm and munge, which it installs where they are missing. Where SLURM cannot be
# had it says why, and exits with 1. A cluster's own slurm.conf is left alone.
set -uo pipefail
CONF=/etc/slurm/slurm.conf
MARK="# written by tests/faults/slurm.sh"

give_up() {
    echo "no SLURM here: $1" >&2
    exit 1
}

# Run a command, twice if it fails; the first argument is the most seconds that it may take.
try() {
    local number
    for number in 1 2; do
        timeout --kill-after=10 "$@" && return 0
        sleep 2
    done
    return 1
}

install_slurm() {
    command -v apt-get > /dev/null || give_up "slurm-wlm is not installed, and there is no apt-get"
    export DEBIAN_FRONTEND=noninteractive
    try 120 apt-get update -qq > /dev/null 2>&1
    try 300 apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=200 slurm-wlm munge > /dev/null 2>&1
    command -v slurmctld > /dev/null || give_up "apt-get does not install slurm-wlm"
}

# Times are short for jobs of seconds, and long for what slow cores may hold up. A requeued job waits for `cred_expire`,
# by default two minutes.
write_conf() {
    cat > "$CONF" << EOF
$MARK
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=20
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/ctld.log
SlurmdLogFile=/var/log/slurm/d.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=5
ReturnToService=2
MessageTimeout=60
BatchStartTimeout=300
SlurmdTimeout=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

# Wait until a command succeeds, for at most so many seconds.
wait_for() {
    local seconds
    for seconds in $(seq "$1"); do
        "${@:2}" > /dev/null 2>&1 && return 0
        sleep 1
    done
    return 1
}
munge_answers() { timeout 5 munge -n; }
controller_answers() { timeout 5 scontrol ping | grep -q UP; }
node_is_up() { timeout 5 sinfo -h -o %t | grep -qE '^(idle|mix|alloc)$'; }

stop() {
    timeout 20 scontrol shutdown > /dev/null 2>&1
    wait_for 30 no_daemons
    [[ -f /run/munge/munged.pid ]] && kill "$(cat /run/munge/munged.pid)" 2> /dev/null
    return 0
}
no_daemons() { ! pidof slurmctld slurmd; }

start() {
    munge_answers > /dev/null 2>&1 || runuser -u munge -- munged --force > /dev/null 2>&1
    wait_for 20 munge_answers || return 1
    controller_answers || slurmctld
    wait_for 60 controller_answers || return 1
    node_is_up || slurmd
    wait_for 60 node_is_up
}

case ${1:-} in
    stop) stop && exit 0 ;;
    check) wait_for 30 node_is_up && exit 0 || exit 1 ;;
esac
[[ $(id -u) == 0 ]] || give_up "it is started as root"
command -v slurmctld > /dev/null || install_slurm
host=$(hostname -s)
mkdir -p /run/munge /var/log/munge /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /etc/slurm
chown munge /run/munge /var/log/munge
[[ -f $CONF ]] && ! grep -qxF "$MARK" "$CONF" || write_conf
grep -qw "$host" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
for number in 1 2 3; do
    start && exit 0
    stop
done
give_up "it did not come up, see /var/log/slurm"
