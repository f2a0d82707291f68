"""Rules about E-steps, clusters and time: each looks at one thing and gives back what is to be said, or
None.
"""

from __future__ import annotations

from pcl_ray import plan
from pcl_ray.clustering import health
from pcl_ray.config.figures import (
    ACCURACY_PROTOTYPE,
    CLUSTER_SECONDS,
    COLD,
    COLLISIONS,
    DATA_SHARE,
    DRIFT,
    E_STEP_SECONDS,
    E_STEP_SHARE,
    EMPTY,
    FAILURES,
    FEATURE_SECONDS,
    LARGEST_SHARE,
    NMI_PREVIOUS,
    PHI_IMPUTED,
    PHI_MAX,
    PHI_MIN,
    PHI_P10,
    PHI_P90,
    PHI_ZEROS,
    SIZE_P50,
)
from pcl_ray.report.doctor.findings import (
    Finding,
    at_end,
    clusterings,
    each,
    gauges_collapsed,
    late,
    listed,
    mean,
    newest,
    prototype_epochs,
    which,
)
from pcl_ray.report.run_record import RunRecord

_FLAT_PHI = 1.02  # largest to smallest: untrained features have 1.2, trained ones 1.5 to 3
_FEW_PHI = 5  # clusters: of fewer the φ are alike by themselves
_ZERO_PHI, _IMPUTED_PHI = 0.1, 0.5  # shares of the clusters
_HALF = 0.5  # of all images, which the E-step's own check of the largest cluster passes for K up to 40
_SETTLED, _RISING = 0.7, 0.05  # NMI of two E-steps: 0.8 and more where there is something to find
_DRIFT = 0.1  # 1 − cosine of a prototype to its former self: 0.02 is usual early, a thousandth at the end
_TINY_CLUSTER = 3  # images: prototypes of so few are the images themselves
_WAITING = 0.1  # of an M-step, as the warning during training
_E_STEP_SHARE, _E_STEP_SECONDS = 0.4, 2.0  # of an epoch; and of the whole run, below which nobody cares
_E_STEP_LONG = 60.0  # seconds of the whole run from which it is a warning
_COLLISIONS, _NEARLY_ALL = 0.5, 0.9


def phi_collapse(record: RunRecord) -> Finding | None:
    said = []
    for m, k in clusterings(record):
        zeros = newest(record, PHI_ZEROS.at(m)) or 0
        imputed = newest(record, PHI_IMPUTED.at(m)) or 0
        low, high = newest(record, PHI_P10.at(m)), newest(record, PHI_P90.at(m))
        if low is None:  # a run of an earlier version
            low, high = newest(record, PHI_MIN.at(m)), newest(record, PHI_MAX.at(m))
        if zeros > _ZERO_PHI * k:
            said.append(
                f"in {which(record, m, k)} the images of {zeros:.0f} clusters lie on one point (φ = 0)"
            )
        elif imputed > _IMPUTED_PHI * k:
            said.append(
                f"in {which(record, m, k)} {imputed:.0f} clusters hold one image or none, and take the"
                " largest φ of the others"
            )
        elif k >= _FEW_PHI and low and high and high < _FLAT_PHI * low:
            said.append(f"in {which(record, m, k)} all φ are alike ({low:.3g} to {high:.3g})")
    if not said:
        return None
    low, high = record.config.e_step.clip
    clipped = (f"a wider e_step.clip=10,90 (now {low:g},{high:g})",) if high - low < 50 else ()
    meaning = f"φ, which says how tight a cluster is, says nothing here: {'; '.join(said)}."
    advice = (
        *clipped,
        "fewer clusters in e_step.num_clusters, so that each holds ten images and more",
        "look for images that are there many times",
    )
    return Finding("phi_collapse", "warning", "The concentrations tell nothing", meaning, advice)


def dominant_cluster(record: RunRecord) -> Finding | None:
    large = [
        (m, k, share)
        for m, k, share in each(record, LARGEST_SHARE)
        if share > max(health.DOMINANT, min(health.TIMES_MEAN / k, _HALF)) and k >= 4
    ]
    if not large:
        return None
    said = listed([f"{share:.0%} of the images in {which(record, m, k)}" for m, k, share in large])
    copies = any((newest(record, PHI_ZEROS.at(m)) or 0) > 0 for m, _, _ in large)
    why = (
        " Some cluster's images lie on one point: most likely it is one picture, many times over."
        if copies
        else ""
    )
    advice = ["look for duplicate or empty images in the data and take them out"]
    advice += (
        []
        if copies
        else [
            "e_step.balance=5: no cluster gets more than five times the mean",
            "a longer e_step.warmup_epochs, so that features spread first",
        ]
    )
    return Finding(
        "dominant_cluster",
        "warning",
        "One cluster holds far too many images",
        f"One cluster holds {said}.{why}",
        tuple(advice),
    )


