"""Fits on disk: a folder with a readable `fit.json` and a `state.pt` that holds tensors only.

Written to a temporary folder and renamed, so that a crash leaves the old fit or the new one, never half of one. Read
with `weights_only=True`: loading a fit never runs code that the file brings.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_lvm.training.rebuild import rebuild
from pyro_lvm.training.record import FORMAT, record_of, state_of
from pyro_lvm.training.result import Fit

__all__ = ["check_folder", "load", "save"]


def check_folder(folder: Path) -> None:
    """Raise unless a fit can be written to a folder; nothing is written.

    Raises:
        FileExistsError: The folder holds something that is not a fit.
        NotADirectoryError: A file is in the place of a folder above it.
        PermissionError: The folder, or the one that it is in or would be made in, cannot be written to.
    """
    above = next(parent for parent in folder.absolute().parents if os.path.lexists(parent))
    if not above.is_dir():
        raise NotADirectoryError(
            f"save: expected folders above '{folder}'; got '{above}', which is a file. Choose another folder."
        )
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {"fit.json", "state.pt"}):
        raise FileExistsError(f"save: '{folder}' exists and is not a fit, or holds other files. Choose another folder.")
    for place in [above, *([folder] if folder.exists() else [])]:
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(
                f"save: expected a folder that can be written to; got '{place}', which cannot. Choose another folder."
            )


def save(fit: Fit, folder: Path) -> None:
    """Write a fit; an older fit in the folder is replaced.

    Raises:
        OSError: The folder holds something that is not a fit, or cannot be written to.
    """
    check_folder(folder)
    buffer = io.BytesIO()
    torch.save(state_of(fit), buffer)
    state = buffer.getvalue()
    record = {**record_of(fit), "state_sha256": hashlib.sha256(state).hexdigest()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (fresh / "state.pt").write_bytes(state)
        (fresh / "fit.json").write_text(json.dumps(record, indent=1))
        for path in fresh.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            folder.replace(old / "fit")
            fresh.replace(folder)
            shutil.rmtree(old)
        else:
            fresh.replace(folder)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)


def load(
    folder: str | Path, *, model: Callable | None = None, guide: Callable | None = None, inference: Any = None
) -> Fit:
    """Read a fit.

    Args:
        folder: Where it was saved.
        model: The model, if it is not one of this package: a file holds no code.
        guide: The guide, likewise.
        inference: The inference, as it was passed to `lvm.fit`: needed to resume with an optimizer or a loss of one's
            own.

    Returns:
        The fit, equal to the one saved to the last bit, and able to resume.

    Raises:
        FileNotFoundError: There is no fit in the folder.
        TypeError: The model, guide or inference is a name, or a class where an object is needed.
        ValueError: The files are damaged, a model or guide is needed, or the inference is another one than the fit's.
    """
    folder = Path(folder)
    if not (folder / "fit.json").is_file():
        raise FileNotFoundError(f"load: no fit in '{folder}' (no fit.json).")
    damaged = f"load: the fit in '{folder}' is damaged or cut off"
    try:
        record = json.loads((folder / "fit.json").read_text())
        version = record["format"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{damaged} (fit.json cannot be read). Save it again, or restore a copy.") from error
    if version != FORMAT:
        raise ValueError(f"load: '{folder}' has format {version}; this version reads {FORMAT}. Upgrade pyro-lvm.")
    try:
        content = (folder / "state.pt").read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{damaged} (no state.pt). Save it again, or restore a copy.") from error
    if hashlib.sha256(content).hexdigest() != record.get("state_sha256"):
        raise ValueError(f"{damaged} (state.pt does not match its checksum). Save it again, or restore a copy.")
    try:
        state = torch.load(io.BytesIO(content), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{damaged} (state.pt holds more than tensors). Do not trust it.") from error
    return rebuild(record, state, model, guide, inference)
