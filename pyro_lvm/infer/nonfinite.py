"""The error of every inference whose loss stops being a number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["NonFiniteLoss", "in_one_sentence"]

# What torch says of a distribution's argument.
REFUSED = re.compile(r"Expected parameter (\w+) .*?of distribution (\w+)\(.*to satisfy the constraint", re.DOTALL)


class NonFiniteLoss(ValueError):  # noqa: N818 - named by what is seen
    """A loss that is NaN or infinite; parameters are as they were before the step."""


@contextmanager
def in_one_sentence(name: str, started: bool) -> Iterator[None]:
    """Say in one sentence that arithmetic broke down; torch's own words are kept as the cause.

    Args:
        name: Of the inference.
        started: Whether it has moved the parameters: else an argument out of range is the program's own.

    Raises:
        NonFiniteLoss: Instead of an error of torch's linear algebra or argument checks.
    """
    advice = "Rescale the data so that values vary by about one, use float64, or start from other parameters."
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NonFiniteLoss(
            f"{name}: a matrix is not positive definite as far as its numbers tell. {advice}"
        ) from error
    except ValueError as error:
        refused = REFUSED.match(str(error))
        if refused is None or not started:
            raise
        raise NonFiniteLoss(f"{name}: '{refused[1]}' of a {refused[2]} site left its range. {advice}") from error
