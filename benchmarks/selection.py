"""Greedy selection at the competition's size: 100 members × 16,465 images × 104 classes, macro F1, 50 rounds.

    OMP_NUM_THREADS=2 taskset -c 0,1 python -m benchmarks.selection            # two cores
    OMP_NUM_THREADS=2 taskset -c 0,1 python -m benchmarks.selection --plain    # beside the plain incremental loop

The members are drawn by code. Prints wall and processor seconds and the memory above the members; with --plain also
those of a loop that keeps the running sum and counts the confusion of every candidate in full, and checks that both
select the same members.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import numpy.typing as npt

from comp.ensembling.rules import member_order
from comp.ensembling.selection import SAME, select
from comp.metrics import macro_f1_from_counts


def draw(
    members: int, images: int, classes: int, seed: int = 0
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]:
    """Labels as unbalanced as the competition's, and near-equal members that share three quarters of their noise."""
    rng = np.random.default_rng(seed)
    share = np.geomspace(18, 782, classes)
    labels = rng.choice(classes, images, p=share / share.sum())
    common = rng.standard_normal((images, classes), dtype=np.float32) * np.float32(0.75**0.5)
    drawn = []
    for _ in range(members):
        logits = common + rng.standard_normal((images, classes), dtype=np.float32) * np.float32(0.5)
        logits[np.arange(images), labels] += np.float32(3.3 + rng.uniform(-0.2, 0.2))
        powers = np.exp(2 * logits)
        drawn.append(powers / powers.sum(axis=1, keepdims=True))
    return labels, drawn


def plain(members: list[npt.NDArray[np.float32]], labels: npt.NDArray[np.int64], rounds: int, start: int) -> list[int]:
    """The same selection without any shortcut: how often each member is taken."""
    images, classes = members[0].shape
    true = np.bincount(labels, minlength=classes)
    total = np.zeros((images, classes))

    def score(scores: npt.NDArray[np.float64]) -> float:
        predicted = scores.argmax(axis=1)
        tp = np.bincount(labels[predicted == labels], minlength=classes)
        return float(macro_f1_from_counts(tp, np.bincount(predicted, minlength=classes), true))

    def first_best(values: list[float]) -> int:
        return int(np.flatnonzero(np.array(values) >= max(values) - SAME)[0])

    order = member_order(members)
    alone = [score(members[m].astype(np.float64)) for m in order]
    ranked = [order[i] for i in np.argsort(-np.array(alone), kind="stable")][: min(start, rounds)]
    taken, path = [], []
    for m in ranked:
        total += members[m]
        taken.append(m)
        path.append(score(total))
    keep = first_best(path) + 1
    for m in taken[keep:]:
        total -= members[m]
    taken, path = taken[:keep], path[:keep]
    while len(taken) < rounds:
        values = [score(total + members[m]) for m in order]
        best = first_best(values)
        total += members[order[best]]
        taken.append(order[best])
        path.append(values[best])
    return np.bincount(taken[: first_best(path) + 1], minlength=len(members)).tolist()


def main() -> None:
    """Draw, select, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=100)
    parser.add_argument("--images", type=int, default=16_465)
    parser.add_argument("--classes", type=int, default=104)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--plain", action="store_true", help="run the plain loop too and compare")
    options = parser.parse_args()
    labels, members = draw(options.members, options.images, options.classes)
    size = sum(member.nbytes for member in members) / 2**20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    found = select(members, labels, rounds=options.rounds)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    used = int((found.counts > 0).sum())
    print(f"members {size:.0f} MiB; selected {used} of {options.members}, macro F1 {found.score:.4f} on these rows")
    print(f"select: {wall:.2f} s wall, {processor:.2f} s processor, {above:.0f} MiB above the members")
    if options.plain:
        slow_wall, slow = time.perf_counter(), time.process_time()
        counts = plain(members, labels, options.rounds, start=5)
        slow_wall, slow = time.perf_counter() - slow_wall, time.process_time() - slow
        same = "the same members" if counts == found.counts.tolist() else "OTHER members"
        print(f"plain loop: {slow_wall:.2f} s wall, {slow:.2f} s processor ({slow / processor:.0f} times); {same}")


if __name__ == "__main__":
    main()
