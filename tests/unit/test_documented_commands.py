"""Every command that the README and the documents print is one that the program takes: verb, options, knobs
and their values. That they do what they say: `tests/runs/test_documents.py`.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from documented import DOCUMENTS, ROOT, Block, Command, blocks_of, spans_of

from pcl_ray import config
from pcl_ray.cli import command as cli_command
from pcl_ray.cli import sweep as cli_sweep
from pcl_ray.config import knobs
from pcl_ray.errors import ConfigError

BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
WITH_COMMANDS = [block for block in BLOCKS if block.commands()]
KNOB = re.compile(r"([a-z_]+\.[a-z_]+|seed)=(\S.*)")
PLACEHOLDER = re.compile(r"[A-Z][A-Z_.]*")  # RECIPE, RUN, SWEEP.DIGEST
# Options of other programs, which documents name in passing.
FOREIGN_OPTIONS = {
    "--metadata-json",
    "--entrypoint-memory",
    "--allowed-hosts",
    "--json",
    "--runtime-env-json",
}


def check(words: Sequence[str]) -> None:
    """Fails where a program does not take these words. Words in capitals stand for names."""
    match list(words):
        case ["pcl-ray", *rest]:
            check_pcl_ray(rest)
        case ["ray", "job", "submit", *rest]:
            check_job(rest)
        case ["make", *targets]:
            done = run("make", "--dry-run", "--directory", str(ROOT), "VENV=/nowhere", *targets)
            assert done.returncode == 0, done.stderr
        case ["python", script, *rest] if script.startswith(("benchmarks/", "docs/")):
            check_script(script, rest)


def check_pcl_ray(words: Sequence[str]) -> None:
    try:
        verb, arguments = cli_command.parse(words)
    except SystemExit as ended:
        pytest.fail(f"pcl-ray {shlex.join(words)}: exit code {ended.code}")
    if verb.name == "submit":
        others = (
            arguments.others if arguments.others[0] in ("train", "sweep") else ["train", *arguments.others]
        )
        check_pcl_ray(others)
        return
    if verb.name == "sweep":
        cli_sweep.check(arguments)
    if verb.name == "train":
        given = [word for word in arguments.words if "=" not in word]
        assert all(word in config.recipe_names() or PLACEHOLDER.fullmatch(word) for word in given), given
    check_knobs(words)


def check_knobs(words: Sequence[str]) -> None:
    """Fails where KEY=VALUE words are no knobs, or the knobs do not take the values."""
    settings = [word for word in words if KNOB.fullmatch(word) and not word.endswith("…")]
    of_sweeps = {
        word.partition("=")[0]: word.partition("=")[2] for word in settings if word.startswith("sweep.")
    }
    if of_sweeps:
        from pcl_ray.sweep.space import settings as sweep_settings

        assert sweep_settings.read(of_sweeps)[1] == []
    config.load("folder", [word for word in settings if not word.startswith("sweep.")])


def check_job(words: Sequence[str]) -> None:
    """`ray job submit … -- python jobs/VERB.py …`: Ray's options, and those of the verb."""
    from ray.dashboard.modules.job.cli import submit

    at = list(words).index("--")
    own, (python, script, *rest) = words[:at], words[at + 1 :]
    submit.make_context("submit", [*own, "--", python, script])
    assert python == "python"
    assert (ROOT / script).is_file()
    check_pcl_ray([Path(script).stem, *rest])


def check_script(script: str, words: Sequence[str]) -> None:
    """A script of the repository, too heavy to be asked for its help: it names these options and commands."""
    assert (ROOT / script).is_file()
    text = (ROOT / script).read_text()
    beside = [
        (ROOT / script).parent / f"{name}.py"
        for name in re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    ]
    text += "".join(path.read_text() for path in beside if path.exists())
    named = [word for word in words if re.fullmatch(r"(--)?[a-z-]+", word)]
    assert [word for word in named if f'"{word}"' not in text] == []


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def spelled_out(line: str) -> Iterator[list[str]]:
    """The commands that a synopsis stands for: `[--head]` is given, each of `a|b|c` in its turn, what "…"
    stands for left out.
    """
    words = shlex.split(re.sub(r"[\[\]…]", " ", line), comments=True)
    parts = [word.split("|") if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word) else [word] for word in words]
    yield from (list(choice) for choice in product(*parts))


