r"""RELAX: the score-function gradient with a learned control variate of the continuous values behind each draw.

A site's draw b is a function of continuous values z (`ops.relaxation`), whose law has the log-odds l. With f what the
draw costs, s the score of the log-odds, and any smooth function c of the values, the row and the earlier draws,

.. math::

    g = (f - c(z))\, s + \bigl(I - \partial \tilde z / \partial l\bigr)^\top \nabla_z c(z), \qquad
    \mathrm{E}\, g = \nabla_l\, \mathrm{E}\, f ,

a network is c, and its parameters follow :math:`\nabla\, |g|^2`, the gradient of the variance since the mean is fixed.
Sites are treated one by one: given the earlier ones, the later ones are noise in f.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO
from pyro_lvm.infer.estimators.rows import Rows
from pyro_lvm.nn.baselines import Average
from pyro_lvm.ops.relaxation import Bits, Classes
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["RELAX"]

DECAY = 0.9  # of the average cost
WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)


class RELAX(MultiSampleELBO):
    """The evidence lower bound of guides with Bernoulli, Categorical or one-hot sites, by a learned control variate.

    Each such site has a network of a layer of tanh units. It reads what the model observes in the row, the row's
    earlier draws and the continuous values behind the row's draw, and lowers the variance of the gradient in the site's
    log-odds. The model is run on discrete draws only: a program may index by them. Sites with reparameterised draws are
    differentiated through their draws. The gradient is unbiased whatever the networks are. They, their Adam
    optimizer and running averages of the cost are state of the objective.

    Differs from the paper by the noise, of which the values given the draw have the same as those before it, so that
    one evaluation of the network does for both; and by the variance, which is that in each row's log-odds.

    Args:
        num_samples: Draws of the guide for each row, K >= 1, whose estimates are averaged.
        hidden: Units of each network.
        learning_rate: Step size of their optimizer.
        max_plate_nesting: Number of batch dimensions that plates of model and guide use; by default found by a run.

    Raises:
        ValueError: An option is out of range, or the guide has no discrete site, or one of another family.

    References:
        W. Grathwohl, D. Choi, Y. Wu, G. Roeder, D. Duvenaud (2018), Backpropagation through the void: optimizing
            control variates for black-box gradient estimation, ICLR, equation 7 and algorithm 2.
        G. Tucker, A. Mnih, C. Maddison, D. Lawson, J. Sohl-Dickstein (2017), REBAR: low-variance, unbiased gradient
            estimates for discrete latent variable models, NeurIPS, sections 3.1 and 3.3.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = (lvm.datasets.load("digits234").x > 0).float()
        >>> fit = lvm.fit(lvm.models.SigmoidBeliefNet(8), x, "recognition-net", "relax", max_epochs=2, progress=False)
        >>> len(fit.history["loss"])
        2
    """

    least_samples = 1

    def __init__(
        self,
        num_samples: int = 1,
        hidden: int = 100,
        learning_rate: float = 0.001,
        max_plate_nesting: int | None = None,
    ) -> None:
        super().__init__(num_samples, max_plate_nesting)
        if not learning_rate > 0:
            raise ValueError(f"RELAX: expected learning_rate > 0; got {learning_rate}.")
        self.hidden = whole_number("RELAX", "hidden", hidden)
        self.learning_rate = learning_rate
        self.networks: dict[str, Surrogate] = {}
        self._optimizer: Any = None

    def bound(self, draws: Draws) -> Tensor:
        """The mean of log p - log q."""
        return draws.log_weight.mean(0)

    def surrogate(self, draws: Draws) -> Tensor:
        """Every draw's gradient in the log-odds times these, and the terms that are differentiated themselves."""
        rows, cost, total = draws.rows, draws.log_weight.detach(), draws.log_joint - draws.entropy
        seen = [rows.entries(s["value"], s["fn"].event_dim) for s in draws.model_sites if s["is_observed"]]
        noise, averages = total.new_zeros(()), []
        for site in draws.guide_sites:
            if getattr(site["fn"], "has_rsample", False) or site["is_observed"]:
                seen.append(rows.entries(site["value"].detach(), site["fn"].event_dim))
            else:
                values, logits, weights = _behind(site, rows)
                context = torch.cat([cost.new_zeros(*cost.shape, 0), *(part.to(cost) for part in seen)], -1)
                network = self._network(site["name"], context, values)
                level, slope = network.level_and_slope(context, values)
                left = (cost - level).reshape(*cost.shape, *(1,) * (logits.dim() - cost.dim()))
                gradient = weights * (left * values.score + values.moved(slope))
                noise = noise + (draws.scale * _of_row(gradient, cost).norm(dim=-1)).square().sum()
                total = total + _of_row(gradient.detach() * logits.nan_to_num(0.0, 0.0, 0.0), cost).sum(-1)
                averages.append((network.average, cost))
                seen.append(_of_row(values.hard, cost))
            cost = cost + rows.total([site]).detach()  # what is left to the sites after this one
        if not averages:
            raise ValueError(
                "RELAX: expected a guide that draws Bernoulli, Categorical or one-hot sites; got none. "
                "Use inference='svi'."
            )
        self._learn(noise / draws.scale.square().sum().clamp(min=1e-12))
        for average, seen_cost in averages:
            average.learn(seen_cost - average(None), draws.scale.expand(seen_cost.shape))
        return total.mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Networks with the averages of costs, and the optimizer."""
        if self._optimizer is None:
            return {}
        networks = {n: {"sizes": part.sizes, "state": dict(part.state_dict())} for n, part in self.networks.items()}
        return copy.deepcopy({"networks": networks, "optimizer": self._optimizer.state_dict()})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.networks, self._optimizer = {}, None
        for name, part in state.get("networks", {}).items():
            known, drawn = part["sizes"]
            self._add(name, Surrogate(known, drawn, self.hidden).to(part["state"]["center"]))
            self.networks[name].load_state_dict(part["state"])
        if self._optimizer is not None:
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))

    def _network(self, site: str, context: Tensor, values: Bits | Classes) -> Surrogate:
        """The network of a site, or one for each length of rows if batches differ in it."""
        known, drawn = context.shape[-1], math.prod(values.hard.shape[context.dim() - 1 :])
        name = f"{site} {known} {drawn}"
        if name not in self.networks:
            with torch.random.fork_rng():  # draws of the guide are the same whether a network is made or was loaded
                self._add(name, Surrogate(known, drawn, self.hidden).to(context))
            self.networks[name].look_at(context)
        return self.networks[name]

    def _add(self, name: str, network: Surrogate) -> None:
        self.networks[name] = network
        if self._optimizer is None:
            self._optimizer = torch.optim.Adam(network.parameters(), lr=self.learning_rate)
        else:
            self._optimizer.add_param_group({"params": list(network.parameters())})

    def _learn(self, noise: Tensor) -> None:
        """A step of the networks along the squared gradient."""
        if self._optimizer is not None and bool(torch.isfinite(noise)):
            self._optimizer.zero_grad()
            noise.backward()
            self._optimizer.step()


class Surrogate(nn.Module):
    """The control variate of a site, about its average cost: 0 at first.

    Args:
        context_dim: Entries of a row that are known before its draw.
        values_dim: Entries of a row's draw.
        hidden: Units.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, context_dim: int, values_dim: int, hidden: int) -> None:
        super().__init__()
        self.sizes = [context_dim, values_dim]
        self.first = nn.Linear(context_dim + values_dim, hidden)
        self.last = nn.Linear(hidden, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.share = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.tensor(0.5).log())
        self.average = Average(DECAY)
        self.register_buffer("center", torch.zeros(context_dim))
        self.register_buffer("spread", torch.ones(context_dim))

    def look_at(self, context: Tensor) -> None:
        """Take the rows' means off from now on, and divide by their standard deviations where these are above 1."""
        rows = context.reshape(-1, context.shape[-1])
        self.center.copy_(rows.nanmean(0).nan_to_num())
        self.spread.copy_((rows - self.center).square().nanmean(0).sqrt().nan_to_num(1.0).clamp(min=1.0))

    def level_and_slope(self, context: Tensor, values: Bits | Classes) -> tuple[Tensor, Tensor]:
        """The control variate in nats, shape (K, rows...), and its derivative in the values."""
        at = values.values.requires_grad_()
        soft = values.soft(at, self.log_temperature.exp())
        known = ((context - self.center) / self.spread).nan_to_num()
        units = torch.tanh(self.first(torch.cat([known, _of_row(soft, context[..., 0])], -1)))
        # a share of log q, which the cost holds; the others are for the network to find
        own = _of_row(soft * values.logits.clamp(-30.0, 30.0), context[..., 0]).sum(-1)
        level = self.last(units).squeeze(-1) + self.share * own + self.average(None)
        (slope,) = torch.autograd.grad(level.sum(), at, create_graph=True)
        return level, slope


