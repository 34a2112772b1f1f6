"""Each rule's estimate beside its test score, on the built-in set, whose test truth is known.

    python -m benchmarks.rules RUN RUN …        # runs of petals, trained before

Makes one submission per rule (submissions/petals/rule-*.csv) and prints a markdown table.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys

import comp
from comp.ensembling import methods


def main(runs: list[str]) -> None:
    print("| rule | in-sample | cross-fitted (the estimate) | 95 % | test |")
    print("|---|---:|---:|---|---:|")
    for rule in (*methods.names(), "vote:weighted"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            made = comp.submit(runs, rule=rule, name=f"rule-{rule.replace(':', '-')}")
        cross = made.blend.cross
        test = re.search(r"test: \w+ ([\d.]+) ± ([\d.]+)", " ".join(said.getvalue().split()))
        assert cross is not None
        assert test is not None, "only the built-in set knows its test truth"
        numbers = f"{100 * cross.in_sample:.2f} | {100 * cross.cross_fitted:.2f} ± {100 * cross.se:.2f}"
        between = f"{100 * cross.low:.1f} to {100 * cross.high:.1f}"
        print(
            f"| {rule} | {numbers} | {between} | {100 * float(test[1]):.2f} ± {100 * float(test[2]):.2f} |", flush=True
        )


if __name__ == "__main__":
    main(sys.argv[1:])
