"""From the built-in set's real files through the command line: folds, runs, CSV, record, verification."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score
from worlds import World

from comp import cli, files
from comp.commands import truths

SMALL = """reader: tfrecords
size: 40
draw: {classes: 4, train: 80, val: 20, test: 40, size: 40}
run: {image: {crop: 32}, batch: 16, epochs: 1}
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the small set drawn, read and split."""
    home = tmp_path_factory.mktemp("home")
    (home / "configs" / "data").mkdir(parents=True)
    (home / "configs" / "data" / "petals.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMP_HOME", str(home))
        cli.command("folds")("petals")
    return home


@pytest.fixture
def petals(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A copy of it with two drawn runs."""
    home = tmp_path / "home"
    shutil.copytree(prepared, home)
    monkeypatch.setenv("COMP_HOME", str(home))
    monkeypatch.chdir(home)
    _, _, _, truth = truths.of_set("petals")
    return World(home, truth, _labels(home, truth.test_ids))


def _labels(home: Path, ids: tuple[str, ...]) -> np.ndarray:
    header, rows = files.read_csv(home / "data/raw/petals/truth.csv")
    known = {row[header.index("image_id")]: int(row[header.index("label")]) for row in rows}
    return np.array([known[i] for i in ids])


def test_submit_and_verify(petals: World, capsys: pytest.CaptureFixture[str]) -> None:
    petals.run("a", skill=2.0)
    petals.run("b", skill=1.0)
    cli.main(["submit", "--name", "mine"])
    said = " ".join(capsys.readouterr().out.split())
    header, rows = files.read_csv(petals.home / "submissions/petals/mine.csv")
    sample, wanted = files.read_csv(petals.home / "data/raw/petals/sample_submission.csv")
    assert header == sample
    assert [row[0] for row in rows] == [row[0] for row in wanted]
    truth = _labels(petals.home, tuple(row[0] for row in rows))
    score = f1_score(truth, [int(row[1]) for row in rows], average="macro")
    assert f"test: macro_f1 {score:.4f}" in said
    cli.main(["verify", "submissions/petals/mine.csv"])
    assert "the same bytes again from 20 prediction files of 2 member(s)" in capsys.readouterr().out
    for verb in (
        ["scores"],
        ["explain", "submissions/petals/mine.csv"],
        ["compare", "a", "b"],
        ["autopsy"],
        ["ledger"],
    ):
        cli.main(verb)


def test_settings_are_remembered(petals: World) -> None:
    """A submission made under `val: audit` is verified under it."""
    (petals.home / "folds/petals.csv").unlink()
    _, _, _, petals.truth = truths.of_set("petals", ["data.val=audit"])
    assert len(petals.truth.val) == 20
    assert len(petals.truth.labels) == 80
    petals.run("a", splits=("oof", "test", "val"))
    cli.main(["submit", "--name", "mine", "data.val=audit"])
    record = json.loads((petals.home / "submissions/petals/mine.json").read_text())
    assert record["audit"]["looks"] == 1
    assert record["data"]["settings"] == ["data.val=audit"]
    cli.main(["verify", "submissions/petals/mine.csv"])


def test_errors_are_one_line(petals: World, capsys: pytest.CaptureFixture[str]) -> None:
    petals.run("a")
    (petals.home / "runs/petals/a/fold1/test.flip.npz").write_bytes(b"torn")
    for words, code in (
        (["submit"], 4),
        (["submit", "b"], 2),
        (["submit", "--rule", "voet"], 2),
        (["verify", "x.csv"], 4),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == code
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert not any("Traceback" in line for line in lines)
    assert not (petals.home / "submissions").exists() or not list((petals.home / "submissions").rglob("*.csv"))


@pytest.mark.slow
def test_deep_from_real_checkpoints(petals: World) -> None:
    """A trained fold: `submit` makes its predictions, `verify --deep` checks them, other weights are found out."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "comp", *words], capture_output=True, text=True, check=False)

    trained = run("train", "test_resnet", "--name", "tiny", "model.pretrained=false", "workers=0")
    assert trained.returncode == 0, trained.stderr
    done = run("submit", "--name", "mine")
    assert done.returncode == 0, done.stderr
    assert "1 of 5 folds; estimate on 20 photos" in done.stdout
    deep = run("verify", "submissions/petals/mine.csv", "--deep")
    assert deep.returncode == 0, deep.stderr
    assert "deep: 20 random photos through 1 checkpoints" in deep.stdout
    weights = petals.home / "runs/petals/tiny/fold0/model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-200:] = bytes(200)
    weights.write_bytes(data)
    stale = run("submit", "--name", "mine")
    assert stale.returncode == 4
    assert "is stale, tiny/fold0/model.safetensors changed" in stale.stderr


def test_an_ensemble_files_rule_and_views(petals: World) -> None:
    """They stand unless the command line says otherwise."""
    petals.run("a", views="center")
    petals.run("b", views="center")
    folder = petals.home / "configs/ensembles"
    folder.mkdir()
    (folder / "two.yaml").write_text("members: [a, b]\nrule: gmean\nviews: center\n")
    cli.main(["submit", "--ensemble", "two", "--name", "theirs"])
    cli.main(["submit", "--ensemble", "two", "--name", "mine", "--rule", "rank"])
    records = [json.loads((petals.home / f"submissions/petals/{n}.json").read_text()) for n in ("theirs", "mine")]
    assert [record["rule"]["spec"] for record in records] == ["gmean", "rank"]
    assert [record["views"]["spec"] for record in records] == ["center", "center"]


def test_the_flower_experiments_ensemble(project: Path) -> None:
    from comp import config

    ensemble = config.load_ensemble(project, "flowers")
    assert ensemble.members == ("plain34", "resnet34", "resnet50", "resnet50-pretrained")
    for member in ensemble.members:
        assert (project / "configs/models" / f"{member}.yaml").exists()
