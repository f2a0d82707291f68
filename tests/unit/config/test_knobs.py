from __future__ import annotations

import pytest
from small import config_error

from pcl_ray import config as configs
from pcl_ray.config import RunConfig, knobs
from pcl_ray.config.sections import base


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("loss.temperatur", "loss.temperature"),
        ("temperature", "loss.temperature"),
        ("los.temperature", "loss.temperature"),
        ("estep.alpha", "e_step.alpha"),
        ("optimiser.lr", "optimizer.lr"),
        ("e_step.temperature", "loss.temperature"),
        ("train.lr", "optimizer.lr"),
        ("alpha", "e_step.alpha"),
        ("e_step.k_clusters", "e_step.num_clusters"),
        ("sed", "seed"),
    ],
)
def test_unknown_key_says_which_was_meant(given: str, meant: str) -> None:
    (problem,) = config_error([f"{given}=1"]).problems
    assert problem.name == given
    assert f"did you mean {meant!r}?" in problem.message


def test_unknown_key_without_likeness_names_the_way_to_the_list() -> None:
    assert "--describe" in str(config_error(["wxyz=1"]))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epochs=many", "whole number ≥ 1"),
        ("train.epochs=1.5", "whole number ≥ 1"),
        ("train.epochs=0", "whole number ≥ 1"),
        ("loss.temperature=0", "number > 0 and ≤ 10"),
        ("loss.temperature=.nan", "number > 0 and ≤ 10"),
        ("loss.temperature=true", "true/false given"),
        ("optimizer.lr=.inf", "number > 0 and ≤ 100"),
        ("optimizer.momentum=1", "number ≥ 0 and < 1"),
        ("encoder.head=deep", "linear | mlp"),
        ("encoder.backbone=vgg16", "resnet18 … resnet152"),
        ("loss.mask_duplicates=perhaps", "true | false"),
        ("loss.negative_prototypes=some", "auto | all | whole number ≥ 1"),
        ("loss.negative_prototypes=0", "auto | all | whole number ≥ 1"),
        ("loss.negative_prototypes=true", "true/false given; allowed: auto | all | whole number ≥ 1"),
        ("data.in_memory=maybe", "allowed: true | false | auto"),
        ("data.in_memory=2", "allowed: true | false | auto"),
        ("data.in_memory=", "allowed: true | false | auto"),
        ("data.in_memory=[true]", "allowed: true | false | auto"),
        ("data.memory_gb=0", "number > 0"),
        ("data.memory_gb=auto", "number > 0"),
        ("data.memory_gb=true", "true/false given; allowed: number > 0"),
        ("data.reduced_decoding=half", "true | false"),
        ("data.loader_workers=-1", "whole number | null ≥ 0 and ≤ 128"),
        ("data.loader_workers=129", "whole number | null ≥ 0 and ≤ 128"),
        ("data.loader_workers=auto", "whole number | null ≥ 0 and ≤ 128"),
        ("data.prefetch=65", "whole number | null ≥ 0 and ≤ 64"),
        ("data.prefetch=true", "true/false given; allowed: whole number | null"),
        ("augment.engine=gpu", "batch | torchvision"),
        ("train.micro_batch=1", "whole number | null ≥ 2"),
        ("train.micro_batch=false", "true/false given; allowed: whole number | null ≥ 2"),
        ("train.memory_format=nhwc", "channels_last | contiguous"),
        ("train.compile=maybe", "true | false"),
        ("optimizer.fused=auto", "true | false"),
        ("data.channels=2", "1 | 3"),
        ("augment.std=[0.2, 0]", "list of number, each > 0"),
        ("e_step.clip=[90, 10]", "two rising percentiles between 0 and 100"),
        ("e_step.num_clusters=1", "1 is neither a count of 2 or more nor a share between 0 and 1"),
        ("e_step.num_clusters=2.5", "2.5 is neither"),
        ("e_step.num_clusters=-3", "-3 is neither"),
        ("e_step.num_clusters=[10, many]", "list of whole number | number"),
        ("e_step.num_clusters=", "list of whole number | number"),
        ("seed=-1", "whole number ≥ 0 and ≤ 2147483647"),
        ("loss=5", "is a section and takes temperature, queue_size"),
        ("loss.temperature", "KEY=VALUE"),
        ("=3", "KEY=VALUE"),
        ("train.epochs=" + "9" * 5000, "whole number ≥ 1"),
    ],
)
def test_wrong_value_says_what_is_allowed(override: str, said: str) -> None:
    error = config_error([override])
    (problem,) = error.problems
    assert problem.name == (override.partition("=")[0] or "=3")
    assert said in problem.message
    assert len(str(error)) < 400


