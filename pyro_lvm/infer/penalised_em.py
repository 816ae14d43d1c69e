"""EM towards the posterior's mode for sites that bring their M-step and the prior that it knows of."""

from __future__ import annotations

from typing import Any

from pyro_lvm.infer.em import EM
from pyro_lvm.infer.expectation import Expectation

__all__ = ["PenalisedEM"]


class PenalisedEM(EM):
    """EM of programs whose sites say, besides `infer={"m_step": f}`, what prior their M-step maximises with.

    A site's `infer={"log_prior": g}` returns the log-density of parameters in nats, up to a constant; the loss of a
    step is the negative log joint density then, which never rises. Held-out losses leave the prior out.
    """

    def held_out_loss(self, *args: Any, **kwargs: Any) -> float:
        """Negative log-likelihood of other data, in nats, without any prior."""
        return -super()._expect(args, kwargs, keep_weights=False).log_likelihood

    def _expect(self, *args: Any, **kwargs: Any) -> Expectation:
        expectation = super()._expect(*args, **kwargs)
        for factor in expectation.factors.values():
            log_prior = factor.site["infer"].get("log_prior")
            if log_prior is not None:
                expectation.log_likelihood += float(log_prior().detach())
        return expectation
