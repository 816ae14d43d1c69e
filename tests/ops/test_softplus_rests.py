"""Sums of log(1 + exp(f)) against those of single terms."""

import pytest
import torch

from pyro_lvm.ops.softplus_rests import softplus_rests


@pytest.mark.parametrize("width", [1, 7, 32, 48, 256])
def test_sums_are_those_of_single_terms(width):
    fields = torch.randn(20, width, generator=torch.Generator().manual_seed(width), dtype=torch.float64) * 30
    fields[0] = 200.0
    fields[1] = -800.0
    torch.testing.assert_close(
        fields.clamp_min(0).sum(-1) + softplus_rests(fields.sigmoid()),
        torch.logaddexp(fields, torch.zeros(())).sum(-1),
        rtol=1e-12,
        atol=width * 1e-16,
    )
    single = fields.float()
    torch.testing.assert_close(
        single.clamp_min(0).sum(-1) + softplus_rests(single.sigmoid()),
        torch.logaddexp(single, torch.zeros(())).sum(-1),
        rtol=1e-5,
        atol=width * 1e-7,
    )
