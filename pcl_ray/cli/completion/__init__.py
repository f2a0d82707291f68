"""`pcl-ray completion`: what a shell offers behind the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from pcl_ray.cli.verb import Verb

__all__ = ["verb_of"]

_SHELLS = ("bash", "zsh", "fish")


def verb_of(verbs: Callable[[], Mapping[str, Verb]]) -> Verb:
    """The verb. verbs: all there are, this one among them."""

    def run(arguments: argparse.Namespace) -> int:
        from pcl_ray.cli.completion import scripts
        from pcl_ray.cli.completion.words import words_of

        print(scripts.script(arguments.shell, words_of(verbs())), end="")
        return 0

    return Verb("completion", "print what makes a shell complete this command", _add_arguments, run)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=_SHELLS, metavar="SHELL", help=f"one of {', '.join(_SHELLS)}")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "For every new shell:\n"
        '  bash   eval "$(pcl-ray completion bash)"    in ~/.bashrc\n'
        '  zsh    eval "$(pcl-ray completion zsh)"     in ~/.zshrc, after compinit\n'
        "  fish   pcl-ray completion fish | source     in ~/.config/fish/config.fish\n"
        "Names of runs are looked up in PCL_RAY_HOME by the shell itself, without starting Python."
    )
