"""Generative programs, one file each."""

from pyro_lvm.models.bernoulli_mixture import BernoulliMixture
from pyro_lvm.models.categorical_mixture import CategoricalMixture
from pyro_lvm.models.dirichlet_process_mixture import DirichletProcessMixture
from pyro_lvm.models.gaussian_mixture import GaussianMixture
from pyro_lvm.models.hidden_markov_alignment import HMMAlignment
from pyro_lvm.models.heterogeneous_mixture import HeterogeneousMixture
from pyro_lvm.models.ibm_model_1 import IBMModel1
from pyro_lvm.models.ibm_model_2 import IBMModel2
from pyro_lvm.models.mixture_of_experts import MixtureOfExperts
from pyro_lvm.models.poisson_mixture import PoissonMixture
from pyro_lvm.models.student_t_mixture import StudentTMixture

__all__ = [
    "BernoulliMixture",
    "CategoricalMixture",
    "DirichletProcessMixture",
    "GaussianMixture",
    "HMMAlignment",
    "HeterogeneousMixture",
    "IBMModel1",
    "IBMModel2",
    "MixtureOfExperts",
    "PoissonMixture",
    "StudentTMixture",
]
