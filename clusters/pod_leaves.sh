#!/usr/bin/env bash
# preStop hook of kuberay.yaml: what happens in a pod before Kubernetes ends it. `pod_leaves.sh head` or `... worker`.
#
# Worker: tells Ray that the node goes. Runs save at once, and are given the time to do so. Nothing new is placed here.
# Head: asks the commands that run here to end; they save, and end with 143. A pod without either leaves at once. When a
# RayJob is deleted, the operator has stopped its command already: to ask it once more would end it without a checkpoint.
seconds=${2:-60}   # shorter than terminationGracePeriodSeconds, which counts from the beginning of this

processes() {      # whose command line matches; arguments end with \0
  grep -laP "$1" /proc/[0-9]*/cmdline 2>/dev/null | cut -d / -f 3
}

is_stopping() {    # whether a process has said so in the log of its job, a file; to read a pipe would take from it
  [ -f "/proc/$1/fd/2" ] && tail -n 100 "/proc/$1/fd/2" | grep -q 'stopping .* once more to stop at once'
}

if [ "$1" = worker ]; then
  pattern='^ray::RayTrainWorker'
  ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message 'the pod is about to end' \
    --deadline-remaining-seconds "$seconds"
else
  pattern='^[^\0]*python[^\0]*\0(-m\0|[^\0]*/)raypaml'
  [ -z "$(processes "$pattern")" ] || sleep "${PAUSE:-5}"   # in which what the operator has stopped says so
  for process in $(processes "$pattern"); do
    is_stopping "$process" || kill -TERM "$process"
  done
fi
deadline=$((SECONDS + seconds))
while [ "$SECONDS" -lt "$deadline" ] && [ -n "$(processes "$pattern")" ]; do
  sleep 1
done
