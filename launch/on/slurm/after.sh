#!/usr/bin/env bash
# What a job does on its host when its work has ended. No Python: the nodes need none outside the image.
#
#   after.sh STATUS LAUNCH execute STAGE FIRST RUN REQUEUE
#   after.sh STATUS LAUNCH merge STAGE REQUEUE
#
# STATUS is that of the work: 75 stopped cleanly, 143 and 140 stopped before it could heed a signal. A job that
# computes is put back into the queue then. A merge job is followed by a new one: it may have asked for more
# computing first, in STAGE/again, a line for each array: CHUNK ELEMENTS EXCLUDED_NODES ROUND, `-` for none.
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

# Whether the job, though its work has stopped, was meant to go on: not one that somebody has cancelled, nor one whose
# time is up or whose place another job takes, which Slurm itself puts back or which the merge job submits again.
is_wanted() {
  [[ $(timeout 60 squeue --noheader --jobs="$job" --format=%T 2>/dev/null) == RUNNING ]]
}

# Processes of this job that the kernel killed for want of memory, or null where it does not say.
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

# Beside the unit that was at work, how its process ended.
note_exit() {
  local unit=$1 run=$2 fields to
  to=$(printf '%s/units/%05d' "$run" "$unit")
  [[ -d $run ]] || return 0 # nothing was to be done
  mkdir -p "$to"
  fields=$(printf '"job": "%s", "restart": %d, "host": "%s", "status": %d, "oom_kills": %s, "time": %d' \
    "$job" "${SLURM_RESTART_COUNT:-0}" "$(hostname)" "$status" "$(oom_kills)" "$(date +%s)")
  printf '{%s}\n' "$fields" >"$to/.exit.json.$job" && mv -f "$to/.exit.json.$job" "$to/exit.json"
  # of a job that is cancelled, preempted or out of time, the work is not to blame
  if [[ $status != 0 ]] && is_wanted; then
    printf '{"event": "exited", %s}\n' "$fields" >>"$to/attempts.jsonl"
  fi
}

# Submit a script of this stage once more; prints the number of the new job. Slurm's variables of this job would
# be taken for options of the new one.
submit_again() {
  local variable
  (
    for variable in ${!SLURM_@} ${!SBATCH_@} ${!SRUN_@} ${!SUBMITIT_@}; do
      [[ $variable == SLURM_CONF ]] || unset "$variable"
    done
    timeout 120 sbatch --parsable "$@"
  ) | cut -d';' -f1
}

# Hand the pickle of the work to a new job, under the names by which its processes look for it.
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

# Have more computed if that was asked for, then merge again; whoever waits for this job waits for the new one instead.
follow_up() {
  local chunk elements excluded round new after='' last=0 array without dependent waiting_for
  if [[ -e $folder/again ]]; then
    while read -r chunk elements excluded round; do
      array=() without=()
      [[ $elements == - ]] || array=("--array=$elements")
      [[ $excluded == - ]] || without=("--exclude=$excluded")
      # without a dependency: the one in the script was for the first time
      new=$(submit_again --dependency= ${array[@]+"${array[@]}"} ${without[@]+"${without[@]}"} "$folder/execute-$chunk.sh")
      if [[ -z $new && $excluded != - ]]; then # the scheduler knows the node by another name, or too few are left
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

# Where the job kept its temporary files, on each of its nodes.
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
    timeout 60 scontrol requeue "$job" || echo "deg: this site does not requeue jobs; the merge job submits again" >&2
  fi
  exit "$status"
fi

clean_up
if was_stopped; then
  # preempted: Slurm puts it back by itself, and two would merge; or cancelled: then none is wanted
  if [[ $5 == yes && ! -e $folder/again && $(squeue --noheader --jobs="$job" --format=%T) == COMPLETING ]]; then
    exit "$status"
  fi
  if follow_up; then
    exit 0
  fi
  echo "deg: could not submit the work that is left; \`deg resume\` does" >&2
  exit 1
fi
exit "$status"
