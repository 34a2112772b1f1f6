"""Methods that fit numbers: simplex weights, stacking, a bias per class, temperatures. Each is one small class.

Numbers are fitted with the members in digest order, so that theirs cannot matter, and by scipy and scikit-learn.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling.estimate import Answers, rotation
from comp.ensembling.fitted import (
    BiasFit,
    RuleFit,
    StackFit,
    TemperatureFit,
    centred_logs,
    log_probs,
    softmax,
)
from comp.ensembling.rules import Floats, Members, member_order
from comp.errors import CompError, Exit
from comp.metrics import LOG_FLOOR, macro_f1_from_counts, paired_difference

Array = npt.NDArray[Any]

WEIGHT_STEP = 1e-4  # weights are rounded to this, so that the optimiser's last digits cannot matter


def needs_answers(name: str, answers: Answers | None) -> Answers:
    """The answers, or the one line that says a method cannot do without."""
    if answers is None or not len(answers.labels):
        fix = "use a rule that needs none, e.g. vote or mean"
        raise CompError(name, "learns from out-of-fold predictions and there are none", fix, Exit.USAGE)
    return answers


def simplex_weights(own: Floats) -> Floats:
    """The weights w ≥ 0, Σ w = 1, with the least mean of −log(Σ_m w_m · own_m); a convex problem, solved by SLSQP.

    Args:
        own: (M, N) each member's probability of the true class.

    Returns:
        (M,) rounded to 1/10,000.
    """
    from scipy.optimize import minimize

    members = len(own)
    if members == 1:
        return np.ones(1)

    def loss(weights: Floats) -> tuple[float, Floats]:
        mixed = np.maximum(weights @ own, LOG_FLOOR)
        return float(-np.log(mixed).mean()), -(own / mixed).mean(axis=1)

    found = minimize(
        loss,
        np.full(members, 1.0 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * members,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": np.ones_like},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    weights = np.clip(found.x, 0.0, None)
    result: Floats = np.rint(weights / weights.sum() / WEIGHT_STEP) * WEIGHT_STEP
    return result


@dataclass(frozen=True)
class Weights:
    """Soft vote with the weights that give the least log loss."""

    name: str = "weights"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> RuleFit:
        answers = needs_answers(self.name, answers)
        order = member_order(members)
        rows = np.arange(len(answers.labels))
        own = np.stack([members[m][rows, answers.labels] for m in order]).astype(np.float64)
        weights = np.zeros(len(order))
        weights[order] = simplex_weights(own)
        return RuleFit("mean:weighted", tuple(np.round(weights, 4).tolist()))


@dataclass(frozen=True)
class Stack:
    """Multinomial logistic regression (scikit-learn) on the members' centred log-probabilities.

    Attributes:
        strength: scikit-learn's C: smaller shrinks more. 0.01 did best in the worlds of comp.ensembling.simulate.
    """

    strength: float = 0.01
    name: str = "stack"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> StackFit:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        answers = needs_answers(self.name, answers)
        order, classes = member_order(members), members[0].shape[1]
        known = np.unique(answers.labels)
        table, intercepts = np.zeros((len(order), classes, classes)), np.full(classes, np.log(LOG_FLOOR))
        if len(known) == 1:
            intercepts[known] = 0.0
        else:
            features = np.concatenate([centred_logs(members[m]) for m in order], axis=1)
            model = LogisticRegression(C=self.strength, max_iter=200, tol=1e-5)
            with warnings.catch_warnings(), threadpool_limits(1):  # the same digits whatever the machine's threads
                warnings.simplefilter("ignore", ConvergenceWarning)  # an early stop only shrinks a little more
                model.fit(features, answers.labels)
            coefficients, intercept = model.coef_, model.intercept_
            if len(known) == 2:  # scikit-learn gives one row for two classes
                coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
                intercept = np.concatenate([-intercept / 2, intercept / 2])
            for place, m in enumerate(order):
                table[m][known] = coefficients[:, place * classes : (place + 1) * classes]
            intercepts[known] = intercept
        rounded = np.round(table, 5).tolist()
        tables = tuple(tuple(tuple(row) for row in one) for one in rounded)
        return StackFit(tables, tuple(np.round(intercepts, 5).tolist()))


@dataclass(frozen=True)
class Temperature:
    """A temperature per member and fold, fitted on log loss, then a rule: folds stopped early are less sure."""

    rule: str = "mean"
    name: str = "temperature"
    per_fold: bool = True

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> TemperatureFit:
        answers = needs_answers(self.name, answers)
        fitted = {}
        for fold in np.unique(answers.folds).tolist():
            rows = np.flatnonzero(answers.folds == fold)
            labels = answers.labels[rows]
            fitted[fold] = tuple(fit_temperature(log_probs(member[rows]), labels) for member in members)
        return TemperatureFit(RuleFit(self.rule), fitted)


def fit_temperature(logs: Floats, labels: Array) -> float:
    """The temperature in 1/4..4 with the least log loss of softmax(logs / T) (Guo et al., ICML 2017), to 1e-4.

    Args:
        logs: (N, C) log-probabilities.
        labels: (N,).
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        own = softmax(logs * np.exp(-log_temperature))[rows, labels]
        return float(-np.log(np.maximum(own, LOG_FLOOR)).mean())

    limit = np.log(4.0)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-4})
    return round(float(np.exp(found.x)), 4)


