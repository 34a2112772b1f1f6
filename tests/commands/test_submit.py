"""`comp submit`: what is printed, what is written, what is refused before anything is written."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worlds import World

from comp import files, metrics, predictions
from comp.commands.submit import submit
from comp.ensembling import memory, rules, table
from comp.errors import CompError, Exit


def _rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_vote_by_hand(drawn: Callable[..., World]) -> None:
    """The CSV is the rule per fold, folds averaged, in the sample's order; the estimate is the rule on the oof rows."""
    made = drawn(folds=3)
    for name, skill in (("a", 1.5), ("b", 2.0), ("c", 2.5)):
        made.run(name, skill=skill)
    done = submit(data="drawn")
    ids = list(reversed(made.truth.test_ids))
    total = np.zeros((len(ids), 5))
    oof_score = []
    for fold in range(3):
        folder = [made.home / "runs/drawn" / name / f"fold{fold}" for name in "abc"]
        total += rules.apply("vote", [predictions.load(f / "test.flip.npz").align(ids, "").probs for f in folder])
        held = made.truth.ids_of(fold)
        oof = rules.apply("vote", [predictions.load(f / "oof.flip.npz").align(held, "").probs for f in folder])
        oof_score.append((np.array([made.truth.labels[i] for i in held]), oof))
    wanted = [["id", "label"], *([i, str(label)] for i, label in zip(ids, total.argmax(1), strict=True))]
    assert _rows(done.path) == wanted
    labels, probs = (np.concatenate(part) for part in zip(*oof_score, strict=True))
    assert done.record["estimate"]["cross_fitted"] == pytest.approx(metrics.macro_f1(labels, probs), abs=1e-12)
    assert done.record["estimate"]["optimism"] == 0


def test_record_leads_back(drawn: Callable[..., World]) -> None:
    made = drawn()
    made.run("a")
    made.run("b", skill=3.0)
    done = submit(data="drawn", name="mine")
    record = json.loads((made.home / "submissions/drawn/mine.json").read_text())
    assert record == done.record
    assert record["csv"]["sha256"] == files.digest_file(made.home / "submissions/drawn/mine.csv")
    assert record["data"]["digest"] == made.truth.data_digest
    assert record["data"]["folds"] == made.truth.folds_digest
    assert [member["name"] for member in record["members"]] == ["a", "b"]
    for member in record["members"]:
        assert len(member["files"]) == 10
        for entry in member["files"]:
            path = made.home / entry["file"]
            assert predictions.load(path).digest() == entry["digest"]
            assert files.digest_file(path.parent / "model.safetensors") == entry["checkpoint"]
    assert record["best_member"]["name"] == "b"