def test_a_wrong_value_of_several_kinds_is_one_sentence() -> None:
    (problem,) = config_error(["data.in_memory=maybe"]).problems
    assert str(problem) == "data.in_memory = 'maybe': allowed: true | false | auto"


def test_describe_has_a_sentence_for_every_knob() -> None:
    described = configs.describe()
    sections = [name for name, field in RunConfig.model_fields.items() if name != "seed"]
    expected = {
        f"{section}.{leaf}" for section in sections for leaf in getattr(RunConfig(), section).model_dump()
    } | {"seed"}
    assert {knob.name for knob in described} == expected
    assert len(described) == len(expected)
    for knob in described:
        assert len(knob.sentence) > 5, knob
        assert knob.sentence.endswith("."), knob
        assert knob.type
        assert knob.allowed
        assert "typing" not in knob.type + knob.allowed
        assert "class" not in knob.type + knob.allowed
    temperature = next(knob for knob in described if knob.name == "loss.temperature")
    assert (temperature.type, temperature.default, temperature.allowed) == (
        "number",
        0.2,
        "number > 0 and ≤ 10",
    )


# What holds of which knobs. A new knob is added here by hand, where it has the property: a wrong answer to
# `acts_before_first_e_step` makes trials of a sweep go on from a warm-up that they would not have had.
PROPERTIES = {
    "changeable_on_resume": """
        data.path data.list data.labels data.cache_gb data.loader_workers
        data.prefetch e_step.backend e_step.mode e_step.shards
        e_step.memory_gb e_step.patience e_step.threads e_step.timeout_s train.epochs
        train.fit_to_data
        train.log_every_steps train.checkpoint_every_epochs train.checkpoint_every_steps
        train.checkpoint_every_minutes train.keep_checkpoints train.keep_best train.on_divergence
        resources.workers resources.min_workers
        resources.gpus_per_worker resources.cpus_per_worker resources.e_step_cpus
        resources.e_step_gpus resources.max_failures resources.start_timeout_s
        resources.queue_timeout_s resources.autoscaling resources.storage resources.step_timeout_s
        tracking.enabled tracking.uri tracking.experiment tracking.flush_s tracking.metrics
        tracking.pictures tracking.system_metrics_s tracking.report tracking.model
        tracking.register_as evaluation.every_epochs evaluation.knn_neighbours
        evaluation.knn_temperature evaluation.bank_images evaluation.query_images
        evaluation.reference_lines evaluation.final evaluation.lidar_images evaluation.lidar_views
    """,
    "fixed_in_fork": """
        data.source data.channels data.holdout data.split data.limit data.image_column data.label_column
        data.exclude data.unlabelled encoder.backbone
        encoder.stem encoder.width encoder.blocks encoder.stem_stride encoder.head
        encoder.head_width encoder.head_batch_norm encoder.dim encoder.init_from loss.queue_size
        optimizer.name optimizer.decay_biases train.batch_size
    """,
    "acts_before_first_e_step": """
        data.source data.path data.channels data.holdout data.split data.limit data.image_column
        data.label_column
        data.list data.labels data.exclude data.cache_gb data.unlabelled
        data.on_bad_image data.check_images data.in_memory data.memory_gb data.background data.trim
        data.max_pixels data.reduced_decoding
        data.loader_workers data.prefetch augment.engine augment.version augment.image_size
        augment.min_crop augment.flip augment.jitter augment.hue augment.grey augment.blur
        augment.shift augment.rotate augment.shear augment.erase
        augment.small_crops augment.small_crop_size augment.small_crop_max
        augment.mean augment.std encoder.backbone encoder.stem encoder.width encoder.blocks
        encoder.stem_stride encoder.head encoder.head_width encoder.head_batch_norm
        encoder.dim encoder.init_from encoder.freeze_stages encoder.momentum encoder.momentum_end
        encoder.batch_norm encoder.batch_norm_parts
        loss.temperature
        loss.queue_size loss.symmetric e_step.warmup_epochs e_step.feature_dtype optimizer.name optimizer.lr
        optimizer.momentum optimizer.weight_decay
        optimizer.decay_biases optimizer.schedule optimizer.milestones
        optimizer.gamma optimizer.warmup_epochs optimizer.fused train.epochs train.batch_size
        train.fit_to_data train.micro_batch train.precision train.memory_format train.compile
        train.log_every_steps
        train.on_divergence
        resources.workers resources.min_workers
        resources.gpus_per_worker resources.cpus_per_worker resources.e_step_cpus
        resources.e_step_gpus resources.max_failures resources.start_timeout_s
        resources.queue_timeout_s resources.autoscaling resources.storage resources.step_timeout_s
        evaluation.every_epochs evaluation.knn_neighbours evaluation.knn_temperature
        evaluation.bank_images evaluation.query_images evaluation.reference_lines
        evaluation.lidar_images evaluation.lidar_views seed
    """,
    "perturbable": """
        loss.temperature loss.cluster_positives loss.prototype_weight e_step.num_clusters e_step.alpha
        optimizer.lr
    """,
    "scales_the_loss": """
        data.source data.path data.channels data.holdout data.split data.limit data.image_column
        data.label_column
        data.list data.labels data.exclude data.cache_gb data.unlabelled
        data.on_bad_image data.check_images data.in_memory data.memory_gb data.background data.trim
        data.max_pixels data.reduced_decoding
        data.loader_workers data.prefetch augment.engine augment.version augment.image_size
        augment.min_crop augment.flip augment.jitter augment.hue augment.grey augment.blur
        augment.shift augment.rotate augment.shear augment.erase
        augment.small_crops augment.small_crop_size augment.small_crop_max
        augment.mean augment.std loss.temperature loss.queue_size loss.queue_negatives
        loss.cluster_positives loss.negative_prototypes loss.mask_duplicates loss.prototype_weight
        loss.prototype_ramp_epochs e_step.num_clusters e_step.alpha e_step.clip e_step.normalise
        train.batch_size
    """,
    "changes_no_figure": """
        tracking.enabled tracking.uri tracking.experiment tracking.flush_s tracking.metrics
        tracking.pictures tracking.system_metrics_s tracking.report tracking.model
        tracking.register_as
    """,
}


