#!/bin/bash
# One network trained by all workers of a TPU slice; run where gcloud is set up, not on the slice.
#
#     TPU_NAME=NAME ZONE=ZONE launch/tpu_vm.sh --config=CONFIG --workdir=DIR
#     TPU_NAME=NAME ZONE=ZONE launch/tpu_vm.sh stop
#
# The package is installed on every worker, for PYTHON (default python3), with jax[tpu]. DIR and the
# data are on a disk that all workers mount, or in a bucket mounted as one. JAX finds out which
# workers there are. `stop` sends SIGTERM, and the run is saved; Ctrl-C here may leave it running.
set -euo pipefail
: "${TPU_NAME:?set it to the name of the TPU slice}" "${ZONE:?set it to the zone of the TPU slice}"

file='~/.emseg_jax.pid'
if [ "${1:-}" = stop ]; then
  command="kill -TERM \$(cat $file)"
else
  # Quoted, since a shell of the worker reads it.
  command="EMSEG_COORDINATOR=auto ${PYTHON:-python3} -m emseg_jax.main$(printf ' %q' "$@") &
    echo \$! > $file; wait \$!; code=\$?; rm $file; exit \$code"
fi
# All workers begin at once, since each waits for the others.
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"} \
  --worker=all --batch-size=all --command="$command"
