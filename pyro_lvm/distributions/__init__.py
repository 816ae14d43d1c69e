"""Distributions that Pyro lacks."""

from pyro_lvm.distributions.energy import EnergyDistribution
from pyro_lvm.distributions.gaussian_rbm import GaussianRBM
from pyro_lvm.distributions.hidden_markov import HMM
from pyro_lvm.distributions.hyperbolic_secant import HyperbolicSecant
from pyro_lvm.distributions.independent_components import IndependentComponents
from pyro_lvm.distributions.inverse_wishart import InverseWishart
from pyro_lvm.distributions.linear_gaussian_chain import LinearGaussianChain
from pyro_lvm.distributions.linear_gaussian_rows import LinearGaussianRows
from pyro_lvm.distributions.partial_multivariate_normal import PartialMultivariateNormal
from pyro_lvm.distributions.rbm import RBM
from pyro_lvm.distributions.spike_and_slab import SpikeAndSlab
from pyro_lvm.distributions.stick_breaking import StickBreaking
from pyro_lvm.distributions.structured_hidden_markov import FactorialHMM, HiddenSemiMarkov

__all__ = [
    "HMM",
    "RBM",
    "EnergyDistribution",
    "FactorialHMM",
    "GaussianRBM",
    "HiddenSemiMarkov",
    "HyperbolicSecant",
    "IndependentComponents",
    "InverseWishart",
    "LinearGaussianChain",
    "LinearGaussianRows",
    "PartialMultivariateNormal",
    "SpikeAndSlab",
    "StickBreaking",
]
