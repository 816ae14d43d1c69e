"""Sites whose hidden states are summed out inside their distribution, and what those states are called."""

from __future__ import annotations

from typing import Any

from pyro_lvm.distributions import HMM

__all__ = ["states_of"]


def states_of(site: Any) -> str | None:
    """The name of a hidden Markov site's states; None for any other site.

    Args:
        site: A message of Pyro's, or a node of a trace. `infer={"states": name}` names the states; else they are
            called after the site.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro import poutine
        >>> from pyro_lvm.distributions import HMM
        >>> def model(x):
        ...     switch = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        ...     pyro.sample("x", HMM(switch[0], switch, dist.Normal(torch.tensor([0.0, 3.0]), 1.0)), obs=x)
        >>> states_of(poutine.trace(model).get_trace(torch.zeros(5)).nodes["x"])
        'x_states'
    """
    if site["type"] != "sample" or not isinstance(site["fn"], HMM):
        return None
    return site["infer"].get("states", f"{site['name']}_states")
