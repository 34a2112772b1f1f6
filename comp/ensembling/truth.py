"""What members and submissions are checked against: the data set as its manifest, folds file and sample tell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comp.data.manifest import Dataset


@dataclass(frozen=True)
class Truth:
    """What members are checked against: the data set as its manifest and folds file tell it.

    Attributes:
        data: The set's name.
        classes: Class names in label order.
        labels: Image id → label, for the labelled photos that are in folds.
        folds: Image id → fold, the same ids; empty where there is no folds file.
        test_ids: Ids of the test photos, in the order of the submission.
        data_digest: Of (image_id, label, split); empty where unknown.
        folds_digest: Of the folds file; empty where unknown.
        groups: Image id → a value shared by exact copies of one photo.
        val: Ids of val photos kept out of the folds (`val: audit`) and their labels.
    """

    data: str
    classes: tuple[str, ...]
    labels: Mapping[str, int]
    folds: Mapping[str, int]
    test_ids: tuple[str, ...]
    data_digest: str = ""
    folds_digest: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    val: Mapping[str, int] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        """The folds there should be, ascending (-1 marks photos that are in training only)."""
        return sorted({fold for fold in self.folds.values() if fold >= 0})

    def with_test_order(self, ids: Sequence[str]) -> Truth:
        """The same with the test photos in another order."""
        return replace(self, test_ids=tuple(ids))

    def ids_of(self, fold: int) -> list[str]:
        return [image_id for image_id, number in self.folds.items() if number == fold]


def truth_of(
    dataset: Dataset,
    folds: Mapping[str, int],
    folds_digest: str,
    *,
    audit: bool = False,
    test_ids: Sequence[str] | None = None,
) -> Truth:
    """Gather what members are checked against.

    Args:
        dataset: The manifest.
        folds: Image id → fold.
        folds_digest: Its digest, as prediction headers say it.
        audit: Whether the val photos are kept out of the folds and scored by the submission's own prediction.
        test_ids: Test ids in the order of the submission; default the manifest's order.
    """
    ids = [str(image_id) for image_id in dataset.ids]
    bad = set(map(str, dataset.bad))  # under `on_bad: skip` nobody trains on them or predicts them out of fold
    folds = {image_id: fold for image_id, fold in folds.items() if image_id not in bad}
    labels = {image_id: int(label) for image_id, label in zip(ids, dataset.labels, strict=True)}
    splits = dict(zip(ids, map(str, dataset.splits), strict=True))
    manifest_test = [image_id for image_id in ids if splits[image_id] == "test"]
    return Truth(
        data=dataset.name,
        classes=tuple(map(str, dataset.classes)),
        labels={image_id: labels[image_id] for image_id in folds if folds[image_id] >= 0},
        folds=folds,
        test_ids=tuple(manifest_test if test_ids is None else test_ids),
        data_digest=dataset.data_digest,
        folds_digest=folds_digest,
        groups=dict(zip(ids, map(str, dataset.sha1), strict=True)),
        val={i: labels[i] for i in ids if splits[i] == "val" and i not in folds and i not in bad} if audit else {},
    )
