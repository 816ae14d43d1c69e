r"""The mode of the posterior of codes with a sparse prior: point masses.

.. math::

    h_{nj} \sim p(m_j, s_j), \quad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, R)
    \quad\Rightarrow\quad
    \hat h_n = \arg\max_h \log p(x_n, h)

With :math:`u_j = (h_j - m_j) / s_j` it is that of rows and columns in units of the noise and of the prior. Of Laplace's
prior it is the lasso with penalty 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.distributions.spike_and_slab import SpikeAndSlab
from pyro_lvm.distributions.support_mixture import SupportMixture
from pyro_lvm.handlers.affine_sites import AffineSites
from pyro_lvm.handlers.rows import rows, rows_at_hand
from pyro_lvm.ops.code_prior import CodePrior
from pyro_lvm.ops.laplace_codes import LaplaceCodes
from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.spike_and_slab_codes import FEW, SpikeAndSlabCodes
from pyro_lvm.ops.student_t_codes import StudentTCodes
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["SparseCodes"]

DEGREES = 5.0  # of freedom of t laws: tails are heavier than those of codes
MOST_ENTRIES = 64
AT_ONCE = 2048  # rows whose codes are moved together: they stay in the cache
ENTRIES = 2**23  # of the products of columns of rows with gaps that are held at once

Law = Callable[[Any], Any]
"""From the numbers of rows to the joint law of their codes."""


class SparseCodes(torch.nn.Module):
    r"""Point masses at the mode of the codes of every row, of any program of rows affine in sites with sparse priors.

    The law of the latent sites is one of three. Of Laplace's, many entries of codes are exactly zero, and the mode is
    the lasso's; of `SpikeAndSlab` about zero, too, and the mode is the best one found by changing up to two entries
    (of all supports, of up to 10 entries); of Student's t none is, and the mode is a local one.

    Every call in training moves the codes of the rows at hand by `num_sweeps` sweeps of coordinate descent from where
    these rows' last visit ended, so that the log joint density never falls. Rows that are not of the training data
    are solved, as are all rows that come without their numbers: what is left of the optimality conditions
    is at most `tol`, in double precision and in units of the prior, of Laplace's of the lasso's penalty. Which sites
    are latent, and the affine map from them to the rows, are found by running the program. Missing entries count
    nothing; a row with gaps takes time as the square of the number of its codes' entries.

    Point masses have no density. For the log-likelihood of rows, samples come instead from a t law around the closest
    normal law of the posterior of codes, or of `SpikeAndSlab` from the posterior itself, of up to 10 entries, or from
    a mean field of its own kind; of up to 64 entries: of more, too few of any number of samples would count. It trains
    by `EM` or `SVI`.

    Args:
        model: A program whose latent sites all have one of these laws and stand in the plate of the rows, and whose
            observed sites there are normal with means affine in them.
        num_sweeps: Sweeps of coordinate descent in every visit to a row, >= 1.
        tol: > 0; for new rows.
        num_rows: Rows of the training data; by default what `handlers.rows` says.

    Raises:
        ValueError: An argument is out of range, or the program is of another kind; says in what.

    References:
        B. Olshausen, D. Field (1996), Emergence of simple-cell receptive field properties by learning a sparse code
            for natural images, Nature 381.

    Example:
        >>> import pyro_lvm as lvm
        >>> x = lvm.datasets.load("iris").x
        >>> model = lvm.models.SparseCoding(6, noise_scale=0.3)
        >>> fit = lvm.fit(model, x, guide="sparse-codes", max_epochs=20, seed=0, progress=False)
        >>> fit.transform(x[:5]).shape
        torch.Size([5, 6])
    """

    strategy = "codes of rows, by coordinate descent towards their mode"

    _model: Callable
    table: Tensor

    def __init__(self, model: Callable, num_sweeps: int = 4, tol: float = 1e-6, num_rows: int | None = None) -> None:
        super().__init__()
        self.__dict__["_model"] = model  # no part of this module: its parameters are not the guide's
        self.num_sweeps = whole_number("SparseCodes", "num_sweeps", num_sweeps)
        self.tol = real_number("SparseCodes", "tol", tol)
        self.num_rows = None if num_rows is None else whole_number("SparseCodes", "num_rows", num_rows)

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments but for the model."""
        return {name: getattr(self, name) for name in ("num_sweeps", "tol", "num_rows")}

    @property
    def row_plate(self) -> str | None:
        """The plate of the rows, once the program was run."""
        found = self.__dict__.get("_sites")
        return None if found is None else found.plate

    def sites(self, args: tuple, kwargs: dict[str, Any]) -> AffineSites:
        """The program's sites, found once."""
        found: AffineSites | None = self.__dict__.get("_sites")
        if found is None:
            laws = {law: prior.arguments for law, (prior, _) in PRIORS.items()}
            found = self.__dict__["_sites"] = AffineSites("SparseCodes", self._model, args, kwargs, laws)
        return found

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Put point masses at the codes.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.

        Returns:
            Values by site.

        Raises:
            ValueError: The rows are of another data set than the guide's.
        """
        sites = self.sites(args, kwargs)
        codes = self._codes(sites, args, kwargs)
        with pyro.plate(sites.plate, len(codes)):
            return _points(sites, codes)

    def settle(self, *args: Any, **kwargs: Any) -> Settled:
        """A guide for these rows alone, found as new ones and not searched for again.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.
        """
        sites = self.sites(args, kwargs)
        with rows():
            return Settled(sites, _points_at(self._codes(sites, args, kwargs)))

    def proposal(self, *args: Any, **kwargs: Any) -> Settled:
        """A guide for these rows alone that has a density, to weight its draws by.

        Args:
            args: The arguments of the model.
            kwargs: Its keyword arguments.

        Raises:
            ValueError: Codes have more than 64 entries.
        """
        sites = self.sites(args, kwargs)
        with torch.no_grad(), poutine.block(hide_types=["sample", "param"]):
            problem = _Problem(sites, args, kwargs)
            entries = problem.products.shape[1]
            if entries > MOST_ENTRIES:
                raise PlainError(
                    f"evidence: expected codes of at most {MOST_ENTRIES} entries, as the log-likelihood is a mean over "
                    f"samples of them; got {entries}. Compare the loss in fit.history, or reconstructions."
                )
            return Settled(sites, problem.laws())

    def _codes(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The codes of the rows at hand, shape (n, k), improved where that is asked for."""
        learning = torch.is_grad_enabled()
        hand = rows_at_hand()
        # a parameter that is read without gradients must not be seen by whoever wants them
        with torch.no_grad(), poutine.block(hide_types=["sample", "param"]):
            problem = _Problem(sites, args, kwargs)
            n, like = len(problem.products), problem.products
            if hand is not None and not hand.search:
                if self.num_rows is not None:
                    self._hold(self.num_rows, like)
                return problem.codes(torch.zeros_like(like))
            index, total = (None, None) if hand is None else (hand.index, hand.total)
            if hand is None and n == self.num_rows:
                index, total = torch.arange(n, device=like.device), n
            if index is None or total is None or len(index) != n:
                return problem.codes(problem.solved(self.tol))
            self._hold(total, like)
            found = self.table[index]
            if learning:
                problem.improve(found, self.num_sweeps)
                self.table[index] = found
            return problem.codes(found)

    def _hold(self, total: int, like: Tensor) -> None:
        """Make room for all rows before the first step."""
        if self.num_rows not in (None, total):
            raise ValueError(
                f"SparseCodes: expected the {self.num_rows} rows whose codes it holds; got a data set of {total}. "
                "Fit them anew."
            )
        if not hasattr(self, "table"):
            self.num_rows = total
            self.register_buffer("table", like.new_zeros(total, like.shape[1]))