def _behind(site: Any, rows: Rows) -> tuple[Bits | Classes, Tensor, Tensor]:
    """Values behind a site's draws by row, the log-odds in the graph, and how much each entry counts.

    Shapes (K, rows..., entries), and classes on a last axis where there are any.

    Raises:
        ValueError: The site is of another family.
    """
    fn, value = site["fn"], site["value"].detach()
    weights, event_dim = _after(rows.weights(site), fn.event_dim), fn.event_dim
    while isinstance(fn, WRAPPERS):
        if isinstance(fn, dist.MaskedDistribution):
            weights = weights * _after(torch.as_tensor(fn._mask, device=weights.device), fn.event_dim)
        fn = fn.base_dist
    if isinstance(fn, torch.distributions.Bernoulli):
        weights, logits = weights.expand(value.shape), fn.logits.expand(value.shape)
        by_row = [rows.entries(part, event_dim) for part in (logits, value, weights)]
        return Bits.behind(by_row[0], by_row[1]), by_row[0], by_row[2]
    if isinstance(fn, torch.distributions.Categorical):
        value, weights, event_dim = one_hot(value.long(), fn.logits.shape[-1]), weights.unsqueeze(-1), event_dim + 1
    elif not isinstance(fn, torch.distributions.OneHotCategorical):
        raise ValueError(
            f"RELAX: expected Bernoulli, Categorical or one-hot sites in the guide, or reparameterised ones; site "
            f"'{site['name']}' ({type(fn).__name__}) is neither. Use inference='leave-one-out'."
        )
    weights, logits = weights.expand(value.shape), fn.logits.expand(value.shape)
    by_row = [rows.entries(part, event_dim).unflatten(-1, (-1, value.shape[-1])) for part in (logits, value, weights)]
    return Classes.behind(by_row[0], by_row[1].to(logits)), by_row[0], by_row[2]


def _after(value: Tensor, dims: int) -> Tensor:
    """With so many axes of size 1 on the right."""
    return value.reshape(value.shape + (1,) * dims)


def _of_row(value: Tensor, like: Tensor) -> Tensor:
    """All entries of a row on one axis, rows standing as in `like`."""
    return value.reshape(*like.shape, -1)
