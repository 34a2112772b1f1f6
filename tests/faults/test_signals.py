"""Asked to stop, refused, out of space, rights or files: one line, its exit code, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from comp import files
from tests.faults import tiny
from tests.faults.tiny import COMMANDS, PROJECT, Ended, Server

TRAIN, PREDICT, SUBMIT = COMMANDS
FOLD = "runs/tiny/tiny/fold0"


@pytest.fixture
def home(prepared: tuple[Path, dict[str, bytes]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared[0], tmp_path / "home"))


def one_line(ended: Ended, code: int, words: str) -> None:
    """It ended with this code, and its last line, the only one of an error, says so."""
    assert ended.code == code, ended.output
    lines = ended.output.splitlines()
    assert lines[-1].startswith("error: "), ended.output
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in ended.output
    assert words in lines[-1]


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_everywhere_is_the_same_run(
    server: Server, prepared: tuple[Path, dict[str, bytes]], home: Path
) -> None:
    stops = [
        (TRAIN, "training", signal.SIGTERM, 143),
        (TRAIN, "training", signal.SIGINT, 130),
        (TRAIN, "training", signal.SIGHUP, 129),
        (TRAIN, "validating", signal.SIGTERM, 143),
        (TRAIN, "saving", signal.SIGHUP, 129),
        (TRAIN, "out-of-fold", signal.SIGINT, 130),
    ]
    for words, phase, number, code in stops:
        ended = server.run(home, [*words, "workers=2"] if phase == "training" else words, signal_in=(phase, number))
        one_line(ended, code, "the same command goes on")
        assert f"stopped by {number.name}" in ended.output
    one_line(server.run(home, [*TRAIN, "time_limit=0.001"]), 75, "the time limit is reached")
    assert server.run(home, TRAIN).code == 0
    one_line(server.run(home, PREDICT, signal_in=("predicting", signal.SIGTERM)), 143, "the same command goes on")
    one_line(server.run(home, PREDICT, signal_in=("predicting", signal.SIGINT)), 130, "the same command goes on")
    assert server.run(home, PREDICT).code == 0
    one_line(server.run(home, SUBMIT, signal_in=("submitting", signal.SIGHUP)), 129, "the same command goes on")
    assert server.run(home, SUBMIT).code == 0
    assert tiny.results(home) == prepared[1]


@pytest.mark.slow
def test_no_finished_step_is_lost(server: Server, home: Path) -> None:
    """The time limit is over before the first step; SIGTERM comes with the second epoch's validation."""
    ended = server.run(home, [*TRAIN, "time_limit=0.001"])
    one_line(ended, 75, "the state is saved (epoch 1, 0 of 5 steps)")
    ended = server.run(home, TRAIN, signal_in=("validating", signal.SIGTERM))
    one_line(ended, 143, "the state is saved (epoch 1, 5 of 5 steps)")


@pytest.mark.parametrize("phase", ["training", "validating", "saving"])
def test_a_run_without_end_stops_within_ten_seconds(server: Server, home: Path, phase: str) -> None:
    asked = []

    def ask(pid: int) -> None:
        assert server.seen(phase, pid)
        asked.append(time.monotonic())
        os.kill(pid, signal.SIGTERM)

    ended = server.run(home, [*TRAIN, "epochs=1000000", "schedule.name=constant"], kill=ask)
    assert time.monotonic() - asked[0] < 10
    one_line(ended, 143, "the same command goes on")


def test_a_second_start_is_refused_with_the_first_ones_pid_and_host(server: Server, home: Path) -> None:
    with files.lock(home / FOLD / ".lock", "training tiny/fold0"):
        ended = server.run(home, TRAIN)
    one_line(ended, 5, f"is in use by process {os.getpid()} on {socket.gethostname()} (training tiny/fold0)")


@pytest.mark.slow
def test_a_disk_that_is_full_keeps_the_last_state(
    server: Server, prepared: tuple[Path, dict[str, bytes]], home: Path
) -> None:
    ended = server.run(home, TRAIN, signal_in=("validating", signal.SIGTERM))
    last = (home / FOLD / "last.ckpt").read_bytes()
    assert len(last) > 100_000
    one_line(server.run(home, TRAIN, limits={"FSIZE": 100_000}), 7, "file too large")
    assert (home / FOLD / "last.ckpt").read_bytes() == last
    assert not list((home / FOLD).glob(".*.tmp"))
    for words in COMMANDS:
        ended = server.run(home, words)
        assert ended.code == 0, ended.output
    assert tiny.results(home) == prepared[1]


