"""Rows that are images: their shape, and mosaics of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_lvm.diagnostics.plot_parts import Array

__all__ = ["draw_mosaic", "image_shape_of", "mosaic"]

SMALLEST = 4  # pixels on a side: four columns of a table are no image of two by two


def image_shape_of(
    caller: str, row_shape: Sequence[int], named: bool, given: Sequence[int] | None
) -> tuple[int, ...] | None:
    """The shape of the images that rows are; None if they are none.

    Args:
        caller: Who asks, for the error.
        row_shape: Shape of a row.
        named: Whether the columns have names, as those of tables do.
        given: Height and width, and 3 for colours; an empty one if rows are no images. If None, rows of shape (h, w)
            or (h, w, 3) are images, and so are rows of at least 16 columns without names whose number is a square.

    Raises:
        ValueError: The given shape does not hold as many numbers as a row.
    """
    size = math.prod(row_shape)
    if given is not None:
        shape = tuple(int(side) for side in given)
        if not shape:
            return None
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or math.prod(shape) != size:
            raise ValueError(
                f"{caller}: expected image_shape=(height, width) or (height, width, 3) with a product of {size}, the "
                f"length of a row; got {shape}. Pass image_shape=() for rows that are no images."
            )
        return shape
    if len(row_shape) == 2 or (len(row_shape) == 3 and row_shape[2] == 3):
        return tuple(row_shape)
    side = math.isqrt(size)
    return (side, side) if len(row_shape) == 1 and side**2 == size and side >= SMALLEST and not named else None


def mosaic(images: Array, wide: int) -> Array:
    """Images side by side with a pixel of NaN between them.

    Args:
        images: Shape (n, h, w) or (n, h, w, 3).
        wide: Images in a line.

    Returns:
        Shape (lines * (h + 1) - 1, wide * (w + 1) - 1), and 3 if in colour.
    """
    n, h, w = images.shape[:3]
    high = -(-n // wide)
    table = np.full((high * (h + 1), wide * (w + 1), *images.shape[3:]), np.nan)
    for i, image in enumerate(images):
        top, left = (i // wide) * (h + 1), (i % wide) * (w + 1)
        table[top : top + h, left : left + w] = image
    return table[:-1, :-1]


def draw_mosaic(figure: Any, images: NDArray[Any], title: str, wide: int, *, signed: bool = False) -> None:
    """Draw images into a figure, all on one scale; around zero, blue below and red above, if they have a sign."""
    images = np.asarray(images, dtype=float)
    ax = figure.subplots()
    table = mosaic(images, min(wide, len(images)))
    finite = images[np.isfinite(images)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if table.ndim == 3:
        table = np.nan_to_num((table - low) / ((high - low) or 1.0), nan=1.0)
        ax.imshow(table, interpolation="nearest")
    elif signed:
        most = max(abs(low), abs(high)) or 1.0
        shown = ax.imshow(table, cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
        bar = figure.colorbar(shown, ax=ax, shrink=0.7, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    else:
        ax.imshow(table, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title, fontsize=11)
