"""The pages of the site, for MkDocs: those of the repository under their paths there, so that links in them
hold, and those that are made of the code: all knobs, all figures, the functions and classes of `pcl_ray`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pcl_ray  # noqa: E402
from pcl_ray.config import figures, knobs  # noqa: E402
from pcl_ray.config.figure import Figure  # noqa: E402
from pcl_ray.config.sections import KnobProperties  # noqa: E402
from pcl_ray.support.text import value_text  # noqa: E402

SHOWN = ("*.md", "LICENSE", "docs/*.md", "docs/*.png", "docs/*.svg", "docs/tutorial/*", "docs/site/*.css")
SHOWN += ("docs/site/*.js", "docker/README.md", "benchmarks/RESULTS.md", "examples/*.ipynb")
KNOBS_INTRODUCTION = """# All knobs

Each has one dotted name: in a recipe, on the command line (`loss.temperature=0.1`), in an error, as a
parameter in MLflow. Defaults are those of a recipe that does not set the knob; `pcl-ray recipes RECIPE`
prints what each recipe sets. `pcl-ray train --describe` prints this list, `pcl-ray sweep --describe` that of
sweeps.

What may be done with a knob, and what depends on it:
"""
FIGURES_INTRODUCTION = """# All figures

What a run or a sweep measures, by the name that it has in MLflow, in `figures.csv`, in `--result` and in
`run.figures`. `{m}` is the number of the clustering, counted from 0, `{knob}` a swept knob. Which values are
better stands where runs can be compared by it. Those that are not charted are in the checkpoint and in
`figures.csv`; `tracking.metrics=all` charts them too.
"""
REFERENCE_INTRODUCTION = """# Functions and classes

What `import pcl_ray` offers, by its docstrings; [pcl_ray from Python](api.md) shows it in use.
"""
SECTIONS = {
    "data": "Images and labels",
    "augment": "Views of an image",
    "encoder": "The encoder",
    "loss": "The loss",
    "e_step": "The E-step",
    "optimizer": "The optimizer",
    "train": "Training",
    "resources": "Machine and cluster",
    "tracking": "MLflow",
    "evaluation": "Evaluation",
}
GROUPS = {
    "train": "Training: means over the steps of an epoch",
    "eval": "Evaluation",
    "cluster": "Clusters",
    "perf": "Speed and memory",
    "sweep": "Sweeps",
}


def on_files(files: Files, config: Any) -> Files:
    """The files of the site: those of the theme, and in place of what MkDocs found in docs/ the repository's
    under their paths there.
    """
    shown = Files([file for file in files if file.src_dir != config.docs_dir])  # of the theme
    for path in sorted({path for pattern in SHOWN for path in ROOT.glob(pattern)}):
        source = path.relative_to(ROOT).as_posix()
        shown.append(File.generated(config, source, abs_src_path=str(path)))
    for name, text in {"knobs": all_knobs(), "figures": all_figures(), "reference": reference()}.items():
        shown.append(File.generated(config, f"docs/{name}.md", content=text))
    return shown


def all_knobs() -> str:
    """A table of knobs for each section: what they take, what may be done with them, a sentence."""
    lines = [KNOBS_INTRODUCTION, *(f"- **{word}**: {sentence}" for word, sentence in PROPERTIES.items()), ""]
    for section in dict.fromkeys(name.partition(".")[0] for name in knobs.names()):
        described = [knob for knob in knobs.describe() if knob.name.partition(".")[0] == section]
        lines += [f"## {SECTIONS.get(section, section.capitalize())}", ""]
        rows = [
            (
                f"`{knob.name}`",
                f"`{value_text(knob.default)}`",
                knob.allowed,
                _properties(knobs.properties(knob.name)),
                knob.sentence,
            )
            for knob in described
        ]
        lines += _table(("knob", "default", "takes", "properties", "meaning"), rows)
    return "\n".join(lines)


# A word of this page for each property of `KnobProperties`, and what it says of a knob.
PROPERTIES = {
    "resume": "may be another when a run goes on (`pcl-ray resume RUN KEY=VALUE`)",
    "fork": "may be another in a run that begins from a checkpoint of another (`pcl-ray fork RUN KEY=VALUE`)",
    "population": "may change while a member of a population trains (`pcl-ray sweep … --scheduler pbt`)",
    "early": "acts before the first E-step: trials of a sweep that differ in it share no warm-up",
    "loss": "scales the loss: losses of runs with other values cannot be compared",
}


def _properties(declared: KnobProperties) -> str:
    held = {
        "resume": declared.changeable_on_resume,
        "fork": not declared.fixed_in_fork,
        "population": declared.perturbable,
        "early": declared.acts_before_first_e_step,
        "loss": declared.scales_the_loss,
    }
    return ", ".join(word for word in PROPERTIES if held[word])


def all_figures() -> str:
    """A table of figures for each group of the catalogue."""
    lines = [FIGURES_INTRODUCTION]
    for group in dict.fromkeys(figure.name.partition("/")[0] for figure in figures.CATALOGUE):
        rows = [_row(figure) for figure in figures.CATALOGUE if figure.name.partition("/")[0] == group]
        lines += [f"## {GROUPS.get(group, group.capitalize())}", ""]
        lines += _table(("figure", "name in reports", "better", "charted", "meaning"), rows)
    return "\n".join(lines)


def _row(figure: Figure) -> tuple[str, ...]:
    better = {"max": "more", "min": "less", "nearest_one": "near 1", None: ""}[figure.direction]
    return f"`{figure.name}`", figure.label, better, "yes" if figure.charted else "", figure.sentence


def reference() -> str:
    """The functions and classes of `pcl_ray`, from their docstrings."""
    lines = [REFERENCE_INTRODUCTION]
    for name in pcl_ray.__all__:
        offered = getattr(pcl_ray, name)
        if name == "sweep":
            lines += [
                f"::: {offered.run.__module__}.run",
                "    options: {heading: sweep, toc_label: sweep}",
                "",
            ]
        elif not name.startswith("_"):
            lines += [f"::: {offered.__module__}.{name}", ""]
    return "\n".join(lines)


def _table(heads: Iterable[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table in Markdown, whose names are not broken."""
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return ['<div class="catalogue" markdown>', "", *lines, "", "</div>", ""]


def _cell(text: str) -> str:
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")
