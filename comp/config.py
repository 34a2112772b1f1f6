"""The schema of a run, a data set and an ensemble: YAML in, frozen objects out. Names stay names here; commands ask
the tables that give them meaning (models, augmentations, views, rules).

A run's settings come from, each overruling the one before: the defaults below, `configs/models/<MODEL>.yaml`, the `run`
section of `configs/data/<DATA>.yaml` (it knows the image size and how much training the data is worth), `key=value` on
the command line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from comp import files
from comp.errors import CompError, Exit, did_you_mean
from comp.yamls import merge, read_yaml

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Pixels = Annotated[int, Field(ge=1, le=8192)]


class Section(BaseModel):
    """A part of a config: unknown keys, wrong types, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Init(Section):
    """How a scratch network's weights start (comp.nets.init)."""

    kind: Literal["default", "normal", "xavier", "he", "vgg"] = "default"
    std: Positive = 0.01
    fan: Literal["in", "out"] = "out"
    first: Annotated[int, Field(ge=0)] = 1  # vgg: so many weight layers from the input start with Xavier,
    last: Annotated[int, Field(ge=0)] = 1  # so many before the output too, normal(std) between
    bias: float = 0.0


class Model(Section):
    """The network and where its weights start."""

    name: str = ""  # any timm name or one of the papers' networks; the MODEL= name where it is empty
    pretrained: bool | str = True  # timm's weights, or the path of a weights file
    head: tuple[Count, ...] = ()  # hidden layers of an MLP head; () is one linear layer
    dropout: Fraction = 0.0
    drop_path: Fraction = 0.0
    activation: str | None = None
    init: Init = Init()
    init_from: str | None = None  # <run>/fold<k>[@best|@last], or a run to grow from
    freeze: Literal["none", "backbone"] | Annotated[int, Field(ge=1)] = "none"  # a number n: all but the last n stages
    freeze_epochs: Annotated[int, Field(ge=0)] = 0  # 0: for the whole run; n: for n epochs, then everything trains
    args: dict[str, bool | int | float | str] = {}  # further arguments of the network's timm entry


class Image(Section):
    """Image geometry, in pixels."""

    crop: Pixels = 224
    scale: tuple[Pixels, Pixels] | None = None  # shorter side, drawn per image; default crop × [256, 480] / 224
    test: Pixels | None = None  # shorter side before the centre crop of validation; default crop × 256 / 224
    normalize: Literal["auto", "set", "model"] = "auto"  # auto: the network's own where pretrained, else the set's

    @model_validator(mode="after")
    def _ordered(self) -> Image:
        if self.scale and self.scale[0] > self.scale[1]:
            raise ValueError(f"scale {list(self.scale)} runs from high to low")
        if self.scale and self.scale[0] < self.crop:
            raise ValueError(f"scale {list(self.scale)} begins below the crop of {self.crop}")
        return self

    @property
    def scale_range(self) -> tuple[int, int]:
        """Shorter side in training, (low, high), both included."""
        return self.scale or (round(self.crop * 256 / 224), round(self.crop * 480 / 224))

    @property
    def test_size(self) -> int:
        """Shorter side before the centre crop of validation and before the five crops."""
        return self.test or max(self.crop, round(self.crop * 256 / 224))


class Optim(Section):
    """The optimizer; `lr` belongs to the global batch size."""

    name: str = "adamw"  # sgd, adam, adamw, rmsprop, adagrad or any other name of timm's optimizer factory
    lr: Positive = 5e-4
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.05
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = 0.75
    head_lr: Positive = 1.0  # the head's learning rate as a multiple of `lr`
    clip: Positive | None = 1.0
    clip_mode: Literal["norm", "value"] = "norm"


class Schedule(Section):
    """The learning rate over time."""

    name: Literal["cosine", "plateau", "step", "onecycle", "constant"] = "cosine"
    warmup: NotNegative = 1.0  # epochs, may be a fraction
    min_lr: NotNegative = 0.0  # as a fraction of lr
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1  # plateau and step: lr is multiplied by it
    patience: Annotated[int, Field(ge=0)] = 7  # plateau: epochs without a lower validation loss
    every: Count = 30  # step: epochs between drops


