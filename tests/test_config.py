"""comp.config: YAML as people write it, every mistake named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from comp import config, yamls
from comp.config import DataConfig, RunConfig
from comp.errors import CompError, Exit


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder in ("models", "data", "ensembles"):
        (tmp_path / "configs" / folder).mkdir(parents=True)
    (tmp_path / "configs/models/net.yaml").write_text(
        "model: {name: resnet34}\nbatch: 256\noptim: {name: sgd, lr: 1e-1}\n"
    )
    (tmp_path / "configs/data/small.yaml").write_text("run: {batch: 32, epochs: 3, image: {crop: 64}}\n")
    return tmp_path


def run(home: Path, *words: str, model: str = "net", data: str = "small") -> tuple[RunConfig, list[str]]:
    return config.load_run(home, model, config.load_data(home, data), yamls.parse_overrides(words))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("12:30:00", "12:30:00"),
        ("2026-01-01", "2026-01-01"),
        ("007", "007"),
        ("0", 0),
        ("", None),
        ("[1, a]", [1, "a"]),
    ],
)
def test_yaml_reads_what_people_mean(text: str, value: object) -> None:
    read = yamls.parse_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "'a' stands twice in line 2"),
        ("a: [1", "line"),
        ("1: a", "key 1 is not text"),
        ("a: &x 1\nb: *x", "aliases"),
        ("!!python/object/apply:os.system [ls]", "constructor"),
        ("a: \x00", "not YAML"),
    ],
)
def test_yaml_that_is_refused_says_where(text: str, words: str) -> None:
    with pytest.raises(CompError, match=words) as caught:
        yamls.parse_yaml(text, "file.yaml")
    assert caught.value.code == Exit.CONFIG
    assert str(caught.value).startswith("file.yaml: ")


def test_the_order_of_voices(home: Path) -> None:
    """schema < model < data's run section < command line."""
    made, notes = run(home, "epochs=7", "optim.momentum=0.5")
    assert (made.optim.name, made.batch, made.image.crop, made.epochs, made.optim.momentum) == ("sgd", 32, 64, 7, 0.5)
    assert made.optim.lr == pytest.approx(0.1 * 32 / 256)
    assert notes == ["small sets batch 256 → 32: the learning rate goes 0.1 → 0.0125"]


def test_a_stated_learning_rate_or_batch_is_taken_as_it_is(home: Path) -> None:
    assert run(home, "optim.lr=0.3")[0].optim.lr == 0.3
    made, notes = run(home, "batch=256")
    assert (made.batch, made.optim.lr, notes) == (256, 0.1, [])


def test_any_timm_name_runs_with_the_defaults(home: Path) -> None:
    made, _ = run(home, model="convnext_tiny.fb_in22k")
    assert (made.model.name, made.optim.name, made.model.pretrained) == ("convnext_tiny.fb_in22k", "adamw", True)


def test_what_changes_no_result_is_not_part_of_the_identity(home: Path) -> None:
    one, _ = run(home)
    other, _ = run(home, "workers=3", "time_limit=60", "save_every=5", "watch.layers=10")
    assert one.digest() == other.digest()
    changed, _ = run(home, "optim.momentum=0.8")
    assert config.differences(one, changed) == [("optim.momentum", 0.9, 0.8)]
    seed, _ = run(home, "seed=1")
    assert seed.digest() != one.digest()
    assert seed.recipe() == one.recipe()


def test_a_config_survives_being_written(home: Path) -> None:
    made, _ = run(home, "model.head=[512,128]", "model.args={a: 1e-5, b: yes}", "image.scale=[70,90]", "model.freeze=2")
    (home / "config.yaml").write_text(config.dump(made))
    assert config.read_run(home / "config.yaml") == made


def test_image_geometry_follows_the_papers_ratios() -> None:
    assert config.Image(crop=224).scale_range == (256, 480)
    assert config.Image(crop=224).test_size == 256
    assert config.Image(crop=64).test_size == 73


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("bad", "rum: {}", "unknown key 'rum'; did you mean 'run'"),
        ("bad", "run: {optim: {lr: 1}}", "run.optim is not for a data set to set"),
        ("bad", "metric: macrof1", "did you mean 'macro_f1'"),
        ("bad", "name: other", "says name: other"),
        ("bad", "- a", "must hold keys and values"),
        ("bad", "folds: {k: 1}", "folds.k = 1: must be at least 2"),
    ],
)
def test_a_bad_data_set_names_file_and_key(home: Path, name: str, text: str, words: str) -> None:
    (home / f"configs/data/{name}.yaml").write_text(text)
    with pytest.raises(CompError, match=words) as caught:
        config.load_data(home, name)
    assert f"{name}.yaml" in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "$(shell ls)", "a b", "", "a\nb", "-x", ".hidden", "a/b", "`id`", 'a"b'])
def test_names_that_are_no_names_are_refused(home: Path, name: str) -> None:
    for load in (lambda: config.load_data(home, name), lambda: run(home, model=name)):
        with pytest.raises(CompError, match="is not a name"):
            load()


def test_every_yaml_that_is_shipped_loads(project: Path) -> None:
    sets = config.names(project, "data")
    models = config.names(project, "models")
    assert {"petals", "flowers104", "oxford102", "tf-flowers", "cifar10"} <= set(sets)
    assert {"resnet34", "resnet50", "resnet50-pretrained", "plain34"} <= set(models)
    for name in sets:
        data = config.load_data(project, name)
        for model in models:
            config.load_run(project, model, data)
    for name in config.names(project, "ensembles"):
        config.load_ensemble(project, name)


def test_every_model_yaml_begins_with_its_command_score_and_time(project: Path) -> None:
    """Design §4: the command, the score to expect, on what data and hardware, in what time."""
    for path in sorted((project / "configs/models").glob("*.yaml")):
        head = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            head.append(line)
        assert f"make train MODEL={path.stem}" in "\n".join(head), path
        assert len(head) >= 2, path


def test_unset_data_is_complete() -> None:
    assert DataConfig(name="x").root_path(Path("/home")) == Path("/home/data/raw/x")


def test_every_model_file_says_how_to_train_it_and_what_it_scores(project: Path) -> None:
    """Headed by command, score on petals fold 0, time and machine; or why there is no score."""
    found = sorted((project / "configs" / "models").glob("*.yaml"))
    assert len(found) > 30
    for path in found:
        lines = path.read_text().splitlines()
        assert lines[0] == f"# make train MODEL={path.stem}", path
        score = " ".join(line.lstrip("# ") for line in lines[1:3])
        measured = re.match(r"score: macro F1 0\.\d{3}.* on petals fold 0.* \d+ s on \d+ cores of ", score)
        assert measured or score.startswith("score: not measured: "), f"{path}: {score}"
