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

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_lvm.infer.estimators.multi_sample import Draws, MultiSampleELBO
from pyro_lvm.infer.estimators.networks import OwnNetworks, RowNetwork
from pyro_lvm.infer.estimators.rows import Rows, counted
from pyro_lvm.nn.baselines import Average
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.relaxation import Bits, Classes
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["RELAX"]

DECAY = 0.9  # of the average cost


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
        self.hidden = whole_number("RELAX", "hidden", hidden)
        self.learning_rate = real_number("RELAX", "learning_rate", learning_rate)
        self.networks = OwnNetworks(Surrogate, self.hidden, self.learning_rate)

    def bound(self, draws: Draws) -> Tensor:
        """The mean of log p - log q."""
        return draws.log_weight.mean(0)

    def surrogate(self, draws: Draws) -> Tensor:
        """Every draw's gradient in the log-odds times these, and the terms that are differentiated themselves."""
        rows, shape, context = draws.rows, draws.log_joint.shape, draws.observed
        cost, total = draws.log_weight.detach(), draws.log_joint - draws.entropy
        noise, averages = total.new_zeros(()), []
        for site in draws.guide_sites:
            if getattr(site["fn"], "has_rsample", False) or site["is_observed"]:
                drawn = rows.entries(site["value"].detach(), site["fn"].event_dim)
            else:
                values, logits, weights = _behind(site, rows)
                drawn = _of_row(values.hard, shape)
                network = self.networks.get(site["name"], context, drawn.shape[-1])
                level, slope = network.level_and_slope(context, values)
                left = _after(cost - level, logits.dim() - cost.dim())
                gradient = weights * (left * values.score + values.moved(slope))
                noise = noise + (draws.scale.square() * _of_row(gradient.square(), shape).sum(-1)).sum()
                total = total + _of_row(gradient.detach() * logits.nan_to_num(0.0, 0.0, 0.0), shape).sum(-1)
                averages.append((network.average, cost))
            context = torch.cat([context, drawn.to(context)], -1)
            cost = cost + rows.total([site]).detach()  # what is left to the sites after this one
        if not averages:
            raise ValueError(
                "RELAX: expected a guide that draws Bernoulli, Categorical or one-hot sites; got none. "
                "Use inference='svi'."
            )
        if self.networks.learn(noise / draws.scale.square().sum().clamp(min=1e-12)):
            for average, met in averages:
                average.learn(met - average(None), draws.scale.expand(shape))
        return total.mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Networks with the averages of costs, and the optimizer."""
        return self.networks.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.networks.load_state_dict(state)


class Surrogate(RowNetwork):
    """The control variate of a site: a network above the site's average cost.

    Args:
        context_dim: Entries of a row that are known before its draw.
        values_dim: Entries of a row's draw.
        hidden: Units.
    """

    def __init__(self, context_dim: int, values_dim: int, hidden: int) -> None:
        super().__init__(context_dim, values_dim, hidden)
        self.share = nn.Parameter(torch.zeros(()))
        self.log_temperature = nn.Parameter(torch.tensor(0.5).log())
        self.average = Average(DECAY)

    def level_and_slope(self, context: Tensor, values: Bits | Classes) -> tuple[Tensor, Tensor]:
        """The control variate in nats, shape (K, rows...), and its derivative in the values."""
        at = values.values.requires_grad_()
        soft = values.soft(at, self.log_temperature.exp())
        # a share of log q, which the cost holds; the others are for the network to find
        own = _of_row(soft * values.logits.clamp(-30.0, 30.0), context.shape[:-1]).sum(-1)
        level = self(context, _of_row(soft, context.shape[:-1])) + self.share * own + self.average(None)
        (slope,) = torch.autograd.grad(level.sum(), at, create_graph=True)
        return level, slope


def _behind(site: Any, rows: Rows) -> tuple[Bits | Classes, Tensor, Tensor]:
    """Values behind a site's draws by row, the log-odds in the graph, and how much each entry counts.

    Shapes (K, rows..., entries), and classes on a last axis where there are any.

    Raises:
        ValueError: The site is of another family.
    """
    kept, fn = counted(site)
    value, event_dim = site["value"].detach(), site["fn"].event_dim
    weights = _after(rows.relative_scale(site), event_dim) * kept
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


def _of_row(value: Tensor, shape: torch.Size) -> Tensor:
    """All entries of a row on one axis, for rows of that shape."""
    return value.reshape(*shape, -1)
