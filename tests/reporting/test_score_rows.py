"""The score table's numbers: equal to the plain definitions, ranks, seeds, what is missing or stale."""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score
from worlds import World, world

from comp import files, metrics, predictions
from comp.ensembling.choosing import folder_of
from comp.predictions import Predictions
from comp.reporting import curves, score_table, scores


def _one(made: World, name: str) -> scores.RunScore:
    rows, _ = scores.gather(made.home, made.truth, "macro_f1")
    return next(row for row in rows if row.name == name)


def test_numbers_by_hand(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    row = _one(made, "a")
    by_fold, labels, answers = [], [], []
    for fold in range(5):
        read = predictions.load(tmp_path / f"runs/drawn/a/fold{fold}/oof.flip.npz")
        truth = [made.truth.labels[i] for i in read.ids.tolist()]
        by_fold.append(f1_score(truth, read.probs.argmax(1), average="macro"))
        labels += truth
        answers += read.probs.argmax(1).tolist()
    assert [fold.score for fold in row.folds] == pytest.approx(by_fold, abs=1e-12)
    assert row.mean == pytest.approx(statistics.fmean(by_fold))
    assert row.sd == pytest.approx(statistics.stdev(by_fold))
    assert row.oof is not None
    assert row.oof.value == pytest.approx(f1_score(labels, answers, average="macro"), abs=1e-12)
    assert row.mean != pytest.approx(row.oof.value, abs=1e-6)
    assert row.photos == 300
    assert row.ms_per_image == 2.0


def test_best_first_and_ranks(tmp_path: Path) -> None:
    made = world(tmp_path, photos=1500)
    for name, skill in (("bad", 0.5), ("good", 3.0), ("alike1", 1.5), ("alike2", 1.5)):
        made.run(name, skill=skill, recipe=name)
    rows, warnings = scores.gather(tmp_path, made.truth, "macro_f1")
    assert not warnings
    assert rows[0].name == "good"
    assert rows[-1].name == "bad"
    ranks = {row.name: row.rank for row in rows}
    assert ranks == {"good": 1, "alike1": 2, "alike2": 2, "bad": 4}


def test_ranks_follow_the_paired_interval(tmp_path: Path) -> None:
    made = world(tmp_path, photos=1500)
    made.run("a", skill=1.5, recipe="a")
    made.run("b", skill=1.7, recipe="b")
    rows, _ = scores.gather(tmp_path, made.truth, "macro_f1")
    labels = np.array([made.truth.labels[i] for i in sorted(made.truth.labels)])
    probs = []
    for row in rows:
        parts = [predictions.load(tmp_path / f"runs/drawn/{row.name}/fold{k}/oof.flip.npz") for k in range(5)]
        probs.append(predictions.concatenate(parts, "").align(sorted(made.truth.labels), "").probs)
    interval = metrics.paired_difference(labels, probs[0], probs[1])
    assert (rows[1].rank == 2) == (interval.low > 0)


def test_log_loss_orders_the_other_way(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("bad", skill=0.5, recipe="x")
    made.run("good", skill=3.0, recipe="y")
    rows, _ = scores.gather(tmp_path, made.truth, "log_loss")
    assert [row.name for row in rows] == ["good", "bad"]


def test_missing_and_training(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a", folds=[0, 1, 3])
    (folder / "fold3/oof.flip.npz").unlink()
    row = _one(made, "a")
    assert [fold.state for fold in row.folds] == ["finished", "finished", "missing", "training", "missing"]
    assert row.folds[3].epoch == 5
    assert row.folds[3].live == pytest.approx(0.6)
    assert row.finished == 2
    assert row.photos == 120


def test_best_view_set(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a", views="center", skill=1.0)
    made.run("a", views="flip", skill=2.0)
    made.run("a", views="tencrop", skill=4.0, folds=[0, 1])
    assert _one(made, "a").views == "flip"
    rows, _ = scores.gather(tmp_path, made.truth, "macro_f1", views="center")
    assert rows[0].views == "center"


def test_single_views_beside_the_average_are_not_a_view_set(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a")
    for k in range(5):
        (folder / f"fold{k}/oof.flip.views.npz").write_bytes(b"other format")
    rows, warnings = scores.gather(tmp_path, made.truth, "macro_f1")
    assert rows[0].views == "flip"
    assert not warnings


def test_stale_and_bad_files_are_named_not_counted(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a")
    weights = folder / "fold2/model.safetensors"
    weights.write_bytes(b"trained further")
    later = (folder / "fold2/oof.flip.npz").stat().st_mtime_ns + 10**9
    os.utime(weights, ns=(later, later))
    (folder / "fold4/oof.flip.npz").write_bytes(b"torn")
    rows, warnings = scores.gather(tmp_path, made.truth, "macro_f1")
    assert [fold.state for fold in rows[0].folds] == ["finished", "finished", "stale", "finished", "bad"]
    assert rows[0].photos == 180
    assert len(warnings) == 2
    assert any("a/fold2" in line and "other weights" in line for line in warnings)


def test_touched_weights_are_not_stale(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a")
    later = (folder / "fold2/oof.flip.npz").stat().st_mtime_ns + 10**9
    os.utime(folder / "fold2/model.safetensors", ns=(later, later))
    assert _one(made, "a").finished == 5


def test_other_photos_than_the_fold(tmp_path: Path) -> None:
    """A fold whose held-out photos are another fold's is a leak, not a score."""
    made = world(tmp_path)
    folder = made.run("a")
    (folder / "fold1/oof.flip.npz").write_bytes((folder / "fold0/oof.flip.npz").read_bytes())
    rows, warnings = scores.gather(tmp_path, made.truth, "macro_f1")
    assert rows[0].folds[1].state == "bad"
    assert "holds other photos than fold 1" in warnings[0]


def test_nothing_is_remembered(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a", skill=0.5)
    before = _one(made, "a").oof
    made.run("a", skill=4.0)
    after = _one(made, "a").oof
    assert before is not None
    assert after is not None
    assert after.value > before.value + 0.2


@pytest.mark.parametrize("header", [{}, {"recipe": None, "seed": None}])
def test_seeds_stand_together(tmp_path: Path, header: dict[str, object]) -> None:
    """Known from the headers, or else from the configs."""
    made = world(tmp_path, photos=600)
    made.run("x", skill=3.0, recipe="r", seed=0, header=header)
    made.run("x-s1", skill=1.0, recipe="r", seed=1, header=header)
    made.run("y", skill=2.0, recipe="other", seed=0)
    rows, _ = scores.gather(tmp_path, made.truth, "macro_f1")
    assert [row.name for row in rows] == ["x", "x-s1", "y"]
    (recipe,) = scores.recipes(rows)
    values = [row.oof.value for row in rows[:2] if row.oof]
    assert recipe.mean == pytest.approx(statistics.fmean(values))
    assert recipe.sd == pytest.approx(statistics.stdev(values))


def test_imported(tmp_path: Path) -> None:
    made = world(tmp_path)
    ids = list(made.truth.labels)[:200]
    labels = np.array([made.truth.labels[i] for i in ids])
    probs = made.draw(labels, 2.0, np.random.default_rng(0))
    read = Predictions(np.array(ids), probs, np.array(made.truth.classes), {})
    read.save(folder_of(tmp_path, "drawn", "theirs") / "oof.npz")
    row = _one(made, "theirs")
    assert row.photos == 200
    assert row.oof is not None
    assert row.oof.value == metrics.macro_f1(labels, probs)
    inside = np.array([made.truth.folds[i] == 2 for i in ids])
    assert row.folds[2].score == metrics.macro_f1(labels[inside], probs[inside])


def test_sparkline() -> None:
    assert curves.sparkline([0.0, 1.0]) == "▁█"
    assert curves.sparkline([0.5, 0.5, 0.5]) == "▁▁▁"
    assert curves.sparkline([float("nan"), 0.0, 1.0]) == " ▁█"
    assert curves.sparkline([]) == ""
    rising = curves.sparkline(list(range(100)))
    assert len(rising) == curves.CURVE_WIDTH
    assert list(rising) == sorted(rising)


def test_fits_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    made = world(tmp_path)
    made.run("a-run-with-quite-a-long-name-of-its-own", selection="best")
    made.run("short", folds=[0])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Console, "is_terminal", property(lambda self: True))
    rows, _ = scores.gather(tmp_path, made.truth, "macro_f1")
    monkeypatch.setattr(score_table, "width", lambda: 80)
    score_table.show(rows, "macro_f1", "drawn", 300, 80)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, said.splitlines())) <= 80
    assert "a-run-with…" in said
    assert "0.9" in said or "0.8" in said or "0.7" in said
    assert "best epoch" in said
    assert "1/5" in said or "–" in said


def test_json_and_csv_hold_every_number(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    made.run("b", folds=[1])
    rows, _ = scores.gather(tmp_path, made.truth, "macro_f1")
    told = score_table.as_json(rows, "macro_f1", "drawn")
    assert [run["run"] for run in told["runs"]] == [row.name for row in rows]
    assert told["runs"][0]["oof"] == rows[0].oof.value  # type: ignore[union-attr]
    (tmp_path / "t.csv").write_text(score_table.as_csv(rows))
    header, body = files.read_csv(tmp_path / "t.csv")
    by_name = {line[1]: dict(zip(header, line, strict=True)) for line in body}
    assert float(by_name["a"]["fold3"]) == next(r for r in rows if r.name == "a").folds[3].score
    assert by_name["b"]["fold3"] == ""


@pytest.mark.parametrize("metric", ["macro_f1", "accuracy", "log_loss"])
def test_interval_is_the_metrics_own(tmp_path: Path, metric: str) -> None:
    made = world(tmp_path)
    made.run("a")
    copies = [i for i, label in made.truth.labels.items() if label == 2][:4]
    made.truth.groups.update(dict.fromkeys(copies, "copy"))  # type: ignore[attr-defined]
    rows, _ = scores.gather(tmp_path, made.truth, metric)
    ids = sorted(made.truth.labels)
    parts = [predictions.load(tmp_path / f"runs/drawn/a/fold{k}/oof.flip.npz") for k in range(5)]
    probs = predictions.concatenate(parts, "").align(ids, "").probs
    labels = np.array([made.truth.labels[i] for i in ids])
    wanted = metrics.interval(metric, labels, probs, np.array([made.truth.groups[i] for i in ids]))
    found = rows[0].oof
    assert found is not None
    assert (found.value, found.se, found.low, found.high) == pytest.approx(
        (wanted.value, wanted.se, wanted.low, wanted.high), rel=1e-9
    )
