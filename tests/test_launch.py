from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comp import launch
from comp.errors import CompError, Exit

PYTHON = (sys.executable, "-c")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: 0)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


def run(code: str, procs: int = 2) -> None:
    launch.start(procs, [code], PYTHON)


def gone(pid: int) -> bool:
    """Whether a process is no more (a zombie of a container without init counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(condition: object, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_how_many_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert launch.wanted(None) == 0
    assert launch.wanted(1) == 0
    assert launch.wanted(3) == 3
    with pytest.raises(CompError, match="PROCS=0: is no number of processes"):
        launch.wanted(0)
    monkeypatch.setattr(launch, "gpu_count", lambda: 2)
    assert launch.wanted(None) == 2
    assert launch.wanted(1) == 0
    with pytest.raises(CompError, match="PROCS=3: there are 2 GPUs"):
        launch.wanted(3)
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun, or our own launcher, has started us
    assert launch.wanted(2) == 0


def test_every_process_knows_its_place(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_CPU")
    run(f"import os; open(r'{tmp_path}/' + os.environ['RANK'], 'w').write(repr([os.environ[n] for n in {names}]))", 3)
    for rank in range(3):
        assert (tmp_path / str(rank)).read_text() == repr([str(rank), str(rank), "3", "127.0.0.1", "1"])


@pytest.mark.parametrize("code", [Exit.NUMERIC, Exit.TIME, Exit.TERMINATED, Exit.DATA])
def test_an_exit_code_and_its_line_come_through_once(code: Exit, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CompError) as raised:
        run(f"import sys; print('error: run/fold0: it went wrong; do this', file=sys.stderr); sys.exit({int(code)})")
    assert raised.value.code is code
    assert str(raised.value) == "run/fold0: it went wrong; do this"
    assert "error:" not in capfd.readouterr().err  # it is said by whoever raises it


def test_a_killed_process_ends_all_and_is_named(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = f"""
import os, signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(r"{pids}", "a").write(f"{{os.getpid()}} {{worker.pid}}\\n")
while len(open(r"{pids}").read().split()) < 4: time.sleep(0.05)
if os.environ["RANK"] == "1": os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    began = time.monotonic()
    with pytest.raises(CompError, match="process 1 of 2: was killed by SIGKILL") as raised:
        run(code)
    assert raised.value.code is Exit.PROCESS
    assert time.monotonic() - began < 30
    assert wait_until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))


def test_a_crash_is_named_before_those_who_noticed_it() -> None:
    code = """
import os, sys, time
if os.environ["RANK"] == "0":
    print("error: run/fold0: lost the others", file=sys.stderr); sys.exit(8)
sys.exit(3)
"""
    with pytest.raises(CompError) as raised:
        run(code)
    assert raised.value.code is Exit.PROCESS
    assert "process 1 of 2: ended with exit code 3" in str(raised.value)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_the_processes_and_none_outlives_the_launcher(tmp_path: Path, number: signal.Signals) -> None:
    """SIGTERM is passed on; SIGKILL of the launcher takes the processes with it."""
    pids = tmp_path / "pids"
    child = f"""
import os, signal, sys, time
from comp import launch
launch.follow_parent()
def end(*_):
    open(r"{tmp_path}/asked" + os.environ["RANK"], "w").close()
    print("error: run: stopped", file=sys.stderr)
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open(r"{pids}", "a").write(f"{{os.getpid()}}\\n")
time.sleep(60)
"""
    parent = f"""
import sys
from comp import cli, launch
launch.gpu_count = lambda: 0
try:
    launch.start(2, [{child!r}], (sys.executable, "-c"))
except cli.CompError as error:
    print(error, error.code)
    sys.exit(int(error.code))
"""
    process = subprocess.Popen([*PYTHON, parent], stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    os.kill(process.pid, number)
    out, _ = process.communicate(timeout=30)
    assert wait_until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert out.startswith("run: stopped")
        assert {path.name for path in tmp_path.glob("asked*")} == {"asked0", "asked1"}


def test_gpus_are_counted_as_the_environment_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([Path("a"), Path("b"), Path("c")]))
    for shown, count in ((None, 3), ("0,2", 2), ("", 0), ("-1", 0), ("1,-1,2", 1)):
        if shown is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        assert launch.gpu_count() == count
