"""The monotonicity guard of EM: what it remembers of a step, to notice a fall and to take the step back."""

from __future__ import annotations

from typing import Any

import torch

from pyro_lvm.infer.expectation import Expectation

__all__ = ["Step"]


class Step:
    """Data, log-likelihood and parameters before an update."""

    def __init__(self, args: tuple, kwargs: dict[str, Any], expectation: Expectation) -> None:
        self.args, self.kwargs = args, kwargs
        self.log_likelihood = expectation.log_likelihood
        self.values = {name: p.unconstrained.detach().clone() for name, p in expectation.parameters.items()}
        dtypes = {p.value.dtype for p in expectation.parameters.values()}
        self.tolerance = 1e-10 if dtypes <= {torch.float64} else 1e-5

    def same_data(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether these are the very same arguments."""
        return (
            len(args) == len(self.args)
            and all(a is b for a, b in zip(args, self.args, strict=True))
            and kwargs.keys() == self.kwargs.keys()
            and all(kwargs[k] is self.kwargs[k] for k in kwargs)
        )

    def fell(self, expectation: Expectation) -> bool:
        """Whether the log-likelihood is lower now."""
        return not expectation.log_likelihood >= self.log_likelihood - self.tolerance * abs(self.log_likelihood)

    def restore(self, expectation: Expectation) -> None:
        """Put the parameters back."""
        for name, value in self.values.items():
            expectation.parameters[name].unconstrained.data.copy_(value)
