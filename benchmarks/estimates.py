"""Are the printed estimates honest? Worlds drawn by code, with fresh rows as the truth (comp/ensembling/simulate.py).

    python -m benchmarks.estimates                    # the tables of docs/ensembles.md; about 20 core-minutes
    python -m benchmarks.estimates --worlds 50        # a look

Prints Markdown: for each method the mean signed error of its cross-fitted and its in-sample estimate and how often the
95 % interval holds the truth; then the coverage of the interval of one score and of a paired difference.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

from comp.ensembling.methods import method
from comp.ensembling.simulate import Shape, coverage, judge


def main() -> None:
    """Run the simulations and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=600)
    parser.add_argument("--methods", default="mean,best,select,auto,weights")
    parser.add_argument("--metric", default="macro_f1")
    parser.add_argument("--first", type=int, default=0, help="seed of the first world")
    parser.add_argument("--no-coverage", action="store_true", help="leave out the second table")
    options = parser.parse_args()
    began, shape = time.monotonic(), Shape()
    methods = [method(spec) for spec in options.methods.split(",")]
    print(f"{options.worlds} worlds, {options.metric}, {shape}\n", flush=True)
    print("| method | estimate | truth | mean signed error, points | 95 % interval holds the truth | honest |")
    print("|---|---|---|---|---|---|", flush=True)
    for verdict in judge(methods, options.worlds, shape, options.metric, options.first):
        print(
            f"| {verdict.method} | {verdict.estimate} | {verdict.truth:.2f} | {verdict.error:+.2f} ± "
            f"{verdict.error_se:.2f} | {100 * verdict.covered:.1f} % | {'yes' if verdict.honest else 'no'} |"
        )
    if not options.no_coverage:
        print("\n| rows | classes | metric | interval in use | ± 1.96 standard errors | paired difference |")
        print("|---|---|---|---|---|---|", flush=True)
        pair = Shape(members=2, fold_spread=0.0, fresh=40)
        for shape in (
            pair,
            replace(pair, smallest=40, largest=350, classes=12),
            replace(pair, smallest=8, largest=80, classes=12),
            replace(pair, smallest=40, largest=350, classes=12, skill=5.0),
        ):
            for metric in ("macro_f1", "accuracy"):
                held = coverage(options.worlds, shape, metric)
                cells = " | ".join(f"{100 * held[name]:.1f} %" for name in ("score", "normal", "difference"))
                print(f"| {shape.counts.sum()} | {shape.classes} | {metric} | {cells} |", flush=True)
    print(f"\n{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
