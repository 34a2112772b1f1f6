"""Damaged and absurd inputs: every one is read, or ends in one CompError.

A case is a kind and a number; the number alone decides what is done to which sample, so a case that was found can be
named and replayed.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from comp import config, files, predictions, yamls
from comp.data import archive, crc32c, folds, manifest, pixels, sources, tfrecord
from comp.ensembling import importing, ledger, submission, table
from comp.ensembling.truth import Truth, truth_of
from comp.errors import CompError

# Cases that once ended in something else than a CompError, or were read though they were damaged.
FOUND: list[tuple[str, int]] = [("zip", 32), ("zip", 135)]
SECONDS = 5.0  # of processor time; ten times as much by the clock, for a machine that does other things
WORDS = (
    b"", b"0", b"-1", b"1e999", b"nan", b"null", b"true", b"99999999999999999999", b"[]", b"{}", b"''", b'"', b",",
    b"\n", b"\0", b"../../x", b"\xff\xfe", b"!!python/object:os.system", b"&a", b"*a", b"<<: ", b"\xef\xbb\xbf", b": ",
)  # fmt: skip


class Hang(BaseException):
    """A case took too long."""


@dataclass
class Kind:
    """One sort of input.

    Attributes:
        name: Of the kind.
        path: Where the input is written to.
        samples: Sound inputs.
        read: Reads the file; returns anything.
        build: Makes an input that is well formed outside and wrong inside; None where there is none.
    """

    name: str
    path: Path
    samples: list[bytes]
    read: Callable[[], object]
    build: Callable[[random.Random, bytes], bytes] | None = None


@dataclass
class Tally:
    """What a series came to; `bad` holds (kind, number, what came instead of a CompError)."""

    cases: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[str, int, str]] = field(default_factory=list)


def damage(rng: random.Random, data: bytes) -> bytes:
    """One to four of: a bit, a byte, a cut, a hole, a repetition, a telling word, noise."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        length = min(len(out) - at, rng.choice((1, 2, 4, 8, 64)))
        match rng.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(out):
                out[at] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
            case 2:
                del out[at:]
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length] * rng.choice((1, 3, 50))
            case 5:
                out[at : at + length] = rng.choice(WORDS)
            case 6:
                out[at:at] = rng.randbytes(length)
            case _:
                other = rng.randrange(len(out) + 1)
                out[at : at + length] = out[other : other + length]
    return bytes(out)


def odd(rng: random.Random, value: Any) -> Any:
    """A plain value with one part of it replaced by something unexpected."""
    strange = (None, -1, 0, 1.5, float("nan"), 10**30, "", "x", "../x", [], {}, [[]], True, {"a": 1}, "9" * 400)
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(("", "x", "format")): rng.choice(strange)}
            case _:
                return {**value, key: odd(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        match rng.randrange(3):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], odd(rng, value[at]), *value[at + 1 :]]
    return rng.choice(strange)


def _json(rng: random.Random, sample: bytes) -> bytes:
    return json.dumps(odd(rng, json.loads(sample))).encode()


def _yaml(rng: random.Random, sample: bytes) -> bytes:
    return json.dumps(odd(rng, yamls.parse_yaml(sample.decode(), "sample"))).encode()


def _shard(rng: random.Random, sample: bytes) -> bytes:
    """A shard whose checksums are right and whose payload is not."""
    length = struct.unpack("<Q", sample[:8])[0]
    payload = damage(rng, sample[12 : 12 + length])
    header = struct.pack("<Q", len(payload))
    ends = [struct.pack("<I", crc32c.masked(crc32c.crc32c(part))) for part in (header, payload)]
    return header + ends[0] + payload + ends[1] + sample[16 + length :]


def _predictions(rng: random.Random, sample: bytes) -> bytes:
    with np.load(io.BytesIO(sample), allow_pickle=False) as read:
        arrays = {name: read[name] for name in read}
    name = rng.choice(list(arrays))
    value: Any = arrays[name]
    match rng.randrange(8):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = value.reshape(-1)[: rng.randrange(3)]
        case 2:
            arrays[name] = np.zeros(value.shape, rng.choice(("S3", "U3", "O", "M8[s]", "V4", "f4")))
        case 3:
            arrays[name] = np.array([], dtype=value.dtype)
        case 4:
            probs = arrays["probs"].copy()
            probs.flat[rng.randrange(probs.size)] = rng.choice((np.nan, np.inf, -1, 2, 1e38))
            arrays["probs"] = probs
        case 5:
            arrays["ids"] = np.repeat(arrays["ids"][:1], len(arrays["ids"]))
        case 6:
            arrays["header"] = np.array(json.dumps(odd(rng, json.loads(str(arrays["header"])))))
        case _:
            arrays["probs"] = arrays["probs"].astype(rng.choice(["f2", "f8", "c8", "i4", "?"]))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _checkpoint(rng: random.Random, sample: bytes) -> bytes:
    import torch

    values = torch.load(io.BytesIO(sample), weights_only=True)
    buffer = io.BytesIO()
    torch.save(odd(rng, values), buffer)
    return buffer.getvalue()


