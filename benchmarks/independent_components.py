"""Independent component analysis beside scikit-learn's FastICA: interference, time, image patches.

`python benchmarks/independent_components.py` takes some minutes; `--quick` half a minute, on fewer draws and rows, and
judges nothing. Patches are of `natural_images` in the folder of the environment variable `PYRO_LVM_DATA`.

How it is measured:

* Interference: with W the mixing matrix found, A the true one, P = W^-1 A and every source matched to the true one that
  it holds most of, the power of all others in it over that of its own, averaged over sources and draws; in decibels
  of that average. Two sources of unit Laplace law, mixed by normal numbers. No unbiased estimate has less, on average,
  than 2 / (3 N), the Cramér-Rao bound. FastICA gets the same rows, with its defaults, and once more with the
  nonlinearity and the tolerance that suit it best: with its defaults a few draws end before it converged, and make up
  most of its mean.
* Amari's distance, between 0 and 1: the mean over rows and columns of P of the sum of sizes over the largest one, less
  one, over d - 1.
* Flat sources: two sines, uniform noise and a Laplace source, mixed by normal numbers, by Amari's distance; the sources
  that lvm chooses by itself ("adaptive") beside the one density of the table above, and FastICA as it is (logcosh).
* Time: until our interference is no more than FastICA's at its end, looking at it after every step, everything from
  `lvm.fit` on included; and until our default stopping rule. They take turns; medians of ratios.
* Patches: 12 x 12 grey levels out of 256, made continuous by uniform noise of one level; learned from ten images and
  tested on three others. Test log-likelihood in nats a patch, above that of a normal law with a full covariance.
  `--pictures FOLDER` keeps a picture of the mixing matrix's columns and of the filters that read the sources.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import FastICA
from torch import Tensor

import pyro_lvm as lvm

WITHIN = {1_000: 1.5, 10_000: 1.0}  # decibels above the bound that are allowed, by rows
DRAWS = {1_000: 400, 10_000: 100}  # the mean of as many is known to about 0.3 and 0.45 decibels
AMARI = 0.01
FLAT = 0.05  # Amari's distance, where sources are flat
GABOR = 0.5  # share of the filters that one Gabor function explains, at least


def word(reached: bool, quick: bool) -> str:
    """What to say of a goal."""
    return "" if quick else "reached" if reached else "NOT reached"


def mixture(rows: int, sources: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of mixed sources of unit Laplace law, and the mixing matrix."""
    torch.manual_seed(seed)
    h = torch.distributions.Laplace(0.0, 1.0).sample((rows, sources)).double()
    mixing = torch.randn(sources, sources, dtype=torch.float64)
    return h @ mixing.mT, mixing


def ours(x: Tensor, **options: Any) -> lvm.Fit:
    """Our maximum of the likelihood, with Laplace sources."""
    model = lvm.models.IndependentComponentAnalysis("laplace")
    return lvm.fit(model, x, device="cpu", progress=False, **{"seed": 0, **options})


def peer(x: Tensor, seed: int = 0, **options: Any) -> FastICA:
    """scikit-learn's FastICA, fitted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it did not converge; its interference is printed
        return FastICA(whiten="unit-variance", random_state=seed, **options).fit(x.numpy())


def interference(found: Tensor) -> float:
    """Of P = W^-1 A: mean over sources of the others' power over their own."""
    power = found.square().numpy()
    share = power / power.sum(1, keepdims=True)
    own = share[linear_sum_assignment(-share)]
    return float(((1 - own) / own).mean())


def amari(found: Tensor) -> float:
    """Amari's distance of P from a scaled permutation."""
    size = found.abs()
    rows, columns = (size.sum(i) / size.amax(i) - 1 for i in (0, 1))
    return float(torch.cat([rows, columns]).mean()) / (len(size) - 1)


def unmixed(weight: Tensor, mixing: Tensor) -> Tensor:
    """P of a mixing matrix that was found."""
    return torch.linalg.solve(weight, mixing)


def decibels(ratios: list[float]) -> float:
    """Of their mean."""
    return 10 * math.log10(statistics.fmean(ratios))


BEST = {"fun": "exp", "tol": 1e-8, "max_iter": 2000}
PEERS: dict[str, dict[str, Any]] = {"FastICA": {}, "FastICA, tuned": BEST}


