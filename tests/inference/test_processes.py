"""Two real processes over gloo: the same numbers as one, every photo once, an error reaches both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import TinyNet, odd_photos

from comp import config
from comp.errors import CompError, Exit
from comp.inference.evaluate import evaluate
from comp.inference.spec import parse


def predicted(rank: int, world: int, network: TinyNet, **options: Any) -> Any:
    return evaluate(
        network,
        odd_photos(),  # type: ignore[arg-type]
        np.arange(9),
        parse("tencrop"),
        name="tiny",
        image=config.Image(crop=32, test=37),
        mean=(0.45, 0.41, 0.31),
        std=(0.28, 0.24, 0.27),
        precision="fp32",
        device=torch.device("cpu"),
        rank=rank,
        world=world,
        **options,
    )


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        found = predicted(rank, 2, TinyNet().eval(), keep=True)
        poisoned = TinyNet().eval()
        if rank == 1:
            torch.nn.init.constant_(poisoned.fc.bias, float("nan"))
        try:
            predicted(rank, 2, poisoned)
            said = ""
        except CompError as error:
            said = str(error) if error.code == Exit.NUMERIC else "another code"
        np.savez(f"{folder}/{rank}.npz", ids=found.ids, probs=found.probs, views=len(found.views), said=said)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ten_crops_on_two_processes_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    alone = predicted(0, 1, TinyNet().eval())
    for rank in (0, 1):
        with np.load(tmp_path / f"{rank}.npz") as found:
            assert found["ids"].tolist() == alone.ids.tolist()
            np.testing.assert_allclose(found["probs"], alone.probs, atol=1e-6)
            assert found["views"] == 10
            assert "tiny: the network's output for image photo001 is not finite" in str(found["said"])
