"""Does a step read memory that nobody wrote? `python -m tests.faults.poison [NETWORK …]`.

Memory is filled with 0, nan and 1e30 and freed again before each forward and backward pass in bf16 (`comp.memory` has
the process keep it, so the next tensors lie there); the gradients of two steps must be the same bytes all three times.
"""

from __future__ import annotations

import argparse
import hashlib

import torch
from torch.nn.functional import cross_entropy

from comp.errors import CompError
from comp.memory import keep_pages
from comp.nets.build import build

NETWORKS = [
    "resnet18",
    "resnet34",
    "resnet50",
    "plain34",
    "nin_cifar",
    "nin_imagenet",
    "googlenet_2014",
    "prelunet14",
    "vgg_a",
    "alexnet_2012",
    "mobilenetv2_100",
    "efficientnet_b0",
    "convnext_tiny",
]
SIZES = (16, 32, 48, 64, 96)
FILLINGS = (0.0, float("nan"), 1e30)


def poison(value: float) -> None:
    """Leave blocks of 256 bytes to 128 MiB full of a value behind."""
    blocks = [torch.full((2**power // 4,), value) for power in range(8, 28) for _ in range(3)]
    del blocks


def gradients(name: str, size: int, value: float) -> str:
    """A digest of the gradients of two steps."""
    torch.manual_seed(0)
    network = build(name, num_classes=5, img_size=size).to(memory_format=torch.channels_last).train()
    images = torch.randn(8, 3, size, size).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(8) % 5
    digest = hashlib.sha256()
    for step in range(2):
        torch.manual_seed(step)
        poison(value)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(images)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        loss = torch.stack([cross_entropy(output.float(), labels) for output in outputs]).sum()
        poison(value)
        loss.backward()
        for parameter in network.parameters():
            assert parameter.grad is not None
            digest.update(parameter.grad.numpy().tobytes())
            parameter.data.sub_(1e-3 * parameter.grad)
            parameter.grad = None
    return digest.hexdigest()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("networks", nargs="*", default=NETWORKS)
    keep_pages()
    for name in words.parse_args().networks:
        found = []
        for size in SIZES:
            try:
                same = len({gradients(name, size, value) for value in FILLINGS}) == 1
                found.append(f"{size}: {'same' if same else 'DIFFERENT'}")
            except (CompError, RuntimeError, ValueError):  # smaller than it takes
                found.append(f"{size}: -")
        print(f"{name:16} " + "  ".join(found), flush=True)


if __name__ == "__main__":
    main()
