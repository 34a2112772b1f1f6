"""The evaluation loop against a plain one over torchvision's crops, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from stand_ins import SHAPES, Photos, TinyNet, odd_photos, photo
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from comp import config
from comp.errors import CompError, Exit
from comp.inference import evaluate as module
from comp.inference.evaluate import Evaluation, evaluate
from comp.inference.spec import ALIASES, parse

GEOMETRY = config.Image(crop=32, test=37)
MEAN, STD = (0.45, 0.41, 0.31), (0.28, 0.24, 0.27)
NOT_STRIPS = list(range(len(SHAPES) - 1))  # torchvision knows no limit to how long an image may be
EVERY_SET = [
    "center", "flip", "fivecrop", "tencrop", "flip*scales(x1,x1.5)", "multicrop", "tencrop@logits", "tencrop@gmean",
    "dense", "flip*dense:window", "dense:softmax@logits", *ALIASES,
]  # fmt: skip


def run(network: nn.Module, photos: Photos, views: str, rows: Any = None, **options: Any) -> Evaluation:
    rows = np.arange(len(photos.images)) if rows is None else np.asarray(rows)
    given: dict[str, Any] = {"image": GEOMETRY, "precision": "fp32", "device": torch.device("cpu"), **options}
    return evaluate(network, photos, rows, parse(views), name="tiny", mean=MEAN, std=STD, **given)  # type: ignore[arg-type]


def normalised(image: Any) -> Tensor:
    return tv.normalize(tv.to_tensor(image), MEAN, STD)


def resized(photos: Photos, row: int, size: int) -> Any:
    return tv.resize(Image.fromarray(photos.images[row]), [size], tv.InterpolationMode.BILINEAR)


@torch.no_grad()
def plain_ten_crop(network: nn.Module, photos: Photos, rows: list[int], space: str = "probs") -> Any:
    """Ten forwards per photo, one crop at a time, as torchvision's documentation has it."""
    probs = []
    for row in rows:
        crops = tv.ten_crop(resized(photos, row, GEOMETRY.test_size), [GEOMETRY.crop])
        logits = torch.cat([network(normalised(crop)[None]) for crop in crops])
        mean = {
            "probs": lambda x: x.softmax(1).mean(0),
            "logits": lambda x: x.mean(0).softmax(0),
            "gmean": lambda x: (lambda p: p / p.sum())(x.softmax(1).log().mean(0).exp()),
        }[space](logits)
        probs.append(mean.numpy())
    return np.stack(probs)


@pytest.mark.parametrize("space", ["probs", "logits", "gmean"])
@pytest.mark.parametrize("fold", [False, True])
def test_ten_crop_equals_torchvision(space: str, fold: bool) -> None:
    network, photos = TinyNet().eval(), odd_photos()
    got = run(network, photos, f"tencrop@{space}", NOT_STRIPS, fold=fold)
    np.testing.assert_allclose(got.probs, plain_ten_crop(network, photos, NOT_STRIPS, space), atol=1e-6)
    assert got.ids.tolist() == photos.ids[NOT_STRIPS].tolist()


def test_center_crop_equals_torchvision() -> None:
    network, photos = TinyNet().eval(), odd_photos()
    with torch.no_grad():
        crops = [tv.center_crop(resized(photos, row, 37), [32]) for row in NOT_STRIPS]
        expected = network(torch.stack([normalised(crop) for crop in crops])).softmax(1).numpy()
    np.testing.assert_allclose(run(network, photos, "center", NOT_STRIPS).probs, expected, atol=1e-6)


@pytest.mark.parametrize("views", EVERY_SET)
def test_a_constant_network_gives_constant_output(views: str) -> None:
    network = TinyNet().eval()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5]))
    expected = network.fc.bias.detach().softmax(0).numpy()
    got = run(network, odd_photos(), views)
    np.testing.assert_allclose(got.probs, np.broadcast_to(expected, got.probs.shape), atol=1e-6)


@pytest.mark.parametrize("views", EVERY_SET)
def test_neither_batch_nor_workers_nor_row_order_change_the_numbers(views: str) -> None:
    network, photos = TinyNet().eval(), odd_photos()
    base = run(network, photos, views)
    np.testing.assert_allclose(base.probs.sum(1), 1, atol=1e-6)
    order = np.random.default_rng(0).permutation(len(SHAPES))
    for options in ({"batch": 1}, {"batch": 3, "workers": 2}, {"workers": 3}, {"rows": order}):
        other = run(network, photos, views, **options)
        place = [other.ids.tolist().index(image_id) for image_id in base.ids.tolist()]
        np.testing.assert_allclose(other.probs[place], base.probs, atol=1e-6)


def test_each_photo_is_decoded_once() -> None:
    photos = odd_photos()
    run(TinyNet(), photos, "multicrop", batch=2, workers=2)
    assert sorted(photos.reads) == list(range(len(SHAPES)))


