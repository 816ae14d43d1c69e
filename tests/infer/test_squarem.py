"""Acceleration of EM on a Poisson mixture of daily deaths, a published case that plain EM finds slow.

References:
    V. Hasselblad (1969), Estimation of finite mixtures of distributions from the exponential family, JASA 64.
    R. Varadhan, C. Roland (2008), Simple and globally convergent methods for accelerating the convergence of any EM
    algorithm, Scandinavian Journal of Statistics 35(2): plain EM takes 2055 evaluations.
"""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy.special import expit, gammaln
from torch.distributions import constraints

import pyro_lvm as lvm

pytestmark = pytest.mark.usefixtures("local")

DEATHS = np.arange(10.0)
DAYS = np.array([162, 267, 271, 185, 111, 61, 27, 8, 3, 1])
START = np.array([0.3, 1.0, 2.5])  # weight and rate of the first component, rate of the second
OPTIMUM = -1989.94586
TOLERANCE = 1e-7  # on the change of START's three numbers in one evaluation
PLAIN_EVALUATIONS = 2055
ACCELERATED_EVALUATIONS = 80


class Program:
    """The mixture in plain Pyro; counts how often it runs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, x, days=None):
        self.runs += 1
        weights = pyro.param("weights", torch.tensor([0.3, 0.7], dtype=torch.float64), constraint=constraints.simplex)
        rates = pyro.param("rates", torch.tensor([1.0, 2.5], dtype=torch.float64), constraint=constraints.positive)
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0 if days is None else days):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(rates[z]), obs=x)


def theta():
    weights, rates = (pyro.param(name).detach().numpy() for name in ("weights", "rates"))
    return np.array([weights[0], *rates])


def log_joint(point):
    weight, *rates = point
    terms = [
        np.log(w) + DEATHS * np.log(rate) - rate - gammaln(DEATHS + 1)
        for w, rate in zip((weight, 1 - weight), rates, strict=True)
    ]
    return np.stack(terms)


def log_likelihood(point):
    return (DAYS * np.logaddexp(*log_joint(point))).sum()


def em_map(point):
    """One evaluation: E-step and M-step by hand."""
    first, second = log_joint(point)
    share = DAYS * np.stack([expit(first - second), expit(second - first)])
    return np.array([share[0].sum() / DAYS.sum(), *(share @ DEATHS / share.sum(1))])


def residual(point):
    return np.linalg.norm(em_map(point) - point)


def valid(point):
    return np.isfinite(point).all() and 0 < point[0] < 1 and (point[1:] > 0).all()


COORDINATES = {
    "constrained": (np.copy, np.copy),
    "unconstrained": (  # as Pyro has them: a simplex is a softmax, a positive number an exponential
        lambda p: np.log([p[0], 1 - p[0], *p[1:]]),
        lambda u: np.array([expit(u[0] - u[1]), *np.exp(u[2:])]),
    ),
}
STEP_LENGTHS = {
    "S1": lambda r, v: -(r @ v) / (v @ v),
    "S3": lambda r, v: np.sqrt((r @ r) / (v @ v)),
}


def squarem(coordinates, step_length, largest):
    """The globally convergent scheme, scored by the likelihoods that its own E-steps give.

    Returns the log-likelihoods at the start of every cycle, the number of evaluations and the last point.
    """
    encode, decode = COORDINATES[coordinates]
    point, largest_now, evaluations, values = START, largest, 0, []
    while evaluations < PLAIN_EVALUATIONS:
        values.append(log_likelihood(point))
        one = em_map(point)
        two = em_map(one)
        evaluations += 2
        if min(np.linalg.norm(one - point), np.linalg.norm(two - one)) < TOLERANCE:
            return values, evaluations, two
        u0, u1, u2 = (encode(p) for p in (point, one, two))
        r, v = u1 - u0, (u2 - u1) - (u1 - u0)
        length = min(max(1.0, STEP_LENGTHS[step_length](r, v)), largest_now)
        grown = length == largest_now
        leap = decode(u0 + 2 * length * r + length**2 * v)
        point = two
        if valid(leap):
            evaluations += 1
            if log_likelihood(leap) >= log_likelihood(one):
                point = em_map(leap)
                largest_now *= 4.0 if grown else 1.0
                continue
        largest_now = max(largest, largest_now / 4.0) if grown else largest_now
    return values, evaluations, point


def test_the_oracle_takes_the_published_number_of_evaluations():
    point, evaluations = START, 0
    while (gap := residual(point)) >= TOLERANCE:
        point, evaluations = em_map(point), evaluations + 1
    assert gap < TOLERANCE
    assert evaluations + 1 == PLAIN_EVALUATIONS
    assert log_likelihood(em_map(point)) == pytest.approx(OPTIMUM, abs=1e-5)


@pytest.mark.parametrize(
    ("coordinates", "step_length", "largest"),
    [("constrained", "S3", 1.0), ("unconstrained", "S1", 4.0), ("unconstrained", "S1", np.inf)],
)
def test_the_goal_is_within_reach_without_a_fall(coordinates, step_length, largest):
    values, evaluations, point = squarem(coordinates, step_length, largest)
    assert evaluations <= ACCELERATED_EVALUATIONS
    assert (np.diff(values) >= 0).all()
    assert log_likelihood(point) == pytest.approx(OPTIMUM, abs=1e-5)


def rows(form):
    x = torch.from_numpy(DEATHS)
    days = torch.from_numpy(DAYS)
    return (x, days.double()) if form == "weights" else (x.repeat_interleave(days),)


@pytest.mark.parametrize("form", ["weights", "repeated rows"])
def test_plain_em_follows_the_oracle_step_by_step(form):
    data, em, point = rows(form), lvm.infer.EM(Program()), START
    for _ in range(25):
        assert -em.step(*data) == pytest.approx(log_likelihood(point), rel=1e-12)
        point = em_map(point)
        np.testing.assert_allclose(theta(), point, rtol=1e-10)


@pytest.mark.parametrize(
    "form",
    ["weights", "repeated rows"],
)
def test_plain_em_takes_the_published_number_of_evaluations(form):
    data, em = rows(form), lvm.infer.EM(Program())
    em.plan(*data)
    evaluations, gap, point = 0, np.inf, START
    while gap >= TOLERANCE:
        em.step(*data)
        evaluations, gap, point = evaluations + 1, np.linalg.norm(theta() - point), theta()
    assert evaluations == PLAIN_EVALUATIONS
    assert -em.loss(*data) == pytest.approx(OPTIMUM, abs=1e-5)


@pytest.mark.parametrize("form", ["weights", "repeated rows"])
def test_accelerated_em_reaches_the_goal(form):
    program, data = Program(), rows(form)
    em = lvm.infer.EM(program, acceleration="squarem")
    em.plan(*data)
    program.runs = 0
    losses = []
    while program.runs < ACCELERATED_EVALUATIONS and (not losses or residual(theta()) >= TOLERANCE):
        losses.append(em.step(*data))
    assert program.runs <= ACCELERATED_EVALUATIONS
    assert residual(theta()) < TOLERANCE
    assert (np.diff(losses) <= 1e-9 * abs(OPTIMUM)).all()
    assert -em.loss(*data) == pytest.approx(OPTIMUM, abs=1e-5)
