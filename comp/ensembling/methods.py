"""The methods by name: fixed rules, the best member, weights by score, greedy selection, fitted ones, and the choice.

A method is a small frozen object with `fit` (see `comp.ensembling.estimate.Method`); METHODS and the rules' own table
say what a spec means. Another method is one class and one entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling import rules, selection
from comp.ensembling.estimate import Answers, Fitted, Method, cross_fit_answers
from comp.ensembling.fitted import MemberFit, RuleFit, SubsetFit
from comp.ensembling.fitting import Bias, Stack, Temperature, Weights, needs_answers
from comp.ensembling.rules import Members
from comp.errors import CompError, Exit, did_you_mean

Array = npt.NDArray[Any]


def utilities(members: Members, answers: Answers) -> list[float]:
    """Each member's own score, its sign turned so that more is better."""
    return [answers.utility(np.asarray(member)) for member in members]


def best_member(members: Members, answers: Answers) -> int:
    """Index of the member with the best score; of equal ones the first in digest order."""
    scores = utilities(members, answers)
    return max(reversed(rules.member_order(members)), key=lambda m: scores[m])


@dataclass(frozen=True)
class FixedRule:
    """A voting rule with given weights or none: nothing is learnt, except whose vote breaks ties of bare labels."""

    spec: str
    weights: tuple[float, ...] | None = None
    per_fold: bool = False

    @property
    def name(self) -> str:
        return self.spec

    def fixed(self, members: Members) -> bool:
        return not all(rules.labels_only(np.asarray(member)) for member in members)

    def fit(self, members: Members, answers: Answers | None) -> RuleFit:
        best = None
        if answers is not None and len(answers.labels) and not self.fixed(members):
            best = best_member(members, answers)
        return RuleFit(self.spec, self.weights, best)


@dataclass(frozen=True)
class ScoreWeighted:
    """A weighted rule whose weights are the members' scores (for log loss exp(−loss), the mean likelihood)."""

    spec: str = "vote:weighted"
    per_fold: bool = False

    @property
    def name(self) -> str:
        return self.spec

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> RuleFit:
        answers = needs_answers(self.name, answers)
        scores = np.array(utilities(members, answers))
        weights = scores if answers.how.higher_is_better else np.exp(scores)
        weights = rules.integer_weights(weights if weights.any() else np.ones_like(weights))
        return RuleFit(self.spec, tuple(float(weight) for weight in weights))


@dataclass(frozen=True)
class Best:
    """The member with the best score."""

    name: str = "best"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return len(members) == 1

    def fit(self, members: Members, answers: Answers | None) -> MemberFit:
        if self.fixed(members):
            return MemberFit(0)
        return MemberFit(best_member(members, needs_answers(self.name, answers)))


@dataclass(frozen=True)
class Select:
    """Greedy selection with replacement (comp.ensembling.selection): a soft vote with whole-number weights."""

    rounds: int = 50
    bags: int = 1
    name: str = "select"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return len(members) == 1

    def fit(self, members: Members, answers: Answers | None) -> RuleFit:
        if self.fixed(members):
            return RuleFit("mean:weighted", (1.0,))
        answers = needs_answers(self.name, answers)
        chosen = selection.select(members, answers.labels, answers.metric, rounds=self.rounds, bags=self.bags)
        return RuleFit("mean:weighted", tuple(float(count) for count in chosen.counts))


@dataclass(frozen=True)
class _First:
    """The member with the best score, the first of equals."""

    name: str = "first best"
    per_fold: bool = False

    def fixed(self, members: Members) -> bool:
        return False

    def fit(self, members: Members, answers: Answers | None) -> MemberFit:
        return MemberFit(int(np.argmax(utilities(members, needs_answers(self.name, answers)))))


