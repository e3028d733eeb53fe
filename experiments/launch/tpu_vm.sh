#!/usr/bin/env bash
# A Cloud TPU VM slice, from your own machine:
#   experiments/launch/tpu_vm.sh setup    once: fetches and installs fmjax on every host, mounts the shared folder
#   experiments/launch/tpu_vm.sh train    starts the same command on every host; again, it resumes
#   experiments/launch/tpu_vm.sh stop     lets all hosts save and leave
# Edit the lines marked EDIT, or set the variables outside. Which host is which, the hosts find out by themselves.
set -euo pipefail

TPU=${TPU:-my-slice}                                    # EDIT: name of the TPU
ZONE=${ZONE:-us-east5-a}                                # EDIT
REPOSITORY=${REPOSITORY:-https://example.com/fmjax.git} # EDIT: what `git clone` takes
SHARED=${SHARED:-10.0.0.2:/fmjax}                       # EDIT: an NFS share (Filestore); checkpoints need one
CONFIG=${CONFIG:-configs/llama2_7b.py}                  # EDIT
RUN=${RUN:-llama2_7b}                                   # EDIT: name of the run

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

case "${1:-}" in
  setup)
    on_every_host "set -e
      sudo apt-get install -qy nfs-common python3-venv
      sudo mkdir -p /mnt/fmjax
      mountpoint -q /mnt/fmjax || sudo mount -t nfs '$SHARED' /mnt/fmjax
      test -d fmjax || git clone -q '$REPOSITORY' fmjax
      cd fmjax
      python3 -m venv .venv
      .venv/bin/pip install -q -e '.[tpu]'"
    ;;
  train)
    on_every_host "cd fmjax && FMJAX_CACHE=\$HOME/cache .venv/bin/python -m fmjax.train \
      --config='$CONFIG' --workdir='/mnt/fmjax/runs/$RUN'"
    ;;
  stop)
    on_every_host "pkill -TERM -f '[f]mjax.train' || true"
    ;;
  *)
    echo "usage: $0 setup|train|stop" >&2
    exit 2
    ;;
esac
