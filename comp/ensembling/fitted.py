"""What fitting gives: frozen values that turn members' probabilities into one prediction; to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling import rules
from comp.ensembling.estimate import Description, Fitted
from comp.ensembling.rules import PROBABILITY_FLOOR, Floats, Members
from comp.errors import CompError, Exit

Array = npt.NDArray[Any]


def log_probs(probs: Array) -> Floats:
    """Logarithms in float64 of probabilities, each taken to be at least 1e-7."""
    result: Floats = np.log(np.maximum(probs.astype(np.float64), PROBABILITY_FLOOR))
    return result


def softmax(scores: Floats) -> Floats:
    """Row-wise softmax of (N, C)."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class RuleFit:
    """A voting rule with its weights (one per member, or None) and the best member (breaks exact ties, or None)."""

    spec: str
    weights: tuple[float, ...] | None = None
    best: int | None = None

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        return rules.apply(self.spec, members, self.weights, self.best)

    def describe(self) -> Description:
        weights = None if self.weights is None else list(self.weights)
        return {"kind": "rule", "rule": self.spec, "weights": weights, "best": self.best}


@dataclass(frozen=True)
class MemberFit:
    """One member as it is."""

    member: int

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        return members[self.member].astype(np.float64)

    def describe(self) -> Description:
        return {"kind": "member", "member": self.member}


@dataclass(frozen=True)
class BiasFit:
    """A number per class added to the log-probabilities of a rule's result; no offsets: the rule as it is.

    Attributes:
        base: The rule.
        tau: The strength of the prior correction, −tau × log prior; 0 where it stayed off.
        offsets: (C,) the sum of both corrections, empty where they stayed off.
        gains: (gain, standard error) of each step that was tried, cross-fitted, in the metric's unit.
    """

    base: RuleFit
    tau: float
    offsets: tuple[float, ...]
    gains: tuple[tuple[float, float], ...]

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        probs = self.base.apply(members, folds)
        return softmax(log_probs(probs) + np.array(self.offsets)) if self.offsets else probs

    def describe(self) -> Description:
        gains = [list(gain) for gain in self.gains]
        offsets = list(self.offsets)
        return {"kind": "bias", "base": self.base.describe(), "tau": self.tau, "offsets": offsets, "gains": gains}


@dataclass(frozen=True)
class StackFit:
    """Multinomial logistic regression on the members' centred log-probabilities.

    Attributes:
        coefficients: M tables (C, C): row = class scored, column = class whose log-probability is read.
        intercepts: (C,).
    """

    coefficients: tuple[tuple[tuple[float, ...], ...], ...]
    intercepts: tuple[float, ...]

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        if len(self.coefficients) != len(members):
            raise ValueError(f"fitted on {len(self.coefficients)} members, applied to {len(members)}")
        scores = np.tile(np.array(self.intercepts), (len(members[0]), 1))
        for m in rules.member_order(members):
            scores += centred_logs(members[m]) @ np.array(self.coefficients[m]).T
        return softmax(scores)

    def describe(self) -> Description:
        tables = [[list(row) for row in table] for table in self.coefficients]
        return {"kind": "stack", "coefficients": tables, "intercepts": list(self.intercepts)}


def centred_logs(member: Array) -> Floats:
    """(N, C) log-probabilities less their mean over the classes: the features of a stack."""
    logs = log_probs(member)
    result: Floats = logs - logs.mean(axis=1, keepdims=True)
    return result


@dataclass(frozen=True)
class TemperatureFit:
    """A rule on members whose probabilities are sharpened or softened per fold: p^(1/T), normalised.

    Attributes:
        base: The rule.
        temperatures: Fold → (M,) temperatures. A fold that is not named gets the geometric mean over the folds.
    """

    base: RuleFit
    temperatures: Mapping[int, tuple[float, ...]]

    def of(self, fold: int) -> Floats:
        """(M,) temperatures of a fold's checkpoints."""
        known = self.temperatures.get(fold)
        if known is None:
            logs = np.log(np.array(list(self.temperatures.values())))
            return np.asarray(np.exp(logs.mean(axis=0)))
        return np.array(known)

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        count = len(members[0])
        fold = np.full(count, -1) if folds is None else np.broadcast_to(np.asarray(folds), (count,))
        scaled = [np.empty(member.shape) for member in members]
        for number in np.unique(fold).tolist():
            rows, temperature = fold == number, self.of(number)
            for m, member in enumerate(members):
                scaled[m][rows] = softmax(log_probs(member[rows]) / temperature[m])
        return self.base.apply(scaled)

    def describe(self) -> Description:
        temperatures = {str(fold): list(values) for fold, values in sorted(self.temperatures.items())}
        return {"kind": "temperature", "base": self.base.describe(), "temperatures": temperatures}


@dataclass(frozen=True)
class SubsetFit:
    """Something fitted on some of the members."""

    members: tuple[int, ...]
    inner: Fitted

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        return self.inner.apply([members[m] for m in self.members], folds)

    def describe(self) -> Description:
        return {"kind": "subset", "members": list(self.members), "inner": self.inner.describe()}


def restore(description: Mapping[str, Any]) -> Fitted:
    """Read back what `describe` wrote.

    Raises:
        CompError: Exit code 4 where it is not such a description.
    """
    try:
        return _restore(description)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CompError("ensemble", f"its description is damaged ({error})", "submit again", Exit.FILE) from None


def _restore(description: Mapping[str, Any]) -> Fitted:
    kind = description["kind"]
    if kind == "rule":
        return _restore_rule(description)
    if kind == "member":
        return MemberFit(int(description["member"]))
    if kind == "bias":
        gains = tuple((float(gain), float(error)) for gain, error in description["gains"])
        offsets = tuple(float(value) for value in description["offsets"])
        return BiasFit(_restore_rule(description["base"]), float(description["tau"]), offsets, gains)
    if kind == "stack":
        tables = tuple(
            tuple(tuple(float(value) for value in row) for row in table) for table in description["coefficients"]
        )
        return StackFit(tables, tuple(float(value) for value in description["intercepts"]))
    if kind == "temperature":
        temperatures = {int(fold): tuple(map(float, values)) for fold, values in description["temperatures"].items()}
        return TemperatureFit(_restore_rule(description["base"]), temperatures)
    if kind == "subset":
        return SubsetFit(tuple(int(m) for m in description["members"]), _restore(description["inner"]))
    raise ValueError(f"kind '{kind}'")


def _restore_rule(description: Mapping[str, Any]) -> RuleFit:
    weights, best = description["weights"], description["best"]
    rules.parse(description["rule"])
    return RuleFit(
        description["rule"],
        None if weights is None else tuple(float(weight) for weight in weights),
        None if best is None else int(best),
    )
