"""View specs: one canonical form, refusals in one line, costs as the papers count them."""

from __future__ import annotations

import re
from itertools import permutations

import pytest

from comp.errors import CompError, Exit
from comp.inference.spec import ALIASES, PARTS, SPACES, parse


def test_the_order_of_parts_is_irrelevant() -> None:
    words = ["flip", "scales(x1,256,x1.14)", "dense:window"]
    specs = {parse("*".join(order) + "@logits") for order in permutations(words)}
    assert len(specs) == 1
    assert {spec.canonical for spec in specs} == {"flip*scales(x1,x1.14,256)*dense:window@logits"}
    assert parse("scales(x1.14,256,x1)") == parse(" scales( 256, X1.140,x1 ) ")


def test_the_canonical_form_is_read_as_the_same_set() -> None:
    for text in [*PARTS, *ALIASES, "scales(256,x1.5)*flip@gmean", "dense:softmax*flip"]:
        if text != "scales":
            assert parse(parse(text).canonical) == parse(text)


def test_names() -> None:
    assert parse("tencrop") == parse("fivecrop*flip")
    assert parse("flip*fivecrop").file_name == "tencrop"
    assert parse(ALIASES["multiscale"]).file_name == "multiscale"
    assert parse("center*flip").file_name == "flip"
    assert parse("center").canonical == "center"
    names = {parse(f"flip@{space}").file_name for space in SPACES}
    assert len(names) == 3
    assert all(re.fullmatch(r"flip|v-[0-9a-f]{8}", name) for name in names)


def test_counts() -> None:
    counts = {text: len(parse(text).views(224, 256)) for text in ("center", "flip", "fivecrop", "tencrop", "multicrop")}
    assert counts == {"center": 1, "flip": 2, "fivecrop": 5, "tencrop": 10, "multicrop": 40}


def test_the_papers_scales_at_the_papers_crop() -> None:
    assert sorted({view.size for view in parse("multiscale").views(224, 256)}) == [224, 256, 384, 480, 640]
    assert sorted({view.size for view in parse("multicrop").views(224, 256)}) == [256, 288, 320, 352]


def test_scales_are_relative_to_the_crop() -> None:
    assert [view.size for view in parse("scales(x1,x1.5,100)").views(64, 73)] == [64, 96, 100]


def test_cost_of_the_papers_five_scales() -> None:
    sizes = [224, 256, 384, 480, 640]
    square = 2 * sum(size**2 for size in sizes) / 224**2
    assert parse("multiscale").cost(224, 256) == pytest.approx(square)
    assert square == pytest.approx(36, abs=0.1)
    assert parse("multiscale").cost(224, 256, 4 / 3) == pytest.approx(48, abs=0.1)
    assert parse("multiscale").cost(224, 256, 3 / 4) == pytest.approx(48, abs=0.1)
    assert parse("tencrop").cost(224, 256, 4 / 3) == 10


def test_an_image_resized_to_less_than_the_crop_is_resized_to_the_crop() -> None:
    assert [view.size for view in parse("center").views(224, 100)] == [224]


def test_view_names_are_unique() -> None:
    views = parse("multicrop").views(224, 256)
    assert len({view.name for view in views}) == len(views)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("flop", "did you mean 'flip'?"),
        ("tencrops", "did you mean 'tencrop'?"),
        ("flip*flip", "'flip' is in it twice"),
        ("flip*tencrop", "'flip' is in it twice"),
        ("dense*fivecrop", "nothing left to crop"),
        ("flip@prob", "did you mean 'probs'?"),
        ("flip@", "'' is no space"),
        ("dense:mean", "choose from logits, window, softmax"),
        ("scales()", "is not a scale"),
        ("scales(x0.9)", "not between x1 and"),
        ("scales(256.5)", "is not a scale"),
        ("scales(99999)", "not between 1 and 8192"),
        ("scales(256,256)", "stands twice"),
        ("scales", "names no scale"),
        ("flip(3)", "takes no argument"),
        ("multiscale(3)", "takes no argument"),
        ("", "is not a part"),
        ("flip*", "is not a part"),
        ("../x", "is not a part"),
    ],
)
def test_refused_in_one_line(text: str, says: str) -> None:
    with pytest.raises(CompError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert caught.value.code == Exit.CONFIG
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["flip", "tencrop", "multiscale", "multicrop"])
def test_digits_are_not_mirrored(text: str) -> None:
    with pytest.raises(CompError, match="changes the label"):
        parse(text, symmetries=())
    assert parse("fivecrop", symmetries=()).file_name == "fivecrop"


def test_scales_that_do_not_fit_the_crop() -> None:
    with pytest.raises(CompError, match="less than the training crop of 224"):
        parse("scales(200)").views(224, 256)
    with pytest.raises(CompError, match="two scales are the same"):
        parse("scales(x1,224)").views(224, 256)
    with pytest.raises(CompError, match="1000 are allowed"):
        parse(f"tencrop*scales({','.join(map(str, range(224, 325)))})").views(224, 256)
