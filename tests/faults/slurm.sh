#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests/test_slurm.py: `slurm.sh` starts it, `slurm.sh stop` ends it.
# Needs root and Debian's packages slurm-wlm and munge, which it installs where they are missing.
set -euo pipefail
if [[ ${1:-} == stop ]]; then
    timeout 20 scontrol shutdown || true
    exit 0
fi
command -v slurmctld > /dev/null || {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null
}
host=$(hostname -s)
mkdir -p /run/munge /var/log/munge /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /etc/slurm
chown munge /run/munge /var/log/munge
[[ -f /etc/slurm/slurm.conf ]] || cat > /etc/slurm/slurm.conf << CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
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
ReturnToService=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(free -m | awk '/Mem/ {print int($2 * 0.8)}') State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
grep -qw "$host" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
munge -n > /dev/null 2>&1 || runuser -u munge -- munged --force
scontrol ping 2> /dev/null | grep -q UP || slurmctld
for _ in $(seq 20); do scontrol ping 2> /dev/null | grep -q UP && break; sleep 1; done
sinfo -h -o %t 2> /dev/null | grep -qE 'idle|mix|alloc' || slurmd
for _ in $(seq 20); do sinfo -h -o %t 2> /dev/null | grep -qE 'idle|mix|alloc' && exit 0; sleep 1; done
echo "SLURM did not come up: see /var/log/slurm" >&2
exit 1
