"""`pcl-ray delete` and `prune`: runs that are not needed, and what lies about of those that are."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from pcl_ray.cli.verb import Verb
from pcl_ray.errors import ConfigError, RunFailed
from pcl_ray.support.text import binary_size, count

if TYPE_CHECKING:
    from pcl_ray.runs.upkeep.deletion import Deletion


def _add_delete_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="+", metavar="RUN", help="names of runs, or of sweeps, which go with their trials"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--force",
        action="store_true",
        help="also what is marked as under way elsewhere, trials of sweeps, and what others were made from",
    )
    parser.add_argument(
        "--sweep", action="store_true", help="the sweep, where a run and a sweep have the name"
    )
    parser.add_argument(
        "--keep-storage", action="store_true", help="leave the copy in the storage of the run"
    )
    parser.add_argument(
        "--mlflow", action="store_true", help="delete its runs in MLflow, too, as the dashboard does"
    )


def _delete(arguments: argparse.Namespace) -> int:
    from pcl_ray.cluster import status
    from pcl_ray.runs.upkeep import deletion
    from pcl_ray.support.storage_address import without_secrets

    status.local_runs()  # one whose process was killed is under way no more
    plans = [deletion.plan(name, sweep=arguments.sweep) for name in dict.fromkeys(arguments.names)]
    named = {folder.name for each in plans for folder in each.folders}
    for each in plans:
        for reason in () if arguments.force else each.reasons:
            raise ConfigError(f"{each.name} is not deleted: {reason}; --force deletes it nonetheless")
    for each in plans:
        addresses = sorted({without_secrets(uri) for uri in each.storages.values()})
        stored_text = (
            f", and its copy in {', '.join(addresses)}" if addresses and not arguments.keep_storage else ""
        )
        print(f"deletes     {each.text}: {binary_size(each.size)}{stored_text}")
    _confirm(arguments.yes, f"delete {count(len(named), 'folder')} for good?")
    for each in plans:
        deletion.delete(each, with_storage=not arguments.keep_storage)
        print(f"deleted     {each.text}")
        _tell_of_mlflow(each, delete=arguments.mlflow)
    return 0


def _confirm(yes: bool, question: str) -> None:
    """Raises ConfigError where the user does not agree, or cannot be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("nothing is deleted: there is nobody to ask; --yes does it")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("nothing is deleted")


def _tell_of_mlflow(deletion: Deletion, *, delete: bool) -> None:
    """Deletes its runs in MLflow, or says that they stay."""
    from pcl_ray.cluster import status
    from pcl_ray.tracking import run_list

    if not deletion.recorded:
        return
    runs = count(len(deletion.recorded), "run")
    if not delete:
        stay = "stays" if len(deletion.recorded) == 1 else "stay"
        print(f"MLflow      {runs} {stay} there, with figures and artifacts; --mlflow deletes them as well")
        return
    try:
        for run_id in deletion.recorded.values():
            run_list.delete(status.uri(), run_id)
    except RunFailed as failure:
        print(f"warning: not deleted in MLflow: {failure}", file=sys.stderr)
        return
    print(f"MLflow      {runs} deleted there; `mlflow gc` frees what their artifacts take")


def _add_prune_arguments(parser: argparse.ArgumentParser) -> None:
    from pcl_ray.runs.upkeep.clearing import KINDS

    words = ", ".join(kind.word for kind in KINDS)
    parser.add_argument("kinds", nargs="*", metavar="WHAT", help=f"only these: {words}; left out: all")
    parser.add_argument("--yes", action="store_true", help="remove it; without, it is only listed")


def _prune(arguments: argparse.Namespace) -> int:
    from pcl_ray.runs.upkeep import clearing

    def warn(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    clearables = {kind: list(kind.find(warn)) for kind in clearing.kinds_of(arguments.kinds)}
    everything = [each for entries in clearables.values() for each in entries]
    for kind, entries in clearables.items():
        stored = clearing.stored_size_of(entries)
        files = sum(len(each.paths) + len(each.stored) for each in entries)
        sizes = f"{binary_size(clearing.size_of(entries)):>10}"
        sizes += f" and {binary_size(stored)} in storages" if stored else ""
        print(f"{kind.word:<12} {sizes}  {kind.title}{f' ({files:,})' if files else ''}")
    stored = clearing.stored_size_of(everything)
    freed = binary_size(clearing.size_of(everything))
    freed += f", and {binary_size(stored)} in storages" if stored else ""
    _tell_of_artifacts()
    if arguments.yes:
        clearing.clear(everything, warn)
        print(f"freed       {freed}")
    elif everything:
        print(f"would free  {freed}; nothing is removed yet: `pcl-ray prune --yes` does it")
    else:
        print("there is nothing to remove; `pcl-ray delete RUN` removes a run")
    return 0


def _tell_of_artifacts() -> None:
    """Says what the embedded store of MLflow takes, which is not touched."""
    from pcl_ray.runs.upkeep import disk
    from pcl_ray.support.paths import home

    if size := disk.freed([home() / "mlflow"]):
        print(
            f"MLflow      {binary_size(size)} in {home() / 'mlflow'} stay: delete runs there in the"
            " dashboard, or by `pcl-ray delete RUN --mlflow`, then `mlflow gc`"
        )


DELETE = Verb("delete", "delete a run, or a sweep with its trials", _add_delete_arguments, _delete)
PRUNE = Verb("prune", "say what can go and how much it frees; --yes removes it", _add_prune_arguments, _prune)
