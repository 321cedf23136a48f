#!/usr/bin/env bash
# Written by deg. Runs Python with the arguments given, for one task of a job: srun bash container.sh ...
fail() { echo "deg: $HOSTNAME: $*" >&2; exit 3; }
unset ${!APPTAINERENV_*} ${!SINGULARITYENV_*}
for file in "$MODULESHOME/init/bash" "$LMOD_PKG/init/bash" /etc/profile.d/*lmod*.sh /etc/profile.d/*module*.sh /usr/share/lmod/lmod/init/bash /usr/share/modules/init/bash; do
  type module >/dev/null 2>&1 && break
  [ ! -r "$file" ] || . "$file"
done
type module >/dev/null 2>&1 || fail 'cluster.modules needs the command `module`, which this node lacks.'
module load apptainer/1.4 || fail 'cluster.modules:' apptainer/1.4 failed
ulimit -n 4096
scratch="/local/$USER"
export DEG_SCRATCH="$scratch/deg-$UID-${SLURM_JOB_ID:-$$}"
mkdir -p -m 700 "$DEG_SCRATCH" && [ -O "$DEG_SCRATCH" ] || fail "expected to make $DEG_SCRATCH as a folder of this user, but cannot: see cluster.scratch."
export TMPDIR="$DEG_SCRATCH"
export XDG_CACHE_HOME="$DEG_SCRATCH/cache"
export MPLCONFIGDIR="$DEG_SCRATCH/matplotlib"
export NUMBA_CACHE_DIR="$DEG_SCRATCH/numba"
export TORCHINDUCTOR_CACHE_DIR="$DEG_SCRATCH/inductor"
export TRITON_CACHE_DIR="$DEG_SCRATCH/triton"
export CUDA_CACHE_PATH="$DEG_SCRATCH/cuda"
export TORCH_HOME=/lab/torch
[ -n "$OMP_NUM_THREADS" ] || [ -z "$SLURM_CPUS_PER_TASK" ] || export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export PYTHONNOUSERSITE=1
export PYTHONSAFEPATH=1
export PYTHONDONTWRITEBYTECODE=1
command -v apptainer >/dev/null || fail 'there is no program apptainer here: see cluster.modules, cluster.setup, cluster.apptainer.'
[ -e /shared/deg.sif ] || fail 'there is no image /shared/deg.sif here: it must lie on a file system that all nodes see.'
for name in $(compgen -e); do
  case $name in
    SLURM_*|SUBMITIT_*|DEG_*|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|CUDA_MPS_*|NVIDIA_*|GPU_DEVICE_ORDINAL|ROCR_*|NCCL_*|GLOO_*|TORCH_*|OMP_*|MASTER_ADDR|MASTER_PORT|http_proxy|https_proxy|no_proxy|HTTP_PROXY|HTTPS_PROXY|NO_PROXY|TZ|TMPDIR|XDG_CACHE_HOME|MPLCONFIGDIR|NUMBA_CACHE_DIR|TORCHINDUCTOR_CACHE_DIR|TRITON_CACHE_DIR|CUDA_CACHE_PATH|PYTHONNOUSERSITE|PYTHONSAFEPATH|PYTHONDONTWRITEBYTECODE|UCX_*) export "APPTAINERENV_$name=${!name}" ;;
  esac
done
# Without root, Apptainer mounts the image with a process of its own. A signal that Slurm sends to all processes
# of a job would end it, and the image would be gone. Signals that are ignored here stay ignored in that process.
if mounts=$(command -v squashfuse_ll); then
  mkdir -p "$DEG_SCRATCH/bin"
  printf '#!/bin/sh\ntrap "" USR1 USR2 TERM\nexec %q "$@"\n' "$mounts" >"$DEG_SCRATCH/bin/new.$$" &&
    chmod 700 "$DEG_SCRATCH/bin/new.$$" && mv -f "$DEG_SCRATCH/bin/new.$$" "$DEG_SCRATCH/bin/squashfuse_ll"
  "$DEG_SCRATCH/bin/squashfuse_ll" --help >/dev/null 2>&1
  [ $? = 126 ] || PATH="$DEG_SCRATCH/bin:$PATH"  # 126: programs may not run from this disk
fi
scratch=${DEG_SCRATCH//\"/\"\"}
cd /  # Apptainer would show the folder that it is started in, with the home folder around it
exec apptainer exec --cleanenv --no-home --pwd / --nv --sharens --mount 'type=bind,"src=/lab/project","dst=/lab/project"' --mount 'type=bind,"src=/raw data","dst=/raw data"' --mount "type=bind,\"src=$scratch\",\"dst=$scratch\"" /shared/deg.sif python "$@"
