"""Rules about E-steps and clusters: each looks at one thing and gives back what is to be said, or None."""

from __future__ import annotations

from pcl_ray import plan
from pcl_ray.clustering import health
from pcl_ray.config import figures
from pcl_ray.report.doctor.findings import (
    Finding,
    at_end,
    clusterings,
    each,
    gauges_collapsed,
    late,
    mean,
    newest,
    prototype_epochs,
    which,
)
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import listed

_FLAT_PHI = 1.02  # largest to smallest: untrained features have 1.2, trained ones 1.5 to 3
_FEW_PHI = 5  # clusters: of fewer the φ are alike by themselves
_ZERO_PHI, _IMPUTED_PHI = 0.1, 0.5  # shares of the clusters
_HALF = 0.5  # of all images, which the E-step's own check of the largest cluster passes for K up to 40
_SETTLED, _RISING = 0.7, 0.05  # NMI of two E-steps: 0.8 and more where there is something to find
_DRIFT = 0.1  # 1 − cosine of a prototype to its former self: 0.02 is usual early, a thousandth at the end
_TINY_CLUSTER = 3  # images: prototypes of so few are the images themselves
_COLLISIONS, _NEARLY_ALL = 0.5, 0.9


def phi_collapse(record: RunRecord) -> Finding | None:
    """Concentrations that are all alike, zero, or taken from other clusters."""
    reasons = []
    for m, k in clusterings(record):
        zeros = newest(record, figures.PHI_ZEROS.at(m)) or 0
        imputed = newest(record, figures.PHI_IMPUTED.at(m)) or 0
        low, high = newest(record, figures.PHI_P10.at(m)), newest(record, figures.PHI_P90.at(m))
        if low is None:  # a run of an earlier version
            low, high = newest(record, figures.PHI_MIN.at(m)), newest(record, figures.PHI_MAX.at(m))
        name = which(record, m, k)
        if zeros > _ZERO_PHI * k:
            reasons.append(f"in {name} the images of {zeros:.0f} clusters lie on one point (φ = 0)")
        elif imputed > _IMPUTED_PHI * k:
            reasons.append(
                f"in {name} {imputed:.0f} clusters hold one image or none, and take the largest φ of the"
                " others"
            )
        elif k >= _FEW_PHI and low and high and high < _FLAT_PHI * low:
            reasons.append(f"in {name} all φ are alike ({low:.3g} to {high:.3g})")
    if not reasons:
        return None
    low, high = record.config.e_step.clip
    clipped = (f"a wider e_step.clip=10,90 (now {low:g},{high:g})",) if high - low < 50 else ()
    meaning = f"φ, which says how tight a cluster is, says nothing here: {'; '.join(reasons)}."
    advice = (
        *clipped,
        "fewer clusters in e_step.num_clusters, so that each holds ten images and more",
        "look for images that are there many times",
    )
    return Finding("phi_collapse", "warning", "The concentrations tell nothing", meaning, advice)


def dominant_cluster(record: RunRecord) -> Finding | None:
    """A cluster that holds far too many of the images."""
    large = [
        (m, k, share)
        for m, k, share in each(record, figures.LARGEST_SHARE)
        if share > max(health.DOMINANT, min(health.TIMES_MEAN / k, _HALF)) and k >= 4
    ]
    if not large:
        return None
    shares = listed([f"{share:.0%} of the images in {which(record, m, k)}" for m, k, share in large])
    meaning = f"One cluster holds {shares}."
    advice = ["look for duplicate or empty images in the data and take them out"]
    if any((newest(record, figures.PHI_ZEROS.at(m)) or 0) > 0 for m, _, _ in large):
        meaning += " Some cluster's images lie on one point: most likely it is one picture, many times over."
    else:
        advice.append("e_step.balance=5: no cluster gets more than five times the mean")
        advice.append("a longer e_step.warmup_epochs, so that features spread first")
    title = "One cluster holds far too many images"
    return Finding("dominant_cluster", "warning", title, meaning, tuple(advice))


