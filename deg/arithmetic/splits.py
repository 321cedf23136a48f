"""Which recordings are for training, validation and testing. The same keys, shares and generator give the same split.

DeepEthogram draws again until every class is in every part, for ever if a class is too rare. Here at most `DRAWS`
splits are drawn and the best is taken. Validation chooses thresholds and weights, so every split of two or more
recordings has it, with a labelled recording if at least two are labelled.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

PARTS = ("train", "val", "test")
DRAWS = 1000

Parts = dict[str, list[str]]
"""Keys of the recordings in each part."""
Positives = Mapping[str, Collection[str]]
"""Classes that have at least one positive frame, for each fully labelled recording."""


def make_split(
    keys: Iterable[str], train_val_test: Sequence[float], rng: np.random.Generator, positives: Positives | None = None
) -> tuple[Parts, list[str]]:
    """Return a new split of `keys`, and notes about it for the user. Raises ValueError if the shares cannot be met.

    The parts have no key in common. With `positives`, each part has every class if any of the drawn splits allows it.
    """
    ordered = sorted(set(keys))
    counts = part_sizes(train_val_test, len(ordered))
    ordered = ordered[: sum(counts)]
    notes = []
    if len(ordered) >= 2 and 0 in counts[:2]:
        counts = _with_train_and_val(counts)
        notes.append(
            f"{len(ordered)} recordings are divided into {counts[0]} for training, {counts[1]} for validation and "
            f"{counts[2]} for testing, because training and validation need at least one each"
        )
    labelled = {key: set(classes) for key, classes in (positives or {}).items() if key in set(ordered)}
    classes = sorted(set().union(*labelled.values()))
    has_KN = np.array([[name in labelled.get(key, ()) for key in ordered] for name in classes], dtype=bool)
    is_labelled_N = np.array([key in labelled for key in ordered], dtype=bool)
    parts_wanted = sum(count > 0 for count in counts)
    enough = (sum(min(int(has_N.sum()), parts_wanted) for has_N in has_KN), len(classes))

    best, best_score = None, (-1, -1)
    for _ in range(DRAWS):
        drawn = np.split(rng.permutation(len(ordered)), np.cumsum(counts)[:2])
        _share_out_labelled(drawn, is_labelled_N)
        covered = [int(has_KN[:, part].any(axis=1).sum()) if classes else 0 for part in drawn]
        score = (sum(covered), covered[0])
        if score > best_score:
            best, best_score = drawn, score
        if score >= enough:
            break
    assert best is not None
    parts = {name: [ordered[i] for i in part] for name, part in zip(PARTS, best, strict=True)}
    return parts, notes + _lacking(parts, labelled, classes)


def update_split(
    existing: Mapping[str, Sequence[str]],
    keys: Iterable[str],
    fractions: Sequence[float],
    rng: np.random.Generator,
    positives: Positives | None = None,
) -> tuple[Parts, list[str]]:
    """Add the `keys` that a split lacks, each to a random part. Return the new split and notes about it for the user.

    Keys that cannot be used now stay where they are: they may come back, and must not be in another part then.
    """
    notes = []
    parts: Parts = {name: [] for name in PARTS}
    where: dict[str, str] = {}
    for name in PARTS:
        for key in existing.get(name, ()):
            if where.setdefault(key, name) == name:
                parts[name].append(key)
            else:
                notes.append(f"recording `{key}` was in {where[key]} and in {name}; it stays in {where[key]} only")
    new = sorted(set(keys) - set(where))
    weights = np.asarray(fractions, dtype=float)
    for key, part in zip(new, rng.choice(3, size=len(new), p=weights / weights.sum()), strict=True):
        parts[PARTS[part]].append(key)
    known = set(keys) if positives is None else set(keys) & set(positives)
    notes += _fill_train_and_val(parts, known, set(new), rng)
    labelled = {key: set(classes) for key, classes in (positives or {}).items() if key in known}
    return parts, notes + _lacking(parts, labelled, sorted(set().union(*labelled.values())))


def usable_parts(parts: Mapping[str, Sequence[str]], usable: Collection[str]) -> Parts:
    """Return the split with only the recordings that can be used now."""
    return {name: [key for key in parts.get(name, ()) if key in usable] for name in PARTS}


def part_sizes(train_val_test: Sequence[float], num_records: int) -> tuple[int, int, int]:
    """Return how many recordings each part gets, from shares with sum 1 or from counts; one count may be -1, the rest.

    Running sums of shares are rounded down to whole recordings. Counts may leave recordings unused.
    """
    wanted = f"expected train_val_test to be three shares with sum 1, or three counts, got {list(train_val_test)}"
    if len(train_val_test) != 3 or not all(math.isfinite(value) for value in train_val_test):
        raise ValueError(wanted)
    if all(0 <= value <= 1 for value in train_val_test) and abs(sum(train_val_test) - 1) < 1e-3:
        # 1e-9: 10 * (0.6 + 0.3) is 8.999999999999998
        first, second = (int(num_records * sum(train_val_test[:i]) + 1e-9) for i in (1, 2))
        return first, second - first, num_records - second
    counts = [int(value) for value in train_val_test]
    if counts != list(train_val_test) or min(counts) < -1 or counts.count(-1) > 1:
        raise ValueError(wanted)
    rest = num_records - sum(count for count in counts if count >= 0)
    if rest < 0:
        raise ValueError(f"train_val_test asks for {num_records - rest} recordings, but only {num_records} can be used")
    train, val, test = (rest if count == -1 else count for count in counts)
    return train, val, test


def part_fractions(train_val_test: Sequence[float], num_records: int) -> tuple[float, float, float]:
    """Return the shares by which recordings that are added later are drawn; split.yaml keeps them."""
    if abs(sum(train_val_test) - 1) < 1e-3 and min(train_val_test) >= 0:
        train, val, test = (float(value) for value in train_val_test)
    else:
        sizes = part_sizes(train_val_test, num_records)
        train, val, test = (size / max(sum(sizes), 1) for size in sizes)
    return train, val, test


def _with_train_and_val(counts: tuple[int, int, int]) -> tuple[int, int, int]:
    """Give training and validation at least one recording each, taken from the largest part, the last of equals."""
    sizes = list(counts)
    for part in (0, 1):
        if sizes[part] == 0:
            sizes[max(range(3), key=lambda i: (sizes[i], i))] -= 1
            sizes[part] = 1
    return sizes[0], sizes[1], sizes[2]


def _share_out_labelled(drawn: list[np.ndarray], is_labelled_N: np.ndarray) -> None:
    """Exchange recordings in place so that training and validation both have a labelled one, if there are two."""
    for poor in (1, 0):
        if not len(drawn[poor]) or is_labelled_N[drawn[poor]].any():
            continue
        for rich, needed in ((2, 1), (1 - poor, 2)):
            labelled = np.flatnonzero(is_labelled_N[drawn[rich]])
            if len(labelled) >= needed:
                i = labelled[0]
                drawn[poor][0], drawn[rich][i] = drawn[rich][i], drawn[poor][0]
                break


def _fill_train_and_val(parts: Parts, known: set[str], new: set[str], rng: np.random.Generator) -> list[str]:
    """Move a recording into training or validation if that part has none of the `known`, preferably a new one."""
    notes = []
    for poor, other in (("val", "train"), ("train", "val")):
        if known & set(parts[poor]):
            continue
        for rich, needed in ((other, 2), ("test", 1)):
            movable = [key for key in parts[rich] if key in known]
            if len(movable) >= needed:
                choice = [key for key in movable if key in new] or movable
                key = choice[int(rng.integers(len(choice)))]
                parts[rich].remove(key)
                parts[poor].append(key)
                if key not in new:
                    notes.append(f"recording `{key}` moved from {rich} to {poor}, which had none that can be used")
                break
    return notes


def _lacking(parts: Parts, labelled: Mapping[str, set[str]], classes: Sequence[str]) -> list[str]:
    notes = []
    for name in PARTS:
        present = set().union(*(labelled.get(key, set()) for key in parts[name]))
        missing = [cls for cls in classes if cls not in present]
        if missing and parts[name]:
            have = ", ".join(f"`{cls}` (in {sum(cls in has for has in labelled.values())})" for cls in missing)
            notes.append(f"{name} has no positive frame of {have}: too few recordings have one. Label more that do")
    return notes