def precision(quick: bool) -> list[bool]:
    """Print interference of two sources, and the Amari distance."""
    verdicts = []
    print(f"{'interference, dB':24}{'bound':>8}{'lvm':>8}" + "".join(f"{name:>16}" for name in PEERS))
    for rows, allowed in WITHIN.items():
        draws = 20 if quick else DRAWS[rows]
        table: dict[str, list[float]] = {"lvm": [], **{name: [] for name in PEERS}}
        for seed in range(draws):
            x, mixing = mixture(rows, 2, seed)
            table["lvm"].append(interference(unmixed(ours(x, seed=seed).params["weight"], mixing)))
            for name, options in PEERS.items():
                found = torch.from_numpy(peer(x, seed, **options).components_) @ mixing
                table[name].append(interference(found))
        bound = 10 * math.log10(2 / (3 * rows))
        levels = {name: decibels(values) for name, values in table.items()}
        reached = levels["lvm"] <= bound + allowed and levels["lvm"] < min(levels[name] for name in PEERS)
        verdicts.append(reached)
        shown = "".join(f"{level:{8 if name == 'lvm' else 16}.1f}" for name, level in levels.items())
        print(f"{f'{rows:,} rows, {draws} draws':24}{bound:8.1f}{shown}  {word(reached, quick)}")
    rows, draws = (10_000, 3) if quick else (50_000, 20)
    ends = []
    for seed in range(draws):
        x, mixing = mixture(rows, 2, seed)
        ends.append(amari(unmixed(ours(x, seed=seed).params["weight"], mixing)))
    reached = max(ends) <= AMARI
    print(
        f"Amari distance, {rows:,} rows, {draws} draws: mean {statistics.fmean(ends):.4f}, worst {max(ends):.4f} ",
        end="",
    )
    print(f"(goal: at most {AMARI:g})  {word(reached, quick)}")
    return [*verdicts, reached]


def flat_sources(quick: bool) -> list[bool]:
    """Print Amari distances where some sources are flatter than the normal law."""
    rows, draws = 2_000, 3 if quick else 20
    t = torch.arange(rows, dtype=torch.float64)
    table: dict[str, list[float]] = {"adaptive": [], "laplace": [], "FastICA": []}
    told = 0
    for seed in range(draws):
        torch.manual_seed(seed)
        laplace, uniform = torch.distributions.Laplace(0.0, 1.0).sample((rows,)).double(), torch.rand(rows).double()
        h = torch.stack([torch.sin(t / 7), torch.sin(t / 3.1 + 1), uniform, laplace], -1)
        mixing = torch.randn(4, 4, dtype=torch.float64)
        x = h @ mixing.mT
        for source in ("adaptive", "laplace"):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model = lvm.models.IndependentComponentAnalysis(source)
                fit = lvm.fit(model, x, device="cpu", progress=False, seed=seed)
            told += bool(caught)
            table[source].append(amari(unmixed(fit.params["weight"], mixing)))
        table["FastICA"].append(amari(torch.from_numpy(peer(x, seed).components_) @ mixing))
    print(f"\n{f'Amari distance, flat sources, {draws} draws':44}{'mean':>8}{'worst':>8}")
    for name, values in table.items():
        print(f"{name:44}{statistics.fmean(values):8.4f}{max(values):8.4f}")
    reached = max(table["adaptive"]) <= FLAT
    print(f"'laplace' warned of in {told} of {draws}; goal: adaptive at most {FLAT:g}  {word(reached, quick)}")
    return [reached]


def speed(quick: bool) -> list[bool]:
    """Print seconds to the same interference."""
    print(
        f"\n{'seconds, set-up included':24}{'FastICA':>10}{'lvm, as good':>14}{'lvm, default':>14}{'FastICA/lvm':>14}"
    )
    for rows, sources in ((1_000, 4), (10_000, 10)) if quick else ((1_000, 4), (10_000, 10), (20_000, 40)):
        ours(mixture(rows, sources, 99)[0], max_epochs=2)  # what is loaded once
        times: list[tuple[float, float, float]] = []
        for seed in range(3 if quick else 5):
            x, mixing = mixture(rows, sources, seed)
            begin = time.perf_counter()
            machine = peer(x, seed)
            theirs = time.perf_counter() - begin
            goal = interference(torch.from_numpy(machine.components_) @ mixing)

            def near(run: Any, goal: float = goal, mixing: Tensor = mixing) -> bool:
                return interference(unmixed(run.inference.model.weight.detach(), mixing)) <= goal

            begin = time.perf_counter()
            ours(x, callbacks=near)
            good = time.perf_counter() - begin
            begin = time.perf_counter()
            ours(x)
            times.append((theirs, good, time.perf_counter() - begin))
        medians = [statistics.median(column) for column in zip(*times, strict=True)]
        ratio = statistics.median(a / b for a, b, _ in times)
        label = f"{rows:,} x {sources}"
        print(f"{label:24}{medians[0]:10.3f}{medians[1]:14.3f}{medians[2]:14.3f}{ratio:14.2f}")
    return []


