"""Take each severe guard out, in a copy of the program, and see that a test fails without it.

Alone: `python -m tests.faults.guards`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Guard:
    """One guard.

    Attributes:
        name: What it keeps from happening.
        file: Where it is.
        text: The guard as it stands there, once.
        without: What is left when it is taken out.
        test: A test that fails then.
    """

    name: str
    file: str
    text: str
    without: str
    test: str


GUARDS = (
    Guard(
        "sample order on resume: an epoch goes on with the step it was left in",
        "comp/training/plan.py",
        "self.batch, step if at == epoch else 0)",
        "self.batch, 0)",
        "tests/training/test_plan.py",
    ),
    Guard(
        "chance on resume: every step seeds all generators anew",
        "comp/training/loop.py",
        "    reseed(run.config.seed, run.fold.number, position.epoch, position.step, trainee.team.rank)\n",
        "",
        "tests/training/test_train.py::test_a_run_in_bits_is_the_run_in_one_go",
    ),
    Guard(
        "a step given up leaves no trace in BatchNorm",
        "comp/training/loop.py",
        "        undo.restore()\n",
        "",
        "tests/training/test_train.py",
    ),
    Guard(
        "id alignment: rows are joined by id",
        "comp/predictions.py",
        "        order = [rows[image_id] for image_id in wanted]\n",
        "        order = list(range(len(wanted)))\n",
        "tests/test_predictions.py::test_align_joins_by_id_and_refuses_other_ids",
    ),
    Guard(
        "id alignment: the sets of ids are equal",
        "comp/predictions.py",
        '        if missing:\n            what = f"has no prediction for',
        '        if False:\n            what = f"has no prediction for',
        "tests/test_predictions.py::test_align_joins_by_id_and_refuses_other_ids",
    ),
    Guard(
        "digests: predictions of other weights are stale",
        "comp/ensembling/freshness.py",
        '        if read.header["checkpoint"] != weights:\n',
        "        if False:\n",
        "tests/ensembling/test_members.py",
    ),
    Guard(
        "digests: a checkpoint goes on with its own config, data and folds only",
        "comp/training/checkpoint.py",
        "        if found != wanted:\n",
        "        if False:\n",
        "tests/training/test_checkpoint.py::test_a_checkpoint_of_another_run_is_refused",
    ),
    Guard(
        "digests: the manifest's raw files are those it was made from",
        "comp/data/manifest.py",
        "        if found != stamp:\n",
        "        if False:\n",
        "tests/data/test_manifest.py",
    ),
    Guard(
        "atomic write: a temporary file, then a rename",
        "comp/files.py",
        '    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")\n',
        "    temporary = path\n",
        "tests/faults/test_writes.py",
    ),
    Guard(
        "atomic write: the new checkpoint is read back first",
        "comp/training/checkpoint.py",
        "    files.write_atomic(path, lambda file: file.write(data), verify)\n",
        "    files.write_atomic(path, lambda file: file.write(data))\n",
        "tests/faults/test_writes.py",
    ),
    Guard(
        "a checkpoint with a rotten bit is refused",
        "comp/training/checkpoint.py",
        "        files.check_zip(io.BytesIO(data), len(data))",
        "        pass",
        "tests/faults/test_fuzz.py::test_no_flipped_bit_of_a_checkpoint_passes",
    ),
    Guard(
        "a record's content has its checksum",
        "comp/data/tfrecord.py",
        "                if masked(crc) != stored:\n",
        "                if False:\n",
        "tests/data/test_tfrecord.py",
    ),
    Guard(
        "NaN stop: a loss that is not finite ends the training",
        "comp/training/step.py",
        "        if found:\n            epoch, step, lr, rows = min(found)\n",
        "        if False:\n            epoch, step, lr, rows = min(found)\n",
        "tests/training/test_train.py::test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state",
    ),
    Guard(
        "NaN stop: weights whose losses nobody has seen are not saved",
        "comp/training/loop.py",
        "    trainee.check_finite(run.dataset.ids, run.fold, now=True)\n    position.sums",
        "    position.sums",
        "tests/training/test_train.py::test_a_loss_nobody_has_looked_at_yet_is_not_saved",
    ),
    Guard(
        "lock: one process trains a fold",
        "comp/files.py",
        "            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "tests/test_files.py::test_a_second_holder_is_told_who_holds_it_and_a_dead_one_holds_nothing",
    ),
    Guard(
        "lock: it dies with its owner, though forked workers live",
        "comp/files.py",
        "            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "tests/test_files.py::test_a_second_holder_is_told_who_holds_it_and_a_dead_one_holds_nothing",
    ),
    Guard(
        "the manifest is there only when all that belongs to it is",
        "comp/data/manifest.py",
        '    files.write_json(where / "dataset.json", about)\n    files.write_text(where / "manifest.csv", text)\n',
        '    files.write_text(where / "manifest.csv", text)\n    files.write_json(where / "dataset.json", about)\n',
        "tests/faults/test_kills.py::test_reading_the_data_killed_before_each_of_its_saves",
    ),
    Guard(
        "digests: a manifest that was changed is refused",
        "comp/data/manifest.py",
        "    if changed or files.digest_rows",
        "    if files.digest_rows",
        "tests/faults/test_fuzz.py::test_no_flipped_bit_of_a_manifest_passes",
    ),
    Guard(
        "several processes: their gradients are averaged",
        "comp/training/building.py",
        "PartialState(cpu=cpu, timeout",
        "PartialState(timeout",
        "tests/training/test_several.py::test_two_processes_train_one_network_which_is_that_of_one_process",
    ),
    Guard(
        "several processes: the moving average follows the wrapped network",
        "comp/training/ema.py",
        "    return [*network.parameters(), ",
        "    return [*(p.data for p in network.parameters()), ",
        "tests/training/test_several.py::test_two_processes_train_one_network_which_is_that_of_one_process",
    ),
    Guard(
        "no code runs from a checkpoint",
        "comp/training/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "tests/faults/test_hostile.py",
    ),
    Guard(
        "no code runs from a prediction file",
        "comp/predictions.py",
        "np.load(path, allow_pickle=False)",
        "np.load(path, allow_pickle=True)",
        "tests/faults/test_hostile.py",
    ),
)


def there(guard: Guard, root: Path = PROJECT) -> bool:
    """Whether the guard stands where it is said to, once."""
    return (root / guard.file).read_text().count(guard.text) == 1


def passes(root: Path, test: str) -> bool:
    """Whether a test passes in a copy of the program.

    Raises:
        RuntimeError: It neither passes nor fails, so it shows nothing.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{test}: pytest ended with {done.returncode}: {done.stdout[-500:]}")
    return done.returncode == 0


