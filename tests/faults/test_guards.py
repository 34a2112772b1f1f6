"""The guards of tests/faults/guards.py stand where it says; `make soak` takes each out and sees its test fail."""

from __future__ import annotations

import pytest

from tests.faults import guards


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.name)
def test_the_guard_and_its_test_are_there(guard: guards.Guard) -> None:
    assert guards.there(guard)
    assert (guards.PROJECT / guard.test.partition("::")[0]).exists()
    name = guard.test.partition("::")[2]
    assert f"def {name}" in (guards.PROJECT / guard.test.partition("::")[0]).read_text()
