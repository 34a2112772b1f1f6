"""Batches are the same for any number of workers; what goes wrong in a worker is one line in the parent."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from comp.data import workers
from comp.data.augment import pipeline
from comp.data.loader import TrainingImages, batches, default_workers
from comp.data.order import seed_of
from comp.data.pixels import Reader
from comp.data.workers import in_order
from comp.errors import CompError, Exit

CROP = 16


def dataset(folder: Path, count: int = 30) -> Any:
    """What the loader needs of a data set: photos in one file, addressed in place."""
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    offsets, lengths, data = [], [], b""
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        jpeg = cv2.imencode(".jpg", cv2.resize(noise, (20 + number % 5, 24)))[1].tobytes()
        offsets.append(len(data))
        lengths.append(len(jpeg))
        data += jpeg
    (folder / "photos").write_bytes(data)
    ids = [f"id{number}" for number in range(count)]
    reader = Reader(folder, ["photos"] * count, offsets, lengths, ids)
    return SimpleNamespace(ids=ids, labels=np.arange(count) % 7, reader=lambda: reader)


@pytest.fixture
def images(tmp_path: Path) -> TrainingImages:
    return TrainingImages(dataset(tmp_path), pipeline(["plain", "noise"], CROP, (18, 28), ["hflip"]), seed=3)


def plan(sizes: tuple[int, ...], epoch: int = 0) -> list[list[tuple[int, int]]]:
    rng = np.random.default_rng(1)
    return [[(int(row), epoch) for row in rng.integers(0, 30, size)] for size in sizes]


PLAN = [*plan((20, 1, 9, 8)), *plan((3, 17), epoch=1)]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_the_batches_are_the_plan_whatever_the_workers(images: TrainingImages, workers: int) -> None:
    done = list(batches(images, iter(PLAN), workers))
    assert len(done) == len(PLAN)
    for keys, (pixels, labels, rows) in zip(PLAN, done, strict=True):
        assert rows.tolist() == [row for row, _ in keys]
        assert labels.tolist() == [row % 7 for row, _ in keys]
        assert (pixels.dtype, labels.dtype, rows.dtype) == (torch.uint8, torch.int64, torch.int64)
        expected = [images.augment(images.reader.pixels(r), seed_of(3, e, f"id{r}")) for r, e in keys]
        assert np.array_equal(pixels.numpy(), np.stack(expected).transpose(0, 3, 1, 2))


def test_getitem_is_one_image_of_a_batch(images: TrainingImages) -> None:
    ((pixels, labels, rows),) = batches(images, [[(11, 4)]], 0)
    one = images[11, 4]
    assert torch.equal(one[0], pixels[0])
    assert one[1:] == (int(labels[0]), int(rows[0]))


def test_uses_of_an_image_in_one_epoch_differ_and_the_first_is_the_plain_key(images: TrainingImages) -> None:
    ((pixels, _, _),) = batches(images, [[(5, 0), (5, 0, 0), (5, 0, 1), (5, 0, 2), (5, 1)]], 0)
    assert torch.equal(pixels[0], pixels[1])
    assert len({image.numpy().tobytes() for image in pixels}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_planned_and_empty_batches(images: TrainingImages, workers: int) -> None:
    assert list(batches(images, [], workers)) == []
    sizes = [len(rows) for _, _, rows in batches(images, [[], PLAN[1], [], []], workers)]
    assert sizes == [0, 1, 0, 0]


def test_a_plan_without_end_is_read_ahead_a_little(images: TrainingImages) -> None:
    """One plan serves all epochs, so it must not be drained; and leaving it ends the workers."""
    read = 0

    def endless() -> Iterator[list[tuple[int, int]]]:
        nonlocal read
        while True:
            read += 1
            yield [(read % 30, 0)] * 8

    source = batches(images, endless(), 2)
    for _ in range(10):
        next(source)
    assert read <= 10 + 2 * 2 + 2
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    del source
    gc.collect()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_an_image_arrives_as_it_was(images: TrainingImages, workers: int) -> None:
    images.reader.lengths[7] = 40  # cuts the JPEG off
    with pytest.raises(CompError, match="photos, image id7") as caught:
        list(batches(images, [[(row, 0) for row in range(12)]], workers))
    assert caught.value.code == Exit.DATA
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_the_first_wrong_image_in_order_is_named(images: TrainingImages) -> None:
    images.reader.lengths[7] = images.reader.lengths[20] = 40
    with pytest.raises(CompError, match="image id7"):
        list(batches(images, [[(row, 0) for row in range(30)]], 4))


def test_a_bug_in_a_worker_keeps_its_type_and_says_where(images: TrainingImages) -> None:
    with pytest.raises(IndexError) as caught:
        list(batches(images, [[(0, 0), (99, 0)]], 1))
    assert "in pixels" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_travel_still_arrives(images: TrainingImages) -> None:
    class Local(Exception):
        pass

    def fails(image: Any, seed: int) -> Any:
        raise Local("no way")

    images.augment = SimpleNamespace(crop=CROP)  # type: ignore[assignment]
    images.pixels = lambda key: fails(None, 0)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="Local in a loader worker: no way"):
        list(batches(images, [[(0, 0)]], 1))


def test_a_killed_worker_is_one_line(images: TrainingImages) -> None:
    source = batches(images, ([(row % 30, 0)] * 8 for row in range(10_000)), 2)
    next(source)
    victim = sorted(multiprocessing.active_children(), key=lambda process: process.name)[1]
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(CompError, match=r"loader worker 1: was killed by SIGKILL .*; use fewer, e\.g\. workers=1") as e:
        for _ in source:
            pass
    assert e.value.code == Exit.PROCESS
    assert not multiprocessing.active_children()


def test_signals_to_the_group_leave_the_workers_at_work(images: TrainingImages) -> None:
    source = batches(images, ([(row % 30, 0)] * 8 for row in range(12)), 2)
    next(source)
    for process in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    assert len(list(source)) == 11


def test_signals_to_a_worker_that_has_just_begun_leave_it_at_work(
    images: TrainingImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come before its first line runs, where what the parent does with them would still hold."""
    work = workers._work

    def late(*args: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        work(*args)

    monkeypatch.setattr(workers, "_work", late)
    assert len(list(batches(images, ([(row % 30, 0)] * 8 for row in range(12)), 2))) == 12


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Also those of a second loader that was begun while the first ran."""
    code = f"""
import multiprocessing, os, signal, time
from tests.data.test_loader import *
images = TrainingImages(dataset(Path({str(tmp_path)!r})), pipeline(["plain"], CROP, (18, 28), []), 0)
one, two = (batches(images, ([(0, 0)] * 8 for _ in range(10**6)), 2) for _ in range(2))
next(one), next(two), next(one)
print(*(process.pid for process in multiprocessing.active_children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert out.returncode == -signal.SIGKILL
    workers = [int(pid) for pid in out.stdout.split()]
    assert len(workers) == 4
    limit = time.monotonic() + 20
    while any(map(_alive, workers)):
        assert time.monotonic() < limit, "a worker outlived its parent"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_open_loader_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    code = f"""
from tests.data.test_loader import *
images = TrainingImages(dataset(Path({str(tmp_path)!r})), pipeline(["plain"], CROP, (18, 28), []), 0)
source = batches(images, ([(0, 0)] * 8 for _ in range(10**6)), 2)
next(source)
print("end")
"""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert (out.returncode, out.stdout, out.stderr) == (0, "end\n", "")


def test_workers_after_threads_of_opencv_and_torch(images: TrainingImages) -> None:
    """A forked worker has none of its parent's thread pools; it must not wait for them."""
    import cv2

    threads = cv2.getNumThreads(), torch.get_num_threads()
    try:
        cv2.setNumThreads(4)
        torch.set_num_threads(4)
        cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.float32), (0, 0), 9)
        torch.ones(1000, 1000) @ torch.ones(1000, 1000)
        assert len(list(batches(images, PLAN, 2))) == len(PLAN)
        assert torch.get_num_threads() == 4
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def test_a_worker_uses_one_core(images: TrainingImages) -> None:
    def threads(key: Any) -> np.ndarray:
        import cv2

        return np.full((3, CROP, CROP), 10 * cv2.getNumThreads() + torch.get_num_threads(), np.uint8)

    images.pixels = threads  # type: ignore[method-assign]
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        ((pixels, _, _),) = batches(images, [[(0, 0)]], 1)
    finally:
        torch.set_num_threads(before)
    assert pixels.unique().tolist() == [11]


@pytest.mark.parametrize("workers", [0, 3])
def test_a_chunk_stays_until_the_next_is_asked_for(workers: int) -> None:
    """However slow its reader is, nobody writes over it."""
    chunks = [[number] for number in range(30)]
    for number, pixels in enumerate(in_order(lambda key: np.full(5, key, np.uint8), (5,), chunks, workers, 4)):
        time.sleep(0.005)
        assert pixels.tolist() == [[number] * 5]


def test_too_few_file_descriptors_is_one_line(tmp_path: Path) -> None:
    code = f"""
import resource
from tests.data.test_loader import *
images = TrainingImages(dataset(Path({str(tmp_path)!r})), pipeline(["plain"], CROP, (18, 28), []), 0)
list(batches(images, PLAN, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 6,) * 2)
try:
    list(batches(images, PLAN, 8))
except CompError as error:
    print(int(error.code), error)
"""
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert out.stdout.startswith("7 loader workers: too many open files"), out


def test_default_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(cores: int, procs: int, gpu: bool) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        return default_workers(procs)

    assert [given(cores, procs, True) for cores, procs in ((1, 1), (8, 1), (8, 4), (64, 2), (2, 4))] == [1, 7, 1, 16, 1]
    assert [given(cores, procs, False) for cores, procs in ((1, 1), (2, 1), (4, 1), (4, 2), (64, 2))] == [0, 0, 1, 0, 1]