def knobs_with(name: str) -> list[str]:
    if name == "changes_no_figure":
        return [knob for knob in knobs.names() if not configs.properties(knob).changes_figures]
    return [knob for knob in knobs.names() if getattr(configs.properties(knob), name)]


@pytest.mark.parametrize("name", list(PROPERTIES))
def test_a_property_holds_of_these_knobs(name: str) -> None:
    assert knobs_with(name) == PROPERTIES[name].split()


def test_every_knob_of_every_section_says_all_its_properties() -> None:
    for name, field in knobs.fields_of(RunConfig).items():
        assert isinstance(field.json_schema_extra, dict), f"{name} is declared without `knob(…)`"
        assert set(field.json_schema_extra) == set(configs.KnobProperties.__dataclass_fields__), name


def test_a_knob_without_properties_is_no_knob() -> None:
    with pytest.raises(TypeError, match="properties"):
        base.knob(1, sentence="A number.")  # pyrefly: ignore[missing-argument]
    with pytest.raises(TypeError, match="perturbable"):
        configs.KnobProperties(changeable_on_resume=True)  # pyrefly: ignore[missing-argument]


def test_an_unknown_name_has_no_properties() -> None:
    with pytest.raises(KeyError):
        configs.properties("loss.temprature")


def test_what_a_resumed_run_may_change_is_not_fixed_in_a_fork() -> None:
    for name in knobs.names():
        properties = configs.properties(name)
        assert not (properties.changeable_on_resume and properties.fixed_in_fork), name
        assert not (properties.scales_the_loss and not properties.changes_figures), name
