"""The ledger: entries, the leaderboard's relation to the estimates, the final two, Kaggle's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from comp import files
from comp.ensembling import ledger
from comp.errors import CompError


def _record(name: str, digest: str, estimate: float | None = 0.9, se: float = 0.01) -> dict[str, Any]:
    said = None if estimate is None else {"cross_fitted": estimate, "se": se}
    return {"csv": {"file": f"{name}.csv", "sha256": digest}, "metric": "macro_f1", "estimate": said}


def _entry(name: str, estimate: float | None, public: float | None, digest: str = "d") -> ledger.Entry:
    return ledger.Entry(f"{name}.csv", digest, "macro_f1", estimate, 0.01, public, "", "2026-01-01T00:00:00Z")


def test_enter_and_read_back(tmp_path: Path) -> None:
    ledger.enter(tmp_path, _record("a", "1" * 64), note='first, "quoted" [bold]')
    ledger.enter(tmp_path, _record("b", "2" * 64, None))
    ledger.enter(tmp_path, _record("a", "1" * 64), public=0.91)
    first, second = ledger.read(tmp_path)
    assert (first.estimate, first.se, first.public, first.note) == (0.9, 0.01, 0.91, 'first, "quoted" [bold]')
    assert (second.estimate, second.public) == (None, None)


def test_damaged_number_names_the_row(tmp_path: Path) -> None:
    ledger.enter(tmp_path, _record("a", "1" * 64))
    path = ledger.path_of(tmp_path)
    path.write_text(path.read_text().replace("0.9,", "high,"))
    with pytest.raises(CompError, match="row 2 holds 'high' where a number is wanted"):
        ledger.read(tmp_path)


def test_relation_from_five_on() -> None:
    rng = np.random.default_rng(0)
    estimates = 0.9 + 0.02 * rng.random(8)
    publics = estimates + 0.01 + 0.001 * rng.normal(size=8)
    entries = [_entry(f"s{n}", e, p) for n, (e, p) in enumerate(zip(estimates, publics, strict=True))]
    assert ledger.relation(entries[:4]) is None
    assert ledger.relation([*entries[:4], _entry("x", 0.9, None), _entry("y", None, 0.9)]) is None
    found = ledger.relation(entries)
    assert found is not None
    assert found.offset == pytest.approx((publics - estimates).mean())
    assert found.correlation == pytest.approx(stats.spearmanr(estimates, publics).statistic)
    assert found.out_of_line == ()
    entries[3] = _entry("s3", float(estimates[3]), float(estimates[3]) + 0.05)
    assert ledger.relation(entries).out_of_line == ("s3.csv",)  # type: ignore[union-attr]


def test_out_of_line_is_rare_by_chance() -> None:
    """Bonferroni over the submissions: at most about one ledger in twenty has a mark where none is deserved."""
    rng = np.random.default_rng(0)
    marked = 0
    for _ in range(400):
        entries = [_entry(f"s{n}", 0.9, 0.9 + 0.003 * float(rng.normal())) for n in range(6)]
        marked += bool(ledger.relation(entries).out_of_line)  # type: ignore[union-attr]
    assert 0.01 <= marked / 400 <= 0.08


def _sent(folder: Path, name: str, answers: str, estimate: float, se: float = 0.01) -> None:
    path = folder / f"{name}.csv"
    files.write_csv(path, ["id", "label"], [[f"i{n}", label] for n, label in enumerate(answers)])
    ledger.enter(folder, _record(name, files.digest_file(path), estimate, se))


def test_finals(tmp_path: Path) -> None:
    _sent(tmp_path, "best", "0000000000", 0.930)
    _sent(tmp_path, "near", "0000000001", 0.929)
    _sent(tmp_path, "near-but-different", "0000011111", 0.925)
    _sent(tmp_path, "far-and-different", "1111111111", 0.700)
    found = ledger.finals(tmp_path, ledger.read(tmp_path))
    assert found is not None
    assert (found.best.file, found.other.file) == ("best.csv", "near-but-different.csv")
    assert found.differs == 0.5
    assert found.close == 2
    (tmp_path / "best.csv").write_text("id,label\n")  # no longer what was sent
    found = ledger.finals(tmp_path, ledger.read(tmp_path))
    assert found is not None
    assert found.best.file == "near.csv"


def test_finals_where_none_is_close(tmp_path: Path) -> None:
    _sent(tmp_path, "best", "000", 0.93, 0.001)
    assert ledger.finals(tmp_path, ledger.read(tmp_path)) is None
    _sent(tmp_path, "second", "001", 0.90, 0.001)
    _sent(tmp_path, "third", "111", 0.80, 0.001)
    found = ledger.finals(tmp_path, ledger.read(tmp_path))
    assert found is not None
    assert (found.other.file, found.close) == ("second.csv", 0)


KAGGLE = """Warning: Looks like you're using an outdated API Version
fileName,date,description,status,publicScore,privateScore
a.csv,2026-01-02,"second [sha 22222222]",complete,0.95,
a.csv,2026-01-01,"first, quoted [sha 11111111]",complete,0.94,0.93
b.csv,2026-01-01,by hand,complete,0.5,
c.csv,2026-01-01,pending,pending,,
"""


def test_fetched_scores_find_their_files(tmp_path: Path) -> None:
    ledger.enter(tmp_path, _record("a", "1" * 64))
    ledger.enter(tmp_path, _record("a2", "2" * 64))
    ledger.enter(tmp_path, _record("b", "3" * 64))
    ledger.enter(tmp_path, _record("c", "4" * 64))
    scores = ledger.fetched_scores(KAGGLE)
    assert len(scores) == 3
    assert ledger.add_fetched(tmp_path, scores) == 3
    assert [entry.public for entry in ledger.read(tmp_path)] == [0.94, 0.95, 0.5, None]
    assert ledger.add_fetched(tmp_path, scores) == 0
    with pytest.raises(CompError, match="printed no table"):
        ledger.fetched_scores("403 - Forbidden")
