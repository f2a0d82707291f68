"""The scripts by which bash, zsh and fish complete `pcl-ray`: all words are in them, so that no key press
starts Python; names of runs and sweeps are those of folders with a configuration.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from pcl_ray.cli.completion.words import VerbWords, WordList, Words

_NAMES = """\
    local home="${PCL_RAY_HOME:-$HOME/.pcl_ray}" file
    for file in "${home/#\\~/$HOME}/$1"/*/config.yaml; do
        [ -e "$file" ] || continue
        file="${file%/config.yaml}"
        printf '%s\\n' "${file##*/}"
    done
"""

_BASH = """\
# Completes pcl-ray in bash:  eval "$(pcl-ray completion bash)"
_pcl_ray_names() {
@NAMES@}

_pcl_ray_list() {
    case "$1" in
@LISTS@        runs | sweeps) _pcl_ray_names "$1" ;;
    esac
}

_pcl_ray_values() {
    case "$1" in
@VALUES@    esac
}

_pcl_ray() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="${COMP_WORDS[1]}"
    local options="" lists="" name candidates=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "@VERBS@" -- "$word"))
        return
    fi
    # bash takes the = of KEY=VALUE for a word of its own
    if [ "$word" = "=" ]; then
        COMPREPLY=($(compgen -W "$(_pcl_ray_values "$before")" -- ""))
        return
    elif [ "$before" = "=" ]; then
        COMPREPLY=($(compgen -W "$(_pcl_ray_values "${COMP_WORDS[COMP_CWORD-2]}")" -- "$word"))
        return
    fi
    case "$verb $before" in
@TAKES@    esac
    case "$verb" in
@CASES@    esac
    if [ -n "$candidates" ]; then
        :
    elif [ "${word#-}" != "$word" ]; then
        candidates="$options"
    else
        for name in $lists; do candidates+=" $(_pcl_ray_list "$name")"; done
    fi
    COMPREPLY=($(compgen -W "$candidates" -- "$word"))
    if [ "${#COMPREPLY[@]}" -gt 0 ] && [ "${COMPREPLY[0]%=}" != "${COMPREPLY[0]}" ]; then
        compopt -o nospace 2>/dev/null
    fi
}

complete -o default -F _pcl_ray pcl-ray
"""

_ZSH = """\
#compdef pcl-ray
# Completes pcl-ray in zsh:  eval "$(pcl-ray completion zsh)"  after compinit
_pcl_ray_names() {
    setopt localoptions nullglob
@NAMES@}

_pcl_ray_list() {
    case "$1" in
@LISTS@        runs | sweeps) _pcl_ray_names "$1" ;;
    esac
}

_pcl_ray_values() {
    case "$1" in
@VALUES@    esac
}

