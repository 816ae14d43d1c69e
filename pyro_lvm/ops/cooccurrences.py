"""Tables over pairs of words that are sparse: memory and time go with the pairs that occur, not with all there are."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Cooccurrences"]


class Cooccurrences(torch.nn.Module):
    """Which columns of a table occur in which of its rows; a value for each of them, and one for a row's other columns.

    The values of a table are one vector: first those of the P pairs that occur, in the order of `keys`; then, for each
    row, what all columns that do not occur in it have together, in equal shares.

    Args:
        keys: Pairs as row times C plus column, ascending, each once, shape (P,).
        num_rows: Number of rows R.
        num_columns: Number of columns C.

    Example:
        >>> import torch
        >>> pairs = Cooccurrences(torch.tensor([0, 2, 3]), num_rows=2, num_columns=3)
        >>> pairs.find(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2]))
        tensor([1, 2, 4])
        >>> pairs.normalise(torch.tensor([3.0, 1.0, 5.0, 0.0, 0.0]))
        tensor([0.7500, 0.2500, 1.0000, 0.0000, 0.0000])
    """

    keys: Tensor

    def __init__(self, keys: Int[Tensor, " pairs"], num_rows: int, num_columns: int) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.num_columns = num_columns
        self.register_buffer("keys", keys)
        self._derived: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def num_values(self) -> int:
        """Length of a table's vector, P + R."""
        return len(self.keys) + self.num_rows

    @property
    def row_of_value(self) -> Int[Tensor, " values"]:
        """The row that each value of a table stands in."""
        return self._shape()[0]

    @property
    def shares(self) -> Float[Tensor, " values"]:
        """How many columns share each value: 1 for a pair that occurs, float64."""
        return self._shape()[1]

    def find(self, rows: Int[Tensor, "..."], columns: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Where in a table's vector the values of pairs stand; the two arguments are broadcast."""
        keys = rows * self.num_columns + columns
        if not len(self.keys):
            return rows.expand(keys.shape).contiguous()
        place = torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)
        return torch.where(self.keys[place] == keys, place, len(self.keys) + rows)

    def sum_rows(self, values: Float[Tensor, " values"]) -> Float[Tensor, " rows"]:
        """The sum of each row."""
        return values.new_zeros(self.num_rows).index_add(0, self.row_of_value, values)

    def normalise(self, values: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
        """Values divided by the sums of their rows; a row of zeros becomes uniform over all columns."""
        total = self.sum_rows(values)[self.row_of_value]
        uniform = self.shares.to(values) / self.num_columns
        return torch.where(total > 0, values / torch.where(total > 0, total, 1.0), uniform)

    def sample(self, values: Float[Tensor, " values"], rows: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Draw a column for each of the rows in proportion to the values, with torch's generator."""
        order = torch.argsort(self.row_of_value, stable=True)
        ends = values.double()[order].cumsum(0)
        total = self.sum_rows(values.double())
        below = total.cumsum(0) - total
        flat = rows.reshape(-1)
        point = below[flat] + torch.rand(len(flat), dtype=torch.float64, device=values.device) * total[flat]
        place = order[torch.searchsorted(ends, point, right=True).clamp_max(len(order) - 1)]
        drawn = self.keys[place.clamp_max(len(self.keys) - 1)] % self.num_columns if len(self.keys) else place
        rest = place >= len(self.keys)
        drawn[rest] = self._draw_other(flat[rest])
        return drawn.reshape(rows.shape)

    def _draw_other(self, rows: Tensor) -> Tensor:
        """A column that does not occur in its row, all equally likely: by rejection, then by counting."""
        drawn = torch.randint(self.num_columns, rows.shape, device=rows.device)
        for _ in range(20):
            taken = self.find(rows, drawn) < len(self.keys)
            drawn[taken] = torch.randint(self.num_columns, (int(taken.sum()),), device=rows.device)
        for i in (self.find(rows, drawn) < len(self.keys)).nonzero().flatten().tolist():
            every = torch.arange(self.num_columns, device=rows.device)
            free = every[self.find(rows[i].expand_as(every), every) >= len(self.keys)]
            drawn[i] = free[torch.randint(len(free), (), device=rows.device)]
        return drawn

    def _shape(self) -> tuple[Tensor, Tensor]:
        """Row and number of columns of every value, found once for these keys."""
        keys = self.keys.detach()  # loading a checkpoint puts other data into the same buffer
        known = self._derived
        if known is None or known[2].data_ptr() != keys.data_ptr() or len(known[2]) != len(keys):
            rows = keys // self.num_columns
            every = torch.arange(self.num_rows, device=keys.device)
            seen = torch.bincount(rows, minlength=self.num_rows)
            ones = torch.ones(len(keys), dtype=torch.float64, device=keys.device)
            known = torch.cat([rows, every]), torch.cat([ones, (self.num_columns - seen).double()]), keys
            self._derived = known
        return known[:2]
