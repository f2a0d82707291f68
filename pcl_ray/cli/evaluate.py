"""`pcl-ray evaluate`: an encoder measured as papers measure it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from pcl_ray.cli.output import print_table
from pcl_ray.cli.verb import Verb, add_experiment_argument, check_result_file, knob_words
from pcl_ray.config.protocol_figures import (
    LOW_SHOT,
    OWN_FEATURES,
    PROTOCOLS,
    Features,
    Protocol,
    protocols_named,
)
from pcl_ray.errors import ConfigError, DataError
from pcl_ray.support.text import count

if TYPE_CHECKING:
    from pcl_ray.evaluation.protocols.images import EvaluationImages

_MANY_COMPARISONS = 2 * 10**10  # of queries with the bank: half of ImageNet's
_MANY_CLASSES = 200
_Number = TypeVar("_Number", int, float)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listed = "\n".join(
        f"  {each.name:12s} {each.sentence}{' (takes long: only by name)' if each.costly else ''}"
        for each in PROTOCOLS
    )
    parser.description = (
        "Measures an encoder as papers do, beside what raw pixels and an untrained encoder reach. Of a run,"
        " the figures\ngo to its entry in MLflow, too.\n\nprotocols:\n" + listed
    )
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN_OR_WEIGHTS [DATA] [KEY=VALUE …]",
        help=(
            "a run's name, its folder, a checkpoint or a file of weights; the images: left out those of the"
            " run, else a folder, shards (.parquet, .tar), an .npy or .npz"
            " file or a recipe; knobs of data, augment and evaluation"
        ),
    )
    parser.add_argument(
        "--protocols",
        default="fast",
        metavar="LIST",
        help="by comma; fast (the default) and all stand for several",
    )
    parser.add_argument(
        "--features",
        default="backbone",
        metavar="LIST",
        help="backbone (the default, which is what one transfers), head, or both by comma",
    )
    parser.add_argument(
        "--encoder",
        choices=("query", "momentum", "auto"),
        default="auto",
        help="auto: a run's momentum encoder, as in training; of other files the query encoder, as published",
    )
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help="of what is random; default: 5, and 1 of what trains on images (linear-sgd, fine-tuning)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of draws and starts; default: 0")
    parser.add_argument(
        "--neighbours", metavar="LIST", help="k of kNN, several by comma; default: evaluation.knn_neighbours"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="τ of kNN; default: evaluation.knn_temperature"
    )
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="kNN: the bank's images are the queries, each without itself",
    )
    parser.add_argument(
        "--clusters",
        metavar="LIST",
        help="K beside the number of classes; default: the run's, or the paper's",
    )
    _add_probe_arguments(parser)
    parser.add_argument(
        "--tuning-epochs", type=int, default=20, metavar="N", help="of fine-tuning; default: 20"
    )
    parser.add_argument("--bank", type=int, default=0, metavar="N", help="at most so many training images")
    parser.add_argument("--queries", type=int, default=0, metavar="N", help="at most so many held-out images")
    parser.add_argument(
        "--no-references", action="store_true", help="without pixels and untrained encoder beside"
    )
    parser.add_argument(
        "--ray",
        choices=("auto", "always", "never"),
        default="auto",
        help="kNN over Ray tasks; auto: where RAY_ADDRESS names a cluster and the bank is large",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything as JSON")
    add_experiment_argument(parser, "of MLflow, for weights that no run of ours has trained")
    parser.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")


def _add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--probe-epochs", type=int, default=100, metavar="N", help="of linear-sgd; default: 100"
    )
    parser.add_argument(
        "--probe-lr",
        type=float,
        default=5.0,
        metavar="LR",
        help="of linear-sgd, for batches of 256; default: 5",
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    words, overrides = knob_words(arguments.words)
    if not 1 <= len(words) <= 2:
        raise ConfigError(
            "which encoder? A run's name or a file of weights, and after it at most one data set"
            + (f"; {words[2]!r} is a third word" if len(words) > 2 else "")
        )
    protocols = protocols_named(_words(arguments.protocols))
    features = _features(arguments.features)
    neighbours = _numbers(arguments.neighbours, "--neighbours", int)
    clusters = _numbers(arguments.clusters, "--clusters", int)
    if min(arguments.bank, arguments.queries) < 0:
        raise ConfigError("--bank and --queries are 1 or more, or left out for all images")
    check_result_file(arguments.json, "--json")

    from pcl_ray.runs.evaluation import subject as subjects
    from pcl_ray.runs.preparation import prepare_evaluation

    prepare_evaluation()
    from pcl_ray.evaluation.protocols.evaluate import EvaluationRequest, evaluate
    from pcl_ray.evaluation.protocols.settings import ProtocolSettings
    from pcl_ray.runs.evaluation import result as results

    subject = subjects.read_subject(words[0], arguments.encoder)
    config = subjects.config_for(subject, words[1] if len(words) > 1 else None, overrides)
    settings = ProtocolSettings(
        neighbours=neighbours or (config.evaluation.knn_neighbours,),
        temperature=config.evaluation.knn_temperature
        if arguments.temperature is None
        else arguments.temperature,
        leave_one_out=arguments.leave_one_out,
        runs=5 if arguments.runs is None else arguments.runs,
        costly_runs=1 if arguments.runs is None else arguments.runs,
        probe_epochs=arguments.probe_epochs,
        probe_lr=arguments.probe_lr,
        tuning_epochs=arguments.tuning_epochs,
        seed=arguments.seed,
    )
    _say(f"encoder    {subject.name}: {subject.weights.note}")
    images, config = subjects.load_images(config, _say, bank=arguments.bank, queries=arguments.queries)
    if clusters and max(clusters) > len(images.bank):
        raise ConfigError(
            f"--clusters {max(clusters)}: more than the {count(len(images.bank), 'image')} to learn from"
        )
    settings = settings.with_clusters(clusters or subjects.cluster_counts(subject, len(images.bank)))
    held_out = 0 if images.queries is None else len(images.queries)
    _say(
        f"data       {images.name}: {count(len(images.bank), 'image')} to learn from, {held_out:,} held out,"
        f" {count(images.num_classes, 'class', 'classes') if images.num_classes else 'no labels'}"
    )
    if "low-shot" not in _words(arguments.protocols):
        protocols = _without_many_svms(protocols, images.num_classes)
    request = EvaluationRequest(protocols, features, not arguments.no_references)
    with _search(arguments.ray, images, _say) as search:
        settings = replace(settings, search=search)
        evaluation = evaluate(subjects.tested_encoder(subject, config), images, request, settings, _say)
    for refusal in evaluation.refusals:
        print(f"not run: {refusal}", file=sys.stderr)
    if not evaluation.measurements:
        raise DataError("nothing could be measured")
    result = results.EvaluationResult(subject, images, config, evaluation)
    print_table(lambda show: show(results.table_of(evaluation)))
    file = results.write_json(result.as_json(), subject.name, arguments.json)
    _say(f"written    {file}")
    if not arguments.no_tracking:
        address = results.record(result, file, arguments.experiment, lambda text: _warn(text))
        if address:
            _say(f"recorded   {address}")
    return 0


def _without_many_svms(protocols: tuple[Protocol, ...], num_classes: int) -> tuple[Protocol, ...]:
    """The protocols without the low-shot SVMs, where there are so many classes that they take hours."""
    if LOW_SHOT not in protocols or num_classes <= _MANY_CLASSES:
        return protocols
    _say(
        f"left out   low-shot: SVMs for each of {num_classes:,} classes take hours; ask for it by"
        " --protocols low-shot"
    )
    return tuple(protocol for protocol in protocols if protocol != LOW_SHOT)


@contextmanager
def _search(where: str, images: EvaluationImages, say: Callable[[str], None]) -> Iterator[Any]:
    """The search for neighbours over Ray, where that is wanted or worth it; None for one in this process."""
    comparisons = len(images.bank) * (len(images.bank) if images.queries is None else len(images.queries))
    large = bool(os.environ.get("RAY_ADDRESS")) and comparisons > _MANY_COMPARISONS
    if where == "never" or (where == "auto" and not large):
        yield None
        return
    from pcl_ray.on_ray import environment

    environment.set_defaults()  # before anything imports Ray
    from pcl_ray.on_ray.neighbour_tasks import search_on_ray

    with search_on_ray(say) as search:
        yield search


def _say(text: str) -> None:
    print(text, flush=True)


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _features(text: str) -> tuple[Features, ...]:
    """Backbone and head as they are wanted. Raises ConfigError."""
    wanted = _words(text)
    for word in wanted:
        if word not in OWN_FEATURES:
            raise ConfigError(f"--features {word!r}: {' or '.join(OWN_FEATURES)}, or both by comma")
    if not wanted:
        raise ConfigError(f"--features names none of {' and '.join(OWN_FEATURES)}")
    return tuple(kind for kind in get_args(Features) if kind in wanted)


def _numbers(text: str | None, option: str, kind: Callable[[str], _Number]) -> tuple[_Number, ...]:
    """The numbers of a list by comma; () where the option was left out. Raises ConfigError."""
    if text is None:
        return ()
    try:
        numbers = tuple(kind(part) for part in _words(text))
    except ValueError:
        raise ConfigError(f"{option} {text!r}: numbers, several by comma") from None
    if not numbers:
        raise ConfigError(f"{option} {text!r}: at least one number is needed")
    return numbers


def _add_reproduce_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "Puts an encoder beside the figures that the authors of PCL published, by their protocols, and says"
        " what could\nnot be run and why. The linear layer on ImageNet takes a GPU and a day or two; VOC2007"
        " takes minutes."
    )
    parser.add_argument("source", metavar="RUN_OR_WEIGHTS", help="a run, a checkpoint or a file of weights")
    parser.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="folders of ImageNet (train, val) and VOC2007 (JPEGImages, ImageSets/Main), or one of them",
    )
    parser.add_argument(
        "--encoder",
        choices=("query", "momentum"),
        default="query",
        help="query (the default) is what the authors measure",
    )
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="draws of the SVMs; default: 5")
    parser.add_argument("--seed", type=int, default=0, help="of draws and starts; default: 0")
    _add_probe_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the card as JSON")


def _reproduce(arguments: argparse.Namespace) -> int:
    check_result_file(arguments.json, "--json")
    from pcl_ray.runs.preparation import prepare_evaluation

    prepare_evaluation()
    from pcl_ray.evaluation.protocols.settings import ProtocolSettings
    from pcl_ray.runs.evaluation import report_card
    from pcl_ray.runs.evaluation import result as results
    from pcl_ray.runs.evaluation import subject as subjects

    settings = ProtocolSettings(
        runs=arguments.runs,
        seed=arguments.seed,
        probe_epochs=arguments.probe_epochs,
        probe_lr=arguments.probe_lr,
    )
    subject = subjects.read_subject(arguments.source, arguments.encoder)
    _say(f"encoder    {subject.name}: {subject.weights.note}")
    card = report_card.make_report_card(subject, arguments.data, settings, _say)
    print_table(lambda show: show(card.table()))
    for line in card.lines():
        _say(line)
    file = results.write_json(card.as_json(), f"reproduce-{subject.name}", arguments.json)
    _say(f"written    {file}")
    return 0


EVALUATE = Verb("evaluate", "measure an encoder as papers do", _add_arguments, _evaluate)
REPRODUCE = Verb(
    "reproduce", "put an encoder beside the published figures", _add_reproduce_arguments, _reproduce
)