def empty_clusters(record: RunRecord) -> Finding | None:
    """Prototypes without any image."""
    every = each(record, figures.EMPTY)
    empty = [(m, k, count) for m, k, count in every if count > 0]
    if not empty:
        return None
    counts = listed([f"{count:.0f} of {which(record, m, k)}" for m, k, count in empty])
    fewer = ",".join(str(max(2, round((k - count) * 0.8))) for _, k, count in every)
    advice = (
        f"fewer clusters: e_step.num_clusters={fewer}",
        "look for images that are there many times: so many different ones may not exist",
    )
    severe = any(count > health.EMPTY * k for _, k, count in empty)
    severity = "warning" if severe else "note"
    return Finding("empty_clusters", severity, "Clusters are empty", f"No image belongs to {counts}.", advice)


def never_settles(record: RunRecord) -> Finding | None:
    """Clusterings that change from one E-step to the next, to the end."""
    reasons = []
    for m, k in clusterings(record):
        nmi, drift = record.finite(figures.NMI_PREVIOUS.at(m)), record.finite(figures.DRIFT.at(m))
        if len(nmi) < 4:
            continue
        early = mean(nmi[: max(1, len(nmi) // 3)])
        # a cold start numbers its clusters anew
        end, cold = mean(late(nmi)), (at_end(record, figures.COLD.at(m)) or 0) > 0
        moves = mean(late(drift)) if drift and not cold else 0.0
        name = which(record, m, k)
        if end < _SETTLED and end - early < _RISING:
            reasons.append(
                f"{name} agrees with the one before it by an NMI of {end:.2f} at the end ({early:.2f} at"
                " first)"
            )
        elif moves > _DRIFT:
            reasons.append(
                f"the prototypes of {name} move by {moves:.2f} (1 − cosine) from one E-step to the next"
            )
    if not reasons:
        return None
    config = record.config
    warmup, lr = config.e_step.warmup_epochs, config.optimizer.lr
    advice = [f"a longer e_step.warmup_epochs (now {warmup}), so that there is something to find"]
    if config.optimizer.schedule != "cosine":
        advice.append(f"optimizer.schedule=cosine (now {config.optimizer.schedule})")
    if config.e_step.warm_start == "none":
        advice.append("e_step.warm_start=labels")
    advice.append(f"a lower optimizer.lr: {lr / 3:.2g} (now {lr:g})")
    advice.append("fewer clusters in e_step.num_clusters")
    meaning = (
        f"What images are drawn to changes all the time: {'; '.join(reasons)}. With every E-step they are"
        " told something else."
    )
    return Finding("never_settles", "warning", "The clusters do not settle", meaning, tuple(advice))


def prototype_accuracy_zero(record: RunRecord) -> Finding | None:
    """Training that prototypes have no part in, or whose images are not nearest to their own."""
    if not record.history:
        return None
    if not prototype_epochs(record):
        return _without_prototypes(record)
    zero = [
        (m, k)
        for m, k in clusterings(record)
        if (right := at_end(record, figures.ACCURACY_PROTOTYPE.at(m))) is not None and right < 0.2 / k
    ]
    if not zero:
        return None
    names = listed([which(record, m, k) for m, k in zero])
    return Finding(
        "prototype_accuracy_zero",
        "warning",
        "Prototypes miss their images",
        f"Trained with prototypes, hardly an image is nearest to its own in {names}: fewer than by chance.",
        ("a lower optimizer.lr", "e_step.every_epochs=1"),
    )


def _without_prototypes(record: RunRecord) -> Finding:
    """Why a run has no prototypes: they are not wanted, it is in its warm-up, or no E-step was usable."""
    rule, config, done = "prototype_accuracy_zero", record.config, len(record.history)
    warmup, planned = config.e_step.warmup_epochs, config.train.epochs
    if config.loss.prototype_weight == 0:
        title = "No prototypes: InfoNCE alone, as asked for"
        return Finding(rule, "note", title, "loss.prototype_weight = 0.", ())
    if done > warmup:
        meaning = (
            f"{done} epochs are done and the warm-up had {warmup}, but no E-step gave prototypes to train"
            " with."
        )
        advice = ("see what is said about the E-step and the features",)
        return Finding(rule, "problem", "No E-step was usable", meaning, advice)
    meaning = (
        f"The warm-up of {warmup} epochs is not over after {done}: there are no prototypes yet, so their"
        " accuracy is missing, not zero."
    )
    title = "The run is in its warm-up"
    if warmup < planned:
        return Finding(rule, "note", title, meaning, ())
    meaning += f" It covers all {planned} epochs of this run, which is InfoNCE alone."
    advice = (f"a shorter warm-up: e_step.warmup_epochs={max(1, planned // 5)}",)
    return Finding(rule, "warning", title, meaning, advice)


def rejected(record: RunRecord) -> Finding | None:
    """E-steps whose clustering was refused, rather than the features."""
    failures = [
        entry
        for entry in record.history
        if entry["metrics"].get(figures.FAILURES.name, 0) > 0
        and not gauges_collapsed(record, dict(entry["metrics"]))
    ]
    ended = "the E-step " in record.error and "have collapsed" not in record.error
    if not failures and not ended:
        return None
    sentences = []
    if failures:
        epochs = listed([str(entry["epoch"] + 1) for entry in failures])
        sentences.append(
            f"E-steps without a usable clustering after epoch {epochs}; the last good one stayed in force."
        )
    if ended:
        sentences.append(record.error.strip().splitlines()[0])
    warmup, lr = record.config.e_step.warmup_epochs, record.config.optimizer.lr
    advice = (
        "fewer clusters in e_step.num_clusters",
        f"a longer e_step.warmup_epochs (now {warmup}), or a lower optimizer.lr (now {lr:g})",
        "look for images that are there many times",
    )
    still = (newest(record, figures.FAILURES) or 0) > 0
    severity = "problem" if ended or still else "warning"
    return Finding("rejected", severity, "E-steps were refused", " ".join(sentences), advice)


def many_clusters(record: RunRecord) -> Finding | None:
    """Clusters of so few images that prototypes are the images themselves."""
    tiny = [(m, k, median) for m, k, median in each(record, figures.SIZE_P50) if median <= _TINY_CLUSTER]
    if not tiny:
        return None
    sizes = listed(
        [f"{median:.0f} image{'s' * (median != 1)} in {which(record, m, k)}" for m, k, median in tiny]
    )
    too_many = {k for _, k, _ in tiny}
    counts = [max(2, record.num_images // 20) if k in too_many else k for _, k in clusterings(record)]
    meaning = (
        f"Half of the clusters hold no more than {sizes}. Prototypes of so few are the images themselves:"
        " InfoNCE does that already."
    )
    advice = "fewer clusters in e_step.num_clusters"
    if record.num_images:
        advice = f"e_step.num_clusters={','.join(map(str, counts))}, about 20 images each"
    return Finding("many_clusters", "warning", "Too many clusters for so few images", meaning, (advice,))


def collisions(record: RunRecord) -> Finding | None:
    """Images of a batch that share their prototype. Only where prototypes are drawn are those of the batch
    columns of their own; compared with all, each is there once.
    """
    masked = record.config.loss.mask_duplicates
    limit = _NEARLY_ALL if masked else _COLLISIONS
    drawn = [(m, k) for m, k in clusterings(record) if plan.negatives(record.config, k)]
    shares = [(m, k, at_end(record, figures.COLLISIONS.at(m))) for m, k in drawn]
    high = [(m, k, share) for m, k, share in shares if share is not None and share > limit]
    if not high:
        return None
    texts = listed([f"{share:.0%} in {which(record, m, k)}" for m, k, share in high])
    meaning = (
        "Images that share their prototype with another image of the batch of"
        f" {record.config.train.batch_size}: {texts}."
    )
    if masked:
        meaning += (
            " They are hidden from each other (loss.mask_duplicates), which leaves fewer negatives; no harm"
            " is done."
        )
        advice = ("loss.negative_prototypes=all compares with all prototypes",)
        return Finding("collisions", "note", "Many images of a batch share a prototype", meaning, advice)
    meaning += " Each of them pushes its own prototype away as a negative."
    advice = (
        "loss.mask_duplicates=true",
        "loss.negative_prototypes=all",
        "more clusters in e_step.num_clusters, or a smaller train.batch_size",
    )
    title = "Images are their own prototype's negatives"
    return Finding("collisions", "warning", title, meaning, advice)


def too_early(record: RunRecord) -> Finding | None:
    """A run that has trained with prototypes for less than two epochs: nothing can be said of them yet."""
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
    advice = ()
    if record.state != "running":
        advice = ("more train.epochs: pcl-ray train --resume goes on with this run",)
    return Finding("too_early", "note", "Too early to say", meaning, advice)
