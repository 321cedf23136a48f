"""A cluster profile made from what Slurm says about itself, and the flags of sbatch that a profile becomes.

`choose` makes a Choice of options from a Site, with the reasons; `profile_text` writes it as a commented profile;
`shown` shows a profile with the flags that it becomes. All of them are pure functions.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from deg.launch.site.ask import Node, Partition, Site, number
from deg.options.forms import time_limit_minutes
from deg.options.load import as_dict, options
from deg.options.schema import Cluster

MOST_CORES, MOST_GIB = 16, 64
"""Most cores and GiB for each GPU: more does not make the work faster."""
SPARED = 0.9
"""Share of a node's memory that jobs get: sites keep some of it back for the system."""

Note = Callable[..., None]
"""Called with an option and sentences about it; empty sentences are left out."""


# ---------------------------------------------------------------------------------------------------- choosing


@dataclass(frozen=True)
class Choice:
    """Options for a site, with sentences that explain them."""

    cluster: Cluster
    about: tuple[str, ...]
    """Sentences about the site as a whole."""
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """{option: sentences}, for every option that was decided here."""


def choose(site: Site) -> Choice:
    """Choose options that should suit this user at this site.

    The partition is one with GPUs that the user may use: preferably one that allows jobs of the default length, then
    the site's default, then the one with the most GPUs. Cores and memory are a node's, divided among its GPUs.
    """
    notes: dict[str, list[str]] = {}

    def note(option: str, *sentences: str) -> None:
        notes.setdefault(option, []).extend(sentence for sentence in sentences if sentence)

    usual = Cluster()
    usable = [partition for partition in site.partitions if _may_use(site, partition)]
    nodes = {partition.name: [node for node in site.nodes if node.partition == partition.name] for partition in usable}
    gpus = {name: [node for node in members if node.gpu_count] for name, members in nodes.items()}
    with_gpus = [partition for partition in usable if gpus[partition.name]]
    totals = {partition.name: sum(node.gpu_count for node in gpus[partition.name]) for partition in with_gpus}
    fallback = next((partition for partition in usable if partition.default), Partition(""))
    chosen = min(
        with_gpus,
        key=lambda partition: (not _long_enough(partition), not partition.default, -totals[partition.name]),
        default=fallback,
    )
    members = gpus.get(chosen.name) or nodes.get(chosen.name, [])
    total = totals.get(chosen.name, 0)
    cluster = replace(usual, partition=chosen.name or None, gpus_per_node=1 if total else None)

    note("partition", *_partition_notes(with_gpus, gpus))
    if not with_gpus:
        note("partition", "No partition with GPUs was found that this user may use.")
    note("gpus_per_node", f"Nodes of {chosen.name} have {_span(node.gpu_count for node in members)}." if total else "")
    types = sorted({kind for node in members for kind in node.gpus if kind})
    note("gpu_type", f"Types in {chosen.name}: {', '.join(types)}. null: any." if types else "")
    select = site.settings.get("selecttype", "")
    if select and "cons_tres" not in select:
        cluster = replace(cluster, gpu_flag="gres")
        note("gpu_flag", f"SelectType is {select}, which knows GPUs only as gres.")
    else:
        note("gpu_flag", "Write gres or gpus if sbatch refuses this one.")

    cluster = _cores_and_memory(site, chosen, members, cluster, note)
    cluster = _times(chosen, cluster, note)
    if total and not fallback.root_only and fallback.name and not gpus[fallback.name]:
        cluster = replace(cluster, merge_partition=fallback.name)
        note("merge_partition", "The site's default, which has no GPUs.")
    if total:
        cluster = replace(cluster, jobs=min(usual.jobs, total))
        note("jobs", f"{chosen.name} has {_gpus(total)} in all.")
    cluster = _rights(site, chosen, cluster, note)
    cluster = _queueing(site, chosen, cluster, note)
    note("image", "Make or fetch one with `deg image`, and write its path here.")
    note(
        "scratch", "Slurm does not say where nodes have disks of their own: write the folder here if the site has one."
    )
    if "apptainer" not in site.programs:
        cluster = replace(cluster, apptainer=site.programs[0] if site.programs else usual.apptainer)
        note(
            "modules",
            "There is no apptainer on PATH here: name the module that provides it, unless nodes have it anyway.",
        )
    return Choice(cluster, tuple(_about(site)), {option: tuple(said) for option, said in notes.items() if said})


def _may_use(site: Site, partition: Partition) -> bool:
    accounts = {association.account for association in site.associations}
    return partition.up and (
        site.user == "root"
        or (
            not partition.root_only
            and (partition.groups is None or not set(site.groups).isdisjoint(partition.groups))
            and (not accounts or partition.accounts is None or not accounts.isdisjoint(partition.accounts))
            and (not accounts or not accounts <= set(partition.denied_accounts))
        )
    )