@dataclass(frozen=True)
class Bias:
    """A bias per class for label metrics, on top of a rule; each step stays off unless it proves itself.

    Step 1 adds −τ × log prior to the log-probabilities (logit adjustment after training, Menon et al., ICLR 2021), one
    number τ. Step 2 adds a deviation per class, found by coordinate search and shrunk by n / (n + `shrink`), n the
    images of the class. A step is taken only if its cross-fitted gain over the one before exceeds one standard error
    of that difference; step 2 is tried only where step 1 was taken.
    """

    rule: str = "mean"
    shrink: float = 100.0
    name: str = "bias"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> BiasFit:
        answers = needs_answers(self.name, answers)
        if not answers.how.label_based:
            what = f"corrects label metrics, {answers.metric} is none"
            raise CompError(self.name, what, "use temperature or weights", Exit.USAGE)
        base = RuleFit(self.rule)
        logs = log_probs(base.apply(members))
        part = rotation(self, answers)
        gains: list[tuple[float, float]] = []
        tau, offsets = 0.0, np.zeros(logs.shape[1])
        if len(np.unique(part)) < 2:
            return BiasFit(base, tau, (), ())
        before = logs
        for step in (self._prior_step, self._class_step):
            after = logs.copy()
            for number in np.unique(part):
                inside = part == number
                after[inside] += step(logs[~inside], answers.take(~inside))[1]
            gain = paired_difference(answers.labels, after, before, answers.groups, answers.metric)
            gains.append((gain.value, gain.se))
            if gain.value <= gain.se:
                break
            before = after
            tau, offsets = step(logs, answers)
        kept = tuple(np.round(offsets, 6).tolist()) if offsets.any() else ()
        return BiasFit(base, tau, kept, tuple(gains))

    def _prior_step(self, logs: Floats, answers: Answers) -> tuple[float, Floats]:
        counts = np.maximum(np.bincount(answers.labels, minlength=logs.shape[1]), 1)
        prior = np.log(counts / counts.sum())
        taus = np.linspace(0.0, 1.0, 21)
        scores = [answers.utility(logs - tau * prior) for tau in taus]
        tau = float(taus[int(np.argmax(scores))])
        return tau, -tau * prior

    def _class_step(self, logs: Floats, answers: Answers) -> tuple[float, Floats]:
        tau, offsets = self._prior_step(logs, answers)
        counts = np.bincount(answers.labels, minlength=logs.shape[1])
        deviations = class_deviations(logs + offsets, answers.labels, answers.metric)
        return tau, offsets + deviations * counts / (counts + self.shrink)


def class_deviations(logs: Floats, labels: Array, metric: str) -> Floats:
    """One pass of coordinate search: for each class in turn, the offset in −1..1 that is best for a label metric.

    Args:
        logs: (N, C) scores whose arg max is the label.
        labels: (N,).
        metric: macro_f1 or accuracy.

    Returns:
        (C,) offsets; of equally good ones the smallest in size.
    """
    classes = logs.shape[1]
    scores = logs.copy()
    true = np.bincount(labels, minlength=classes)
    tries = np.array(sorted(np.linspace(-1.0, 1.0, 17), key=abs))
    deviations = np.zeros(classes)
    for c in np.flatnonzero(true):
        own = logs[:, c].copy()
        scores[:, c] = -np.inf
        rival = scores.argmax(axis=1)
        best = scores[np.arange(len(scores)), rival]
        shifted = own + tries[:, None]
        wins = (shifted > best) | ((shifted == best) & (c < rival))  # (T, N)
        cells = np.where(wins, c, rival) + (np.arange(len(tries)) * classes)[:, None]
        size = (len(tries), classes)
        predicted = np.bincount(cells.ravel(), minlength=size[0] * size[1]).reshape(size)
        hit = cells[(cells % classes) == labels]
        tp = np.bincount(hit, minlength=size[0] * size[1]).reshape(size)
        value = macro_f1_from_counts(tp, predicted, true) if metric == "macro_f1" else tp.sum(axis=1)
        choice = int(np.argmax(value))
        deviations[c] = tries[choice]
        scores[:, c] = own + tries[choice]
    return deviations
