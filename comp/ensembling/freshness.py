"""Whether a prediction file was made by the weights and the config that lie beside it."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from comp import files
from comp.errors import CompError, Exit
from comp.predictions import Predictions
from comp.runs import Fold


class Digests:
    """SHA-256 of weights files, remembered in `runs/<set>/.digests.json` under their size, times and inode.

    Weights are hundreds of megabytes and blends are made often; a file whose size, modification and change times and
    inode are as before has the digest it had (git's index trusts less).
    """

    def __init__(self, home: Path, data: str):
        self.path = home / "runs" / data / ".digests.json"
        self.known: dict[str, list[Any]] = {}
        with suppress(CompError):
            loaded = files.read_json(self.path)
            if isinstance(loaded, dict):
                self.known = loaded
        self.changed = False

    def of(self, path: Path) -> str:
        """The digest of a file."""
        state = path.stat()
        key = str(path.relative_to(self.path.parent))
        signature = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
        entry = self.known.get(key)
        if isinstance(entry, list) and len(entry) == 5 and entry[:4] == signature and isinstance(entry[4], str):
            return entry[4]
        digest = files.digest_file(path)
        self.known[key] = [*signature, digest]
        self.changed = True
        return digest

    def save(self) -> None:
        """Write what was learnt; a folder one may not write to is no reason to stop."""
        if self.changed:
            with suppress(CompError):
                files.write_json(self.path, self.known)


def differs(where: object, what: str, says: object, wanted: object, fix: str) -> CompError:
    def short(value: object) -> str:
        text = str(value)
        return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else text

    return CompError(where, f"{what}: it says {short(says)}, wanted is {short(wanted)}", fix, Exit.FILE)


def check_fresh(read: Predictions, where: object, fold: Fold, digests: Digests) -> None:
    """Refuse predictions of other weights or another config than those in the fold's folder.

    Raises:
        CompError: Exit code 4; the line says which digest differs.
    """
    fix = f"remove that file, then: comp predict {fold.run.name} --data {fold.run.data}"
    if read.header.get("checkpoint") and fold.model.exists():
        weights = digests.of(fold.model)
        if read.header["checkpoint"] != weights:
            raise differs(where, f"is stale, {fold}/model.safetensors changed", read.header["checkpoint"], weights, fix)
    if read.header.get("config") and fold.config_file.exists():
        config = fold.config().digest()
        if read.header["config"] != config:
            raise differs(where, f"is stale, {fold}/config.yaml changed", read.header["config"], config, fix)