class Loss(Section):
    """The loss and what is done to labels."""

    label_smoothing: Fraction = 0.1
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    balance: Literal["none", "sampler", "weights", "logits"] = "none"


class Watch(Section):
    """What is said about a run that does not learn (comp.training.watch)."""

    on: bool = True
    layers: Annotated[int, Field(ge=0)] = 0  # every so many steps, per-layer statistics to TensorBoard; 0 is off


class DataRef(Section):
    """Which data a run was made for."""

    name: str = "petals"
    size: int | None = None


class RunConfig(Section):
    """One run: one config, trained on its folds. The defaults fine-tune a pretrained network."""

    model: Model = Model()
    data: DataRef = DataRef()
    image: Image = Image()
    augment: tuple[str, ...] = ("plain",)
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    loss: Loss = Loss()
    epochs: Count = 20
    batch: Count = 64  # images per optimizer step, over all processes
    micro_batch: Count | None = None  # images per forward pass on one device; default as many as a step allows
    ema: Fraction = 0.0  # decay per step of the averaged weights; 0 is off
    best_by: Literal["last", "val_loss", "metric"] = "last"  # which epoch's weights are kept as the model
    patience: Annotated[int, Field(ge=0)] = 0  # epochs without a better `best_by` before stopping early; 0 never
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    # What follows changes how a run goes, not what comes out; it may differ when a run goes on.
    workers: Annotated[int, Field(ge=0)] | None = None  # loader processes; default from the cores there are
    save_every: Positive = 300.0  # seconds between saves inside an epoch
    keep_every: Annotated[int, Field(ge=0)] = 0  # epochs between checkpoints that are kept; 0 keeps none
    time_limit: Positive | None = None  # seconds; then the state is saved and the exit code is 75
    hang_limit: Positive = 1800.0  # seconds one process of several may be silent
    watch: Watch = Watch()

    FREE: ClassVar[frozenset[str]] = frozenset(
        {"workers", "save_every", "keep_every", "time_limit", "hang_limit", "watch"}
    )

    @model_validator(mode="after")
    def _fits(self) -> RunConfig:
        if self.patience and self.best_by == "last":
            raise ValueError("patience: early stopping needs best_by: val_loss or metric")
        if self.micro_batch and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch: {self.micro_batch} is more than the global batch of {self.batch}")
        return self

    def identity(self) -> dict[str, Any]:
        """Everything that can change the result, as plain values."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in self.FREE}

    def digest(self) -> str:
        """SHA-256 of `identity`."""
        return files.digest_bytes(json.dumps(self.identity(), sort_keys=True).encode())

    def recipe(self) -> str:
        """`digest` without the seed: runs that share it are seeds of one recipe."""
        identity = {key: value for key, value in self.identity().items() if key != "seed"}
        return files.digest_bytes(json.dumps(identity, sort_keys=True).encode())


class Draw(Section):
    """The built-in set, drawn where its files are missing (comp.data.demo)."""

    classes: Annotated[int, Field(ge=2, le=1000)] = 12
    train: Count = 1500
    val: Count = 300
    test: Count = 1200
    size: Pixels = 96
    seed: int = 0


class Submission(Section):
    """The competition's CSV."""

    sample: str = "sample_submission.csv"  # under root
    id: str = "id"
    label: str = "label"
    values: Literal["label", "name", "probs"] = "label"  # class index, class name, or one column per class
    competition: str = ""  # Kaggle's name of the competition, for `comp submit --upload` and `comp ledger --fetch`


class Folds(Section):
    """How the labelled photos are split."""

    k: Annotated[int, Field(ge=2, le=100)] = 5
    seed: int = 0