def _long_enough(partition: Partition) -> bool:
    return partition.max_minutes is None or partition.max_minutes >= time_limit_minutes(str(Cluster().time))


def _partition_notes(partitions: Iterable[Partition], gpus: Mapping[str, Sequence[Node]]) -> Iterator[str]:
    for partition in partitions:
        kinds: dict[str, int] = {}
        for node in gpus[partition.name]:
            shape = ", ".join(f"{count} {kind or 'GPUs'}" for kind, count in sorted(node.gpus.items()))
            kinds[shape] = kinds.get(shape, 0) + 1
        have = "; ".join(f"{count} x {shape}" for shape, count in sorted(kinds.items()))
        limit = "no time limit" if partition.max_minutes is None else f"at most {_clock(partition.max_minutes)}"
        yield f"{partition.name}: {have}; {limit}{'; the default' if partition.default else ''}."


def _cores_and_memory(site: Site, partition: Partition, nodes: Sequence[Node], cluster: Cluster, note: Note) -> Cluster:
    """Set the cores and the memory that every one of `nodes` can give to each of its GPUs."""
    if nodes:
        cores = min(max(node.cpus // max(node.gpu_count, 1), 1) for node in nodes)
        cluster = replace(cluster, cpus_per_task=min(cores, MOST_CORES))
        note("cpus_per_task", f"Nodes have {_span(node.cpus for node in nodes)} cores.")
    parameters = partition.select or site.settings.get("selecttypeparameters", "")
    if parameters and "MEMORY" not in parameters.upper():
        note("memory_gb", f"Memory is not allocated to jobs here (SelectTypeParameters = {parameters}).")
        return replace(cluster, memory_gb=None)
    known = [node for node in nodes if node.memory_mb]
    if known:
        most = min(SPARED * node.memory_mb / max(node.gpu_count, 1) for node in known)
        per_node, per_cpu = (
            own or number(site.settings.get(key, ""))
            for own, key in (
                (partition.memory_per_node_mb, "maxmempernode"),
                (partition.memory_per_cpu_mb, "maxmempercpu"),
            )
        )
        if per_node:
            most = min(most, per_node / max(*(node.gpu_count for node in known), 1))
        if per_cpu and cluster.cpus_per_task:
            most = min(most, per_cpu * cluster.cpus_per_task)
        gib = math.floor(min(most / 1024, MOST_GIB))
        cluster = replace(cluster, memory_gb=float(gib) if gib else max(math.floor(most), 1) / 1024)
        note("memory_gb", f"Nodes have {_span(node.memory_mb // 1024 for node in known)} GiB.")
        note("memory_gb", f"At most {per_cpu} MB for each core." if per_cpu else "")
    note("memory_gb", "null if sbatch refuses --mem.")
    return cluster


def _times(partition: Partition, cluster: Cluster, note: Note) -> Cluster:
    most = partition.max_minutes
    if most is not None:
        too_long: dict[str, Any] = {
            option: _clock(most)
            for option in ("time", "merge_time")
            if time_limit_minutes(getattr(cluster, option)) > most
        }
        cluster = replace(cluster, **too_long)
        note("time", f"{partition.name} allows {_clock(most)} at most.")
    quarter = int(time_limit_minutes(str(cluster.time)) * 60 / 4)
    if cluster.stop_ahead is not None and quarter < cluster.stop_ahead:
        cluster = replace(cluster, stop_ahead=max(quarter, 1))
        note("stop_ahead", "A quarter of `time`, which is short here.")
    return cluster


def _rights(site: Site, partition: Partition, cluster: Cluster, note: Note) -> Cluster:
    """Set the account and the quality of service where the user has only one."""
    if site.without_accounting:
        note("account", f"Unknown: {site.without_accounting}")
        note("qos", "Unknown, for the same reason.")
        return cluster
    fitting = [
        association
        for association in site.associations
        if association.partition in ("", partition.name)
        and (partition.accounts is None or association.account in partition.accounts)
        and association.account not in partition.denied_accounts
    ]
    for option, names in (
        ("account", {association.account for association in fitting}),
        ("qos", {name for association in fitting for name in association.qos}),
    ):
        if len(names) == 1:
            only: dict[str, Any] = {option: names.pop()}
            cluster = replace(cluster, **only)
            note(option, f"The only one that {site.user} has.")
        elif names:
            note(option, f"{site.user} has {', '.join(sorted(names))}. null: the default one.")
        else:
            note(option, f"sacctmgr knows none for {site.user}.")
    limits = [association.most_jobs for association in fitting if association.most_jobs is not None]
    if limits:
        note(
            "max_array_size",
            f"{site.user} may have {max(limits)} jobs in the queue, each element of an array counts.",
        )
    return cluster


def _queueing(site: Site, partition: Partition, cluster: Cluster, note: Note) -> Cluster:
    settings = site.settings
    if settings.get("jobrequeue") == "0":
        cluster = replace(cluster, requeue=False)
        note("requeue", "JobRequeue = 0 here. Set true if the site still lets jobs ask for it.")
    mode = partition.preempt_mode or settings.get("preemptmode", "OFF").upper()
    preempting = settings.get("preempttype", "preempt/none") not in ("preempt/none", "(null)")
    if preempting and ("REQUEUE" in mode or "CANCEL" in mode):  # others are suspended, and continue by themselves
        note(
            "requeue",
            f"Jobs in {partition.name or 'the default partition'} may be preempted (PreemptMode = {mode}): they get a "
            f"signal, and are killed {partition.grace_seconds + (number(settings.get('killwait', '')) or 30)} s later "
            "(GraceTime and KillWait).",
        )
        if "CANCEL" in mode:
            note("requeue", "A preempted job does not come back by itself: `deg resume` submits it again.")
    if size := settings.get("maxarraysize"):
        note("max_array_size", f"MaxArraySize is {size}.")
    return cluster


def _about(site: Site) -> Iterator[str]:
    settings = site.settings
    version = settings.get("slurm_version", "of unknown version")
    yield f"Made from what Slurm {version} of cluster {settings.get('clustername', '?')} told {site.user}."
    plugins = settings.get("jobsubmitplugins", "(null)")
    if plugins not in ("(null)", ""):
        yield f"JobSubmitPlugins = {plugins}: when a job is submitted, the site may change or refuse what it asks for."


def _clock(minutes: float) -> str:
    """Format a time limit as people write it: 8:00:00, 2-00:00:00."""
    seconds = max(int(minutes * 60), 1)
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text.removeprefix("0")


def _span(numbers: Iterable[int]) -> str:
    """Format numbers as `8`, or as `8 to 64`."""
    low, *more = sorted(set(numbers)) or [0]
    return f"{low} to {more[-1]}" if more else str(low)


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


# ---------------------------------------------------------------------------------------------------- writing


def profile_text(choice: Choice, name: str) -> str:
    """Write a profile with every option of the section: those decided for this site, the others as comments."""
    lines = [
        *_comment(f"Cluster profile of deg: deg run PROJECT --on slurm cluster={name}"),
        *(line for sentence in choice.about for line in _comment(sentence)),
        *_comment("Options after a # keep their defaults. Shell variables are written $NAME, not ${NAME}."),
        "cluster:",
    ]
    usual, chosen = as_dict(Cluster()), as_dict(choice.cluster)
    for option in options(Cluster):
        key = option.key
        if key == "profile":
            continue
        decided = key in choice.notes or chosen[key] != usual[key]
        lines += ["", *(f"  {line}" for line in _comment(option.doc))]
        lines += [f"  {line}" for sentence in choice.notes.get(key, ()) for line in _comment(sentence)]
        lines.append(f"  {'' if decided else '# '}{key}: {_yaml(chosen[key])}")
    return "\n".join([*lines, ""])


def _comment(sentence: str) -> list[str]:
    return textwrap.wrap(
        " ".join(sentence.split()),
        width=108,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True).split("\n...")[0].strip()


# ---------------------------------------------------------------------------------------------------- showing


FLAGS = {
    "partition": ("partition",),
    "account": ("account",),
    "qos": ("qos",),
    "constraint": ("constraint",),
    "time": ("time",),
    "nodes": ("nodes",),
    "tasks_per_node": ("ntasks-per-node",),
    "gpus_per_node": ("gpus-per-node", "gres", "gpus"),
    "cpus_per_task": ("cpus-per-task",),
    "memory_gb": ("mem", "mem-per-cpu"),
    "requeue": ("requeue", "no-requeue"),
}
"""Options that each become one flag of sbatch, and which flags that can be."""


def shown(cluster: Cluster, flags: Mapping[str, Any], dropped: Collection[str]) -> str:
    """Return the section as YAML, with the flag of sbatch that an option becomes behind it.

    `flags` is {name: value}: True for a flag without a value, None for no flag. Those in `dropped` are removed again.
    """
    lines = ["cluster:"]
    for key, value in as_dict(cluster).items():
        given = [name for name in FLAGS.get(key, ()) if flags.get(name) is not None]
        words = [
            f"--{name} is removed"
            if name in dropped
            else f"--{name}"
            if flags[name] is True
            else f"--{name}={flags[name]}"
            for name in given
        ]
        lines.append(f"  {key}: {_yaml(value)}" + (f"  # {', '.join(words)}" if words else ""))
    return "\n".join([*lines, ""])
