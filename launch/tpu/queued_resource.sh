#!/bin/bash
# Pre-train on a Cloud TPU slice. Two commands: `request` queues for the slice, `train` starts or goes on.
#
#   export NAME=curia2 ZONE=us-east5-a TYPE=v5p-128 VERSION=v2-alpha-tpuv5 BUCKET=gs://BUCKET
#   launch/tpu/queued_resource.sh request [--spot]
#   launch/tpu/queued_resource.sh train --config=configs/vitg.py --config.data.corpus=DIR --workdir=DIR
#
# This repository is copied to every worker and set up there. The corpus and --workdir have to be folders that all
# workers see, such as a mounted bucket (BUCKET is mounted at /bucket). `train` repeats itself when the run stopped early
# and saved (exit code 42), and only then; a spot slice that is taken away has to be requested again first.
set -euo pipefail
: "${NAME:?}" "${ZONE:?}" "${TYPE:?}" "${VERSION:?}"
command=${1:?"write request or train"}
shift

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
}

request() {
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$VERSION" "$@"
}

set_up() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz -o "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:curia2.tar.gz" --zone="$ZONE" --worker=all
  on_all_workers 'set -e
    mkdir -p curia2 && tar -xzf curia2.tar.gz -C curia2 && cd curia2
    [[ -x .venv/bin/python ]] || python3 -m venv .venv
    .venv/bin/python -m pip install --quiet -e ".[tpu]"'
  if [[ -n ${BUCKET:-} ]]; then
    on_all_workers "sudo mkdir -p /bucket && sudo chown \$USER /bucket && (mountpoint -q /bucket || gcsfuse ${BUCKET#gs://} /bucket)"
  fi
}

# The metadata server of a TPU VM knows its number and the addresses of all; curia2_jax/parallel/cluster.py reads these variables.
# shellcheck disable=SC2016
worker='
  attribute() { curl -sf -H "Metadata-Flavor: Google" "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
  export TPU_WORKER_ID=$(attribute agent-worker-number)
  export TPU_WORKER_HOSTNAMES=$(attribute worker-network-endpoints | tr "," "\n" | sed "s/.*://" | paste -sd,)
  cd curia2 && exec .venv/bin/python launch/main.py'

train() {
  set_up
  local code=42 arguments
  arguments=$(printf ' %q' "$@")
  while [[ $code -eq 42 ]]; do
    code=0
    on_all_workers "$worker$arguments" || code=$?
  done
  return "$code"
}

case $command in
  request) request "$@" ;;
  train) train "$@" ;;
  *)
    echo "error: $command: write request or train" >&2
    exit 2
    ;;
esac
