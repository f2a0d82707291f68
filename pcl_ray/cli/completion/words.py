"""The words that may follow `pcl-ray`: verbs, their options, recipes, spaces, knobs and their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Literal

from pcl_ray import config
from pcl_ray.cli.verb import Parser, Verb

# Lists of words that are the same wherever they stand, and names that the shell looks up.
WordList = Literal["recipes", "spaces", "knobs", "sweep_knobs", "runs", "sweeps", "shells"]
_OPTIONS_WITH_NAMES: Mapping[tuple[str, str], WordList] = {
    ("train", "--resume"): "runs",
    ("sweep", "--resume"): "sweeps",
    ("sweep", "--recipe"): "recipes",
}
_OF_NO_CHOICE = {"whole number", "number", "text"}


@dataclass(frozen=True)
class VerbWords:
    """What may follow a verb. options: each with the words that it takes, () where they are not known."""

    name: str
    sentence: str
    options: Mapping[str, tuple[str, ...]]
    option_lists: Mapping[str, WordList]
    lists: tuple[WordList, ...]


@dataclass(frozen=True)
class Words:
    """All words. values: of knobs that take one of a few."""

    verbs: tuple[VerbWords, ...]
    recipes: tuple[str, ...]
    spaces: tuple[str, ...]
    knobs: tuple[str, ...]
    sweep_knobs: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]


def words_of(verbs: Mapping[str, Verb]) -> Words:
    """The words of these verbs and of everything that they take."""
    from pcl_ray.sweep.space import settings

    described = [*config.describe(), *settings.describe()]
    values = {knob.name: choices for knob in described if (choices := _choices(knob.type))}
    files = resources.files("tune_spaces").iterdir()
    spaces = [file.name.removesuffix(".py") for file in files if file.name.endswith(".py")]
    return Words(
        verbs=tuple(_of_verb(verb) for verb in verbs.values()),
        recipes=tuple(config.recipe_names()),
        spaces=tuple(sorted(name for name in spaces if name != "__init__")),
        knobs=tuple(knob.name for knob in config.describe()),
        sweep_knobs=tuple(knob.name for knob in settings.describe()),
        values=values,
    )


def _choices(described: str) -> tuple[str, ...]:
    """The words among what a knob takes: of "auto | list of number" auto."""
    parts = [part.strip() for part in described.split("|")]
    words = tuple(part for part in parts if part not in _OF_NO_CHOICE and " " not in part)
    return words if words != ("null",) else ()


def _of_verb(verb: Verb) -> VerbWords:
    parser = Parser(prog=verb.name)
    verb.add_arguments(parser)
    options: dict[str, tuple[str, ...]] = {}
    lists: list[WordList] = ["recipes", "knobs", "spaces", "sweep_knobs"] if verb.divide else []
    for action in parser._actions:  # argparse has no other way to ask
        for option in action.option_strings:
            options[option] = tuple(map(str, action.choices or ()))
        if not action.option_strings:
            lists += _lists(str(action.metavar), str(action.help))
            if action.metavar == "SHELL":
                lists.append("shells")
    wanted = {option: words for (name, option), words in _OPTIONS_WITH_NAMES.items() if name == verb.name}
    return VerbWords(verb.name, verb.sentence, options, wanted, tuple(dict.fromkeys(lists)))


def _lists(metavar: str, help_text: str) -> list[WordList]:
    """The lists that hold what a verb's words may be, by what its help calls them."""
    lists: list[WordList] = []
    if "RECIPE" in metavar:
        lists.append("recipes")
    if "SPACE" in metavar:
        lists.extend(("spaces", "sweep_knobs"))
    if "RUN" in metavar:
        lists.append("runs")
        if "sweep" in help_text:
            lists.append("sweeps")
    if "KEY=VALUE" in metavar:
        lists.append("knobs")
    return lists
