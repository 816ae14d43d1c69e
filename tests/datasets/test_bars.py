"""Bars against a direct reading of their story."""

import math

import pytest
import torch

import pyro_lvm as lvm


@pytest.mark.parametrize("probability", [0.5, 0.2])
def test_probabilities_follow_the_story(probability):
    law = lvm.datasets.bars(3, probability)
    assert law.x.shape == (14, 9)
    assert len(law.x.unique(dim=0)) == 14
    for row, found in zip(law.x.reshape(-1, 3, 3), law.probabilities, strict=True):
        ways = [image[0] for image in (row, row.T) if bool((image == image[0]).all())]
        chance = sum(0.5 * math.prod(probability if bar else 1 - probability for bar in way) for way in ways)
        assert float(found) == pytest.approx(chance, rel=1e-5)
    assert float(law.probabilities.sum()) == pytest.approx(1)


def test_draws_are_images_at_their_frequencies():
    law = lvm.datasets.bars(2)
    x = law.sample(4000, torch.Generator().manual_seed(0))
    share = (x[:, None] == law.x).all(-1).float().mean(0)
    deviation = (law.probabilities * (1 - law.probabilities) / 4000).sqrt()
    assert bool(((share - law.probabilities).abs() < 4 * deviation).all())


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="expected size <= 12, since all images are listed; got 13"):
        lvm.datasets.bars(13)
    with pytest.raises(ValueError, match="expected probability between 0 and 1; got 1"):
        lvm.datasets.bars(4, 1)