def test_says_before_it_writes(
    drawn: Callable[..., World], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = drawn(leaks=[("t1", "l1")])
    for name, skill in (("weak", 0.1), ("feeble", 0.1), ("strong", 4.0)):
        made.run(name, skill=skill)
    seen: list[str] = []
    write = table.write
    monkeypatch.setattr(table, "write", lambda *args: (seen.append(capsys.readouterr().out), write(*args))[1])
    submit(data="drawn")
    assert "strong" in seen[0]
    assert "estimate: macro_f1" in seen[0]
    assert "the best member, strong, beats vote by" in " ".join(seen[0].split())
    assert seen[0].count("leaks:") == 1
    assert "wrote submissions/drawn/" in capsys.readouterr().out


def test_silent_where_the_vote_wins(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(photos=600)
    for name in "abcde":
        made.run(name, skill=1.5)
    submit(data="drawn")
    assert "beats" not in capsys.readouterr().out


def test_cross_fitted_is_the_headline(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(photos=150)
    for n in range(6):
        made.run(f"m{n}", skill=1.0)
    done = submit(data="drawn", rule="select")
    estimate = done.record["estimate"]
    assert estimate["in_sample"] - estimate["cross_fitted"] == pytest.approx(estimate["optimism"])
    assert estimate["optimism"] > 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"estimate: macro_f1 {estimate['cross_fitted']:.4f} ± {estimate['se']:.4f} cross-fitted" in said
    assert f"in-sample {estimate['in_sample']:.4f}, optimism {estimate['optimism']:+.4f}" in said


def test_only_complete_runs(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    made.run("whole")
    made.run("part", folds=[0, 2])
    done = submit(data="drawn")
    assert [member.name for member in done.blend.members] == ["whole"]
    assert "left out, not all folds are trained: part" in capsys.readouterr().out


def test_one_fold_of_five(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    made.run("part", folds=[1])
    done = submit(data="drawn")
    assert done.blend.folds == (1,)
    said = capsys.readouterr().out
    assert f"1 of 5 folds; estimate on {len(made.truth.ids_of(1))} photos" in said


def test_common_folds_and_photos(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    made.run("a", folds=[0, 1, 2])
    made.run("b", folds=[1, 2, 4])
    done = submit(["a", "b"], data="drawn")
    assert done.blend.folds == (1, 2)
    assert done.record["estimate"]["photos"] == len(made.truth.ids_of(1)) + len(made.truth.ids_of(2))
    assert "the folds all members have are used: 1, 2" in " ".join(capsys.readouterr().out.split())


def test_no_common_fold(drawn: Callable[..., World]) -> None:
    made = drawn()
    made.run("a", folds=[0])
    made.run("b", folds=[1])
    with pytest.raises(CompError, match="share no finished fold") as caught:
        submit(["a", "b"], data="drawn")
    assert caught.value.code == Exit.FILE


def test_nothing_yet(drawn: Callable[..., World]) -> None:
    drawn()
    with pytest.raises(CompError, match="no run of it has a finished fold"):
        submit(data="drawn")


@pytest.mark.parametrize(
    ("values", "check"),
    [("name", lambda cell: cell.startswith("class ")), ("label", str.isdigit)],
)
def test_label_styles(drawn: Callable[..., World], values: str, check: Callable[[str], bool]) -> None:
    made = drawn(yaml={"submission": {"id": "image", "label": "kind", "values": values}})
    made.run("a")
    rows = _rows(submit(data="drawn").path)
    assert rows[0] == ["image", "kind"]
    assert all(check(row[1]) for row in rows[1:])


def test_probability_columns(drawn: Callable[..., World]) -> None:
    made = drawn(yaml={"submission": {"values": "probs"}, "metric": "log_loss"})
    made.run("a")
    made.run("b")
    done = submit(data="drawn", rule="mean")
    rows = _rows(done.path)
    assert rows[0] == ["id", *made.truth.classes]
    got = np.array([row[1:] for row in rows[1:]], dtype=float)
    assert np.allclose(got, done.blend.probs, atol=1e-8)
    assert np.allclose(got.sum(1), 1, atol=1e-6)


def test_audit_counts_looks(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(val=50)
    made.run("a", splits=("oof", "test", "val"))
    made.run("b", splits=("oof", "test", "val"), skill=1.0)
    first = submit(data="drawn")
    labels = np.array(list(made.truth.val.values()))
    assert first.record["audit"]["value"] == metrics.macro_f1(labels, first.blend.val_probs)
    assert first.record["audit"]["looks"] == 1
    assert submit(data="drawn").record["audit"]["looks"] == 1  # the same prediction again is no new look
    assert submit(data="drawn", rule="mean", name="other").record["audit"]["looks"] == 2
    assert "look number 2" in " ".join(capsys.readouterr().out.split())


def test_missing_predictions_are_made_first(drawn: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn()
    folder = made.run("a")
    saved = (folder / "fold2/test.flip.npz").read_bytes()
    (folder / "fold2/test.flip.npz").unlink()
    asked: list[list[str]] = []

    def predict(runs: list[str], **options: object) -> None:
        asked.append(list(runs))
        (folder / "fold2/test.flip.npz").write_bytes(saved)

    monkeypatch.setitem(sys.modules, "comp.commands.predict", type("module", (), {"predict": staticmethod(predict)}))
    submit(data="drawn")
    submit(data="drawn")
    assert asked == [["a"]]


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ({"checkpoint": "0" * 64}, r"member b/fold0 \(oof\): is stale, b/fold0/model.safetensors changed"),
        ({"config": "0" * 64}, r"member b/fold0 \(oof\): is stale, b/fold0/config.yaml changed"),
        ({"data": "0" * 64}, r"member b/fold0 \(oof\): was made with another data digest"),
        ({"folds": "0" * 64}, r"member b/fold0 \(oof\): was made with another folds digest"),
        ({"views": "tencrop"}, r"member b/fold0 \(oof\): is not views flip: it says tencrop"),
        ({"fold": 3}, r"member b/fold0 \(oof\): is not fold 0: it says 3"),
    ],
)
def test_digests_travel(drawn: Callable[..., World], header: dict[str, object], line: str) -> None:
    made = drawn()
    made.run("a")
    made.run("b", header=header)
    with pytest.raises(CompError, match=line) as caught:
        submit(data="drawn")
    assert caught.value.code == Exit.FILE
    assert not list((made.home / "submissions").rglob("*.csv"))


def test_unknown_keys_are_left_out(drawn: Callable[..., World]) -> None:
    """Anyone's file joins: no header, no config, no weights."""
    made = drawn()
    made.run("a")
    folder = made.run("theirs")
    for path in folder.rglob("*"):
        if path.suffix == ".npz":
            read = predictions.load(path)
            predictions.Predictions(read.ids, read.probs, read.classes, {}).save(path)
        elif path.is_file():
            path.unlink()
    done = submit(data="drawn")
    assert [member.name for member in done.blend.members] == ["a", "theirs"]


def test_will_not_overwrite_what_was_sent(drawn: Callable[..., World]) -> None:
    from comp.commands.ledger import ledger

    made = drawn()
    made.run("a")
    done = submit(data="drawn", name="mine")
    ledger(str(done.path), data="drawn", score=0.5)
    assert (
        submit(data="drawn", name="mine").record["csv"] == done.record["csv"]
    )  # the same content may be written again
    made.run("a", seed=7)
    with pytest.raises(CompError, match=r"was sent on .* with other content"):
        submit(data="drawn", name="mine")


def test_names(drawn: Callable[..., World]) -> None:
    made = drawn()
    for n in range(12):
        made.run(f"quite-a-long-name-{n}")
    assert submit(data="drawn", rule="power:3").path.name.startswith("12-runs-")
    with pytest.raises(CompError, match="is not a name"):
        submit(data="drawn", name="../x")


def test_torch_is_not_loaded(drawn: Callable[..., World], tmp_path: Path) -> None:
    import subprocess

    made = drawn()
    made.run("a")
    code = (
        "import sys\n"
        "import comp.commands.submit, comp.commands.scores, comp.commands.compare, comp.commands.autopsy\n"
        "import comp.commands.explain, comp.commands.verify, comp.commands.import_, comp.commands.ledger\n"
        "heavy = {'torch', 'timm', 'accelerate', 'albumentations', 'sklearn', 'pandas', 'scipy', 'cv2'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _two_view_sets(made: World, better: str) -> None:
    """Three runs on `flip` and `center`, all of them better on one."""
    for name in "abc":
        for views in ("flip", "center"):
            made.run(name, views=views, skill=3.0 if views == better else 1.0)


@pytest.mark.parametrize("better", ["flip", "center"])
def test_views_are_chosen_by_score(
    drawn: Callable[..., World], capsys: pytest.CaptureFixture[str], better: str
) -> None:
    """VIEWS=auto makes the CSV of the better set, and says that the choice is part of the estimate."""
    made = drawn(folds=3)
    _two_view_sets(made, better)
    auto = submit(data="drawn", views="auto", name="auto")
    said = " ".join(capsys.readouterr().out.split())
    assert f"views: {better}, chosen in 3 of 3 rotations from center, flip; the choice is part" in said
    named = submit(data="drawn", views=better, name="named")
    assert auto.path.read_bytes() == named.path.read_bytes()
    assert auto.record["views"] == {"spec": better, "file": better, "chosen_from": [["center", "center"], ["flip"] * 2]}
    assert auto.record["estimate"]["cross_fitted"] == pytest.approx(named.record["estimate"]["cross_fitted"])
    assert memory.remake(made.home, made.truth, auto.record).estimate == pytest.approx(
        auto.record["estimate"]["cross_fitted"], abs=1e-12
    )


def test_choosing_among_equal_views_is_rotated(drawn: Callable[..., World]) -> None:
    """Of sets that are equally good the best looks better than it is: the estimate must not believe it."""
    made = drawn(folds=5, photos=120)
    for views in ("center", "flip", "tencrop", "multicrop"):
        for seed, name in enumerate("ab"):
            made.run(name, views=views, skill=1.5, seed=seed)
            # every view set draws other noise
            for fold in range(5):
                path = made.home / "runs/drawn" / name / f"fold{fold}" / f"oof.{views}.npz"
                read = predictions.load(path)
                labels = np.array([made.truth.labels[i] for i in read.ids.tolist()])
                rng = np.random.default_rng([seed, fold, *views.encode()])
                predictions.Predictions(read.ids, made.draw(labels, 1.0, rng), read.classes, read.header).save(path)
    alone = [
        submit(data="drawn", views=views, rule="mean", name=views).record["estimate"]["cross_fitted"]
        for views in ("center", "flip", "tencrop", "multicrop")
    ]
    auto = submit(data="drawn", views="auto", rule="mean", name="auto").record["estimate"]
    assert auto["in_sample"] == pytest.approx(max(alone))
    assert auto["cross_fitted"] < max(alone)
    assert auto["optimism"] > 0


def test_single_views_kept_beside_the_average_are_no_view_set(drawn: Callable[..., World]) -> None:
    """What `comp predict --keep` leaves behind is not a candidate."""
    made = drawn(folds=2)
    made.run("a", views="flip")
    for fold in range(2):
        for split in ("oof", "test"):
            path = made.home / f"runs/drawn/a/fold{fold}/{split}.flip.npz"
            path.with_name(f"{split}.flip.views.npz").write_bytes(b"other arrays")
    assert submit(data="drawn", views="auto").record["views"]["chosen_from"] == [["flip", "flip"]]


def test_no_view_set_for_all(drawn: Callable[..., World]) -> None:
    made = drawn()
    made.run("a", views="flip")
    made.run("b", views="center")
    with pytest.raises(CompError, match="no view set that all members have predictions of") as caught:
        submit(data="drawn", views="auto")
    assert caught.value.fix == "comp predict a b --views tencrop"
