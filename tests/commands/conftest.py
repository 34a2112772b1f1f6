"""Commands over drawn worlds: the data set is made up, everything after the manifest is real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worlds import World, world

from comp import config, files
from comp.commands import common, truths


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Make a world and let commands find it as the data set `drawn`; keyword arguments as for `worlds.world`.

    `yaml` is the data set's section as a dict, `leaks` and `bad` what its manifest would say.
    """

    def make(
        *, yaml: dict[str, Any] | None = None, leaks: Sequence[Any] = (), bad: Sequence[str] = (), **drawing: Any
    ) -> World:
        made = world(tmp_path, **drawing)
        data = config.validate(config.DataConfig, {"name": "drawn", "root": "raw", **(yaml or {})}, "test")
        header = (data.submission.id, data.submission.label)
        if data.submission.values == "probs":
            header = (data.submission.id, *made.truth.classes)
        rows = [[i, *["0"] * (len(header) - 1)] for i in reversed(made.truth.test_ids)]
        files.write_csv(tmp_path / "raw" / "sample_submission.csv", header, rows)
        ids = [*made.truth.labels, *made.truth.test_ids]
        dataset = SimpleNamespace(ids=ids, leaks=list(leaks), bad=list(bad))
        monkeypatch.setattr(truths, "of_set", lambda name, settings=(), **more: (tmp_path, data, dataset, made.truth))
        monkeypatch.setattr(common, "project", lambda name, settings=(): (tmp_path, data, {}))
        monkeypatch.setattr(truths, "views_of", lambda config, text: (text, text))
        monkeypatch.setenv("COMP_HOME", str(tmp_path))
        return made

    return make