_pcl_ray() {
    local word="${words[CURRENT]}" before="${words[CURRENT-1]}" verb="${words[2]}"
    local options="" lists="" name candidates=""
    local -a plain knobs
    if (( CURRENT == 2 )); then
        compadd -- @VERBS@
        return
    fi
    if [[ "$word" == *=* ]]; then
        plain=(${=$(_pcl_ray_values "${word%%=*}")})
        compset -P '*='
        if (( ${#plain} )); then compadd -- $plain; else _files; fi
        return
    fi
    case "$verb $before" in
@TAKES@    esac
    case "$verb" in
@CASES@    esac
    if [[ -n "$candidates" ]]; then
        :
    elif [[ "$word" == -* ]]; then
        candidates="$options"
    else
        for name in ${=lists}; do candidates+=" $(_pcl_ray_list "$name")"; done
    fi
    for name in ${=candidates}; do
        if [[ "$name" == *= ]]; then knobs+=("$name"); else plain+=("$name"); fi
    done
    (( ${#plain} )) && compadd -- $plain
    (( ${#knobs} )) && compadd -S '' -- $knobs
    [[ "$word" == -* ]] || _files
}

compdef _pcl_ray pcl-ray
"""

_FISH = """\
# Completes pcl-ray in fish:  pcl-ray completion fish | source
function __pcl_ray_names
    set -l home $HOME/.pcl_ray
    set -q PCL_RAY_HOME; and set home (string replace -r '^~' $HOME -- $PCL_RAY_HOME)
    for file in $home/$argv[1]/*/config.yaml
        string replace -r '.*/([^/]*)/config.yaml$' '$1' -- $file
    end
end

function __pcl_ray_list
    switch $argv[1]
@LISTS@        case runs sweeps
            __pcl_ray_names $argv[1]
    end
end

"""


def script(shell: str, words: Words) -> str:
    """What the shell has to read."""
    if shell == "fish":
        return _fish(words)
    parts = {
        "@NAMES@": _NAMES,
        "@LISTS@": "".join(
            f"        {name}) printf '%s ' {_quoted(entries)} ;;\n" for name, entries in _lists(words)
        ),
        "@VALUES@": "".join(
            f"        {knob}) printf '%s ' {_quoted(values)} ;;\n" for knob, values in words.values.items()
        ),
        "@VERBS@": " ".join(verb.name for verb in words.verbs),
        "@TAKES@": "".join(_choice_cases(verb) for verb in words.verbs),
        "@CASES@": "".join(
            f"        {verb.name}) options={shlex.quote(' '.join(verb.options))}"
            f" lists={shlex.quote(' '.join(verb.lists))} ;;\n"
            for verb in words.verbs
        ),
    }
    text = _BASH if shell == "bash" else _ZSH
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text


def _lists(words: Words) -> list[tuple[WordList, list[str]]]:
    """The lists that are known beforehand. A knob is offered with its =."""
    return [
        ("recipes", list(words.recipes)),
        ("spaces", list(words.spaces)),
        ("knobs", [f"{name}=" for name in words.knobs]),
        ("sweep_knobs", [f"{name}=" for name in words.sweep_knobs]),
        ("shells", ["bash", "zsh", "fish"]),
    ]


def _choice_cases(verb: VerbWords) -> str:
    """The cases of the options that take one of a list of words."""
    cases = [
        f'        "{verb.name} {option}") candidates={shlex.quote(" ".join(choices))} ;;\n'
        for option, choices in verb.options.items()
        if choices
    ]
    cases += [
        f'        "{verb.name} {option}") candidates="$(_pcl_ray_list {name})" ;;\n'
        for option, name in verb.option_lists.items()
    ]
    return "".join(cases)


def _quoted(entries: Iterable[str]) -> str:
    return " ".join(shlex.quote(entry) for entry in entries)


def _fish(words: Words) -> str:
    lists = "".join(
        f"        case {name}\n            printf '%s\\n' {_quoted(entries)}\n"
        for name, entries in _lists(words)
    )
    lines = [_FISH.replace("@LISTS@", lists)]
    values = [f"{knob}={value}" for knob, choices in words.values.items() for value in choices]
    for verb in words.verbs:
        lines.append(
            f"complete -c pcl-ray -f -n __fish_use_subcommand -a {verb.name} -d {_fish_text(verb.sentence)}\n"
        )
        seen = f"-n '__fish_seen_subcommand_from {verb.name}'"
        lines += [f"complete -c pcl-ray {seen} -a '(__pcl_ray_list {name})'\n" for name in verb.lists]
        if "knobs" in verb.lists:
            lines.append(f"complete -c pcl-ray {seen} -a {_fish_text(' '.join(values))}\n")
        for option, choices in verb.options.items():
            kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
            if name := verb.option_lists.get(option):
                kind += f" -x -a '(__pcl_ray_list {name})'"
            elif choices:
                kind += f" -x -a {_fish_text(' '.join(choices))}"
            lines.append(f"complete -c pcl-ray {seen} {kind}\n")
    return "".join(lines)


def _fish_text(text: str) -> str:
    """Text in fish's quotes, in which only the backslash and the quote mean something."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
