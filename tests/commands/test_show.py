"""The picture of a batch shows what training sees."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp import config, files
from comp.commands import common
from comp.commands.show import contact_sheet, show
from comp.data import augment, order
from comp.errors import CompError, Exit


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    text = (
        "reader: tfrecords\nsize: 32\ndraw: {classes: 3, train: 12, val: 6, test: 3, size: 32}\n"
        "run: {image: {crop: 24}, batch: 10}\n"
    )
    files.write_text(tmp_path / "configs" / "data" / "tiny.yaml", text)
    monkeypatch.setenv("COMP_HOME", str(tmp_path))
    return tmp_path


def test_contact_sheet_holds_every_photo() -> None:
    photos = [np.full((50, 50, 3), 10 * number, np.uint8) for number in range(1, 12)]
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(photos, ["a very long name " * 9] * 11))))
    # 150-pixel cells (three times 50), 16 for the caption, gaps of 4, eight to a row
    assert sheet.shape == (2 * 170 + 4, 8 * 154 + 4, 3)
    for number in range(11):
        left, top = 4 + number % 8 * 154, 4 + number // 8 * 170
        assert (sheet[top : top + 150, left : left + 150] == 10 * (number + 1)).all()
        caption = sheet[top + 150 : top + 166, left : left + 150]
        assert (caption < 128).any()
        assert (sheet[top : top + 170, left + 152 : left + 154] == 255).all()  # the name stays under its photo


def test_show_writes_the_first_batch_as_training_augments_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = home / "pictures" / "batch.png"
    show("resnet34", "tiny", str(out), ["augment=[plain,pca,rotation]", "seed=5"])
    assert f"wrote {out}: 10 photos, augment plain pca rotation" in capsys.readouterr().out
    dataset = common.prepared(home, config.load_data(home, "tiny"))
    assert (dataset.labels >= 0).sum() == 18
    labelled = np.flatnonzero(dataset.labels >= 0)
    row = int(labelled[order.epoch_order([dataset.ids[row] for row in labelled], 5, 0, 0)[0]])
    from comp.data.pca import pca_colour

    pca = pca_colour(dataset, labelled, dataset.reader())
    pipeline = augment.pipeline(["plain", "pca", "rotation"], 24, (27, 51), ["hflip"], dataset.mean, pca)
    expected = pipeline(dataset.reader().pixels(row), order.use_seed(5, 0, dataset.ids[row]))
    sheet = np.asarray(Image.open(out))
    assert np.array_equal(sheet[4 : 4 + 120 : 5, 4 : 4 + 120 : 5], expected)


@pytest.mark.parametrize(
    ("out", "settings", "words"),
    [
        ("batch.jpg", [], "--out batch.jpg: the picture is a PNG; write e.g. --out batch.png"),
        ("batch.png", ["augment=[plian]"], "augment: there is no part 'plian'; did you mean 'plain'?"),
        ("batch.png", ["image.scale=[20,30]"], "scale [20, 30] begins below the crop of 24"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(home: Path, out: str, settings: list[str], words: str) -> None:
    with pytest.raises(CompError) as caught:
        show("resnet34", "tiny", str(home / out) if out.endswith("png") else out, settings)
    assert words in str(caught.value)
    assert caught.value.code == Exit.CONFIG
    assert not (home / out).exists()