class DataConfig(Section):
    """One data set: where it lies, how it is read, what the competition asks for."""

    name: str
    reader: Literal["tfrecords", "csv", "folders", "torchvision"] = "tfrecords"
    root: str = ""  # default data/raw/<name>, relative to the project
    size: Pixels | None = None  # tfrecords: which of the resolutions
    draw: Draw | None = None
    torchvision: str | None = None  # Flowers102, CIFAR10, CIFAR100, MNIST, Caltech256
    images: str = "."  # csv: the folder or zip of images under root
    test_images: str | None = None  # csv: the same for the test photos
    labels: str = "train.csv"  # csv: the file of ids and labels under root
    id_column: str = "image_id"
    label_column: str = "label"
    suffix: str = ".jpg"  # csv: what is added to an id to name its image
    classes: str | tuple[str, ...] | None = None  # names in label order, or a file of them under root
    metric: Literal["macro_f1", "accuracy", "log_loss"] = "macro_f1"
    submission: Submission = Submission()
    val: Literal["pool", "audit", "official"] = "pool"
    folds: Folds = Folds()
    symmetries: tuple[Literal["hflip", "vflip", "rotate90"], ...] = ("hflip",)  # what keeps a photo's label
    on_bad: Literal["fail", "skip"] = "fail"
    max_pixels: Count = 64_000_000  # a larger image is refused before it is decoded
    run: dict[str, Any] = {}

    @property
    def size_name(self) -> str:
        """The folder of this resolution under `data/<set>/`."""
        return str(self.size) if self.size else "native"

    def root_path(self, home: Path) -> Path:
        """The raw files; relative roots are under the project's folder."""
        return home / (self.root or f"data/raw/{self.name}")


class EnsembleConfig(Section):
    """Which runs vote, how, and on which views."""

    members: tuple[str, ...] = ()
    rule: str = "vote"
    views: str = "flip"


# What a data set's run section may say: image geometry, how long, how many at once.
DATA_MAY_SET = ("image", "epochs", "patience", "batch")

_SectionType = TypeVar("_SectionType", bound=Section)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def check_name(what: str, name: str) -> str:
    """Refuse a name that is no plain file name (`../x`, `$(…)`, quotes, newlines)."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise CompError(what, f"{shown!r} is not a name", "use letters, digits, '.', '_', '+' and '-'", Exit.CONFIG)
    return name


def _field_names(section: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The valid keys where an unknown one was found."""
    for part in path:
        field = section.model_fields.get(part)
        inner = field.annotation if field else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        found = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if found is None:
            return []
        section = found
    return list(section.model_fields)


_WORDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "literal_error": "must be one of {expected}",
}


def validate(section: type[_SectionType], values: Mapping[str, Any], where: object) -> _SectionType:
    """Build a frozen config from plain values; the first mistake is one line naming file, key and the nearest name."""
    try:
        text = json.dumps(values)
    except (TypeError, ValueError, RecursionError):
        raise CompError(
            where, "holds a value that is neither text, number, list nor section", "mend it", Exit.CONFIG
        ) from None
    try:
        return section.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        # One value of a union gives one problem per member; an unknown key says more than any of them.
        problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
        path = [str(part) for part in problem["loc"]]
        if problem["type"] == "extra_forbidden":
            names = _field_names(section, path[:-1])
            raise CompError(
                where, f"unknown key '{'.'.join(path)}'", did_you_mean(path[-1], names, limit=12), Exit.CONFIG
            ) from None
        keys = [part for part in path if re.fullmatch(r"[a-z_0-9]+", part)]
        while keys and keys[-1] in ("bool", "str", "int", "float", "none"):
            keys.pop()
        context = {key: str(value) for key, value in problem.get("ctx", {}).items()}
        words = _WORDS.get(problem["type"])
        text = words.format(**context) if words else problem["msg"].removeprefix("Value error, ")
        given = json.dumps(problem["input"]) if not isinstance(problem["input"], dict) else "a section"
        where_key = f"{'.'.join(dict.fromkeys(keys))} = {given[:60]}: " if keys else ""
        fix = ""
        if problem["type"] == "literal_error" and isinstance(problem["input"], str):
            fix = did_you_mean(problem["input"], re.findall(r"'([^']+)'", context["expected"]))
        raise CompError(
            where, f"{where_key}{text[0].lower()}{text[1:]}", fix or "mend the value", Exit.CONFIG
        ) from None


def names(home: Path, kind: str) -> list[str]:
    """The names of the YAMLs in `configs/<kind>/`, sorted."""
    return sorted(path.stem for path in (home / "configs" / kind).glob("*.yaml"))