def take_out(guard: Guard, root: Path) -> bool:
    """Take a guard out of a copy of the program, run its test, put the guard back; whether the test failed."""
    path = root / guard.file
    text = path.read_text()
    if text.count(guard.text) != 1:
        raise RuntimeError(f"{guard.file} does not hold this guard once: {guard.text}")
    path.write_text(text.replace(guard.text, guard.without))
    try:
        return not passes(root, guard.test)
    finally:
        path.write_text(text)


def copy(folder: Path) -> Path:
    """A copy of the program and its tests."""
    for name in ("comp", "tests", "configs", "benchmarks"):
        if (PROJECT / name).is_dir():
            shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "Makefile", "requirements.txt"):
        shutil.copy(PROJECT / name, folder / name)
    return folder


def series() -> list[tuple[str, str, str]]:
    """Take out all; rows (guard, test, what the test did)."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = copy(Path(folder))
        for test in dict.fromkeys(guard.test for guard in GUARDS):
            if not passes(root, test):
                rows.append(("(none taken out)", test, "fails"))
        for guard in GUARDS:
            rows.append((guard.name, guard.test, "fails without it" if take_out(guard, root) else "PASSES WITHOUT IT"))
            print(" · ".join(rows[-1]), flush=True)
    return rows


if __name__ == "__main__":
    found = series()
    sys.exit(any(row[2] != "fails without it" for row in found))
