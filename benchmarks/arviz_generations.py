"""Check the ArviZ conversion against a real ArviZ 1.x, in an environment of its own with Python 3.12 or later.

Run `python benchmarks/arviz_generations.py --python python3.12`. This Python fits Old Faithful and writes the groups
as numpy arrays; the other one, which needs only ArviZ, builds them with this package's code and calls ArviZ on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent

# Runs under the other Python: loads the one class it needs from the source file, without torch or Pyro.
CHECK = """
import ast, json, sys, warnings
from dataclasses import dataclass, field
from typing import Any
import numpy as np
source = open(sys.argv[1] + "/pyro_lvm/diagnostics/arviz.py").read()
(definition,) = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "Groups"]
space = dict(dataclass=dataclass, field=field, Any=Any, warnings=warnings, Arrays=dict)
exec(compile(ast.Module([definition], []), "arviz.py", "exec"), space)
import arviz as az
print("ArviZ", az.__version__, "on Python", sys.version.split()[0])
trees = {}
for name in ("em", "svi", "nuts"):
    arrays = dict(np.load(f"{sys.argv[2]}/{name}.npz"))
    facts = json.load(open(f"{sys.argv[2]}/{name}.json"))
    groups = {g: {k.split("/")[1]: v for k, v in arrays.items() if k.startswith(g + "/")}
              for g in ("posterior", "log_likelihood", "observed_data", "sample_stats")}
    tree = trees[name] = space["Groups"](**groups, **facts).build()
    assert type(tree).__name__ == "DataTree", type(tree)
    rows = tree["sample_stats"]["row_log_likelihood"] if name == "em" else tree["log_likelihood"]["x"]
    assert rows.shape[-1] == len(tree["observed_data"]["x"])
    assert tree["posterior"]["loc"].dims == ("chain", "draw", "component", "dimension")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = az.summary(tree, var_names=["loc"], kind="stats")
        assert len(summary) == 4
        print(name, tree["posterior"]["loc"].shape, end=" ")
        print("loo", round(float(az.loo(tree).elpd), 2) if name != "em" else "is not for a point")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    print(az.compare({k: trees[k] for k in ("svi", "nuts")}).iloc[:, :4])
print("ok")
"""


def main() -> None:
    """Fit here, build and check there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="python3.12", help="a Python 3.12 or later")
    options = parser.parse_args()
    import pyro_lvm as lvm
    from pyro_lvm.diagnostics.arviz import groups_of

    x = lvm.datasets.load("faithful").x
    bayesian = lvm.models.GaussianMixture(2, priors=True)
    sampler = lvm.infer.MCMC(num_samples=100, warmup_steps=100)
    fits = {
        "em": lvm.fit(lvm.models.GaussianMixture(2), x, seed=0),
        "svi": lvm.fit(bayesian, x, guide="normal", seed=0),
        "nuts": lvm.fit(bayesian, x, inference=sampler, seed=0),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, fit in fits.items():
            groups = groups_of(fit, fit.arguments(x))
            parts = dataclasses.asdict(groups)
            facts = {key: parts.pop(key) for key in ("coords", "dims", "attrs")}
            arrays = {f"{group}/{key}": value for group, entries in parts.items() for key, value in entries.items()}
            np.savez(f"{folder}/{name}.npz", **arrays)
            Path(f"{folder}/{name}.json").write_text(json.dumps(facts))
        environment = Path(folder) / "environment"
        subprocess.run([options.python, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "-q", "arviz>=1"], check=True)
        done = subprocess.run([environment / "bin/python", "-c", CHECK, HERE, folder])
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
