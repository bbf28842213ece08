#!/usr/bin/env bash
# A private SLURM (munged, slurmctld, one slurmd) on this machine, to try --launcher slurm and to test it.
#
#   eval "$(cluster/slurm-local.sh start)"     start it and point this shell to it ($SLURM_CONF)
#   cluster/slurm-local.sh stop                cancel its jobs, end its daemons
#   cluster/slurm-local.sh status              0 if it answers, 3 if not
#
# Needs the Debian or Ubuntu packages slurm-wlm and munge: no systemd, no cgroups, no database, no root.
# Jobs are not confined to the CPUs and memory they ask for. There is no accounting: `sacct` fails.
#
# Settings (environment):
#   SLURM_LOCAL_DIR      folder of its state and logs (default: ${TMPDIR:-/tmp}/slurm-local-$UID)
#   SLURM_LOCAL_CPUS     CPUs it claims to have       (default: those of the machine; more is allowed)
#   SLURM_LOCAL_MEM_MB   memory it claims to have     (default: 8192)
#
# It listens on 127.0.0.1 only. A restart begins with an empty queue.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

ROOT=${SLURM_LOCAL_DIR:-${TMPDIR:-/tmp}/slurm-local-$(id -u)}
[[ $ROOT == /* ]] || ROOT="$PWD/$ROOT"
CPUS=${SLURM_LOCAL_CPUS:-$(getconf _NPROCESSORS_ONLN)}  # not nproc, which takes OMP_NUM_THREADS for it
MEMORY=${SLURM_LOCAL_MEM_MB:-8192}
PATIENCE=30 # seconds for the node to become idle
export SLURM_CONF="$ROOT/slurm.conf"

say() { echo "slurm-local: $*" >&2; }

fail() {
  say "$*"
  tail -n 5 "$ROOT"/log/*.log >&2 2>/dev/null || true
  stop_daemons
  exit 1
}

# Process number of a daemon of ours; nothing if it does not run. A reused number is not ours.
pid_of() {
  local pid
  [[ -r $ROOT/run/$1.pid ]] || return 0
  pid=$(tr -dc 0-9 <"$ROOT/run/$1.pid")
  if [[ -n $pid && -r /proc/$pid/cmdline && $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"$ROOT"* ]]; then echo "$pid"; fi
}

is_up() { [[ -n $(pid_of munged) && -n $(pid_of slurmd) && -n $(pid_of slurmctld) ]] && timeout 10 scontrol ping >/dev/null 2>&1; }

free_ports() {
  python3 -c '
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[one.getsockname()[1] for one in held])'
}

write_conf() {
  local host ports
  host=$(hostname -s)
  read -r -a ports < <(free_ports)
  # Settings that matter: no cgroups (linuxproc, task/none); config_overrides lets the node claim more CPUs than it has;
  # a requeued job waits cred_expire seconds, 120 by default; MinJobAge keeps ended jobs known to scontrol.
  cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
CredType=cred/munge
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=64
ReturnToService=2
MinJobAge=86400
KillWait=5
SchedulerParameters=batch_sched_delay=0,bf_interval=5,sched_interval=5
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$CPUS RealMemory=$MEMORY State=UNKNOWN
PartitionName=local Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  # From 23.02 on slurmd loads a cgroup plugin unless it is told not to.
  if [[ $(slurmctld -V | tr -dc '0-9.' | cut -d. -f1) -ge 23 ]]; then echo "CgroupPlugin=disabled" >"$ROOT/cgroup.conf"; fi
}

start() {
  local name end
  for name in munged slurmctld slurmd sbatch python3; do
    command -v "$name" >/dev/null || { say "'$name' not found: apt-get install slurm-wlm munge"; exit 1; }
  done
  if is_up; then say "already up in $ROOT"; echo "export SLURM_CONF=$SLURM_CONF"; return; fi
  stop_daemons
  mkdir -p "$ROOT"
  [[ -O $ROOT ]] || { say "$ROOT belongs to somebody else; set SLURM_LOCAL_DIR"; exit 1; }
  rm -rf "${ROOT:?}"/{state,spool,run,log}
  mkdir -m 755 "$ROOT"/{state,spool,run,log}
  (umask 077 && head -c 128 /dev/urandom >"$ROOT/munge.key")
  write_conf
  cd "$ROOT"
  # --force: only we use it, so the folders above may be closed to others.
  munged --force --key-file="$ROOT/munge.key" --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" \
    --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed" >"$ROOT/log/munged-start.log" 2>&1 || fail "munged did not start"
  slurmctld -f "$SLURM_CONF" </dev/null >"$ROOT/log/slurmctld-start.log" 2>&1 || fail "slurmctld did not start"
  slurmd -N n1 -f "$SLURM_CONF" </dev/null >"$ROOT/log/slurmd-start.log" 2>&1 || fail "slurmd did not start"
  end=$((SECONDS + PATIENCE))
  until [[ $(sinfo --noheader --states=idle --format=%D 2>/dev/null) == 1 ]]; do
    [[ $SECONDS -lt $end ]] || fail "the node was not idle within $PATIENCE seconds; logs are in $ROOT/log"
    sleep 0.2
  done
  say "up: $CPUS CPUs, $MEMORY MB; state in $ROOT; $(slurmctld -V)"
  echo "export SLURM_CONF=$SLURM_CONF"
}

stop_daemons() {
  local name pid _
  if [[ -n $(pid_of slurmctld) ]]; then
    timeout 10 scancel --user="$(id -un)" 2>/dev/null || true
    for _ in {1..50}; do
      [[ -n $(timeout 10 squeue --noheader 2>/dev/null) ]] || break
      sleep 0.2
    done
  fi
  for name in slurmd slurmctld munged; do # munged last: the others speak through it
    pid=$(pid_of "$name")
    [[ -n $pid ]] || continue
    kill "$pid" 2>/dev/null || true
    for _ in {1..50}; do
      [[ -d /proc/$pid ]] || break
      sleep 0.1
    done
    if [[ -d /proc/$pid ]]; then kill -9 "$pid" 2>/dev/null || true; fi
  done
}

case "${1:-}" in
  start) start ;;
  stop) stop_daemons && say "stopped; logs are in $ROOT/log" ;;
  status) if is_up; then sinfo; else say "not running" && exit 3; fi ;;
  *) echo "usage: $0 start|stop|status" >&2 && exit 2 ;;
esac
