"""`comp doctor` on a small drawn set: what it prints, what it takes, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from comp.commands.doctor import doctor
from comp.errors import CompError, Exit

DATA = """
draw: {classes: 3, train: 60, val: 12, test: 6, size: 32}
size: 32
run: {image: {crop: 32}, batch: 8}
"""
MODEL = """
model: {name: test_resnet, pretrained: false}
optim: {name: sgd, lr: 0.05, layer_decay: null, weight_decay: 0.0}
schedule: {warmup: 0}
batch: 8
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a data set of 72 labelled photos of 32 pixels."""
    for kind, name, text in (("data", "tiny", DATA), ("models", "small", MODEL)):
        (tmp_path / "configs" / kind).mkdir(parents=True)
        (tmp_path / "configs" / kind / f"{name}.yaml").write_text(text)
    monkeypatch.setenv("COMP_HOME", str(tmp_path))
    return tmp_path


def test_it_prints_figures_and_a_verdict(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor("small", data="tiny", settings=["time_limit=300"])
    out = capsys.readouterr().out
    assert "scale through depth: fine" in out
    assert "one batch, as configured" in out
    assert "72 photos hold 3 of 3 classes" in out
    assert report.overfit is not None
    assert report.overfit.verdict == "learns"
    assert "fine" in report.tries or "lr" in report.tries
    assert all(f"{line}" in out for _, line in report.advice)
    assert not (home / "runs").exists()


def test_the_budget_is_kept_and_what_is_left_out_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = doctor("small", data="tiny", settings=["time_limit=1e-6"])
    assert report.overfit is None
    assert "left out: learning one batch by heart" in capsys.readouterr().out


def test_a_run_is_examined_with_its_own_config(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from comp import config, runs

    data = config.load_data(home, "tiny")
    made, _ = config.load_run(home, "small", data, {"optim": {"lr": 0.0123}})
    fold = runs.Run(home, "tiny", "mine").fold(0)
    fold.path.mkdir(parents=True)
    fold.config_file.write_text(config.dump(made))
    doctor("mine", data="tiny", settings=["time_limit=1e-6"])
    assert "the config of run mine on tiny at 32 pixels, sgd 0.0123" in capsys.readouterr().out


def test_an_unknown_model_is_one_line(home: Path) -> None:
    with pytest.raises(CompError, match="there is no such network") as caught:
        doctor("resnet43", data="tiny")
    assert caught.value.code is Exit.CONFIG
