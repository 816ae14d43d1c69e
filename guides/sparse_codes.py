r"""The mode of the posterior of codes with a Laplace prior: point masses, many entries of which are exactly zero.

.. math::

    h_{nj} \sim \mathrm{Laplace}(m_j, s_j), \quad x_n \mid h_n \sim \mathrm{Normal}(b + W h_n, R)
    \quad\Rightarrow\quad
    \hat h_n = \arg\max_h \log p(x_n, h)

With :math:`u_j = (h_j - m_j) / s_j` it is the lasso of rows and columns in units of the noise, with penalty 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm.handlers.affine_sites import AffineSites
from pyro_lvm.handlers.rows import rows, rows_at_hand
from pyro_lvm.ops.laplace_codes import normal_codes
from pyro_lvm.ops.lasso import descend, lasso
from pyro_lvm.ops.plain_error import PlainError
from pyro_lvm.ops.real_number import real_number
from pyro_lvm.ops.whole_number import whole_number

__all__ = ["SparseCodes"]

DEGREES = 5.0  # of freedom of t laws: tails are heavier than those of codes
MOST_ENTRIES = 64
AT_ONCE = 2048  # rows whose codes are moved together: they stay in the cache
ENTRIES = 2**23  # of the products of columns of rows with gaps that are held at once


class SparseCodes(torch.nn.Module):
    r"""Point masses at the mode of the codes of every row, of any program of rows affine in Laplace sites.

    Every call in training moves the codes of the rows at hand by `num_sweeps` sweeps of coordinate descent from where
    these rows' last visit ended, so that the log joint density never falls. Rows that are not of the training data
    get their exact mode, as do all rows that come without their numbers: what is left of the lasso's optimality
    conditions is at most `tol` of the penalty, in double precision. Which sites are latent, and the affine map from
    them to the rows, are found by running the program. Missing entries count nothing; a row with gaps takes time as
    the square of the number of its codes' entries.

    Point masses have no density. For the log-likelihood of rows, samples come instead from a t law around the closest
    normal law of the posterior of codes, of up to 64 entries: of more, too few of any number of samples would count.
    It trains by `EM` or `SVI`.

    Args:
        model: A program whose latent sites are Laplace and stand in the plate of the rows, and whose observed sites
            there are normal with means affine in them.
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
            found = self.__dict__["_sites"] = AffineSites("SparseCodes", self._model, args, kwargs, dist.Laplace)
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
            return Settled(sites, self._codes(sites, args, kwargs))

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
            problem = _Lassos(sites, args, kwargs)
            entries = problem.products.shape[1]
            if entries > MOST_ENTRIES:
                raise PlainError(
                    f"evidence: expected codes of at most {MOST_ENTRIES} entries, as the log-likelihood is a mean over "
                    f"samples of them; got {entries}. Compare the loss in fit.history, or reconstructions."
                )
            return Settled(sites, *problem.laws())

    def _codes(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """The codes of the rows at hand, shape (n, k), improved where that is asked for."""
        learning = torch.is_grad_enabled()
        hand = rows_at_hand()
        # a parameter that is read without gradients must not be seen by whoever wants them
        with torch.no_grad(), poutine.block(hide_types=["sample", "param"]):
            problem = _Lassos(sites, args, kwargs)
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
        loc: Codes, shape (n, k).
        scale_tril: Of t laws around them, shape (n, k, k); None for points.
    """

    def __init__(self, sites: AffineSites, loc: Tensor, scale_tril: Tensor | None = None) -> None:
        self.sites, self.loc, self.scale_tril = sites, loc, scale_tril

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Put point masses at them, or draw around them."""
        hand = rows_at_hand()
        which = slice(None) if hand is None or hand.index is None else hand.index
        with pyro.plate(self.sites.plate, len(loc := self.loc[which])):
            if self.scale_tril is not None:
                law = dist.MultivariateStudentT(DEGREES, loc, self.scale_tril[which])
                loc = pyro.sample("_joint", law, infer={"is_auxiliary": True})
            return _points(self.sites, loc)


class _Lassos:
    """The lassos of rows under a program, in units of the noise and of the prior: their penalty is 1.

    Attributes:
        products: Of every row with the columns, shape (n, k).
    """

    def __init__(self, sites: AffineSites, args: tuple, kwargs: dict[str, Any]) -> None:
        law, x = sites.law(args, kwargs), sites.values(args, kwargs)
        root, self.scale, self.loc = law.noise.sqrt(), law.prior_variance.sqrt().to(x), law.prior_loc.to(x)
        columns = law.weight * law.prior_variance.sqrt() / root.unsqueeze(-1)
        self.columns, self.gram = columns.to(x), (columns.mT @ columns).to(x)
        gaps = x.isnan()
        rest = (x - law.mean.to(x)) / root.to(x)
        self.products = torch.where(gaps, 0.0, rest) @ self.columns
        self.known = ~gaps
        self.complete = self.known.all(-1)

    def codes(self, found: Tensor) -> Tensor:
        """Solutions as values of the program's sites."""
        return self.loc + self.scale * found

    def solved(self, tol: float) -> Tensor:
        """The solutions, shape (n, k)."""
        found = torch.zeros_like(self.products)
        for which, gram in self._parts(len(found)):
            found[which] = lasso(self.products[which], gram, 1.0, tol=tol)
        return found

    def laws(self) -> tuple[Tensor, Tensor]:
        """Where codes are and the Cholesky factors of how they spread, of the closest normal laws."""
        n, k = self.products.shape
        loc, spread = torch.zeros_like(self.products), self.products.new_zeros(n, k, k)
        for which, gram in self._parts(max(1, ENTRIES // k**2)):
            loc[which], spread[which] = normal_codes(self.products[which], gram)
        return self.codes(loc), self.scale.unsqueeze(-1) * spread

    def improve(self, found: Tensor, sweeps: int) -> None:
        """Move solutions closer, in place."""
        for which, gram in self._parts(AT_ONCE):
            moved = found[which].mT.contiguous()
            descend(self.products[which].mT.contiguous(), gram, 1.0, moved, sweeps)
            found[which] = moved.mT

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
