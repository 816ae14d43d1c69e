r"""Restricted Boltzmann machines over zeros and ones, their hidden units summed out.

.. math::

    -E(v, h) = (v - \mu)^\top b + (h - \lambda)^\top c + (v - \mu)^\top W (h - \lambda), \qquad
    F(v) = -\log \sum_h e^{-E(v, h)}

With the offsets :math:`\mu = \lambda = 0` this is the usual form. Offsets change the coordinates, not the family of
laws: with offsets near the means of the units, gradients of weights and biases hardly interfere.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from pyro_lvm.distributions.energy import EXACT_UNITS, EnergyDistribution, balanced_factors, give_gradients
from pyro_lvm.ops.zeros_and_ones import zeros_and_ones

__all__ = ["RBM"]

# Numbers in one block of states times units.
BLOCK = 1 << 22


class RBM(EnergyDistribution):
    r"""Restricted Boltzmann machine with Bernoulli visible and hidden units.

    ====================  ==================================  ============  ===================
    symbol                meaning                             shape         code
    ====================  ==================================  ============  ===================
    :math:`W`             interactions                        (d, m)        `weight`
    :math:`b`             visible field at h = lambda         batch + (d,)  `visible_bias`
    :math:`c`             hidden field at v = mu              batch + (m,)  `hidden_bias`
    :math:`\mu`           visible offset                      (d,)          `visible_offset`
    :math:`\lambda`       hidden offset                       (m,)          `hidden_offset`
    ====================  ==================================  ============  ===================

    The normalizer is summed up if either side has at most 20 units. The path for annealed importance sampling goes
    from independent visible units with log-odds `base_visible_bias`, along
    :math:`(\beta W, (1 - \beta) b_0 + \beta b, \beta c)`.

    Args:
        weight: Interactions.
        visible_bias: Visible biases.
        hidden_bias: Hidden biases.
        visible_offset: Visible offset, or one number for all.
        hidden_offset: Hidden offset, or one number for all; None for what the hidden units are at the visible offset,
            :math:`\lambda = 1 / (1 + e^{-c})`, through which gradients flow.
        base_visible_bias: Log-odds of the path's start; by default `visible_bias`.
        log_normalizer: As in `EnergyDistribution`.
        sample_steps: As in `EnergyDistribution`.
        validate_args: Check arguments and values.

    Raises:
        ValueError: Shapes do not fit.

    Attributes:
        summed_out: What latent variables the law sums out, in a word; predictions go by it.
        latent: What they are called among draws from their posterior.

    References:
        P. Smolensky (1986), Information processing in dynamical systems: foundations of harmony theory.
        G. Montavon, K.-R. Müller (2012), Deep Boltzmann machines and the centering trick, equation 5.
        R. Salakhutdinov, I. Murray (2008), On the quantitative analysis of deep belief networks, section 4.1.

    Example:
        >>> import torch
        >>> from pyro_lvm.distributions import RBM
        >>> law = RBM(torch.zeros(3, 2), torch.zeros(3), torch.zeros(2))
        >>> law.log_prob(torch.tensor([1.0, 0.0, 1.0])).exp()
        tensor(0.1250)
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "weight": constraints.independent(constraints.real, 2),
        "visible_bias": constraints.real_vector,
        "hidden_bias": constraints.real_vector,
    }
    support = constraints.independent(constraints.boolean, 1)
    summed_out, latent = "hidden units", "h"

    def __init__(
        self,
        weight: Float[Tensor, "d m"],
        visible_bias: Float[Tensor, "*batch d"],
        hidden_bias: Float[Tensor, "*batch m"],
        *,
        visible_offset: Tensor | float = 0.0,
        hidden_offset: Tensor | float | None = 0.0,
        base_visible_bias: Tensor | None = None,
        log_normalizer: Tensor | float | None = None,
        sample_steps: int = 1000,
        validate_args: bool | None = None,
    ) -> None:
        expected = (*visible_bias.shape[-1:], *hidden_bias.shape[-1:])
        if weight.dim() != 2 or tuple(weight.shape) != expected:
            raise ValueError(
                f"{type(self).__name__}: expected weight of shape (num_visible, num_hidden), that of the biases "
                f"{expected}; got {tuple(weight.shape)}. Transpose it, or check the biases."
            )
        self.weight, self.visible_bias, self.hidden_bias = weight, visible_bias, hidden_bias
        self.visible_offset = torch.as_tensor(visible_offset).to(weight)
        self._hidden_offset = None if hidden_offset is None else torch.as_tensor(hidden_offset).to(weight)
        self.base_visible_bias = visible_bias if base_visible_bias is None else base_visible_bias
        batch = visible_bias.shape[:-1]
        if batch != hidden_bias.shape[:-1]:
            batch = torch.broadcast_shapes(batch, hidden_bias.shape[:-1])
        super().__init__(
            batch,
            visible_bias.shape[-1:],
            log_normalizer=log_normalizer,
            sample_steps=sample_steps,
            validate_args=validate_args,
        )

    @property
    def hidden_offset(self) -> Tensor:
        """The hidden offset; it may follow the hidden bias."""
        return self.hidden_bias.sigmoid() if self._hidden_offset is None else self._hidden_offset

    def free_energy(self, value: Tensor) -> Tensor:
        """Minus the logarithm of the unnormalised density, nats, the shape of the batch."""
        return self._visible_energy(value, self.visible_bias) - self._summed_out(self.hidden_logits(value))

    def hidden_logits(self, value: Tensor) -> Tensor:
        """Log-odds of the hidden units given visible ones, batch + (m,)."""
        return _affine(self.hidden_bias, self._sufficient(value), self.weight)

    def hidden_probs(self, value: Tensor) -> Tensor:
        """Probabilities of the hidden units given visible ones, batch + (m,)."""
        return self.hidden_logits(value).sigmoid()

    def visible_field(self, hidden: Tensor) -> Tensor:
        """What the visible units' law depends on given hidden ones, batch + (d,): here their log-odds."""
        return _affine(self.visible_bias, hidden - self.hidden_offset, self.weight.mT)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """Means of the visible units given hidden ones, batch + (d,)."""
        return self.visible_field(hidden).sigmoid()

    def posterior(self, value: Tensor) -> Tensor:
        """Probabilities that each hidden unit is 0 and 1 given visible ones, batch + (m, 2)."""
        probs = self.hidden_probs(value)
        return torch.stack([1 - probs, probs], -1)

    def most_probable(self, value: Tensor) -> Tensor:
        """The most probable states of the hidden units given visible ones, jointly and each by itself, batch + (m,)."""
        return (self.hidden_logits(value) > 0).long()

    def posterior_sample(self, value: Tensor, count: int) -> Tensor:
        """States of the hidden units drawn given visible ones, (count,) + batch + (m,)."""
        with torch.no_grad():
            logits = self.hidden_logits(value)
            return _bernoulli(logits.expand(count, *logits.shape))

    def gibbs(self, value: Tensor, num_steps: int = 1) -> Tensor:
        """Values after sampling all hidden, then all visible units, `num_steps` times."""
        with torch.no_grad():
            for _ in range(num_steps):
                value = self._sample_visible(self.visible_field(_bernoulli(self.hidden_logits(value))))
        return value

    def chain_start(self, value: Tensor) -> Tensor:
        """Hidden units drawn given values: what chains keep."""
        with torch.no_grad():
            return _bernoulli(self.hidden_logits(value))

    def chain_steps(self, state: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Move chains; their state is the hidden units, so that the last visible ones are fit to be learned from."""
        with torch.no_grad():
            for _ in range(num_steps):
                value = self._sample_visible(self.visible_field(state))
                state = _bernoulli(self.hidden_logits(value))
        return value, state

    def contrast(self, rows: Tensor, state: Tensor | None, num_steps: int, scale: float) -> tuple[Tensor, Tensor]:
        r"""As in `EnergyDistribution`, by one matrix product for the fields of rows and chains and one for the weight.

        With :math:`u = v - \mu`, :math:`f = c + u W` and a factor :math:`a` for each row or chain, the gradients of
        :math:`\sum a F` by :math:`b, f, \lambda` are :math:`-\sum a u`, :math:`a (\lambda - \mathrm{sigmoid}(f))` and
        :math:`\sum a f`.
        """
        with torch.no_grad():
            state = self.chain_start(rows) if state is None else state
            if num_steps > 1:
                _, state = self.chain_steps(state, num_steps - 1)
            values = self._sample_visible(self.visible_field(state))
            seen = rows.new_empty(len(rows) + len(values), rows.shape[1])
            for part, into in ((rows, seen[: len(rows)]), (values, seen[len(rows) :])):
                torch.sub(part, self.visible_offset, out=into)
            factor = balanced_factors(len(rows), len(values), scale, seen.dtype, seen.device)
            field = torch.addmm(self.hidden_bias, seen, self.weight)
            probs = field.sigmoid()
            state = zeros_and_ones(probs[len(rows) :])
            offset = self.hidden_offset
            of_visible, of_offset = -(factor @ seen), factor @ field
            loss = of_visible @ self.visible_bias + (of_offset * offset - factor @ softplus(field)).sum()
            signal = (offset - probs).mul_(factor.unsqueeze(-1))
            of_hidden = signal.sum(0)
            if self._hidden_offset is None:
                of_hidden += of_offset * offset * (1 - offset)
            gradients = [
                (self.weight, seen.mT @ signal),
                (self.visible_bias, of_visible),
                (self.hidden_bias, of_hidden),
            ]
            if self._hidden_offset is not None:
                gradients.append((offset, of_offset if offset.dim() else of_offset.sum()))
        give_gradients(gradients)
        return loss, state

    # Summation

    @property
    def is_small(self) -> bool:
        """Whether one side has few enough units for all of its states to be summed over."""
        return min(self._enumerable_sizes()) <= EXACT_UNITS

    def _enumerable_sizes(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def exact_log_normalizer(self) -> Tensor:
        """The log-normalizer by summation over the smaller side, nats; differentiable."""
        if not self.is_small:
            return super().exact_log_normalizer()
        return torch.cat(list(self._tables()), -1).logsumexp(-1)

    def _tables(self) -> Any:
        """Log-weights of all states of the smaller side, in blocks, each batch + (states,)."""
        by_hidden = self.weight.shape[-1] <= min(self._enumerable_sizes())
        count = self.weight.shape[-1 if by_hidden else 0]
        size = max(1, BLOCK // self.weight.shape[0 if by_hidden else 1])
        for block in torch.arange(2**count, device=self.weight.device).split(size):
            states = _bits(block, count).to(self.weight)
            yield self._log_weight_of_hidden(states) if by_hidden else -self._batch_free_energy(states)

    def _log_weight_of_hidden(self, hidden: Tensor) -> Tensor:
        """Logarithm of the sum over visible units, of every one of some hidden states (s, m): batch + (s,)."""
        visible = _affine(self.visible_bias.unsqueeze(-2), hidden - self.hidden_offset, self.weight.mT)
        return self._visible_log_sum(visible) + (self.hidden_bias.unsqueeze(-2) * (hidden - self.hidden_offset)).sum(-1)

    def _batch_free_energy(self, values: Tensor) -> Tensor:
        field = _affine(self.hidden_bias.unsqueeze(-2), self._sufficient(values), self.weight)
        return self._visible_energy(values, self.visible_bias.unsqueeze(-2)) - self._summed_out(field)

    def _exact_sample(self, shape: torch.Size) -> Tensor:
        table = torch.cat(list(self._tables()), -1)
        flat = table.expand(self.batch_shape + table.shape[-1:]) if table.dim() > 1 else table
        by_hidden = self.weight.shape[-1] <= min(self._enumerable_sizes())
        draws = torch.distributions.Categorical(logits=flat, validate_args=False)
        index = draws.sample(shape[: len(shape) - len(draws.batch_shape)])
        states = _bits(index, self.weight.shape[-1 if by_hidden else 0]).to(self.weight)
        return self._sample_visible(self.visible_field(states)) if by_hidden else states

    # The path of annealed importance sampling

    def annealed(self, inverse_temperature: float) -> RBM:
        """The machine with weights and hidden biases scaled down, and the visible bias on its way from the base."""
        beta = inverse_temperature
        return RBM(
            beta * self.weight,
            self._path_bias(beta),
            beta * self.hidden_bias,
            visible_offset=self.visible_offset,
            hidden_offset=self.hidden_offset,
            base_visible_bias=self.base_visible_bias,
            sample_steps=self.sample_steps,
            validate_args=False,
        )

    def for_annealing(self) -> EnergyDistribution:
        """The machine upside down if it has more hidden than visible units: chains of many units hardly get stuck."""
        if self.weight.shape[0] >= self.weight.shape[1]:
            return self
        return RBM(
            self.weight.mT.contiguous(),
            self.hidden_bias,
            self.visible_bias,
            visible_offset=self.hidden_offset,
            hidden_offset=self.visible_offset,
        )

    def _path_bias(self, beta: float) -> Tensor:
        return (1 - beta) * self.base_visible_bias + beta * self.visible_bias

    def base_log_normalizer(self) -> Tensor:
        """The log-normalizer of independent units, nats."""
        half = torch.full_like(self.hidden_bias, 2.0).log().sum(-1)
        return self._visible_log_sum(self.base_visible_bias) + half

    def base_sample(self, count: int) -> Tensor:
        """Independent draws of independent units, shape (count,) + (d,)."""
        with torch.no_grad():
            shape = (count, *self.base_visible_bias.shape)
            return self._sample_visible(self.base_visible_bias.expand(shape))

    def annealed_step(self, value: Tensor, beta: float, next_beta: float) -> tuple[Tensor, Tensor]:
        """One step of annealed importance sampling with two matrix products."""
        with torch.no_grad():
            field = self.hidden_logits(value)
            before, after = self._path_bias(beta), self._path_bias(next_beta)
            hidden = _bernoulli(next_beta * field)
            increment = self._visible_energy(value, before) - self._visible_energy(value, after)
            increment = increment + self._summed_out(next_beta * field) - self._summed_out(beta * field)
            interaction = (hidden - self.hidden_offset) @ self.weight.mT
            return self._sample_visible(after + next_beta * interaction), increment

    # What the kind of visible units decides

    def _sufficient(self, value: Tensor) -> Tensor:
        """What the hidden units see of visible ones."""
        return value - self.visible_offset

    def _visible_energy(self, value: Tensor, bias: Tensor) -> Tensor:
        """The energy of visible units alone, nats."""
        return -_inner(value - self.visible_offset, bias)

    def _visible_log_sum(self, field: Tensor) -> Tensor:
        """Logarithm of the sum over visible units under a field, nats."""
        return (softplus(field) - self.visible_offset * field).sum(-1)

    def _sample_visible(self, field: Tensor) -> Tensor:
        return _bernoulli(field)

    def _summed_out(self, field: Tensor) -> Tensor:
        """Logarithm of the sum over hidden units under a field, nats."""
        return softplus(field).sum(-1) - _inner(field, self.hidden_offset)


def _inner(values: Tensor, vector: Tensor) -> Tensor:
    """Sums over the last axis of products, by one matrix product where a vector is one for all rows."""
    return values @ vector if vector.dim() == 1 and values.dim() > 1 else (values * vector).sum(-1)


def _affine(bias: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    if value.dim() == 2 and bias.dim() == 1:
        return torch.addmm(bias, value, weight)
    return bias + value @ weight


def _bernoulli(logits: Tensor) -> Tensor:
    """Zeros and ones of the type of their log-odds."""
    return zeros_and_ones(logits.sigmoid())


def _bits(index: Tensor, count: int) -> Tensor:
    """Binary digits of integers, (...) to (..., count)."""
    return index.unsqueeze(-1) >> torch.arange(count, device=index.device) & 1
