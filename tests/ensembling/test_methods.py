"""Methods by name, and the choice among them."""

from __future__ import annotations

import numpy as np
import pytest

from comp.ensembling import methods, rules, selection
from comp.ensembling.estimate import Answers, cross_fit
from comp.errors import CompError
from comp.metrics import accuracy, log_loss, macro_f1


def world(seed: int = 0, skills: tuple[float, ...] = (1.0, 1.4, 1.2), n: int = 400) -> tuple[np.ndarray, Answers]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    logits = rng.standard_normal((n, 4)) + rng.standard_normal((len(skills), n, 4))
    logits[:, np.arange(n), labels] += np.array(skills)[:, None]
    probs = np.exp(logits)
    return (probs / probs.sum(2, keepdims=True)).astype(np.float32), Answers(
        labels, np.arange(n) % 5, "macro_f1", np.arange(n)
    )


def test_best_is_the_best() -> None:
    members, answers = world()
    scores = [macro_f1(answers.labels, member) for member in members]
    assert methods.best_member(members, answers) == int(np.argmax(scores))
    losses = [log_loss(answers.labels, member) for member in members]
    of_loss = Answers(answers.labels, answers.folds, "log_loss", answers.groups)
    assert methods.best_member(members, of_loss) == int(np.argmin(losses))


def test_weights_by_score() -> None:
    members, answers = world()
    accuracies = Answers(answers.labels, answers.folds, "accuracy", answers.groups)
    fitted = methods.method("vote:weighted").fit(members, accuracies)
    scores = np.array([accuracy(answers.labels, member) for member in members])
    assert fitted.weights == pytest.approx(np.rint(10_000 * scores / scores.max()))
    given = methods.method("vote:weighted", [3, 1, 1])
    assert given.fixed(members)
    assert (given.fit(members, None).apply(members).argmax(1) == members[0].argmax(1)).all()


def test_select_is_greedy_selection() -> None:
    members, answers = world()
    fitted = methods.method("select").fit(members, answers)
    counts = selection.select(members, answers.labels).counts
    assert fitted.weights == tuple(counts)
    assert fitted.apply(members) == pytest.approx(np.average(members.astype(float), axis=0, weights=counts))


def test_auto_takes_the_best_rule_of_the_other_folds() -> None:
    members, answers = world(3)
    result = cross_fit(methods.method("auto"), members, answers.labels, answers.folds)
    for fold, fitted in result.by_part.items():
        others = answers.folds != fold
        own = {
            spec: macro_f1(answers.labels[others], rules.apply(spec, members[:, others])) for spec in methods.AUTO_RULES
        }
        assert own[fitted.describe()["rule"]] == max(own.values())


def test_rules_compared_at_once_are_the_rules_compared_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    members, answers = world(5)
    quick = cross_fit(methods.method("auto"), members, answers.labels, answers.folds)
    monkeypatch.setattr(methods.Choose, "stage", lambda self, members: None)
    slow = cross_fit(methods.method("auto"), members, answers.labels, answers.folds)
    assert quick.numbers() == pytest.approx(slow.numbers(), abs=1e-12)
    assert quick.probs == pytest.approx(slow.probs, abs=1e-12)
    assert (quick.method, quick.fitted, quick.by_part) == (slow.method, slow.fitted, slow.by_part)


def test_a_flexible_option_has_no_advantage() -> None:
    """A stack that learns its rows by heart looks best in sample, and must not to `Choose`."""
    taken = 0
    for seed in range(6):
        members, answers = world(seed, (0.9,) * 8, n=150)
        choice = methods.Choose((methods.FixedRule("mean"), methods.Stack(strength=100.0)))
        taken += choice.fit(members, answers).describe()["kind"] == "stack"
        in_sample = [macro_f1(answers.labels, o.fit(members, answers).apply(members)) for o in choice.options]
        assert in_sample[1] > in_sample[0]
    assert taken <= 1


def test_subsets_choose_views() -> None:
    """Two sets of views of the same runs as options: the better views win, and their members only are used."""
    members, answers = world(0, (0.2, 0.3, 1.5, 1.6))
    choice = methods.Choose(tuple(methods.Subset(part, methods.method("mean")) for part in ((0, 1), (2, 3))))
    result = cross_fit(choice, members, answers.labels, answers.folds)
    assert result.fitted.describe()["members"] == [2, 3]
    assert result.probs == pytest.approx(rules.apply("mean", members[2:]))


def test_the_best_members_vote_breaks_ties_of_bare_labels() -> None:
    members, answers = world(0, (1.0, 1.5))
    bare = np.eye(4, dtype=np.float32)[members.argmax(2)]
    method = methods.method("vote")
    assert not method.fixed(bare)
    assert method.fixed(members)
    fitted = method.fit(bare, answers)
    assert fitted.best == 1
    assert (fitted.apply(bare).argmax(1) == bare[1].argmax(1)).all()
    assert method.fit(bare, None).best is None


def test_one_member_needs_no_fitting() -> None:
    members, _ = world(0, (1.0,))
    for spec in ("best", "select"):
        fitted = methods.method(spec).fit(members, None)
        assert fitted.apply(members) == pytest.approx(members[0].astype(float))


@pytest.mark.parametrize(
    ("spec", "weights", "message"),
    [
        ("slect", None, "did you mean 'select'?"),
        ("meen", None, "did you mean 'mean'?"),
        ("select:3", None, "takes nothing after a colon"),
        ("stack", [1.0], "finds its own weights"),
        ("mean", [1.0], "'mean:weighted' is the weighted form"),
        ("power:99", None, "from 0.05 to 20"),
    ],
)
def test_bad_specs(spec: str, weights: list[float] | None, message: str) -> None:
    with pytest.raises(CompError, match="rule: ") as caught:
        methods.method(spec, weights)
    assert message in str(caught.value)