def patches(images: list[np.ndarray], count: int, side: int) -> Tensor:
    """Patches from places drawn at random, as rows."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        image = images[i % len(images)]
        top, left = (rng.integers(size - side + 1) for size in image.shape)
        rows.append(image[top : top + side, left : left + side].reshape(-1))
    x = np.stack(rows).astype(float)
    return torch.from_numpy(x + rng.random(x.shape))


def gabor_share(patch: Tensor) -> float:
    """How much of a patch's power the best of many Gabor functions explains, of either phase.

    Centres are all pixels; 12 directions, 6 frequencies, widths of 1 to 4 pixels, round or twice as long as wide.
    """
    side = math.isqrt(len(patch))
    axis = torch.arange(side, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    centre = torch.cartesian_prod(axis, axis)
    dy, dx = (p.reshape(1, -1) - centre[:, i : i + 1] for i, p in enumerate((y, x)))
    unit = patch.double() - patch.double().mean()
    unit = unit / unit.norm()
    best = 0.0
    for angle in torch.arange(12) * math.pi / 12:
        along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
        for width in (1.0, 1.6, 2.5, 4.0):
            for long in (1.0, 2.0):
                window = (-(along / width).square() / 2 - (across / (long * width)).square() / 2).exp()
                for frequency in (0.08, 0.13, 0.2, 0.28, 0.36, 0.45):
                    pair = torch.stack(
                        [
                            window * (2 * math.pi * frequency * along).cos(),
                            window * (2 * math.pi * frequency * along).sin(),
                        ],
                        -1,
                    )
                    pair = pair - pair.mean(1, keepdim=True)
                    gram = pair.mT @ pair + 1e-6 * torch.eye(2, dtype=torch.float64)
                    product = (pair.mT @ unit).unsqueeze(-1)
                    explained = (product * torch.linalg.solve(gram, product)).sum((1, 2))
                    best = max(best, float(explained.max()))
    return best


def picture(columns: Tensor, path: Path) -> None:
    """Keep columns as square images, each in its own range about zero."""
    from matplotlib.figure import Figure

    count = columns.shape[1]
    side, across = math.isqrt(len(columns)), math.ceil(math.sqrt(count))
    sheet = torch.full((across * (side + 1) - 1, across * (side + 1) - 1), math.nan, dtype=torch.float64)
    for i in range(count):
        top, left = (side + 1) * (i // across), (side + 1) * (i % across)
        tile = columns[:, i].double().reshape(side, side)
        sheet[top : top + side, left : left + side] = tile / tile.abs().amax()
    figure = Figure(figsize=(8, 8))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet.numpy(), cmap="gray", vmin=-1, vmax=1)
    axes.set_axis_off()
    figure.savefig(path, dpi=150)


def natural_images(quick: bool, pictures: Path | None = None) -> list[bool]:
    """Print log-likelihoods of patches of natural images, and how Gabor-like the mixing matrix's columns are."""
    folder = os.environ.get("PYRO_LVM_DATA")
    path = Path(folder or "") / "natural_images" / "hyvarinen13.npz"
    if folder is None or not path.is_file():
        print("\npatches: skipped; expected the folder of data in PYRO_LVM_DATA.")
        return [] if quick else [False]
    with np.load(path) as file:
        images = [file[name] for name in sorted(file.files)]
    side, rows = (8, 5_000) if quick else (12, 20_000)
    train, test = patches(images[:10], rows, side), patches(images[10:], rows // 4, side)
    mean = train.mean(0)
    normal = torch.distributions.MultivariateNormal(mean, (train - mean).mT @ (train - mean) / rows)
    floor = float(normal.log_prob(test).mean())
    print(f"\npatches of {side} x {side} of natural images, {rows:,} to learn from: nats a patch, test")
    print(f"{'normal, full covariance':32}{floor:10.2f}")
    verdicts = []
    for source in ("laplace",) if quick else ("laplace", "student-t"):
        begin = time.perf_counter()
        model = lvm.models.IndependentComponentAnalysis(source)
        fit = lvm.fit(model, train, seed=0, device="cpu", progress=False, tol=1e-5, max_epochs=3 if quick else 20)
        seconds, score = time.perf_counter() - begin, fit.score(test)
        verdicts.append(score > floor)
        name = f"independent, {source}"
        print(f"{name:32}{score:10.2f}  {seconds:.0f} s  {word(verdicts[-1], quick)}")
    weight = fit.params["weight"]
    shares = [gabor_share(column) for column in weight.mT[:: 8 if quick else 2]]
    middle = statistics.median(shares)
    noise = torch.randn(16, side * side, generator=torch.Generator().manual_seed(0))
    chance = statistics.median(gabor_share(row) for row in noise)
    verdicts.append(middle >= GABOR)
    print(
        f"one Gabor function explains {middle:.2f} of a column of the mixing matrix (median; of noise {chance:.2f}) ",
        end="",
    )
    print(f"(goal: at least {GABOR:g})  {word(verdicts[-1], quick)}")
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        picture(weight, pictures / "independent_components.png")
        picture(torch.linalg.inv(weight).mT, pictures / "independent_component_filters.png")
        print(f"pictures: {pictures}/independent_components.png, independent_component_filters.png")
    return verdicts


def report(quick: bool, pictures: Path | None = None) -> list[bool]:
    """Print all tables; which goals were reached."""
    return precision(quick) + flat_sources(quick) + speed(quick) + natural_images(quick, pictures)


def main() -> int:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer draws and rows; no goal is judged")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of what was learned from images")
    options = parser.parse_args()
    verdicts = report(options.quick, options.pictures)
    return 0 if options.quick or all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
