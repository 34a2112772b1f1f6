"""Which number format the device computes fast in."""

from __future__ import annotations

import torch

from comp.errors import CompError, Exit, did_you_mean

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware itself multiplies bfloat16 (avx512_bf16 or amx on a CPU, compute capability 8 on a GPU)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def resolve_precision(requested: str, device: torch.device) -> torch.dtype | None:
    """The type for autocast, or None for fp32.

    Args:
        requested: fp32, bf16, fp16 or auto: bf16 where the hardware has it, fp16 on older GPUs, else fp32.
        device: Where the network runs.

    Raises:
        CompError: An unknown word, or a format the device cannot compute in.
    """
    if requested == "auto":
        if has_bf16(device):
            return torch.bfloat16
        return torch.float16 if device.type == "cuda" else None
    if requested not in DTYPES:
        raise CompError(
            "precision", f"'{requested}' is not known", did_you_mean(requested, [*DTYPES, "auto"]), Exit.CONFIG
        )
    if requested == "fp16" and device.type == "cpu":
        raise CompError("precision", "fp16 needs a GPU", "use auto, bf16 or fp32", Exit.CONFIG)
    if requested == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise CompError("precision", "this GPU has no bf16", "use auto, fp16 or fp32", Exit.CONFIG)
    return DTYPES[requested]