def test_a_mirrored_photo_gives_the_same_under_flip() -> None:
    photos = odd_photos()
    mirrored = Photos([image[:, ::-1].copy() for image in photos.images])
    # 38 - 32 is even, so that the centre is the centre from both sides.
    even = config.Image(crop=32, test=38)
    rows = [
        row for row, (height, width) in enumerate(SHAPES) if int(38 * max(height, width) / min(height, width)) % 2 == 0
    ]
    assert len(rows) > 3
    for views in ("flip", "tencrop", "flip*dense"):
        one = run(TinyNet(), photos, views, rows, image=even)
        other = run(TinyNet(), mirrored, views, rows, image=even)
        np.testing.assert_allclose(one.probs, other.probs, atol=5e-3)  # Pillow rounds a mirrored image otherwise by 1


def test_kept_views_average_to_the_whole() -> None:
    network, photos = TinyNet().eval(), odd_photos()
    got = run(network, photos, "tencrop", keep=True)
    assert got.views is not None
    assert list(got.views) == [view.name for view in parse("tencrop").views(32, 37)]
    assert all(probs.dtype == np.float16 and probs.shape == (len(SHAPES), 5) for probs in got.views.values())
    np.testing.assert_allclose(np.mean(list(got.views.values()), axis=0, dtype=np.float64), got.probs, atol=1e-3)
    np.testing.assert_allclose(got.views["37 center"], run(network, photos, "center").probs, atol=1e-3)
    assert run(network, photos, "tencrop").views is None


