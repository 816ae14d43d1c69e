"""The error of every inference whose loss stops being a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_lvm import _pyro
from pyro_lvm.ops import networks

__all__ = ["NonFiniteLoss", "blamed_site", "in_one_sentence"]

# What torch says of a distribution's argument, of its value, and of probabilities that it is to draw from.
REFUSED = re.compile(
    r"Expected parameter (\w+) .*?of distribution (\w+)\(.*to satisfy the constraint (.*?), but", re.DOTALL
)
OUTSIDE = re.compile(
    r"log_prob at site '(.+?)':\s*Expected value argument .*?within the support \((.*?)\) of the distribution (\w+)\(",
    re.DOTALL,
)
NOT_PROBABLE = re.compile(r"Expected p_in >= 0|probability tensor contains either|invalid multinomial distribution")


class NonFiniteLoss(ValueError):  # noqa: N818 - named by what is seen
    """A loss that is NaN or infinite; parameters are as they were before the step."""


@contextmanager
def in_one_sentence(name: str, started: bool, parameters: Callable[[], Mapping[str, Tensor]] = dict) -> Iterator[None]:
    """Say in one sentence that arithmetic broke down; torch's own words are kept as the cause.

    Args:
        name: Of the inference.
        started: Whether it has moved the parameters: else an argument out of range is the program's own mistake.
        parameters: What programs have read: with one that is not finite, whatever they stumble over is its fault.

    Raises:
        NonFiniteLoss: Instead of an error of torch's linear algebra, argument checks or samplers.
        ValueError: The same, of a program that has not learned anything yet.
    """
    advice = "Rescale the data so that values vary by about one, use float64, or start from other parameters."
    try:
        yield
    except NonFiniteLoss:
        raise
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NonFiniteLoss(
            f"{name}: a matrix is not positive definite as far as its numbers tell. {advice}"
        ) from error
    except (ValueError, RuntimeError) as error:
        if of_network := networks.refused(error):
            raise ValueError(f"{name}: {of_network}") from error
        lost = next((n for n, tensor in parameters().items() if not bool(torch.isfinite(tensor).all())), None)
        if lost is not None:
            raise NonFiniteLoss(
                f"{name}: parameter '{lost}' became infinite or NaN. Lower the learning rate."
            ) from error
        if outside := OUTSIDE.search(str(error)):
            raise ValueError(
                f"{name}: expected values of site '{outside[1]}' in the support {outside[2]} of its {outside[3]} law; "
                "got others. Correct the data, or the guide that draws them."
            ) from error
        refused, improbable = REFUSED.match(str(error)), NOT_PROBABLE.search(str(error))
        if not (refused or improbable):
            raise
        if not started:
            got = "probabilities that are none"
            if refused:
                nan = re.search(r"\bnan\b", str(error)[refused.end() :].split("Trace Shapes:")[0])
                got = f"'{refused[1]}' of a {refused[2]} site {'that is NaN' if nan else f'outside of {refused[3]}'}"
            raise ValueError(
                f"{name}: expected a program whose distributions have their arguments in range from the start; got "
                f"{got}. Check the values at which parameters start, and the data."
            ) from error
        what = f"'{refused[1]}' of a {refused[2]} site left its range" if refused else "probabilities left their range"
        raise NonFiniteLoss(f"{name}: {what}. {advice}") from error


def blamed_site(model: Callable, guide: Callable, args: tuple, kwargs: dict[str, Any]) -> str:
    """Name the first site whose log-density is not finite, in words that end a sentence; nothing if none is found."""
    with torch.no_grad(), _pyro.validation(False):
        try:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        except (ValueError, RuntimeError):  # nothing can be drawn where numbers have broken down
            return ""
        for kind, trace in (("guide", guide_trace), ("model", model_trace)):
            for name, site in trace.nodes.items():
                if site["type"] == "sample" and not _pyro.site_is_subsample(site):
                    value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
                    if not bool(torch.isfinite(torch.as_tensor(value)).all()):
                        return f" at site '{name}' of the {kind}"
    return ""
