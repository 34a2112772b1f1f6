"""What a view set costs, said before it is paid. No torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from comp.inference.spec import ViewSpec

Sizes = npt.NDArray[np.integer]


def aspect(widths: Sizes, heights: Sizes) -> float:
    """Longer over shorter side of the middle photo (median).

    Args:
        widths: (N,) pixels.
        heights: (N,) pixels.
    """
    ratio = np.maximum(widths, 1) / np.maximum(heights, 1)
    return float(np.median(np.maximum(ratio, 1 / ratio))) if len(ratio) else 1.0


def cost_line(spec: ViewSpec, crop: int, test_size: int, aspect: float, photos: int) -> str:
    """Views and forward passes of a photo, as a sentence.

    Args:
        spec: The views.
        crop: Side of the training crop, pixels.
        test_size: Shorter side where the spec names no scales.
        aspect: Longer over shorter side of a typical photo.
        photos: How many there are.
    """
    views = spec.views(crop, test_size)
    passes = spec.cost(crop, test_size, aspect)
    sizes = sorted({view.size for view in views})
    return (
        f"views {spec.canonical}: {len(views)} of a photo, shorter side {', '.join(map(str, sizes))}; "
        f"{passes:.3g} forward passes of a centre crop for each of {photos} photos"
    )


def duration(seconds: float) -> str:
    """`40 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(whole, 1)} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
