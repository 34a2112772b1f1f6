"""Files and names made to run a command or to write elsewhere: each is refused, nothing runs, nothing appears."""

from __future__ import annotations

import builtins
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comp import cli, config, files, predictions, yamls
from comp.data import archive, pixels
from comp.errors import CompError
from comp.nets import build, store
from comp.training import checkpoint

COMMAND = "touch planted"


class Evil:
    """What a pickle of it calls when it is read."""

    def __init__(self, call: Callable[..., object], *arguments: object):
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


CODE = f"import os; os.system({COMMAND!r})"
PAYLOADS = {
    "os.system": Evil(os.system, COMMAND),
    "subprocess.Popen": Evil(subprocess.Popen, ["touch", "planted"]),
    "exec": Evil(builtins.exec, CODE),
    "eval": Evil(builtins.eval, f"__import__('os').system({COMMAND!r})"),
    "open": Evil(builtins.open, "planted", "w"),
    "Path.touch": Evil(Path.touch, Path("planted")),
}


def _raw(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps(evil))


def _raw_protocol_2(path: Path, evil: Evil) -> None:
    path.write_bytes(pickle.dumps({"weight": evil}, protocol=2))


def _torch(path: Path, evil: Evil) -> None:
    torch.save({"format": 1, "network": evil}, path)


def _torch_legacy(path: Path, evil: Evil) -> None:
    torch.save({"weight": evil}, path, _use_new_zipfile_serialization=False)


def _npz(path: Path, evil: Evil) -> None:
    arrays = {"ids": np.array(["a"]), "classes": np.array(["x", "y"]), "probs": np.array([[0.5, 0.5]], np.float32)}
    hidden = np.empty((), dtype=object)
    hidden[()] = evil
    with path.open("wb") as file:
        np.savez(file, **arrays, header=hidden)  # type: ignore[arg-type]


def _npz_ids(path: Path, evil: Evil) -> None:
    with path.open("wb") as file:
        np.savez(file, ids=np.array([evil], dtype=object), probs=np.ones((1, 2)), classes=np.array(["x", "y"]))


def _npy(path: Path, evil: Evil) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([evil], dtype=object), allow_pickle=True)


READERS: dict[str, tuple[Callable[[Path], object], tuple[Callable[[Path, Evil], None], ...]]] = {
    "last.ckpt": (checkpoint.read, (_raw, _torch, _torch_legacy)),
    "weights.pth": (build.read_weights, (_raw_protocol_2, _torch, _torch_legacy)),
    "model.safetensors": (store.load_model, (_raw, _torch)),
    "oof.npz": (predictions.load, (_raw, _npz, _npz_ids, _npy)),
}
PICKLES = [(name, write, evil) for name, (_, writers) in READERS.items() for write in writers for evil in PAYLOADS]

