from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ("data.draw.train=60", "data.draw.val=12", "data.draw.test=12", "data.draw.classes=3", "data.draw.size=40")
QUICK = ("model.pretrained=false", "image.crop=32", "image.scale=[36,40]", "image.test=36", "epochs=1", "batch=16")
# What the command leaves behind tells whether it imported torch.
PROGRAM = "import sys; from comp.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)"


def comp(home: Path, *words: str) -> tuple[int, str, str]:
    environment = {**os.environ, "COMP_HOME": str(home), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, env=environment, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    folder = tmp_path_factory.mktemp("home")
    (folder / "configs" / "models").mkdir(parents=True)
    (folder / "configs" / "data").mkdir()
    (folder / "configs" / "data" / "petals.yaml").write_text(
        (project / "configs" / "data" / "petals.yaml").read_text().replace("size: 96", "size: 40")
    )
    return folder


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (("resnet3",), 2, "model.name = resnet3: there is no such network; did you mean 'resnet34'?"),
        (("resnet18", "augment=[plian]"), 2, "did you mean 'plain'?"),
        (("resnet18", "optim.name=adamv"), 2, "optim.name = adamv: there is no such optimizer"),
        (("resnet18", "--fold", "one"), 2, "FOLD=one: is no fold; give its number, or all"),
        (("resnet18", "--name", "../x"), 2, "NAME: '../x' is not a name"),
        (("resnet18", "model.pretrained=weights/x.safetensors"), 4, "there is no such file"),
        (("resnet18", "--from", "other/fold0"), 4, "train that fold first"),
        (("resnet18", "epochs=0"), 2, "epochs = 0: must be at least 1"),
    ],
)
def test_mistakes_are_said_before_torch_is_imported(home: Path, words: tuple[str, ...], code: int, line: str) -> None:
    found, out, error = comp(home, "train", *words)
    assert found == code
    assert error.splitlines()[-1].startswith("error: ")
    assert line in error
    assert out.splitlines()[-1] == "False"
    assert not (home / "runs" / "petals" / "resnet18").exists()


def test_a_finished_fold_is_answered_without_torch_and_another_config_is_refused(home: Path) -> None:
    words = ("train", "test_resnet", "--fold", "1", *QUICK, *SMALL)
    code, out, error = comp(home, *words)
    assert code == 0, error
    assert "epoch 1/1  train loss" in out
    last = out.splitlines()[-3:-1]
    assert last[0].startswith("test_resnet/fold1: macro F1 ")
    assert last[1] == "next: make submit, or the next fold: make train MODEL=test_resnet FOLD=0"
    code, again, _ = comp(home, *words)
    assert code == 0
    assert again.splitlines() == [*last, "False"]
    code, _, error = comp(home, *words, "optim.lr=0.5")
    assert code == 2
    assert "run test_resnet: was begun with another config (optim.lr: " in error
    code, _, error = comp(home, *words[:3], "9", *words[4:])
    assert code == 2
    assert "FOLD=9: there is no such fold" in error