def load_data(home: Path, name: str, overrides: Mapping[str, Any] | None = None) -> DataConfig:
    """Read `configs/data/<name>.yaml`.

    Args:
        home: The project's folder.
        name: The set's name, `DATA=`.
        overrides: Values of the command line's `data.` keys.
    """
    check_name("DATA", name)
    path = home / "configs" / "data" / f"{name}.yaml"
    if not path.exists():
        fix = did_you_mean(name, names(home, "data")) + f", or write {path.relative_to(home)}"
        raise CompError(f"DATA={name}", "there is no such data set", fix, Exit.CONFIG)
    values = merge(read_yaml(path), overrides or {})
    stated = values.setdefault("name", name)
    if stated != name:
        raise CompError(path, f"says name: {stated}", f"rename the file or write name: {name}", Exit.CONFIG)
    data = validate(DataConfig, values, path)
    for key in data.run:
        if key not in DATA_MAY_SET:
            fix = (
                f"a data set may set {', '.join(DATA_MAY_SET)}; the rest belongs to a model's YAML or the command line"
            )
            raise CompError(path, f"run.{key} is not for a data set to set", fix, Exit.CONFIG)
    return data


def load_run(
    home: Path, model: str, data: DataConfig, overrides: Mapping[str, Any] | None = None
) -> tuple[RunConfig, list[str]]:
    """Put a run's config together.

    Args:
        home: The project's folder.
        model: `MODEL=`: a file in `configs/models/`, else a network's name with the defaults.
        data: The data set; its run section speaks after the model's YAML.
        overrides: Nested values of the command line (without the `data.` keys).

    Returns:
        The config, and lines that say what the data set changed (the learning rate follows the batch size).
    """
    check_name("MODEL", model)
    path = home / "configs" / "models" / f"{model}.yaml"
    values: dict[str, Any] = read_yaml(path) if path.exists() else {}
    where: object = path if path.exists() else f"MODEL={model}"
    if "data" in values:
        raise CompError(path, "data is not for a model to set", "take it out; the set is DATA=", Exit.CONFIG)
    base = validate(RunConfig, values, where)
    if not base.model.name:
        values = merge(values, {"model": {"name": model}})
    overrides = overrides or {}
    data_path = home / "configs" / "data" / f"{data.name}.yaml"
    values = merge(values, data.run)
    adapted = validate(RunConfig, values, data_path)
    notes = []
    said_lr = "lr" in overrides.get("optim", {}) if isinstance(overrides.get("optim", {}), dict) else False
    batch = overrides.get("batch", adapted.batch)
    if adapted.batch != base.batch and batch == adapted.batch and not said_lr:
        lr = float(f"{base.optim.lr * adapted.batch / base.batch:.6g}")
        values = merge(values, {"optim": {"lr": lr}})
        notes.append(
            f"{data.name} sets batch {base.batch} → {adapted.batch}: the learning rate goes {base.optim.lr:g} → {lr:g}"
        )
    values = merge(values, {"data": {"name": data.name, "size": data.size}})
    values = merge(values, overrides)
    return validate(RunConfig, values, "command line" if overrides else where), notes


def load_ensemble(home: Path, name: str) -> EnsembleConfig:
    """Read `configs/ensembles/<name>.yaml`."""
    check_name("ensemble", name)
    path = home / "configs" / "ensembles" / f"{name}.yaml"
    if not path.exists():
        raise CompError(
            f"ensemble {name}", "there is no such file", did_you_mean(name, names(home, "ensembles")), Exit.CONFIG
        )
    return validate(EnsembleConfig, read_yaml(path), path)


def dump(config: RunConfig) -> str:
    """A run's whole config as YAML text."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def read_run(path: Path) -> RunConfig:
    """Read a run's `config.yaml` back."""
    return validate(RunConfig, read_yaml(path), path)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """The keys that make two runs different ones: (key, old value, new value)."""
    before, after = dict(_flat(old.identity())), dict(_flat(new.identity()))
    keys = list(dict.fromkeys([*before, *after]))
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]