@pytest.mark.slow
def test_a_file_system_that_fills_up_in_the_middle(
    server: Server, prepared: tuple[Path, dict[str, bytes]], home: Path
) -> None:
    """A real one of 64 MiB: there is room when training begins, and none when the second epoch is to be saved."""
    folder = home / "runs"
    folder.mkdir(exist_ok=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs the right to mount a file system ({mount.stderr.strip()})")
    filler = folder / "filler"

    def fill(pid: int) -> None:
        assert server.seen("validating", pid, stopped=True)
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        os.kill(pid, signal.SIGCONT)

    try:
        ended = server.run(home, TRAIN, kill=fill, signal_in=("validating", signal.SIGSTOP, 2))
        one_line(ended, 7, "no space left on the device")
        assert not list((home / FOLD).glob(".*.tmp"))
        one_line(server.run(home, TRAIN), 7, "free")
        filler.unlink()
        for words in COMMANDS:
            ended = server.run(home, words)
            assert ended.code == 0, ended.output
        assert tiny.results(home) == prepared[1]
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_folder_one_may_not_write_to(server: Server, home: Path) -> None:
    (home / FOLD).mkdir(parents=True)
    for folder, words in ((home / FOLD, TRAIN), (home / "folds", ["folds", "--data", "tiny"])):
        if folder.name == "folds":
            (folder / "tiny.csv").unlink()
        folder.chmod(0o555)
        try:
            ended = server.run(home, words, powerless=True)
        finally:
            folder.chmod(0o755)
        one_line(ended, 7, "permission denied; make the folder writable for this user")


@pytest.mark.slow
def test_too_few_files(server: Server, home: Path) -> None:
    """Wherever the limit bites, it is one line; with enough of them all is well."""
    codes = []
    for most in (8, 18, 200):
        here = Path(shutil.copytree(home, home.parent / f"with{most}"))
        ended = server.run(here, [*TRAIN, "workers=2"], limits={"NOFILE": most})
        codes.append(ended.code)
        if ended.code:
            one_line(ended, 7, "too many open files")
    assert codes[0] == 7
    assert codes[-1] == 0


@pytest.mark.slow
def test_stdout_that_nobody_reads(server: Server, home: Path) -> None:
    one_line(server.run(home, TRAIN, reader_gone=True), 7, "stdout: was closed")


def test_stdout_that_is_closed_from_the_start(home: Path) -> None:
    """The next file to be opened would get stdout's number, and what is printed would go into it."""
    words = "folds --data tiny"
    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m comp {words} >&-"],
        cwd=PROJECT,
        env={**os.environ, "COMP_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    one_line(Ended(done.returncode, "", done.stderr), 7, "stdout: is closed")


def _children(launcher: int) -> dict[str, int]:
    """Process ids of a launcher's processes by rank."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                environment = (folder / "environ").read_bytes().split(b"\0")
                if f"COMP_LAUNCHER={launcher}".encode() in environment:
                    rank = next(entry for entry in environment if entry.startswith(b"RANK="))
                    if (folder / "stat").read_text().rsplit(")", 1)[1].split()[1] == str(launcher):
                        found[rank.decode()[5:]] = int(folder.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_of_two_that_dies_or_hangs_ends_both(home: Path, number: signal.Signals) -> None:
    words = [*TRAIN, "--procs", "2", "epochs=100000", "--name", "two", "hang_limit=5", "schedule.name=constant"]
    environment = {**os.environ, "COMP_HOME": str(home), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        [sys.executable, "-m", "comp", *words],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            deadline = time.monotonic() + 120
            while not (home / "runs/tiny/two/fold0/log.csv").exists() and time.monotonic() < deadline:
                assert launcher.poll() is None, launcher.communicate()[1]
                time.sleep(0.1)
            children = _children(launcher.pid)
            assert sorted(children) == ["0", "1"]
            began = time.monotonic()
            os.kill(children["1"], number)
            _, printed = launcher.communicate(timeout=60)
            seconds = time.monotonic() - began
        finally:
            launcher.kill()
    assert launcher.returncode == 8, printed
    line = printed.strip().splitlines()[-1]
    if number == signal.SIGKILL:
        assert "process 1 of 2: was killed by SIGKILL" in line
        assert seconds < 30
    else:
        assert re.search(r"process 0 lost the others", line), line
    assert not any(Path(f"/proc/{pid}").exists() for pid in children.values())


def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    """As nohup does it: the terminal may close."""
    code = (
        "import os, signal, json\n"
        "from comp.training.stopping import Stopping\n"
        "from comp import cli\n"
        "with cli._listening(), Stopping().listening() as stopping:\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    print(json.dumps(stopping.asked()))\n"
    )
    done = subprocess.run(["nohup", sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) is None
