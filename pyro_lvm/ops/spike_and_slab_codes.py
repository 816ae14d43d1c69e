r"""Codes that are zero with some probability, else normal: the best support, and a mean field over supports.

.. math:: \rho_j(u) = \tfrac12 u^2 + \lambda_j [u \ne 0]

:math:`\lambda` holds the log-odds of zero and how a density is weighed against a probability. Given which entries are
not zero, the support S, codes are a ridge: with :math:`A = G + I` the objective is
:math:`-\tfrac12 c_S^\top A_{SS}^{-1} c_S + \sum_S \lambda_j`. A start is found by matching pursuit; from there supports
change by one entry that comes or goes, or by two that change places, whichever is best, until none is any better. Of
up to 10 entries all supports are tried.

The mean field has for every entry a law of the prior's own family, and moves one after another to where the evidence
bound is largest:

.. math::

    v_j = 1 / A_{jj}, \qquad m_j = v_j \Big(c_j - \sum_{i \ne j} G_{ij} \gamma_i m_i\Big), \qquad
    \mathrm{logit}\, \gamma_j = \mathrm{logit}\, \pi_j + \tfrac12 \log v_j + \frac{m_j^2}{2 v_j}

References:
    S. Mallat, Z. Zhang (1993), Matching pursuits with time-frequency dictionaries, IEEE Transactions on Signal
        Processing 41.
    C. Soussen, J. Idier, D. Brie, J. Duan (2011), From Bernoulli-Gaussian deconvolution to sparse signal restoration,
        IEEE Transactions on Signal Processing 59: supports that change by one entry.
    M. Titsias, M. Lazaro-Gredilla (2011), Spike and slab variational inference for multi-task and multiple kernel
        learning, NeurIPS, equation 7.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pyro_lvm.ops.code_prior import CodePrior
from pyro_lvm.ops.coordinate_descent import descend, times
from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.ops.supports import every_support, given_support, support_scores

__all__ = ["SpikeAndSlabCodes", "best_supports", "mean_field", "pursue"]

SLACK = 1e-9  # nats by which a change must be better: rounding is less
TELLING = 0.1  # nats that an entry must gain to move in the pursuit
MOST = 4  # changes of a support, by entry
ENTRIES = 2**21  # of the columns of supports that are looked at together
DOUBT, WIDER = 0.5, 1.2  # entries that draws change at random, and by how much they are wider than the mean field
FEW = 10  # entries of codes, of which all supports are tried
ROUNDS = 100  # of the mean field


class SpikeAndSlabCodes(CodePrior):
    r"""The prior with a slab of scale 1.

    Args:
        inclusion_probability: :math:`\pi` of each entry, shape (k,).
        unit: Of the law, shape (k,), in which densities count.
        loc: Of the slab, shape (k,), zero.
        scale: Of the slab, shape (k,).

    Raises:
        ValueError: A slab is not about zero.
    """

    arguments: ClassVar[tuple[str, ...]] = ("inclusion_probability", "unit", "loc", "scale")

    def __init__(self, inclusion_probability: Tensor, unit: Tensor, loc: Tensor, scale: Tensor) -> None:
        if bool((loc != 0).any()):
            raise PlainError(
                "SparseCodes: expected codes whose slab is about zero. Put the location into the rows' mean."
            )
        numbers = torch.finfo(inclusion_probability.dtype)  # of which 0 and 1 have infinite odds
        self.log_odds = inclusion_probability.clamp(numbers.tiny, 1 - numbers.eps / 2).logit()
        self.unit = unit
        self.cost = (math.sqrt(2 * math.pi) * scale / unit).log() - self.log_odds
        self._cost = self.cost.tolist()

    def penalty(self, codes: Tensor) -> Tensor:
        """As in the formula above."""
        return 0.5 * codes.square() + self.cost.to(codes) * (codes != 0)

    def shrink(self, level: Tensor, curvature: Tensor | float, code: Tensor, j: int) -> Tensor:
        """To zero, or to the best other place."""
        best = level / (curvature + 1)
        return torch.where(0.5 * best * level > self._cost[j], best, 0.0)

    def improve(self, products: Tensor, gram: Tensor, codes: Tensor, sweeps: int) -> None:
        """From where codes are, and by matching pursuit anew: the better of both, in place."""
        super().improve(products, gram, codes, sweeps)
        fresh = self._pursued(products, gram, sweeps)
        better = self.objective(products, gram, fresh) < self.objective(products, gram, codes)
        codes[better] = fresh[better]

    def _pursued(self, products: Tensor, gram: Tensor, sweeps: int) -> Tensor:
        found = pursue(products, gram, self.cost.to(products))
        super().improve(products, gram, found, sweeps)
        return found

    def solved(self, products: Tensor, gram: Tensor, tol: float) -> Tensor:
        """The best of all supports of few entries; of more, one that no change of up to two makes better."""
        products, gram = products.double(), gram.double()
        cost = self.cost.to(products)
        if products.shape[1] <= FEW:
            every = every_support(products, products.shape[1])
            best = (support_scores(products, gram).fit - every @ cost).argmax(-1)
            return given_support(products, gram, every[best])[0]
        return best_supports(products, gram, cost, pursue(products, gram, cost))

    def laws(self, products: Tensor, gram: Tensor) -> tuple[Tensor, ...]:
        """Of few entries those of `SupportMixture`, the posterior itself; else `mean_field`, with heavier tails."""
        log_odds, k = self.log_odds.to(products), products.shape[1]
        if k > FEW:
            start = self.solved(products, gram, 0.0).to(products)
            probability, loc, scale = mean_field(products, gram, log_odds, start)
            return torch.lerp(probability, 1 - probability, DOUBT / k), loc, WIDER * scale
        found = support_scores(products, gram)
        weights = found.fit - found.volume + every_support(products, k) @ log_odds
        return weights, products, gram.expand(len(products), -1, -1)


def pursue(products: Tensor, gram: Tensor, cost: Tensor) -> Tensor:
    """Codes from zero by matching pursuit: of every row the entry moves whose best place gains most, and so on.

    Args:
        products: c, of every row with the columns, shape (n, k).
        gram: G, shape (k, k), or one for every row, shape (n, k, k).
        cost: What an entry that is not zero costs, nats, shape (k,).
    """
    codes = torch.zeros_like(products)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    for rows in products.isfinite().all(-1).nonzero()[:, 0].split(max(1, ENTRIES // products.shape[1])):
        own = diagonal[rows] if gram.dim() == 3 else diagonal
        code, slope, number = codes[rows], products[rows], torch.arange(len(rows), device=rows.device)
        for _ in range(2 * products.shape[1]):
            level = slope + own * code
            best = level / (own + 1)
            best = torch.where(0.5 * best * level > cost, best, 0.0)
            before, after = (place * (0.5 * (own + 1) * place - level) + cost * (place != 0) for place in (code, best))
            gain, which = (before - after).max(-1)
            step = torch.where(gain > TELLING, (best - code)[number, which], 0.0)
            if not bool(step.any()):
                break
            code[number, which] += step
            slope = slope - step.unsqueeze(-1) * (gram[which] if gram.dim() == 2 else gram[rows, which])
        codes[rows] = code
    return codes


def best_supports(products: Tensor, gram: Tensor, cost: Tensor, codes: Tensor) -> Tensor:
    """Codes that no entry that comes, goes or takes the place of another makes better, the rest being best for it.

    Args:
        products: c, of every row with the columns, shape (n, k).
        gram: G, shape (k, k), or one for every row, shape (n, k, k).
        cost: What an entry that is not zero costs, nats, shape (k,).
        codes: Where to start, shape (n, k); only which entries are zero matters.
    """
    found, support = torch.full_like(codes, torch.nan), codes != 0
    left = products.isfinite().all(-1).nonzero()[:, 0]
    k = products.shape[1]
    for _ in range(MOST * k):
        if not len(left):
            break
        counts = support[left].sum(-1)
        left = left[counts.argsort()]
        at_once = max(1, ENTRIES // (k * max(1, int(counts.max()))))
        left = torch.cat([_changed(products, gram, cost, found, support, rows) for rows in left.split(at_once)])
    return found


def _changed(products: Tensor, gram: Tensor, cost: Tensor, found: Tensor, support: Tensor, rows: Tensor) -> Tensor:
    """Put down the codes of some rows' supports, then change these in the best way; returns rows that were changed."""
    product, inside = products[rows], support[rows]
    counts = inside.sum(-1)
    k, width = product.shape[1], max(1, int(counts.max()))
    chosen = inside.to(product).topk(width, -1).indices
    real = (torch.arange(width, device=rows.device) < counts.unsqueeze(-1)).to(product)
    columns = gram[chosen] if gram.dim() == 2 else gram[rows.unsqueeze(-1), chosen]
    columns = columns * real.unsqueeze(-1)
    inner = columns.gather(-1, chosen.unsqueeze(-2).expand(-1, width, -1)) * real.unsqueeze(-2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(inner + torch.eye(width).to(inner)))
    ridge = (inverse @ (product.gather(-1, chosen) * real).unsqueeze(-1)).squeeze(-1)
    found[rows] = torch.zeros_like(product).scatter_add(-1, chosen, ridge)
    # what is left of products and of squares when the support has explained its part
    across = inverse @ columns
    rest = product - (ridge.unsqueeze(-2) @ columns).squeeze(-2)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    square = (diagonal[rows] if gram.dim() == 3 else diagonal) + 1 - (columns * across).sum(-2)
    own, saved = inverse.diagonal(dim1=-2, dim2=-1), cost[chosen]
    comes = (0.5 * rest.square() / square - cost).masked_fill(inside, -torch.inf)
    goes = (saved - 0.5 * ridge.square() / own).masked_fill(real == 0, -torch.inf)
    a, b, p, q = ridge.unsqueeze(-1), rest.unsqueeze(-2), own.unsqueeze(-1), square.unsqueeze(-2)
    swap = 0.5 * (b.square() * p + 2 * a * b * across - a.square() * q) / (p * q + across.square())
    swap = swap + saved.unsqueeze(-1) - cost
    swap = swap.masked_fill((real == 0).unsqueeze(-1) | inside.unsqueeze(-2), -torch.inf)
    gain, way = torch.cat([comes, goes, swap.flatten(1)], -1).max(-1)
    better = gain > SLACK
    rows, way, chosen = rows[better], way[better], chosen[better]
    pair = way - k - width
    enters = torch.where(way < k, way, torch.where(pair >= 0, pair % k, -1))
    leaves = torch.where(way < k, -1, torch.where(pair >= 0, pair // k, way - k))
    number = torch.arange(len(rows), device=rows.device)
    support[rows[enters >= 0], enters[enters >= 0]] = True
    support[rows[leaves >= 0], chosen[number, leaves.clamp_min(0)][leaves >= 0]] = False
    return rows


def mean_field(products: Tensor, gram: Tensor, log_odds: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities that entries are not zero, and means and standard deviations where they are not, (n, k) each.

    Args:
        products: c, of every row with the columns, shape (n, k).
        gram: G, shape (k, k), or one for every row, shape (n, k, k).
        log_odds: Of entries that are not zero in the prior, shape (k,).
        codes: Where to start.
    """
    odds = log_odds.tolist()

    def expected(level: Tensor, curvature: Tensor | float, code: Tensor, j: int) -> Tensor:
        precision = curvature + 1
        logit = odds[j] - 0.5 * torch.as_tensor(precision).log().to(level) + 0.5 * level.square() / precision
        return logit.sigmoid() * level / precision

    field = codes.mT.contiguous()
    descend(products.mT.contiguous(), gram, expected, field, ROUNDS)
    own = gram.diagonal(dim1=-2, dim2=-1)
    level = products - times(field.mT, gram) + own * field.mT
    precision = (own + 1).expand_as(level)
    logit = log_odds - 0.5 * precision.log() + 0.5 * level.square() / precision
    return logit.sigmoid(), level / precision, precision.rsqrt()
