"""What the command prints: knobs, tables of runs, the figures of a run that has ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcl_ray import config
from pcl_ray.config import figures
from pcl_ray.config.final_figures import final_rows
from pcl_ray.config.knn_figures import row_with_error
from pcl_ray.config.knobs import Knob
from pcl_ray.support import machine, redaction
from pcl_ray.support.text import count

if TYPE_CHECKING:
    from pcl_ray.runs.final_artifacts import RunResult


def print_knobs(described: Sequence[Knob]) -> None:
    """Prints what --describe shows."""
    for knob in described:
        print(f"{knob.name} = {knob.default!r}\n    {knob.allowed}\n    {knob.sentence}")


def print_result(result: RunResult) -> None:
    """Prints the closing table of a run, where its report is, and what can be done next."""
    from pcl_ray import tracking
    from pcl_ray.runs.folder import CONFIG_FILE, REPORT_FILE, read_state_at
    from pcl_ray.support.paths import home

    stored = config.load(Path(result.run_dir, CONFIG_FILE))
    print()
    for title, value in _table(result.metrics):
        if stored.encoder.init_from is not None and title == figures.UNTRAINED_KNN_TOP1.title:
            title = "kNN accuracy of the weights as they came"
        print(f"{title:<38} {value}")
    if not figures.clusterings_in(result.metrics):
        warmup = stored.e_step.warmup_epochs
        why = f"no E-step came after the warm-up of {count(warmup, 'epoch')}"
        if figures.RANK.name in result.metrics:  # an E-step has measured the features
            why = "no E-step made clusters that can be used; the warnings say why"
        print(f"{'prototypes':<38} none: {why}")
    print(f"{'run':<38} {result.run_name} ({result.state})")
    if (report := Path(result.run_dir, REPORT_FILE)).exists():
        print(f"{'report':<38} {report}")
    print("\nNext:")
    if stored.tracking.enabled:
        link = read_state_at(Path(result.run_dir)).get("link")
        print(f"  {link or _as_typed(tracking.ui_command(stored.tracking, home()))}")
    name = shlex.quote(result.run_name)
    further = {
        f"pcl-ray doctor {name}": "what its curves mean, and what to try",
        f"pcl-ray embed {name} PICTURES --out DIR": "its features and prototypes of a folder",
        f"pcl-ray export {name} --to onnx": "the encoder for other programs",
    }
    width = max(len(_as_typed(command)) for command in further)
    for command, meaning in further.items():
        print(f"  {_as_typed(command):<{width}}  {meaning}")
    if stored.data.source == "digits":
        print(f"  {_as_typed('pcl-ray train folder data.path=/path/to/your/pictures')}")


def _as_typed(command: str) -> str:
    """The command as it can be typed here."""
    program, space, rest = command.partition(" ")
    return f"{machine.as_typed(program)} {rest}" if space else command  # no space: the address of a server


def _table(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """The rows of the closing table; figures that a run without labels does not have are left out."""
    metrics = figures.with_present_names(metrics)
    lines = (*figures.REFERENCES, figures.LARGEST_CLASS)
    before = (figures.LOSS, figures.KNN_TOP1, *lines, figures.HEAD_KNN_TOP1)
    after = (
        *(figures.RANKME, figures.IMAGES_PER_SECOND),
        *(figures.E_STEP_SECONDS_TOTAL, figures.EPOCH_SECONDS_TOTAL),
    )
    rows = [row_with_error(figure, metrics) for figure in before if figure.name in metrics]
    for m in figures.clusterings_in(metrics):
        agreement, count = figures.AMI.at(m), figures.NUM_CLUSTERS.at(m)
        if agreement.name in metrics:
            title = f"clusters and labels, K = {count.text(metrics[count.name])}"
            rows.append((title, agreement.phrase(metrics[agreement.name])))
    rows += final_rows(metrics)
    return rows + [figure.row(metrics[figure.name]) for figure in after if figure.name in metrics]


def print_table(show: Callable[[Callable[[Any], None]], None]) -> None:
    """Prints a table of rich: as wide as the terminal, or 160 columns where the output is none."""
    from rich.console import Console

    console = Console(highlight=False)
    show(console.print if console.is_terminal else Console(highlight=False, width=160).print)


def public_tracking_uri() -> str:
    """The address of the MLflow store, without a password that may be in it."""
    from pcl_ray.cluster import status

    return redaction.public_uri(status.uri())
