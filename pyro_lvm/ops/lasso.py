r"""The lasso for many rows and one dictionary: sparse codes.

.. math:: h_n = \arg\min_h \tfrac12 \|x_n - W h\|^2 + \alpha \|h\|_1

With the products :math:`c_n = W^\top x_n` and :math:`G = W^\top W` the rows themselves are not needed any more. A code
is the minimum if and only if its slopes :math:`g = c - G h` are :math:`\alpha\,\mathrm{sign}(h_j)` where it is not
zero, and at most :math:`\alpha` in size where it is. Coordinate descent takes all rows at once, a few sweeps a round.
Where a round leaves the signs of a code as they were, the best code with these signs is found by solving for its few
entries, and the code moves towards it until an entry becomes zero; rows that meet the conditions leave.

References:
    J. Friedman, T. Hastie, R. Tibshirani (2010), Regularization paths for generalized linear models via coordinate
        descent, Journal of Statistical Software 33.
    H. Lee, A. Battle, R. Raina, A. Ng (2007), Efficient sparse coding algorithms, NeurIPS, section 3.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pyro_lvm.ops.coordinate_descent import Shrink, descend, times
from pyro_lvm.ops.plain_error import PlainError

__all__ = ["lasso", "soft", "violation"]

ROWS = 2048  # at once: their codes stay in the cache
SWEEPS = 4  # of coordinate descent between two looks at the conditions
EARLY = 4  # rounds on rows as they come; those that are left then go together
ENTRIES = 2**23  # of the products of columns at once, where every row has its own


def violation(
    products: Float[Tensor, "n k"], gram: Float[Tensor, "*n k k"], penalty: float, codes: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    r"""How far codes are from the lasso's conditions, in units of its penalty: 0 at the minimum.

    Args:
        products: c, of every row with the columns of W.
        gram: G, of the columns with each other; or one for every row, shape (n, k, k).
        penalty: :math:`\alpha`.
        codes: h.

    Example:
        >>> import torch
        >>> violation(torch.tensor([[3.0, 0.5]]), torch.eye(2), 1.0, torch.tensor([[2.0, 0.0]]))
        tensor([0.])
    """
    slopes = products - times(codes, gram)
    beyond = torch.where(codes == 0, slopes.abs() - penalty, (slopes - penalty * codes.sign()).abs())
    return beyond.clamp_min(0).amax(-1) / penalty


def lasso(
    products: Float[Tensor, "n k"],
    gram: Float[Tensor, "*n k k"],
    penalty: float,
    start: Float[Tensor, "n k"] | None = None,
    *,
    tol: float = 1e-6,
    max_rounds: int = 2000,
) -> Float[Tensor, "n k"]:
    """The codes of rows.

    Args:
        products: c, of every row with the columns of W.
        gram: G, of the columns with each other; or one for every row, shape (n, k, k).
        penalty: The factor of the sum of sizes, > 0.
        start: Codes to start from; zeros by default.
        tol: Largest `violation` that is left, in double precision; in single precision what its rounding permits.
        max_rounds: Rounds of four sweeps of coordinate descent, after which a row is left where it is.

    Raises:
        ValueError: The penalty is not positive.

    Example:
        >>> import torch
        >>> lasso(torch.tensor([[3.0, 0.5]]), torch.eye(2), 1.0)
        tensor([[2., 0.]])
    """
    if not penalty > 0:
        raise PlainError(f"lasso: expected a positive penalty; got {penalty}. Raise it.")
    codes = torch.zeros_like(products) if start is None else start.clone()
    finite = products.isfinite().all(-1)
    codes[~finite] = torch.nan
    left = finite.nonzero()[:, 0]
    size = float(products[left].abs().amax()) if len(left) else 0.0
    tol = max(tol, 20 * torch.finfo(products.dtype).eps * max(1.0, size / penalty))
    at_once = ROWS if gram.dim() == 2 else max(1, ENTRIES // gram[0].numel())
    for rounds in (EARLY, max_rounds):
        parts = [_rounds(products, gram, penalty, codes, part, tol, rounds) for part in left.split(at_once)]
        left = torch.cat(parts) if parts else left
    return codes


def soft(penalty: float) -> Shrink:
    """Where an entry is best with the others held: the step of coordinate descent.

    Args:
        penalty: The factor of the sum of sizes, > 0.
    """

    def shrink(level: Tensor, curvature: Tensor | float, code: Tensor, j: int) -> Tensor:
        return torch.nn.functional.softshrink(level, penalty).div_(curvature)

    return shrink


def _rounds(
    products: Tensor, gram: Tensor, penalty: float, codes: Tensor, rows: Tensor, tol: float, rounds: int
) -> Tensor:
    """Move the codes of some rows until they meet the conditions; returns those rows that never do."""
    each = gram.dim() == 3
    target, code = products[rows].mT.contiguous(), codes[rows].mT.contiguous()
    gram = gram[rows] if each else gram
    for _ in range(rounds):
        if not len(rows):
            return rows
        before = code.sign()
        descend(target, gram, soft(penalty), code, SWEEPS)
        same = (code.sign() == before).all(0).nonzero()[:, 0]
        of_these = gram[same] if each else gram
        exact = _with_signs(target[:, same].mT, of_these, penalty, code[:, same].mT)
        code[:, same] = exact.mT
        fits = violation(target[:, same].mT, of_these, penalty, exact) <= tol
        codes[rows[same[fits]]] = exact[fits]
        stays = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        stays[same[fits]] = False
        rows, target, code = rows[stays], target[:, stays].contiguous(), code[:, stays].contiguous()
        gram = gram[stays] if each else gram
    codes[rows] = code.mT
    return rows


def _with_signs(products: Tensor, gram: Tensor, penalty: float, codes: Tensor) -> Tensor:
    """Codes moved towards the best ones with these signs, until an entry becomes zero or they are there.

    A trace of the old code keeps it determined where columns depend on each other; the objective never rises. Rows
    with nearly as many entries go together.
    """
    trace = 100 * torch.finfo(codes.dtype).eps
    counts = (codes != 0).sum(-1)
    found = codes.clone()
    for rows in counts.argsort().split(max(1, len(counts) // 4)):
        width = int(counts[rows].max()) if len(rows) else 0
        if not width:
            continue
        chosen = codes[rows].abs().topk(width, -1).indices
        real = torch.arange(width, device=rows.device) < counts[rows].unsqueeze(-1)
        across, down = chosen.unsqueeze(-1), chosen.unsqueeze(-2)
        inner = gram[across, down] if gram.dim() == 2 else gram[rows[:, None, None], across, down]
        inner = inner.masked_fill(~(real.unsqueeze(-1) & real.unsqueeze(-2)), 0.0)
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        diagonal.mul_(1 + trace).masked_fill_(~real, 1.0)
        old = codes[rows].gather(-1, chosen)
        level = products[rows].gather(-1, chosen) - penalty * old.sign() + trace * diagonal * old
        level = level.masked_fill(~real, 0.0)
        factor, failed = torch.linalg.cholesky_ex(inner)
        solved = torch.cholesky_solve(level.unsqueeze(-1), factor).squeeze(-1)
        solved = torch.where((failed == 0).unsqueeze(-1) & solved.isfinite().all(-1, keepdim=True), solved, old)
        crosses = solved * old < 0
        part = torch.where(crosses, old / (old - solved), 1.0)
        first = part.amin(-1, keepdim=True)
        solved = torch.where(crosses & (part <= first), 0.0, torch.where(first < 1, old.lerp(solved, first), solved))
        found[rows] = found[rows].scatter(-1, chosen, solved)
    return found
