"""`comp views` on a drawn set with untrained networks: every file and digest is real, only the scores are poor."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from comp import config, files, metrics, predictions
from comp.cli import command
from comp.commands import truths
from comp.errors import CompError
from comp.inference import predict as predicting
from comp.inference.spec import parse
from comp.nets import store
from comp.runs import Fold, Run

DATA = """\
draw: {classes: 3, train: 45, val: 9, test: 9, size: 24}
size: 24
folds: {k: 3}
"""


def finish(fold: Fold, seed: int) -> None:
    """Store a network with weights of this seed as a finished fold."""
    _, _, dataset, truth = truths.of_set("tiny")
    run = config.RunConfig(
        model=config.Model(name="test_resnet", pretrained=False),
        data=config.DataRef(name="tiny", size=24),
        image=config.Image(crop=20),
        precision="fp32",
    )
    network = store.build_network(run.model, classes=3, crop=20, seed=seed)
    head, reader = network.get_classifier(), dataset.reader()
    with torch.no_grad():  # predictions that differ from photo to photo
        photos = torch.stack([torch.from_numpy(reader.pixels(row)) for row in range(20)]).permute(0, 3, 1, 2)
        torch.nn.init.normal_(head.weight, std=100)
        head.bias.copy_(-network.eval()((photos / 255 - 0.5) / 0.25).mean(0))
    description = store.describe(
        run,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        selection="last",
        epoch=1,
        seed=seed,
        recipe=run.recipe(),
        config=run.digest(),
        data=dataset.data_digest,
        pixels=dataset.pixels_digest,
        folds=truth.folds_digest,
    )
    files.write_text(fold.config_file, config.dump(run))
    store.save_model(fold.model, network.state_dict(), description)
    stored = store.load_model(fold)
    center = parse("center")
    predicting.predict(
        fold, stored, "oof", center, dataset, truth.folds, precision="fp32", device=torch.device("cpu"), timed=False
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    files.write_text(folder / "configs" / "data" / "tiny.yaml", DATA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMP_HOME", str(folder))
        for number in (0, 2):
            finish(Run(folder, "tiny", "net").fold(number), number)
    return folder


@pytest.fixture
def run(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    shutil.copytree(project, tmp_path / "home")
    monkeypatch.setenv("COMP_HOME", str(tmp_path / "home"))
    return Run(tmp_path / "home", "tiny", "net")


def test_what_it_prints_is_what_the_predictions_score(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = command("views")("net", data="tiny")
    said = capsys.readouterr().out
    _, _, _, truth = truths.of_set("tiny")
    whole = [predictions.load(fold.predictions("oof", "tencrop")) for fold in run.finished()]
    labels = np.array([truth.labels[image_id] for part in whole for image_id in part.ids.tolist()])
    probs = np.concatenate([part.probs for part in whole])
    assert len(labels) == len(truth.ids_of(0)) + len(truth.ids_of(2))
    assert [row.views for row in found.products] == [1, 2, 5, 10]
    assert found.products[-1].score == pytest.approx(metrics.macro_f1(labels, probs))
    center = np.concatenate([predictions.load(fold.predictions("oof", "center")).probs for fold in run.finished()])
    assert found.singles[0].score == found.products[0].score == pytest.approx(metrics.macro_f1(labels, center))
    assert sum(count for _, count in found.picks) == 2  # one choice per finished fold
    for view in parse("tencrop").views(20, config.Image(crop=20).test_size):
        assert view.name in said
    assert f"{100 * found.products[-1].score:.2f}" in said
    assert "10 of a photo" in said
    assert "Suggested: VIEWS=" in said
    assert "cross-fitted over 2 folds" in said


def test_what_was_kept_is_read_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = command("views")("net", data="tiny", views="flip")

    def again(*args: object, **options: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(predicting, "evaluate", again)
    assert command("views")("net", data="tiny", views="flip") == first
    with pytest.raises(AssertionError, match="evaluated again"):
        command("views")("net", data="tiny", views="fivecrop")


@pytest.mark.parametrize("harm", ["other weights", "torn", "another fold's"])
def test_what_was_kept_by_other_weights_is_not_believed(run: Run, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command("views")("net", data="tiny", views="flip")
    fold = run.fold(0)
    kept = fold.path / "oof.flip.views.npz"
    if harm == "other weights":
        finish(fold, seed=7)
    elif harm == "torn":
        kept.write_bytes(kept.read_bytes()[:-100])
    else:
        kept.write_bytes((run.fold(2).path / kept.name).read_bytes())
    done: list[str] = []
    real = predicting.evaluate

    def counted(*args: object, **options: object) -> object:
        done.append(str(options["name"]))
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(predicting, "evaluate", counted)
    command("views")("net", data="tiny", views="flip")
    assert done == ["net/fold0"]


def test_one_fold_is_cross_fitted_over_its_photos(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.fold(2).predictions("oof", "center").unlink()
    found = command("views")("net", data="tiny", views="flip")
    assert sum(count for _, count in found.picks) == 5
    assert "parts of the fold" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "views", "says"),
    [
        ("net", "center", "single view"),
        ("ne", "flip", "there is no such run"),
        ("../net", "flip", "is not a name"),
        ("net", "flop", "did you mean 'flip'"),
        ("net", "scales(12)*flip", "less than the training crop of 20"),
    ],
)
def test_refused_before_anything_runs(run: Run, name: str, views: str, says: str) -> None:
    with pytest.raises(CompError, match=says):
        command("views")(name, data="tiny", views=views)