def empty_clusters(record: RunRecord) -> Finding | None:
    empty = [(m, k, count) for m, k, count in each(record, EMPTY) if count > 0]
    if not empty:
        return None
    said = listed([f"{count:.0f} of {which(record, m, k)}" for m, k, count in empty])
    counts = ",".join(str(max(2, round((k - count) * 0.8))) for _, k, count in each(record, EMPTY))
    advice = (
        f"fewer clusters: e_step.num_clusters={counts}",
        "look for images that are there many times: so many different ones may not exist",
    )
    severe = any(count > health.EMPTY * k for _, k, count in empty)
    return Finding(
        "empty_clusters",
        "warning" if severe else "note",
        "Clusters are empty",
        f"No image belongs to {said}.",
        advice,
    )


def never_settles(record: RunRecord) -> Finding | None:
    said = []
    for m, k in clusterings(record):
        nmi, drift = record.finite(NMI_PREVIOUS.at(m)), record.finite(DRIFT.at(m))
        if len(nmi) < 4:
            continue
        early = mean(nmi[: max(1, len(nmi) // 3)])
        # a cold start numbers its clusters anew
        end, cold = mean(late(nmi)), (at_end(record, COLD.at(m)) or 0) > 0
        moves = mean(late(drift)) if drift and not cold else 0.0
        if end < _SETTLED and end - early < _RISING:
            said.append(
                f"{which(record, m, k)} agrees with the one before it by an NMI of {end:.2f} at the end"
                f" ({early:.2f} at first)"
            )
        elif moves > _DRIFT:
            said.append(
                f"the prototypes of {which(record, m, k)} move by {moves:.2f} (1 − cosine) from one E-step to"
                " the next"
            )
    if not said:
        return None
    config = record.config
    advice = [
        f"a longer e_step.warmup_epochs (now {config.e_step.warmup_epochs}), so that there is something to"
        " find"
    ]
    advice += (
        [f"optimizer.schedule=cosine (now {config.optimizer.schedule})"]
        if config.optimizer.schedule != "cosine"
        else []
    )
    advice += ["e_step.warm_start=labels"] if config.e_step.warm_start == "none" else []
    advice += [
        f"a lower optimizer.lr: {config.optimizer.lr / 3:.2g} (now {config.optimizer.lr:g})",
        "fewer clusters in e_step.num_clusters",
    ]
    meaning = (
        f"What images are drawn to changes all the time: {'; '.join(said)}. With every E-step they are told"
        " something else."
    )
    return Finding("never_settles", "warning", "The clusters do not settle", meaning, tuple(advice))


def prototype_accuracy_zero(record: RunRecord) -> Finding | None:
    config, done = record.config, len(record.history)
    warmup = config.e_step.warmup_epochs
    if not done:
        return None
    if not prototype_epochs(record):
        if config.loss.prototype_weight == 0:
            return Finding(
                "prototype_accuracy_zero",
                "note",
                "No prototypes: InfoNCE alone, as asked for",
                "loss.prototype_weight = 0.",
                (),
            )
        if done <= warmup:
            whole = warmup >= config.train.epochs
            meaning = (
                f"The warm-up of {warmup} epochs is not over after {done}: there are no prototypes yet, so"
                " their accuracy is missing, not zero."
                + (
                    f" It covers all {config.train.epochs} epochs of this run, which is InfoNCE alone."
                    if whole
                    else ""
                )
            )
            advice = (
                (f"a shorter warm-up: e_step.warmup_epochs={max(1, config.train.epochs // 5)}",)
                if whole
                else ()
            )
            return Finding(
                "prototype_accuracy_zero",
                "warning" if whole else "note",
                "The run is in its warm-up",
                meaning,
                advice,
            )
        meaning = (
            f"{done} epochs are done and the warm-up had {warmup}, but no E-step gave prototypes to train"
            " with."
        )
        return Finding(
            "prototype_accuracy_zero",
            "problem",
            "No E-step was usable",
            meaning,
            ("see what is said about the E-step and the features",),
        )
    zero = [
        (m, k)
        for m, k in clusterings(record)
        if (right := at_end(record, ACCURACY_PROTOTYPE.at(m))) is not None and right < 0.2 / k
    ]
    if not zero:
        return None
    said = listed([which(record, m, k) for m, k in zero])
    meaning = (
        f"Trained with prototypes, hardly an image is nearest to its own in {said}: fewer than by chance."
    )
    return Finding(
        "prototype_accuracy_zero",
        "warning",
        "Prototypes miss their images",
        meaning,
        ("a lower optimizer.lr", "e_step.every_epochs=1"),
    )


def rejected(record: RunRecord) -> Finding | None:
    failures = [
        e
        for e in record.history
        if e["metrics"].get(FAILURES.name, 0) > 0 and not gauges_collapsed(record, dict(e["metrics"]))
    ]
    ended = "the E-step " in record.error and "have collapsed" not in record.error
    if not failures and not ended:
        return None
    epochs = listed([str(entry["epoch"] + 1) for entry in failures]) if failures else ""
    meaning = (
        f"E-steps without a usable clustering after epoch {epochs}; the last good one stayed in force."
        if failures
        else ""
    )
    meaning += f" {record.error.strip().splitlines()[0]}" if ended else ""
    advice = (
        "fewer clusters in e_step.num_clusters",
        (
            f"a longer e_step.warmup_epochs (now {record.config.e_step.warmup_epochs}), or a lower"
            f" optimizer.lr (now {record.config.optimizer.lr:g})"
        ),
        "look for images that are there many times",
    )
    still = (newest(record, FAILURES) or 0) > 0
    return Finding(
        "rejected",
        "problem" if ended or still else "warning",
        "E-steps were refused",
        meaning.strip(),
        advice,
    )


def many_clusters(record: RunRecord) -> Finding | None:
    tiny = [(m, k, median) for m, k, median in each(record, SIZE_P50) if median <= _TINY_CLUSTER]
    if not tiny:
        return None
    said = listed(
        [f"{median:.0f} image{'s' * (median != 1)} in {which(record, m, k)}" for m, k, median in tiny]
    )
    counts = ",".join(
        str(max(2, record.num_images // 20)) if any(k == other for _, other, _ in tiny) else str(k)
        for _, k in clusterings(record)
    )
    meaning = (
        f"Half of the clusters hold no more than {said}. Prototypes of so few are the images themselves:"
        " InfoNCE does that already."
    )
    advice = (
        (f"e_step.num_clusters={counts}, about 20 images each",)
        if record.num_images
        else ("fewer clusters in e_step.num_clusters",)
    )
    return Finding("many_clusters", "warning", "Too many clusters for so few images", meaning, advice)


def collisions(record: RunRecord) -> Finding | None:
    """Only where prototypes are drawn are those of the batch columns of their own; compared with all, each is
    there once.
    """
    settings = record.config.loss
    high = [
        (m, k, share)
        for m, k in clusterings(record)
        if plan.negatives(record.config, k) and (share := at_end(record, COLLISIONS.at(m))) is not None
    ]
    limit = _NEARLY_ALL if settings.mask_duplicates else _COLLISIONS
    if not (high := [one for one in high if one[2] > limit]):
        return None
    said = listed([f"{share:.0%} in {which(record, m, k)}" for m, k, share in high])
    meaning = (
        "Images that share their prototype with another image of the batch of"
        f" {record.config.train.batch_size}: {said}."
    )
    if settings.mask_duplicates:
        text = (
            meaning
            + " They are hidden from each other (loss.mask_duplicates), which leaves fewer negatives; no harm"
            " is done."
        )
        return Finding(
            "collisions",
            "note",
            "Many images of a batch share a prototype",
            text,
            ("loss.negative_prototypes=all compares with all prototypes",),
        )
    text = meaning + " Each of them pushes its own prototype away as a negative."
    advice = (
        "loss.mask_duplicates=true",
        "loss.negative_prototypes=all",
        "more clusters in e_step.num_clusters, or a smaller train.batch_size",
    )
    return Finding("collisions", "warning", "Images are their own prototype's negatives", text, advice)


def too_early(record: RunRecord) -> Finding | None:
    trained, config = prototype_epochs(record), record.config
    if (
        trained >= 2
        or record.state == "failed"
        or config.e_step.warmup_epochs >= config.train.epochs
        or config.loss.prototype_weight == 0
    ):
        return None
    meaning = (
        f"{len(record.history)} epochs are done, {trained} of them with prototypes; before the second nothing"
        " can be said about clusters and prototypes."
    )
    advice = (
        ()
        if record.state == "running"
        else ("more train.epochs: pcl-ray train --resume goes on with this run",)
    )
    return Finding("too_early", "note", "Too early to say", meaning, advice)


def waiting_for_data(record: RunRecord) -> Finding | None:
    shares = record.finite(DATA_SHARE)
    share = mean(shares[1:] or shares) if shares else 0.0  # loader processes start in the first epoch
    helps = _what_helps_waiting(record)
    if share <= _WAITING or not helps:
        return None
    meaning = f"Training waits for images {share:.0%} of the time of an M-step."
    return Finding("waiting_for_data", "warning", "Training waits for images", meaning, helps)


def _what_helps_waiting(record: RunRecord) -> tuple[str, ...]:
    config, images = record.config, record.num_images + record.num_holdout
    cpus = (
        f" and resources.cpus_per_worker (now {config.resources.cpus_per_worker:g})"
        if config.resources.workers
        else ""
    )
    if config.augment.engine == "torchvision":
        return ("augment.engine=batch makes the views many times faster",)
    if not plan.in_memory(config, images):
        gigabytes = plan.decoded_bytes(config, images) / 1e9
        return (
            f"more data.loader_workers (now {plan.loader_workers(config, images)} a worker){cpus}",
            "data.in_memory=true keeps the decoded images in memory"
            + (f", which takes {gigabytes:.1f} GB" if images else ""),
        )
    if config.resources.gpus_per_worker:
        return (f"more data.prefetch (now {plan.batches_ahead(config)}){cpus}",)
    augment = config.augment
    costly = ["augment.hue=0"] * (augment.hue > 0 and config.data.channels == 3) + ["augment.blur=0"] * (
        augment.blur > 0 and augment.version == "v2"
    )
    return (f"{' and '.join(costly)} would save most of the work of making views",) if costly else ()


def e_step_seconds(record: RunRecord) -> Finding | None:
    shares = [(epoch, value) for epoch, value in record.finite(E_STEP_SHARE) if value > 0]
    total = sum(value for _, value in record.finite(E_STEP_SECONDS))
    if not shares or total < _E_STEP_SECONDS or mean(late(shares)) <= _E_STEP_SHARE:
        return None
    passes, clustering = (at_end(record, FEATURE_SECONDS) or 0.0, at_end(record, CLUSTER_SECONDS) or 0.0)
    meaning = (
        f"The E-step takes {mean(late(shares)):.0%} of an epoch, {total:.0f} s in all: {passes:.1f} s for the"
        f" features and {clustering:.1f} s for k-means."
    )
    advice = (
        _cheaper_features(record) + _cheaper_clustering(record)
        if passes > clustering
        else _cheaper_clustering(record) + _cheaper_features(record)
    )
    severity = "warning" if total > _E_STEP_LONG else "note"
    return Finding(
        "e_step_seconds",
        severity,
        "The E-step takes a large part of the time",
        meaning,
        (*advice, *_less_waiting(record)),
    )


def _cheaper_features(record: RunRecord) -> tuple[str, ...]:
    return (
        ("e_step.features=bank: no pass over all images",) if record.config.e_step.features == "fresh" else ()
    )


def _cheaper_clustering(record: RunRecord) -> tuple[str, ...]:
    config, most = record.config.e_step, max((k for _, k in clusterings(record)), default=0)
    advice = [f"e_step.warm_start=labels (now {config.warm_start})"] if config.warm_start == "none" else []
    advice += [f"e_step.restarts=1 (now {config.restarts})"] if config.restarts > 1 else []
    advice += (
        [f"e_step.cold_iterations=20 (now {config.cold_iterations})"]
        if (config.cold_iterations or 0) > 20
        else []
    )
    advice += ["e_step.shortlist_from=500"] if not 0 < config.shortlist_from <= most and most >= 500 else []
    advice += (
        [f"more cores: e_step.threads=0 (now {config.threads}) and resources.e_step_cpus"]
        if config.threads
        else []
    )
    advice += (
        ["e_step.mode=distributed: the workers cluster what they hold"]
        if record.config.resources.workers > 1 and config.mode == "single"
        else []
    )
    return tuple(advice)


def _less_waiting(record: RunRecord) -> tuple[str, ...]:
    config = record.config.e_step
    advice = [] if config.overlap else ["e_step.overlap=true: k-means runs while the next epoch trains"]
    return (*advice, f"e_step.every_epochs={2 * config.every_epochs} (now {config.every_epochs})")