class Settled:
    """A guide that has found the laws of codes of given rows: called with these, or with some that `rows` names.

    Args:
        sites: The program's sites.
        law: The joint law of the codes of rows; point masses are put at the sites themselves.
    """

    def __init__(self, sites: AffineSites, law: Law) -> None:
        self.sites, self.law = sites, law

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Put point masses at them, or draw around them."""
        hand = rows_at_hand()
        law = self.law(slice(None) if hand is None or hand.index is None else hand.index)
        with pyro.plate(self.sites.plate, law.batch_shape[0]):
            if isinstance(law, dist.Delta):
                return _points(self.sites, law.v)
            return _points(self.sites, pyro.sample("_joint", law, infer={"is_auxiliary": True}))


class _Problem:
    """Codes of rows under a program, in units of the noise and of the prior.

    Attributes:
        products: Of every row with the columns, shape (n, k).
        prior: Of the codes.
    """

    def __init__(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> None:
        kind, self._laws = PRIORS[sites.latent_law]
        law, rest = sites.law_and_rest(args, kwargs)
        self.prior: Any = kind(*rest)
        x = sites.values(args, kwargs)
        root, self.scale, self.loc = law.noise.sqrt(), law.prior_variance.sqrt().to(x), law.prior_loc.to(x)
        columns = law.weight * law.prior_variance.sqrt() / root.unsqueeze(-1)
        self.columns, self.gram = columns.to(x), (columns.mT @ columns).to(x)
        gaps = x.isnan()
        rest_of_rows = (x - law.mean.to(x)) / root.to(x)
        self.products = torch.where(gaps, 0.0, rest_of_rows) @ self.columns
        self.known = ~gaps
        self.complete = self.known.all(-1)

    def codes(self, found: Tensor) -> Tensor:
        """Solutions as values of the program's sites."""
        return self.loc + self.scale * found

    def solved(self, tol: float) -> Tensor:
        """The solutions, shape (n, k)."""
        found = torch.zeros_like(self.products)
        for which, gram in self._parts(len(found)):
            found[which] = self.prior.solved(self.products[which], gram, tol).to(found)
        return found

    def laws(self) -> Law:
        """Laws close to the posterior of codes, as values of the program's sites."""
        parts = [
            (which, self.prior.laws(self.products[which], gram))
            for which, gram in self._parts(max(1, ENTRIES // self.products.shape[1] ** 2))
        ]
        order = torch.cat([which for which, _ in parts]).argsort()
        numbers = zip(*(found for _, found in parts), strict=True)
        return self._laws(self, *(torch.cat(column)[order] for column in numbers))

    def improve(self, found: Tensor, sweeps: int) -> None:
        """Move solutions closer, in place."""
        for which, gram in self._parts(AT_ONCE):
            part = found[which]
            self.prior.improve(self.products[which], gram, part, sweeps)
            found[which] = part

    def _parts(self, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows, and the products of the columns: one for all complete ones, for others one a row."""
        complete, others = self.complete.nonzero()[:, 0], (~self.complete).nonzero()[:, 0]
        for which in complete.split(at_once) if len(complete) else ():
            yield which, self.gram
        for which in others.split(max(1, ENTRIES // self.columns.numel())) if len(others) else ():
            yield which, (self.columns.mT * self.known[which].unsqueeze(-2)) @ self.columns


def _points(sites: AffineSites, codes: Tensor) -> dict[str, Tensor]:
    """Point masses, inside of the plate of the rows."""
    values = sites.latent_values(codes)
    return {name: pyro.sample(name, dist.Delta(v, event_dim=v.dim() - 1)) for name, v in values.items()}


def _points_at(codes: Tensor) -> Law:
    return lambda which: dist.Delta(codes[which], event_dim=1)


def _around_normal(problem: _Problem, loc: Tensor, scale_tril: Tensor) -> Law:
    """Laws with heavier tails than the closest normal ones."""
    loc, scale_tril = problem.codes(loc), problem.scale.unsqueeze(-1) * scale_tril
    return lambda which: dist.MultivariateStudentT(DEGREES, loc[which], scale_tril[which])


def _of_supports(problem: _Problem, *numbers: Tensor) -> Law:
    """The posterior of few entries; of more, independent laws of entries that are zero with probabilities."""
    scale = problem.scale
    unit = problem.prior.unit.to(scale)
    if len(problem.scale) <= FEW:
        weights, products, gram = numbers
        every = torch.arange(len(weights), device=scale.device)
        return lambda which: SupportMixture(weights, products, gram, scale, unit, every[which])
    probability, loc, spread = numbers
    return lambda which: SpikeAndSlab(probability[which], scale * loc[which], scale * spread[which], unit).to_event(1)


PRIORS: dict[type, tuple[type[CodePrior], Callable[..., Law]]] = {
    dist.Laplace: (LaplaceCodes, _around_normal),
    dist.StudentT: (StudentTCodes, _around_normal),
    SpikeAndSlab: (SpikeAndSlabCodes, _of_supports),
}
"""How codes are found, and laws close to their posterior, by the law of their sites."""