TAGS = (
    "!!python/object/apply:os.system [touch planted]",
    "!!python/object/new:os.system [touch planted]",
    "!!python/object/apply:subprocess.check_output [[touch, planted]]",
    "!!python/object/apply:builtins.eval [__import__('os').system('touch planted')]",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:subprocess.Popen {}",
)
NAMES = (
    "../planted", "../../planted", "/tmp/planted", "a/../../planted", "..", ".", "", "-rf", "a b", "a\nb", "a\0b",
    "$(touch planted)", "`touch planted`", "; touch planted", "| touch planted", "&& touch planted",
    "$(shell touch planted)", "'; touch planted; '", '"; touch planted; "', "%(touch planted)s", "{planted}", "~",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own to run in; whatever appears outside `project` and under another name is a planted thing."""
    project = tmp_path / "outer" / "project"
    for kind, text in (("data", "reader: tfrecords\n"), ("models", "model: {name: resnet18, pretrained: false}\n")):
        files.write_text(project / "configs" / kind / "net.yaml", text)
    (project / "configs/ensembles").mkdir()
    monkeypatch.setenv("COMP_HOME", str(project))
    monkeypatch.chdir(project)
    return project


def everything(folder: Path) -> set[Path]:
    """What lies outside the project, and every planted thing inside."""
    outer = folder.parents[1]
    return {path for path in outer.rglob("*") if folder not in path.parents or "planted" in path.name}


@pytest.mark.parametrize(("name", "write", "evil"), PICKLES, ids=lambda v: getattr(v, "__name__", v))
def test_no_pickle_runs(here: Path, name: str, write: Callable[[Path, Evil], None], evil: str) -> None:
    path = here / name
    write(path, PAYLOADS[evil])
    before = everything(here)
    with pytest.raises(CompError):
        READERS[name][0](path)
    assert everything(here) == before


def test_these_pickles_do_run_where_they_are_let(here: Path) -> None:
    """The check itself: read without a guard, they plant their file."""
    _raw(here / "x", PAYLOADS["os.system"])
    pickle.loads((here / "x").read_bytes())
    assert (here / "planted").exists()


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("where", ["models", "data", "ensembles", "setting", "run"])
def test_no_yaml_tag_runs(here: Path, where: str, tag: str) -> None:
    path = here / "configs" / ("models" if where in ("setting", "run") else where) / "evil.yaml"
    path.write_text(f"name: {tag}\n")
    data = config.DataConfig(name="net")
    read: dict[str, Callable[[], object]] = {
        "models": lambda: config.load_run(here, "evil", data),
        "data": lambda: config.load_data(here, "evil"),
        "ensembles": lambda: config.load_ensemble(here, "evil"),
        "setting": lambda: yamls.parse_overrides([f"model.name={tag}"]),
        "run": lambda: config.read_run(path),
    }
    before = everything(here)
    with pytest.raises(CompError):
        read[where]()
    assert everything(here) == before


def _words(name: str) -> list[list[str]]:
    """Every place of the command line that becomes a file's name."""
    return [
        ["train", "net", "--data", "net", f"--name={name}"],
        ["train", "net", f"--data={name}"],
        ["train", "--data", "net", "--", name],
        ["train", "net", "--data", "net", f"--from={name}/fold0@best"],
        ["train", "net", "--data", "net", f"--fold={name}"],
        ["predict", "--data", "net", "--", name],
        ["submit", "--data", "net", f"--name={name}"],
        ["submit", "--data", "net", f"--ensemble={name}"],
        ["import", "x.csv", "--data", "net", f"--name={name}"],
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_or_runs(here: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(here)
    for words in _words(name):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code in (2, 3, 4), words
        assert "unexpected" not in capsys.readouterr().err
    assert everything(here) == before


@pytest.mark.parametrize("member", ["../x", "../../x", "/etc/hostname", "a/../../x", "", "..", "a\0b"])
def test_no_image_id_leads_out_of_its_folder_or_zip(here: Path, member: str) -> None:
    (here.parent / "x").write_bytes(b"outside")
    (here / "images").mkdir()
    with zipfile.ZipFile(here / "images.zip", "w") as out:
        info = zipfile.ZipInfo(member or "dir/")
        out.writestr(info, b"inside")
    for box in ("images", "images.zip"):
        with pytest.raises(CompError, match="leads out of"):
            archive.Box(here, box).find(member, "", "row 2")


def test_no_member_of_a_zip_is_ever_written(here: Path) -> None:
    """Images are read in place, by offset: what members are called, or link to, is never a path."""
    link = zipfile.ZipInfo("link.jpg")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(here / "images.zip", "w") as out:
        for name in ("../up.jpg", "/abs.jpg", "..\\back.jpg", "C:\\drive.jpg"):
            out.writestr(name, b"bytes")
        out.writestr(link, b"/etc/passwd")
    before = everything(here)
    box = archive.Box(here, "images.zip")
    file, offset, length = box.find("link", ".jpg", "row 2")
    assert (here / file).read_bytes()[offset : offset + length] == b"/etc/passwd"  # the text, not what it names
    assert everything(here) == before


def _bomb(path: Path, name: str, claims: int) -> None:
    """A zip of one small member whose directory says it is this large."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(name, b"\0" * 100_000)
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", claims)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["last.ckpt", "weights.pth", "oof.npz"])
def test_no_zip_bomb_is_unpacked(here: Path, name: str) -> None:
    path = here / name
    for claims in (2**32 - 2, 100_000):
        _bomb(path, "archive/data.pkl" if name != "oof.npz" else "ids.npy", claims)
        with pytest.raises(CompError):
            READERS[name][0](path)


def test_no_postscript_is_started(here: Path) -> None:
    """Pillow would hand such a file to ghostscript."""
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(%pipe%touch planted) (w) file\nshowpage\n"
    before = everything(here)
    with pytest.raises(CompError, match="not an image in a format that is read here"):
        pixels.decode(text, "image")
    assert everything(here) == before


@pytest.mark.parametrize("args", [{"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"pretrained_cfg": "x"}])
def test_no_argument_of_a_network_loads_a_file(here: Path, args: dict[str, Any]) -> None:
    _torch(here / "evil.pth", PAYLOADS["os.system"])
    before = everything(here)
    with pytest.raises(CompError, match="is not an argument to set here"):
        build.build("test_resnet", num_classes=2, args=args)
    assert everything(here) == before


@pytest.mark.parametrize("name", ["hf-hub:evil/model", "hf_hub:evil/model", "local-dir:.", "../net", "resnet18;x"])
def test_no_name_of_a_network_is_an_address(name: str) -> None:
    with pytest.raises(CompError, match="there is no such network"):
        build.build(name, num_classes=2)


def test_there_are_enough_of_them() -> None:
    """Files alone; the nine values of every make variable are in tests/test_makefile.py."""
    assert len(PICKLES) + 5 * len(TAGS) + len(NAMES) >= 60