@dataclass(frozen=True)
class Choose:
    """The best of several methods (rules, sets of views, sets of members) by their own cross-fitted scores.

    What is fitted inside an option is cross-fitted again within the rows that choose, so a flexible option has no
    advantage; of equal ones the first is taken.
    """

    options: tuple[Method, ...]
    name: str = "auto"

    @property
    def per_fold(self) -> bool:
        return any(option.per_fold for option in self.options)

    def fixed(self, members: Members) -> bool:
        return len(self.options) == 1 and self.options[0].fixed(members)

    def fit(self, members: Members, answers: Answers | None) -> Fitted:
        if len(self.options) == 1:
            return self.options[0].fit(members, answers)
        answers = needs_answers(self.name, answers)
        results = [cross_fit_answers(option, members, answers, with_error=False) for option in self.options]
        scores = [answers.how.utility(result.cross_fitted) for result in results]
        return results[int(np.argmax(scores))].fitted

    def stage(self, members: Members) -> tuple[Method, list[Array]] | None:
        if len(self.options) == 1 or not all(option.fixed(members) for option in self.options):
            return None
        return _First(), [option.fit(members, None).apply(members) for option in self.options]

    def unstage(self, fitted: Fitted, members: Members) -> Fitted:
        assert isinstance(fitted, MemberFit)
        return self.options[fitted.member].fit(members, None)


@dataclass(frozen=True)
class Subset:
    """A method on some of the members, e.g. on those of one set of views: an option for `Choose`."""

    members: tuple[int, ...]
    inner: Method

    @property
    def name(self) -> str:
        return f"{self.inner.name} of {len(self.members)}"

    @property
    def per_fold(self) -> bool:
        return self.inner.per_fold

    def _own(self, members: Members) -> list[Array]:
        return [np.asarray(members[m]) for m in self.members]

    def fixed(self, members: Members) -> bool:
        return self.inner.fixed(self._own(members))

    def fit(self, members: Members, answers: Answers | None) -> SubsetFit:
        return SubsetFit(self.members, self.inner.fit(self._own(members), answers))


AUTO_RULES = ("vote", "mean", "gmean", "power:2", "rank")

METHODS: dict[str, tuple[Callable[[], Method], str]] = {
    "best": (Best, "the member with the best score"),
    "select": (Select, "greedy selection with replacement on the metric"),
    "weights": (Weights, "soft vote, weights fitted on log loss"),
    "stack": (Stack, "multinomial logistic regression on log-probabilities"),
    "bias": (Bias, "soft vote with a bias per class, if it proves itself"),
    "temperature": (Temperature, "soft vote after a temperature per member and fold"),
    "auto": (lambda: Choose(tuple(FixedRule(spec) for spec in AUTO_RULES)), "the best of the voting rules"),
}


def names() -> list[str]:
    """Every name a spec can begin with."""
    return [*rules.RULES, *METHODS]


def method(spec: str, weights: Sequence[float] | None = None) -> Method:
    """The method that a spec names.

    Args:
        spec: A rule (`vote`, `vote:weighted`, `power:3`, see comp.ensembling.rules) or a name in METHODS.
        weights: One per member, for `:weighted` rules; without them the members' scores are the weights.

    Raises:
        CompError: Exit code 2, naming the nearest name.
    """
    spec = spec.strip()
    if spec in METHODS:
        if weights is not None:
            raise CompError("rule", f"'{spec}' finds its own weights", "leave the weights out", Exit.USAGE)
        return METHODS[spec][0]()
    name, _, rest = spec.partition(":")
    if name in METHODS:
        raise CompError("rule", f"'{spec}': '{name}' takes nothing after a colon (got '{rest}')", "", Exit.USAGE)
    if name not in rules.RULES:
        raise CompError("rule", f"'{name}' is not known", did_you_mean(name, names(), limit=20), Exit.USAGE)
    parsed = rules.parse(spec)
    if parsed.weighted and weights is None:
        return ScoreWeighted(str(parsed))
    if weights is not None and not parsed.weighted:
        raise CompError("rule", f"'{spec}' takes no weights", f"'{name}:weighted' is the weighted form", Exit.USAGE)
    return FixedRule(str(parsed), None if weights is None else tuple(float(weight) for weight in weights))
