"""What the ensemble and score verbs do first: a data set's labels, folds and digests, and a view set's two names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from comp.commands import common
from comp.config import DataConfig
from comp.data import folds as splits
from comp.data.manifest import Dataset
from comp.ensembling.truth import Truth, truth_of
from comp.inference import spec


def of_set(data: str, settings: Sequence[str] = (), *, digests: bool = True) -> tuple[Path, DataConfig, Dataset, Truth]:
    """Read a data set's config, manifest and folds.

    Args:
        data: `DATA=`.
        settings: `data.key=value` words.
        digests: Whether the folds' digest is wanted.
    """
    home, config, rest = common.project(data, settings)
    common.only_data(rest)
    dataset = common.prepared(home, config)
    folds = common.split(home, config, dataset)
    return (
        home,
        config,
        dataset,
        truth_of(dataset, folds, splits.digest(folds) if digests else "", audit=config.val == "audit"),
    )


def views_of(config: DataConfig, text: str) -> tuple[str, str]:
    """A view set's canonical form and its file name."""
    parsed = spec.parse(text, config.symmetries)
    return parsed.canonical, parsed.file_name
