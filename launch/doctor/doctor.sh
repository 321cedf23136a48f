#!/usr/bin/env bash
# What the doctor's job runs on its first host, outside the image. It uses no Python, which nodes need not have.
#
#   doctor.sh before FOLDER    while srun runs: sends the signal when the ranks are ready for it
#   doctor.sh STATUS FOLDER    when srun has ended with STATUS: puts the job back into the queue if the ranks got as
#                              far as the signal, their last check, whatever it did to them
#
# It leaves its results in FOLDER: signal.log, signal.status, status, requeue.asked, requeue.log, requeue.status.
set -u

what=$1 folder=$2

if [[ $what == before ]]; then
  until [[ -e $folder/signal.please ]]; do
    [[ $SECONDS -lt 280 && ! -e $folder/status ]] || exit 0
    sleep 0.2
  done
  timeout 60 scancel --signal=USR2 "$SLURM_JOB_ID" >"$folder/signal.log" 2>&1
  echo $? >"$folder/signal.status"
  exit 0
fi

[[ ! -e $folder/signal.please ]] || : >"$folder/requeue.asked"
echo "$what" >"$folder/status"
if [[ -e $folder/requeue.asked ]]; then
  timeout 60 scontrol requeue "$SLURM_JOB_ID" >"$folder/requeue.log" 2>&1
  echo $? >"$folder/requeue.status" # where the site grants it, the job ends before this line
fi