def check_command(command: Command) -> None:
    for words in spelled_out(command.line):
        check([word for word in words if word != "KEY=VALUE"])


@pytest.mark.parametrize("block", WITH_COMMANDS, ids=lambda block: block.title)
def test_what_is_printed_is_what_the_program_takes(block: Block) -> None:
    for command in block.commands():
        if command.printed:
            continue  # an example of mistakes, with what is said of them
        check_command(command)


def test_every_document_with_commands_was_found() -> None:
    assert len(WITH_COMMANDS) > 25
    assert {block.document.name for block in WITH_COMMANDS} >= {"README.md", "cluster.md", "sweeps.md"}
    unread = [
        block.title
        for block in BLOCKS
        if not block.language and "pcl-ray " in block.text and not block.commands()
    ]
    assert unread == []


def test_marks_hold_for_something_and_give_a_reason() -> None:
    for document in DOCUMENTS:
        written = document.read_text(encoding="utf-8").count("<!-- not run") + document.read_text(
            encoding="utf-8"
        ).count("<!-- slow")
        assert written == sum(len(block.marks) for block in blocks_of(document)), document.name
    for block in BLOCKS:
        for mark in block.marks:
            assert len(mark.reason) > 5
            lines = [command.line for command in block.commands()] or [block.text]
            assert any(line.startswith(mark.beginning) for line in lines), f"{block.title}: {mark}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_knobs_in_sentences(document: Path) -> None:
    options = all_options()
    for span in spans_of(document):
        if span.startswith("pcl-ray "):
            check_mention(span)
        elif span.startswith("ray job submit "):
            check_command(Command(span, None))
        elif span.startswith("--"):
            assert span.split()[0].rstrip(",") in options | FOREIGN_OPTIONS, span
        elif match := re.fullmatch(r"([a-z_]+)\.([a-z_]+)(=.*)?", span):
            is_knob = match[1] in config.RunConfig.model_fields and (match[3] or not is_other_name(span))
            assert not is_knob or f"{match[1]}.{match[2]}" in knobs.names(), span
            check_knobs(shlex.split(span) if match[3] else [])


def check_mention(span: str) -> None:
    """A verb in a sentence, often without its words: it is there, and its options, and the knobs."""
    verb, *words = shlex.split(re.sub(r"[\[\]…|]", " ", span))[1:] or ["--help"]
    shown = help_of() if verb.startswith("-") else help_of(verb)
    assert [word for word in words if word.startswith("--") and word not in shown] == [], span
    check_knobs(words)


def is_other_name(span: str) -> bool:
    """Names that look like a knob: of modules (`data.folders`) and of figures."""
    section, _, name = span.partition(".")
    return (ROOT / "pcl_ray" / section / f"{name}.py").exists() or span.endswith((".yaml", ".py"))


@cache
def all_options() -> set[str]:
    """The options of all verbs."""
    verbs = re.findall(r"^  ([a-z]+) ", help_of(), flags=re.MULTILINE)
    assert len(verbs) > 20
    return {option for verb in verbs for option in re.findall(r"--[a-z-]+", help_of(verb))}


@cache
def help_of(*verb: str) -> str:
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit):
        cli_command.parse([*verb, "--help"])
    return printed.getvalue()


@pytest.mark.parametrize(
    "line",
    [
        "pcl-ray trian digits",
        "pcl-ray train digit",
        "pcl-ray train digits --nmae mine",
        "pcl-ray train digits loss.temprature=0.1",
        "pcl-ray train digits loss.temperature=warm",
        "pcl-ray sweep temperature --samples many",
        "pcl-ray sweep temperature sweep.sampels=3",
        "pcl-ray export RUN --to onnx|onxx",
        "pcl-ray submit digits loss.temprature=0.1",
        "ray job submit --working-dri . -- python jobs/train.py digits",
        "ray job submit --working-dir . -- python jobs/trian.py digits",
        "ray job submit --working-dir . -- python jobs/train.py digits --nmae x",
        "make tset",
        "python benchmarks/study.py run --minuets 60",
    ],
)
def test_a_wrong_line_would_be_found(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    import click

    with pytest.raises((AssertionError, pytest.fail.Exception, ConfigError, click.ClickException)):
        check_command(Command(line, None))
