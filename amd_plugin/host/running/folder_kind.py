"""What a folder holds that somebody names. Commands ask this first, so nothing is imported here that takes a second."""

from __future__ import annotations

import errno
from itertools import islice
from pathlib import Path

from amd_plugin.errors import InputError, did_you_mean

# Where runs lie below a folder that is none itself: several runs, a comparison, a run whose part was named,
# the folder in which commands are given.
BELOW = ("*/config.yaml", "arms/*/seed-*/config.yaml", "runs/*/config.yaml")


def is_run(folder: Path) -> bool:
    """Whether `folder` holds a run."""
    return (folder / "config.yaml").is_file() or any((folder / "checkpoints").glob("step-*/manifest.json"))


def check_run(folder: Path, where: str = "", *, comparison: str = "") -> None:
    """Nothing, for the folder of a run, or of a comparison where its file `comparison` is named.

    Args:
        folder: what somebody named.
        where: where it was named, such as ``"--resume "``.
        comparison: name of the file that makes a folder a comparison's; empty where a comparison does not do.

    Raises:
        InputError: for any other folder; it names a near one that does.
    """
    try:
        if is_run(folder) or (comparison and (folder / comparison).is_file()):
            return
        if folder.is_dir():
            reason, hint = "no config.yaml" + f", no {comparison}" * bool(comparison), _below(folder)
        else:
            reason, hint = "it is a file" if folder.exists() else "there is no such folder", _beside(folder)
    except OSError as error:  # a folder of somebody else
        if error.errno == errno.ENAMETOOLONG:  # the command line has words for any such name
            raise
        raise InputError(f"{where}{folder}: cannot be read: {error.strerror}") from error
    lacks = "holds neither a run nor a comparison" if comparison else "holds no run"
    raise InputError(f"{where}{folder}: {lacks} ({reason}).{hint}")


def continued(resume: str | None, output: Path | None) -> Path:
    """The folder of the run that ``--resume`` and ``--output`` ask to go on with, where no recipe is named.

    Args:
        resume: ``auto``, a run's folder, or a checkpoint's folder, which may lie in a run.
        output: folder of the run; None for the one that `resume` names, or the current one.

    Raises:
        InputError: where there is no such run.
    """
    if resume is None:
        raise InputError("RECIPE: name a recipe (amd-plugin recipes list), or go on with a run: amd-plugin train --resume RUN")
    if output is not None or resume == "auto":
        folder = output or Path()
        check_run(folder, "--resume auto: " if output is None else "--output ")
        return folder
    named = Path(resume)
    folder = named.absolute().parent.parent  # RUN/checkpoints/step-N
    if named.is_dir() and not is_run(named) and is_run(folder):
        return folder
    check_run(named, "--resume ")
    return named


def check_exists(path: Path, where: str) -> None:
    """Nothing, for a file or folder that is there; raises InputError for any other, and names a near one."""
    try:
        if path.exists():
            return
        near = did_you_mean(path.name, [entry.name for entry in islice(path.parent.glob("*"), 1000)])
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise InputError(f"{where}{path}: cannot be read: {error.strerror}") from error
    raise InputError(f"{where}{path}: there is no such file or folder.{near}")


def check_dump(folder: Path) -> None:
    """Nothing, for the folder of an update that was not finite; raises InputError for any other.

    Whether its files are whole is seen when they are read.
    """
    try:
        if (folder / "manifest.json").is_file():
            return
        reason = "no manifest.json" if folder.is_dir() else "there is no such folder"
        found = sorted(folder.glob("nonfinite/step-*"))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    hint = f"Name one in it, such as {found[0]}" if found else "A run that meets a NaN prints the folder to name here"
    raise InputError(f"{folder}: holds no update ({reason}). {hint}")


def _below(folder: Path) -> str:
    """A hint at a run in `folder`, for somebody who named the folder of several; empty where there is none."""
    found = sorted(path.parent for pattern in BELOW for path in islice(folder.glob(pattern), 100))
    return f" Name a run in it, such as {found[0]}" if found else ""


def _beside(folder: Path) -> str:
    """A hint at the run beside `folder` whose name is nearest; empty where there is none."""
    return did_you_mean(str(folder), [str(path.parent) for path in islice(folder.parent.glob("*/config.yaml"), 1000)])