def test_the_callers_network_is_left_as_it_was() -> None:
    network = TinyNet().train()
    network.norm1.eval()  # a frozen normalisation stays in evaluation mode while the rest trains
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for fold in (True, False):
        run(network, odd_photos(), "flip", fold=fold)
        assert network.training
        assert not network.norm1.training
        assert network.norm2.training
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_that_emits_nan_is_refused_by_name(workers: int) -> None:
    class Poisoned(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            out[x[:, 0].amax((1, 2)) < -1.5] = float("nan")  # black photos
            return out

    for black, named in (((4, 5), "photo004"), ((6,), "photo006"), ((1,), "photo001")):
        photos = Photos([photo(40, 40, seed) for seed in range(7)])
        for row in black:
            photos.images[row][:] = 0
        with pytest.raises(CompError, match=rf"tiny: .*image {named} is not finite") as caught:
            run(Poisoned(), photos, "flip", batch=2, workers=workers)
        assert caught.value.code == Exit.NUMERIC
    if not workers:
        assert max(photos.reads) < 5  # the rest is not worth the wait


class Hungry(TinyNet):
    """Runs out of memory above so many images at a time."""

    def __init__(self, most: int, error: Callable[[], BaseException]) -> None:
        super().__init__()
        self.most, self.error, self.sizes = most, error, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise self.error()
        self.sizes.append(len(x))
        return super().forward(x)


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory"),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    error: Callable[[], BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    hungry, photos = Hungry(3, error), odd_photos()
    got = run(hungry, photos, "tencrop", batch=10, fold=False)
    np.testing.assert_allclose(got.probs, run(TinyNet(), photos, "tencrop").probs, atol=1e-6)
    assert max(hungry.sizes) == 2
    assert capsys.readouterr().err.count("at a time from here on") == 2  # 10 → 5 → 2, and no more
    with pytest.raises(CompError, match="not enough memory for one view of 32×32") as caught:
        run(Hungry(0, error), photos, "center", fold=False)
    assert caught.value.code == Exit.SYSTEM


def test_another_runtime_error_is_not_taken_for_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        run(Hungry(0, lambda: RuntimeError("shape mismatch")), odd_photos(), "center", fold=False)


def test_batches_stay_within_their_budget_whatever_the_number_of_views(monkeypatch: pytest.MonkeyPatch) -> None:
    areas: list[int] = []
    real = module._Loop.log_probs

    def spy(self: Any, part: Any) -> Tensor:
        areas.append(part.pixels.shape[0] * part.pixels.shape[1] * part.pixels.shape[2])
        return real(self, part)

    monkeypatch.setattr(module._Loop, "log_probs", spy)
    for views in ("center", "multicrop", f"tencrop*scales({','.join(str(size) for size in range(32, 64))})"):
        areas.clear()
        run(TinyNet(), odd_photos(), views, batch=10)
        assert max(areas) <= 10 * 32**2


def test_a_photo_that_cannot_be_decoded_gets_the_prior() -> None:
    photos = odd_photos()
    photos.bad = ("photo002",)
    prior = np.array([0.1, 0.2, 0.3, 0.2, 0.2])
    got = run(TinyNet(), photos, "flip", prior=prior, keep=True)
    np.testing.assert_allclose(got.probs[2], prior, atol=1e-6)
    assert 2 not in photos.reads
    assert np.isfinite(got.probs).all()
    with pytest.raises(CompError, match="photo002"):
        run(TinyNet(), photos, "flip")


def together(world: int, work: Callable[[int, Callable[[Any], list[Any]]], Any]) -> list[Any]:
    """Run `work(rank, gather)` in threads that meet in `gather`."""
    barrier, shared, results = threading.Barrier(world, timeout=60), [None] * world, [None] * world

    def gather_of(rank: int) -> Callable[[Any], list[Any]]:
        def gather(value: Any) -> list[Any]:
            shared[rank] = value
            barrier.wait()
            return list(shared)

        return gather

    def target(rank: int) -> None:
        try:
            results[rank] = work(rank, gather_of(rank))
        except Exception as error:
            results[rank] = error  # type: ignore[assignment]

    threads = [threading.Thread(target=target, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("world", [2, 3, 12])  # 12 processes for 9 photos: some have none
def test_several_processes_give_what_one_gives(world: int) -> None:
    network, photos = TinyNet().eval(), odd_photos()
    networks = [TinyNet().eval() for _ in range(world)]  # here: threads share the generator of random weights
    for views in ("tencrop", "flip*dense"):
        alone = run(network, photos, views, keep=True)
        stops = [0] * world

        def work(rank: int, gather: Any, views: str = views, stops: list[int] = stops) -> Evaluation:
            def stop() -> None:
                stops[rank] += 1

            return run(
                networks[rank], photos, views, rank=rank, world=world, gather=gather, keep=True, batch=3, stop=stop
            )

        for result in together(world, work):
            assert result.ids.tolist() == alone.ids.tolist()
            np.testing.assert_allclose(result.probs, alone.probs, atol=1e-6)
            assert alone.views is not None
            assert all(np.allclose(result.views[name], alone.views[name], atol=1e-3) for name in alone.views)
        assert len(set(stops)) == 1  # a stop that agrees among processes must be asked equally often


def test_an_error_in_one_process_reaches_all() -> None:
    photos = odd_photos()
    photos.images[1] = None  # type: ignore[call-overload]
    real = photos.pixels

    def pixels(row: int) -> Any:
        if row == 1:
            raise CompError("image photo001", "does not decode", "", Exit.DATA)
        return real(row)

    photos.pixels = pixels  # type: ignore[method-assign]
    object.__setattr__(photos, "__class__", type("Sized", (Photos,), {"widths": np.ones(9), "heights": np.ones(9)}))
    results = together(2, lambda rank, gather: run(TinyNet(), photos, "flip", rank=rank, world=2, gather=gather))
    assert [str(result) for result in results] == ["image photo001: does not decode"] * 2


def test_a_row_that_no_process_predicts_is_an_error() -> None:
    def lose(value: Any) -> list[Any]:
        return [value]  # the other process's part is gone

    with pytest.raises(CompError, match="no process predicted image photo001"):
        run(TinyNet(), odd_photos(), "flip", rank=0, world=2, gather=lose)


def test_progress_and_stop() -> None:
    done: list[int] = []
    run(TinyNet(), odd_photos(), "tencrop", batch=10, progress=done.append)
    assert sum(done) == len(SHAPES)
    assert len(done) > 3

    class Stopped(BaseException):
        pass

    def stop() -> None:
        if sum(done) > 2:
            raise Stopped

    network = TinyNet().train()
    done.clear()
    with pytest.raises(Stopped):
        run(network, odd_photos(), "tencrop", batch=10, progress=done.append, stop=stop, workers=2, fold=False)
    assert 2 < sum(done) < len(SHAPES)
    assert network.training


def test_no_rows_and_one_row() -> None:
    assert run(TinyNet(), odd_photos(), "flip", []).probs.shape == (0, 5)
    assert run(TinyNet(), odd_photos(), "tencrop", [3]).probs.shape == (1, 5)


@pytest.mark.parametrize(
    ("requested", "device", "says"),
    [("bf61", "cpu", "did you mean 'bf16'"), ("fp16", "cpu", "fp16 needs a GPU")],
)
def test_precisions_that_do_not_exist(requested: str, device: str, says: str) -> None:
    with pytest.raises(CompError, match=says):
        module.resolve_precision(requested, torch.device(device))


def test_auto_is_bf16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for flags, expected in (({"avx512_bf16": True}, torch.bfloat16), ({"avx512_bf16": False, "avx2": True}, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags)
        assert module.resolve_precision("auto", cpu) == expected
    for capability, expected in (((8, 0), torch.bfloat16), ((7, 5), torch.float16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert module.resolve_precision("auto", torch.device("cuda")) == expected
    with pytest.raises(CompError, match="no bf16"):
        module.resolve_precision("bf16", torch.device("cuda"))
    assert module.resolve_precision("fp32", cpu) is None


def test_bf16_is_near() -> None:
    network, photos = TinyNet().eval(), odd_photos()
    half, full = run(network, photos, "tencrop", precision="bf16"), run(network, photos, "tencrop")
    assert 0 < np.abs(half.probs - full.probs).max() < 0.05
