"""Mistakes people make in commands and configs: exit code, words, and nothing heavy loaded before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from comp import cli, config, files
from comp.data import folds, manifest
from comp.runs import Run

MODEL_YAML = "model: {name: resnet18, pretrained: false}\noptim: {name: sgd, lr: 0.1}\nepochs: 2\n"
DATA_YAML = "reader: tfrecords\nsize: 16\n"

# The words of the command line after `comp`, the exit code, words of the one line that is printed.
COMMAND_LINE = [
    ([], 2, "required: VERB"),
    (["trian", "net"], 2, "did you mean 'train'"),
    (["Train", "net"], 2, "did you mean 'train'"),
    (["train"], 2, "required: MODEL"),
    (["train", "net", "--fold"], 2, "expected one argument"),
    (["train", "net", "--fold", "x"], 2, "FOLD=x: is no fold"),
    (["train", "net", "--fold", "1.5"], 2, "FOLD=1.5: is no fold"),
    (["train", "net", "--folds", "1"], 2, "unrecognized arguments"),
    (["train", "net", "--data", "smal"], 2, "did you mean 'small'"),
    (["train", "net", "--data", "../small"], 2, "is not a name"),
    (["train", "net", "--data", "$(ls)"], 2, "is not a name"),
    (["train", "net", "--name", "../../x"], 2, "is not a name"),
    (["train", "net", "--name", "a b"], 2, "is not a name"),
    (["train", "net", "--name", ""], 2, "is not a name"),
    (["train", "net", "--procs", "two"], 2, "invalid int value"),
    (["train", "net", "--from", "other"], 2, "write <run>/fold<k>@best"),
    (["train", "net", "--from", "other/fold0@worst"], 2, "write <run>/fold<k>@best"),
    (["train", "net", "--from", "other/fold0"], 4, "does not exist"),
    (["train", "resnet43"], 2, "did you mean 'resnet"),
    (["train", "../../x"], 2, "is not a name"),
    (["train", "$(shell touch planted)"], 2, "is not a name"),
    (["train", "net\n"], 2, "is not a name"),
    (["train", "net", "epochs"], 2, "unrecognized arguments"),
    (["train", "net", "=3"], 2, "unrecognized arguments"),
    (["train", "net", "epochs=3", "epochs=4"], 2, "is given twice"),
    (["train", "net", "optim=3", "optim.lr=4"], 2, "has a value already"),
    (["train", "net", "data=other"], 2, "--data NAME"),
    (["train", "net", "data.size=big"], 2, 'size = "big"'),
    (["train", "net", "data.root=nowhere"], 3, "nowhere"),
    (["folds", "--data", "small", "epochs=3"], 2, "data.… settings only"),
    (["data", "--data", "small"], 3, "small"),
    (["show", "net", "--data", "nothing"], 2, "there is no such data set"),
    (["predict", "other", "--data", "small"], 2, "no such run"),
    (["predict", "--data", "small"], 2, "no runs yet"),
    (["predict", "--data", "small", "--views", "flap"], 2, "did you mean 'flip'"),
    (["submit", "--data", "small", "--views", "tencrop@probability"], 2, "probs"),
    (["submit", "--data", "small", "--rule", "vot"], 2, "did you mean 'vote'"),
    (["submit", "--data", "small", "--ensemble", "nothing"], 2, "there is no such file"),
    (["explain", "nothing.csv"], 4, "nothing.json: not found"),
    (["verify", "nothing.csv"], 4, "nothing.json: not found"),
    (["import", "nothing.csv", "--data", "small"], 3, "small"),
    (["model", "resnet43"], 2, "did you mean 'resnet"),
    (["doctor", "resnet43"], 2, "did you mean 'resnet"),
]

# The same with data that was read and split into folds, and one run without finished folds.
WITH_DATA = [
    (["train", "net", "--fold", "7"], 2, "there is no such fold"),
    (["train", "net", "--fold", "-1"], 2, "there is no such fold"),
    (["train", "net", "--procs", "0"], 2, "is no number of processes"),
    (["train", "net", "epochs=3", "--name", "begun"], 2, "was begun with another config (epochs: 2 → 3"),
    (["submit", "other", "--data", "small"], 2, "no such run"),
    (["submit", "begum", "--data", "small"], 2, "did you mean 'begun'"),
    (["submit", "--data", "small"], 4, "fold"),
    (["scores", "other", "--data", "small"], 2, "no such run"),
    (["compare", "one", "two", "--data", "small"], 2, "no such run"),
    (["views", "other", "--data", "small"], 2, "no such run"),
    (["autopsy", "other", "--data", "small"], 2, "no such run"),
    (["train", "net", "data.folds.k=4"], 3, "the data set's config says 4"),
]

# `comp train net` with one setting.
SETTINGS = [
    ("optm.lr=0.1", "did you mean 'optim'"),
    ("optim.lrr=0.1", "did you mean 'lr'"),
    ("optim.lr=-0.1", "must be more than 0"),
    ("optim.lr=0", "must be more than 0"),
    ("optim.lr=nan", "optim.lr"),
    ("optim.lr=.nan", "optim.lr"),
    ("optim.lr=.inf", "optim.lr"),
    ("optim.lr=1e999", "optim.lr"),
    ("optim.lr=fast", "valid number"),
    ("optim.lr=", "optim.lr"),
    ("optim.lr=[1", "line"),
    ("optim.lr=*a", "aliases are not used"),
    ("optim.name=sdg", "did you mean 'sgd'"),
    ("optim.momentum=1.0", "must be less than 1"),
    ("optim.weight_decay=-1", "must be at least 0"),
    ("optim.clip=0", "must be more than 0"),
    ("optim.clip_mode=norms", "did you mean 'norm'"),
    ("optim.layer_decay=1.5", "must be at most 1"),
    ("schedule.name=cosin", "did you mean 'cosine'"),
    ("schedule.factor=1", "must be less than 1"),
    ("epochs=0", "must be at least 1"),
    ("epochs=2.5", "valid integer"),
    ("epochs=ten", "valid integer"),
    ("epochs=true", "valid integer"),
    ("batch=-3", "must be at least 1"),
    ("micro_batch=9999", "more than the global batch"),
    ("patience=3", "best_by"),
    ("best_by=f1", "'metric'"),
    ("precision=fp8", "choose from auto, fp32, bf16, fp16"),
    ("seed=-1", "must be at least 0"),
    ("image.crop=0", "must be at least 1"),
    ("image.crop=100000", "must be at most 8192"),
    ("image.scale=[300,200]", "runs from high to low"),
    ("image.scale=256", "image.scale"),
    ("augment=[plane]", "did you mean 'plain'"),
    ("augment=[colour_jitter:lots]", "colour_jitter"),
    ("augment=plain", "augment"),
    ("model.pretrained=3", "model.pretrained"),
    ("model.pretrained=nothing.safetensors", "nothing.safetensors"),
    ("model.head=[0]", "must be at least 1"),
    ("model.freeze=bakbone", "did you mean 'backbone'"),
    ("model.init.kind=hee", "did you mean 'he'"),
    ("loss.mixup=-1", "must be at least 0"),
    ("loss.balance=samplr", "did you mean 'sampler'"),
    ("loss=3", "loss"),
    ("time_limit=0", "must be more than 0"),
    ("workers=-1", "must be at least 0"),
    ("ema=1", "must be less than 1"),
]

# Text of configs/models/net.yaml.
MODEL_FILES = [
    ("model: {name: resnet18}\nmodel: {name: resnet34}\n", "stands twice in line 2"),
    ("model: [resnet18]\n", "model"),
    ("- model\n", "must hold keys and values"),
    ("model: {name: resnet43}\n", "did you mean 'resnet"),
    ("epoch: 3\n", "did you mean 'epochs'"),
    ("optim: {lr: 1e-3, lr: 2e-3}\n", "'lr' stands twice"),
    ("model: {name: !!python/object/apply:os.system [touch planted]}\n", "constructor"),
    ("optim:\n\tlr: 1\n", "line 2"),
    ("\x00", "not YAML"),
    ("3: 4\n", "is not text"),
    ("model: {name: resnet18}\ndata: {name: other}\n", "data is not for a model to set"),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("models", "data", "ensembles"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    (tmp_path / "configs/models/net.yaml").write_text(MODEL_YAML)
    for name in ("small", "petals"):  # petals is what a command takes that names none
        (tmp_path / f"configs/data/{name}.yaml").write_text(DATA_YAML)
    monkeypatch.setenv("COMP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith("error: "), printed
    assert sum(line.startswith("error: ") for line in printed) == 1
    assert text in printed[-1]
    assert caught.value.code == code, printed[-1]
    assert not any(Path().rglob("planted"))


@pytest.mark.parametrize(
    ("words", "code", "text"), COMMAND_LINE, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_command_line(home: Path, words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(words, code, text, capsys)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose data was read and split; `begun` is a run of it that was begun."""
    home = tmp_path_factory.mktemp("read")
    (home / "configs/data").mkdir(parents=True)
    (home / "configs/models").mkdir()
    (home / "configs/models/net.yaml").write_text(MODEL_YAML)
    for name in ("small", "petals"):
        text = DATA_YAML + "draw: {classes: 2, train: 16, val: 4, test: 4, size: 16}\nfolds: {k: 3}\n"
        (home / f"configs/data/{name}.yaml").write_text(text)
        data = config.load_data(home, name)
        dataset = manifest.prepare(data, home)
        folds.save(home / f"folds/{name}.csv", folds.make(dataset, 3, 0, "pool")[0])
        run, _ = config.load_run(home, "net", data)
        files.write_text(Run(home, name, "begun").fold(0).config_file, config.dump(run))
    return home


