"""Building by name: the head's start, weights from files, and settings that a network does not know."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets import names
from comp.nets.build import build, load_weights, network_mean_std, read_weights
from comp.nets.transfer import head_parameters


def test_names_are_timms_and_the_papers_without_importing_torch() -> None:
    known = names.model_names()
    assert set(known) == set(timm.list_models()) | set(names.PAPERS)
    code = "import sys; from comp.nets import names; assert len(names.model_names()) > 900; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "timm"} & set(loaded)


@pytest.mark.parametrize(("name", "near"), [("resnet43", "resnet34"), ("plain36", "plain34")])
def test_an_unknown_name_suggests_the_nearest(name: str, near: str) -> None:
    with pytest.raises(CompError, match=near) as caught:
        build(name, num_classes=2)
    assert caught.value.code == Exit.CONFIG


def test_weights_are_a_function_of_the_seed_and_the_global_state_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = build("resnet18_a", num_classes=3, seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = build("resnet18_a", num_classes=3, seed=1).state_dict()
    other = build("resnet18_a", num_classes=3, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


# AlexNet is not among them: its hidden biases of 1 (section 5 of its paper) start its logits with a spread of about 1.
FIRST_LOSS = [
    ("vgg_a", 64, ()),
    ("nin_cifar", 32, ()),
    ("googlenet_2014", 64, ()),
    ("plain34", 64, ()),
    ("resnet50_a", 64, ()),
    ("prelunet14", 64, ()),
    ("resnet18", 64, ()),
    ("convnext_atto", 64, ()),
    ("mobilenetv2_100", 64, ()),
    ("mobilenetv2_100", 64, (64, 32)),
    ("vit_tiny_patch16_224", 64, ()),
    ("deit_tiny_distilled_patch16_224", 64, ()),
    ("vgg11", 224, ()),
]


@pytest.mark.parametrize(("name", "size", "head"), FIRST_LOSS)
def test_the_first_loss_is_ln_of_the_number_of_classes(name: str, size: int, head: tuple[int, ...]) -> None:
    net = build(name, num_classes=5, img_size=size, head=head).train()
    x = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = net(x[: 2 if size == 224 else 8])
    for logits in out if isinstance(out, tuple) else (out,):
        loss = F.cross_entropy(logits, torch.arange(len(logits)) % 5)
        assert float(loss) == pytest.approx(math.log(5), rel=0.1)


def test_real_weights_fit_and_start_at_ln_of_the_number_of_classes(shared: Path) -> None:
    path = shared / "weights" / "mobilenetv2_100.in1k.safetensors"
    net = build("mobilenetv2_100", num_classes=5, pretrained=str(path))
    state = read_weights(path)
    own = net.state_dict()
    kept = [name for name in own if not name.startswith("classifier")]
    assert all(torch.equal(own[name], state[name]) for name in kept if not name.endswith("num_batches_tracked"))
    assert float(own["classifier.weight"].std()) == pytest.approx(0.01, rel=0.1)
    assert not own["classifier.bias"].any()
    x = torch.randn(8, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = F.cross_entropy(net.train()(x), torch.arange(8) % 5)
    assert float(loss) == pytest.approx(math.log(5), rel=0.1)
    assert network_mean_std(net) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("nin_cifar", 32), ("vgg_a", 32), ("convnext_atto", 64)])
def test_an_mlp_head_is_built_in_the_classifiers_place(name: str, size: int) -> None:
    net: Any = build(name, num_classes=3, img_size=size, head=(7, 6), drop_rate=0.25)
    layers = [m for m in net.get_classifier() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert [m.weight.shape[0] for m in layers] == [7, 6, 3]
    assert len(head_parameters(net)) == 6
    assert net.eval()(torch.randn(2, 3, size, size)).shape == (2, 3)


def test_settings_reach_the_network_or_are_refused() -> None:
    assert any(isinstance(m, nn.ELU) for m in build("plain18", num_classes=2, activation="elu").modules())
    assert any(isinstance(m, nn.LeakyReLU) for m in build("resnet18", num_classes=2, activation="leaky_relu").modules())
    net = build("resnet18_b", num_classes=2, drop_path=0.2)
    rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([0.2 * i / 7 for i in range(1, 8)])
    assert build("resnet18", num_classes=2, in_chans=1, drop_rate=0.3)(torch.randn(1, 1, 64, 64)).shape == (1, 2)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("plain18", {"drop_path": 0.1}, "model.drop_path"),
    ("vgg_a", {"drop_path": 0.1, "img_size": 32}, "model.drop_path"),
    ("vgg11", {"drop_path": 0.1}, "model.drop_path"),
    ("plain18", {"activation": "rleu"}, "did you mean 'relu'"),
    ("resnet18", {"activation": "prelu"}, "prelu_shared"),
    ("alexnet_2012", {"args": {"group": 1}}, "model.args.group"),
    ("alexnet_2012", {"args": {"groups": 3}}, "model.args.groups"),
    ("resnet18", {"args": {"num_classes": 4}}, "model.args.num_classes"),
    ("googlenet_2014", {"img_size": 64, "args": {"aux": True}}, "model.args.aux"),
    ("vgg_a", {"img_size": 31}, "smallest input is 32"),
    ("plain18", {"pretrained": True}, "no pretrained weights"),
    ("resnet18.no_such_tag", {"pretrained": True}, "no pretrained weights"),
    ("resnet18", {"pretrained": True, "init": {"kind": "he"}}, "model.init"),
    ("deit_tiny_distilled_patch16_224", {"head": (8,)}, "model.head"),
]


@pytest.mark.parametrize(("name", "options", "line"), REFUSED)
def test_what_a_network_does_not_know_is_refused(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(CompError, match=line) as caught:
        build(name, **{"num_classes": 2, **options})
    assert caught.value.code == Exit.CONFIG


def test_without_a_network_the_file_wanted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **options: Any) -> nn.Module:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(CompError, match=r"weights/mobilenetv2_100\.ra_in1k\.safetensors") as caught:
        build("mobilenetv2_100", num_classes=5, pretrained=True)
    assert caught.value.code == Exit.FILE


def saved(tmp_path: Path, change: Callable[[dict[str, Tensor]], None]) -> tuple[nn.Module, str]:
    net = build("resnet18_a", num_classes=3, seed=1)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    return net, str(path)


def test_a_file_that_does_not_fit_says_which_tensors_differ_and_how_many(tmp_path: Path) -> None:
    def change(state: dict[str, Tensor]) -> None:
        del state["bn1.bias"]
        state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
        state["layer9.weight"] = torch.zeros(1)
        state.update({"fc.weight": torch.zeros(8, 512), "fc.bias": torch.zeros(8)})  # the head may differ

    net, path = saved(tmp_path, change)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CompError) as caught:
        load_weights(net, read_weights(path), path, skip_head=True)
    line = str(caught.value)
    assert "3 of 104 tensors differ" in line
    assert "conv1.weight is (64, 3, 3, 3), wanted (64, 3, 7, 7)" in line
    assert "bn1.bias is missing" in line
    assert "layer9.weight is not in the network" in line
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    with pytest.raises(CompError, match=r"5 of 104 tensors differ.* and 2 more"):
        load_weights(net, read_weights(path), path, skip_head=False)


def test_a_file_of_other_classes_keeps_the_new_head(tmp_path: Path) -> None:
    _, path = saved(tmp_path, lambda state: state.update({"fc.weight": torch.zeros(8, 512), "fc.bias": torch.zeros(8)}))
    net = build("resnet18_a", num_classes=5, pretrained=path, seed=3)
    assert net.state_dict()["fc.weight"].shape == (5, 512)
    assert torch.equal(net.state_dict()["conv1.weight"], read_weights(path)["conv1.weight"])


def test_linear_heads_fit_convolutional_ones_and_gray_stems_are_adapted() -> None:
    linear = build("vgg_a", num_classes=3, img_size=64, args={"hidden": 8})
    conv = build("vgg_a", num_classes=3, img_size=64, args={"hidden": 8, "head": "conv"}, seed=1)
    assert len(load_weights(conv, linear.state_dict(), "here", skip_head=False)) == len(conv.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(conv.eval()(x), linear.eval()(x), rtol=1e-5, atol=1e-5)
    gray = build("plain18", num_classes=3, in_chans=1)
    colour = build("plain18", num_classes=3, seed=1).state_dict()
    load_weights(gray, colour, "here", skip_head=True)
    torch.testing.assert_close(gray.state_dict()["conv1.weight"], colour["conv1.weight"].sum(1, keepdim=True))


def test_position_embeddings_are_resized_as_timm_does_it() -> None:
    state = build("vit_tiny_patch16_224", num_classes=3, img_size=64).state_dict()
    net = build("vit_tiny_patch16_224", num_classes=3, img_size=96)
    load_weights(net, state, "here", skip_head=True)
    assert net.state_dict()["pos_embed"].shape == (1, 37, 192)
    assert torch.equal(net.state_dict()["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def test_only_whole_files_of_tensors_are_read(tmp_path: Path) -> None:
    state = {"a": torch.arange(4.0)}
    torch.save({"state_dict": {"module.a": state["a"]}}, tmp_path / "wrapped.pth")
    assert torch.equal(read_weights(tmp_path / "wrapped.pth")["a"], state["a"])
    torch.save(state, tmp_path / "whole.pth")
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    torch.save(Harmful(), tmp_path / "evil2.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.safetensors").write_text("hello, no tensors here")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for whole in ("whole.pth", "whole.safetensors"):
        data = (tmp_path / whole).read_bytes()
        (tmp_path / f"cut.{whole}").write_bytes(data[: len(data) - 9])
    bad = ["evil.pth", "evil2.pth", "list.pth", "text.safetensors", "empty.safetensors", "missing.pth", "."]
    for name in [*bad, "cut.whole.pth", "cut.whole.safetensors"]:
        with pytest.raises(CompError) as caught:
            read_weights(tmp_path / name)
        assert caught.value.code == Exit.FILE
        assert "\n" not in str(caught.value)
