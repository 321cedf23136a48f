#!/usr/bin/env bash
# What a job does on its host after its work has ended. It uses no Python: nodes need none outside the image.
#
#   after.sh STATUS LAUNCH execute STAGE FIRST RUN REQUEUE
#   after.sh STATUS LAUNCH merge STAGE REQUEUE
#
# STATUS is the exit status of the work. 75: it stopped cleanly. 143 or 140: a signal ended it before it could stop.
# After any of these, a job that computes is put back into the queue, and a merge job submits a new merge job. If the
# merge job asked for it in STAGE/again, arrays are submitted again before that. The file has one line for each array,
# CHUNK ELEMENTS EXCLUDED_NODES ROUND, with `-` for none.
set -u

status=$1 launch=$2 role=$3 stage=$4
folder=$(printf '%s/stages/%02d' "$launch" "$stage")
if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then
  job=${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}
else
  job=$SLURM_JOB_ID
fi

was_stopped() {
  [[ $status == 75 || $status == 143 || $status == 140 ]]
}

# Whether the job should continue although its work has stopped. It should not if somebody has cancelled it, nor if it
# is out of time or preempted: then Slurm itself puts it back into the queue, or the merge job submits it again.
is_wanted() {
  [[ $(timeout 60 squeue --noheader --jobs="$job" --format=%T 2>/dev/null) == RUNNING ]]
}

# Print how many processes of this job the kernel killed because memory ran out, or null where it does not say.
oom_kills() {
  local group file
  group=$(sed -n 's/^0:://p; s/^[0-9]*:memory://p' /proc/self/cgroup 2>/dev/null | head -n 1)
  group=${group%%/step_*}
  for file in "/sys/fs/cgroup$group/memory.events" "/sys/fs/cgroup/memory$group/memory.oom_control"; do
    if [[ -r $file ]] && grep -q '^oom_kill ' "$file"; then
      sed -n 's/^oom_kill //p' "$file"
      return
    fi
  done
  echo null
}

# Write beside the unit how the process that worked on it ended.
note_exit() {
  local unit=$1 run=$2 fields to
  to=$(printf '%s/units/%05d' "$run" "$unit")
  [[ -d $run ]] || return 0 # there was nothing to do
  mkdir -p "$to"
  fields=$(printf '"job": "%s", "restart": %d, "host": "%s", "status": %d, "oom_kills": %s, "time": %d' \
    "$job" "${SLURM_RESTART_COUNT:-0}" "$(hostname)" "$status" "$(oom_kills)" "$(date +%s)")
  printf '{%s}\n' "$fields" >"$to/.exit.json.$job" && mv -f "$to/.exit.json.$job" "$to/exit.json"
  # if the job was cancelled, preempted or out of time, the work is not to blame
  if [[ $status != 0 ]] && is_wanted; then
    printf '{"event": "exited", %s}\n' "$fields" >>"$to/attempts.jsonl"
  fi
}

# Submit a script of this stage again and print the number of the new job. Slurm's variables of this job are unset:
# sbatch would take them for options of the new one.
submit_again() {
  local variable
  (
    for variable in ${!SLURM_@} ${!SBATCH_@} ${!SRUN_@} ${!SUBMITIT_@}; do
      [[ $variable == SLURM_CONF ]] || unset "$variable"
    done
    timeout 120 sbatch --parsable "$@"
  ) | cut -d';' -f1
}

# Give the pickle of the work to a new job, under the file names that its processes look for.
hand_over() {
  local pickle=$1 new=$2 elements=$3 element
  if [[ $elements == - ]]; then
    cp "$pickle" "$launch/jobs/${new}_submitted.pkl"
    return
  fi
  for element in ${elements//,/ }; do
    cp "$pickle" "$launch/jobs/${new}_${element}_submitted.pkl"
  done
}

note_job() {
  local new=$1 what=$2 elements=$3 round=$4
  [[ $elements == - ]] && elements=null || elements="[$elements]"
  printf '{"job": "%s", "stage": %d, "role": "%s", "elements": %s, "round": %d, "time": %d}\n' \
    "$new" "$stage" "$what" "$elements" "$round" "$(date +%s)" >>"$launch/jobs.jsonl"
}

# Submit the arrays that STAGE/again asks for, then a new merge job. Jobs that wait for this job then wait for
# the new one.
follow_up() {
  local chunk elements excluded round new after='' last=0 array without dependent waiting_for
  if [[ -e $folder/again ]]; then
    while read -r chunk elements excluded round; do
      array=() without=()
      [[ $elements == - ]] || array=("--array=$elements")
      [[ $excluded == - ]] || without=("--exclude=$excluded")
      # no dependency: it held only for the first submission
      new=$(submit_again --dependency= ${array[@]+"${array[@]}"} ${without[@]+"${without[@]}"} "$folder/execute-$chunk.sh")
      # without the excluded nodes there may be too few, or Slurm may know them by other names
      if [[ -z $new && $excluded != - ]]; then
        new=$(submit_again --dependency= ${array[@]+"${array[@]}"} "$folder/execute-$chunk.sh")
      fi
      [[ -n $new ]] || return 1
      note_job "$new" execute "$elements" "$round"
      hand_over "$folder/execute-$chunk.pkl" "$new" "$elements"
      after+=${after:+,}afterany:$new last=$round
    done <"$folder/again"
    rm -f "$folder/again"
  fi
  new=$(submit_again "--dependency=$after" "$folder/merge.sh") && [[ -n $new ]] || return 1
  note_job "$new" merge - "$last"
  hand_over "$folder/merge.pkl" "$new" -
  squeue --noheader --user="$(id -un)" --format='%F|%E' | sort -u |
    while IFS='|' read -r dependent waiting_for; do
      # such as afterany:12_*(unfulfilled),afterok:13(unfulfilled)
      waiting_for=$(sed 's/([^)]*)//g; s/_\*//g' <<<"$waiting_for")
      if [[ ,$waiting_for, == *,afterok:"$job",* ]]; then
        waiting_for=$(sed "s/afterok:$job\b/afterok:$new/" <<<"$waiting_for")
        timeout 60 scontrol update "JobId=$dependent" "Dependency=$waiting_for"
      fi
    done
}

# Remove the job's temporary files on each of its nodes.
clean_up() {
  if [[ ${SLURM_JOB_NUM_NODES:-1} == 1 ]]; then
    timeout 60 bash "$launch/jobs/cleanup.sh"
  else
    timeout 60 srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 bash "$launch/jobs/cleanup.sh"
  fi
}

if [[ $role == execute ]]; then
  first=$5 run=$6 requeue=$7
  element=$((first + ${SLURM_ARRAY_TASK_ID:-0}))
  unit=$(cat "$folder/at-$element" 2>/dev/null || echo "$element")
  note_exit "$unit" "$run"
  clean_up
  if was_stopped && [[ $requeue == yes ]] && is_wanted; then
    timeout 60 scontrol requeue "$job" || echo "deg: this site does not requeue jobs; the merge job resubmits it" >&2
  fi
  exit "$status"
fi

clean_up
if was_stopped; then
  # preempted: Slurm puts it back by itself, and two jobs would merge; or cancelled: then no new job is wanted
  if [[ $5 == yes && ! -e $folder/again && $(squeue --noheader --jobs="$job" --format=%T) == COMPLETING ]]; then
    exit "$status"
  fi
  if follow_up; then
    exit 0
  fi
  echo "deg: could not submit the remaining work; \`deg resume\` submits it" >&2
  exit 1
fi
exit "$status"