@pytest.mark.parametrize(("words", "code", "text"), WITH_DATA, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_command_line_with_data(
    read: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMP_HOME", str(read))
    monkeypatch.chdir(read)
    one_line(words, code, text, capsys)


@pytest.mark.parametrize(("setting", "text"), SETTINGS)
def test_settings(home: Path, setting: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    one_line(["train", "net", "--data", "small", setting], 2 if "safetensors" not in setting else 4, text, capsys)


@pytest.mark.parametrize(("content", "text"), MODEL_FILES)
def test_model_files(home: Path, content: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "configs/models/net.yaml").write_text(content)
    one_line(["train", "net", "--data", "small"], 2, text, capsys)


def test_there_are_enough_of_them() -> None:
    assert len(COMMAND_LINE) + len(WITH_DATA) + len(SETTINGS) + len(MODEL_FILES) >= 80


@pytest.mark.parametrize("setting", ["optm.lr=1", "model.name=resnet43", "augment=[plane]", "optim.name=sdg"])
def test_mistakes_are_found_before_torch_is_imported(home: Path, setting: str) -> None:
    code = (
        "import sys\nfrom comp import cli\n"
        f"try: cli.main(['train', 'net', '--data', 'small', {setting!r}])\n"
        "except SystemExit as end: sys.exit(end.code if 'torch' not in sys.modules else 99)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 2