def _model(rng: random.Random, sample: bytes) -> bytes:
    """Weights whose header, or the description inside it, is not what it was."""
    length = int.from_bytes(sample[:8], "little")
    header = json.loads(sample[8 : 8 + length])
    if rng.random() < 0.5:
        about = odd(rng, json.loads(header["__metadata__"]["comp"]))
        header["__metadata__"]["comp"] = json.dumps(about)
    else:
        header = odd(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + sample[8 + length :]


def _zip(rng: random.Random, sample: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as out:
        for name in rng.sample(["a.jpg", "../b.jpg", "/c.jpg", "d/e.jpg", "a.jpg/", "\u202e.jpg", "x" * 300], 3):
            out.writestr(name, rng.randbytes(rng.randrange(20)))
    return buffer.getvalue()


def _images() -> list[bytes]:
    from PIL import Image

    rng = np.random.default_rng(0)
    color = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[274] = 6
    out = []
    for form, mode, options in (
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        (
            "JPEG",
            "RGB",
            {"progressive": True, "exif": turned},
        ),
        ("PNG", "RGB", {}),
        ("PNG", "P", {"transparency": 3}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGB", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ):
        buffer = io.BytesIO()
        (color.convert("L").convert("I;16") if mode == "I;16" else color.convert(mode)).save(buffer, form, **options)
        out.append(buffer.getvalue())
    return out


DATA = "reader: tfrecords\nsize: 16\ndraw: {classes: 2, train: 12, val: 4, test: 4, size: 16}\nfolds: {k: 2}\n"
MODEL = """\
model: {name: test_resnet, pretrained: false, head: [8], args: {drop_path_rate: 0.1}}
image: {crop: 16, scale: [16, 32]}
augment: [plain, colour_jitter]
optim: {name: sgd, lr: 1e-3, layer_decay: null}
schedule: {name: plateau, patience: 3}
loss: {mixup: 0.2, balance: sampler}
epochs: 3
batch: 8
"""


def kinds(folder: Path) -> list[Kind]:
    """Make a tiny project with one file of every kind, and say how each is read."""
    import torch

    from comp.nets import store
    from comp.nets.build import read_weights
    from comp.training import checkpoint

    home = folder / "home"
    for name, text in (("data/tiny", DATA), ("models/net", MODEL), ("ensembles/all", "members: [a]\nrule: mean\n")):
        files.write_text(home / "configs" / f"{name}.yaml", text)
    data = config.load_data(home, "tiny")
    run, _ = config.load_run(home, "net", data)
    dataset = manifest.prepare(data, home)
    where = manifest.folder(home, data)
    split, _ = folds.make(dataset, 2, 0, "pool")
    folds_file = home / "folds/tiny.csv"
    folds.save(folds_file, split)
    truth = truth_of(dataset, split, "")
    raw = Path(shutil.copytree(home / "data/raw/tiny", folder / "raw"))  # the manifest's own files stay as they are
    copied = data.model_copy(update={"root": str(raw), "draw": None})
    shard = next(raw.glob("*/train/*.tfrec"))
    made: list[Kind] = []

    def add(name: str, path: Path, read: Callable[[], object], *samples: bytes, build: Any = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(Kind(name, path, list(samples) or [path.read_bytes()], read, build))

    def image() -> object:
        return pixels.inspect((folder / "image").read_bytes(), "image", 1_000_000)

    add("tfrecord", folder / "shard", lambda: list(tfrecord.records(folder / "shard")), _small(folder), build=_shard)
    add("shard", shard, lambda: sources.read(copied, home), build=_shard)
    add("image", folder / "image", image, *_images())
    models = home / "configs/models/net.yaml"
    add("run.yaml", models, lambda: config.load_run(home, "net", data), build=_yaml)
    add("data.yaml", home / "configs/data/tiny.yaml", lambda: config.load_data(home, "tiny"), build=_yaml)
    add("ensemble.yaml", home / "configs/ensembles/all.yaml", lambda: config.load_ensemble(home, "all"), build=_yaml)
    words = folder / "words"
    setting = b"optim.lr=0.1", b"image.scale=[16, 32]", b"data.classes=[a, b]", b"model.args={a: 1}"
    add("setting", words, lambda: yamls.parse_overrides([words.read_bytes().decode(errors="replace")]), *setting)
    add("folds.csv", folds_file, lambda: folds.load(folds_file, dataset, data))
    add("manifest.csv", where / "manifest.csv", lambda: _dataset(where))
    add("dataset.json", where / "dataset.json", lambda: _dataset(where), build=_json)
    sample = home / "data/raw/tiny/sample_submission.csv"
    add("sample.csv", sample, lambda: table.form(sample, data.submission, truth.classes, truth.test_ids))
    foreign = folder / "foreign.csv"
    probs = "id,0,1\n" + "".join(f"{i},0.25,0.75\n" for i in truth.test_ids)
    hard = "id,label\n" + "".join(f"{i},1\n" for i in truth.test_ids)

    def imported() -> object:
        return importing.read_csv(foreign, truth, data.submission, "other")

    add("foreign.csv", foreign, imported, probs.encode(), hard.encode())
    book = folder / "book"
    entry = f"{','.join(ledger.COLUMNS)}\n".encode()
    rows = b"a.csv,abc,macro_f1,0.9,0.01,0.91,note,2020-01-01\n"
    add("ledger.csv", book / "ledger.csv", lambda: ledger.read(book), entry + rows)
    record = {"record": submission.RECORD, "csv": {}, "data": {}, "metric": "", "views": {}, "rule": {}, "folds": []}
    beside = folder / "out.json"
    text = json.dumps({**record, "members": []}).encode()
    add("record.json", beside, lambda: submission.read_record(beside), text, build=_json)

    npz = folder / "oof.npz"
    chances = np.full((4, 2), 0.5, np.float32)
    names = np.array(["NA", "007", "1e5", "a,b"])
    predictions.Predictions(names, chances, np.array(["x", "y"]), {"run": "r", "fold": 0}).save(npz)
    add("predictions", npz, lambda: predictions.load(npz).header, build=_predictions)

    about = {"network": "test_resnet", "fold": 0, "classes": ["x", "y"]}
    ckpt = folder / "last.ckpt"
    best = checkpoint.Best(0, 0.5, 1.0, "best-1.safetensors", "0" * 64)
    position = checkpoint.Position(epoch=1, rows=[[1, 0.5]], best=best)
    network = {"weight": torch.ones(3, 2), "count": torch.tensor(3)}
    checkpoint.save(ckpt, checkpoint.Checkpoint(about, position, network, None, {"state": {}}, {"best": 1.0}, None, {}))
    add("checkpoint", ckpt, lambda: checkpoint.load(ckpt, about), build=_checkpoint)

    model = folder / "model.safetensors"
    net = store.build_network(run.model, classes=2, crop=16)
    description = store.describe(run, classes=("x", "y"), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    store.save_model(model, net.state_dict(), description)
    add("model", model, lambda: store.load_model(model), build=_model)

    weights = folder / "weights.pth"
    torch.save(net.state_dict(), weights)
    add("weights", weights, lambda: read_weights(weights), build=_checkpoint)

    box = raw / "images.zip"
    with zipfile.ZipFile(box, "w") as out:
        for name in ("a.jpg", "top/b.jpg"):
            out.writestr(name, b"\xff\xd8 not much \xff\xd9")
    add("zip", box, lambda: [archive.Box(box.parent, box.name).find(i, ".jpg", "here") for i in "ab"], build=_zip)
    return made


def _small(folder: Path) -> bytes:
    rows: Sequence[dict[str, bytes | int]] = [
        {"image": b"\xff\xd8one\xff\xd9", "class": 3, "id": b"0a1b"},
        {"image": b"\xff\xd8two\xff\xd9", "class": -1, "id": b"NA"},
    ]
    tfrecord.write_records(folder / "shard", rows)
    return (folder / "shard").read_bytes()


def _dataset(where: Path) -> object:
    dataset = manifest.load(where)
    truth: Truth = truth_of(dataset, {}, "")
    return truth, dataset.reader()


@contextmanager
def limit() -> Iterator[None]:
    """Raise Hang in the block after SECONDS of work."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS:g} s")

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.setitimer(signal.ITIMER_REAL, 10 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


def one(kind: Kind, number: int, tally: Tally) -> None:
    """Do one case."""
    rng = random.Random(f"{kind.name}/{number}")
    sample = rng.choice(kind.samples)
    data = kind.build(rng, sample) if kind.build and rng.random() < 0.5 else damage(rng, sample)
    kind.path.write_bytes(data)
    tally.cases[kind.name] += 1
    try:
        with limit(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.read()
    except CompError as error:
        tally.refused[kind.name] += 1
        line = f"error: {error}"
        if "\n" in line or len(line) > 2000:
            tally.bad.append((kind.name, number, f"{len(line)} characters in the line"))
    except (Exception, Hang) as error:
        tally.bad.append((kind.name, number, f"{type(error).__name__}: {error}"[:200]))
    finally:
        kind.path.write_bytes(kind.samples[0])


def series(folder: Path, count: int, start: int = 0, report: Callable[[Tally], object] = lambda tally: None) -> Tally:
    """All that was found before, then so many new cases, of all kinds in turn."""
    tally = Tally()
    made = kinds(folder)
    by_name = {kind.name: kind for kind in made}
    for name, number in FOUND:
        one(by_name[name], number, tally)
    for number in range(start, start + -(-count // len(made))):
        for kind in made:
            one(kind, number, tally)
        report(tally)
    return tally
