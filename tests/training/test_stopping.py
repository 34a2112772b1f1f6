from __future__ import annotations

import os
import signal
import threading

import pytest

from comp.errors import Exit
from comp.training.stopping import Asked, Stopping

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_becomes_a_wish_with_its_exit_code(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Stopping().listening() as stopping:
        stopping.check()
        os.kill(os.getpid(), number)
        assert stopping.asked() == code
        with pytest.raises(Asked) as raised:
            stopping.check()
    error = raised.value.error("run/fold0")
    assert error.code == code
    assert str(error) == f"run/fold0: stopped by {number.name}, the state is saved; the same command goes on"
    assert signal.getsignal(number) is before


def test_a_second_interrupt_does_not_wait() -> None:
    with Stopping().listening():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_time_limit_asks_with_75() -> None:
    stopping = Stopping(time_limit=1e-9)
    with pytest.raises(Asked) as raised:
        stopping.check()
    assert raised.value.code is Exit.TIME
    Stopping(time_limit=3600).check()
    Stopping().check()


def test_another_thread_can_train_too() -> None:
    found = []

    def work() -> None:
        with Stopping().listening() as stopping:
            found.append(stopping.asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]
