"""Rules about the pictures themselves: copies of each other, and such that show next to nothing."""

from __future__ import annotations

from pcl_ray.data.inspection import summary
from pcl_ray.report.doctor.findings import Finding
from pcl_ray.report.run_record import RunRecord
from pcl_ray.support.text import count

_MANY_COPIES = 0.05  # of the pictures
_MANY_BLANK = 0.02


def copies(record: RunRecord) -> Finding | None:
    """Pictures that are copies of others, above all of the training part among the held-out ones."""
    data = record.data
    if data is None or not data.twins:
        return None
    meaning = f"{summary.copies_sentence(data)}."
    if data.separated:
        meaning += " Their nearest neighbours give them away: the kNN accuracy is too high by up to"
        meaning += f" {data.separated / max(record.num_holdout, data.separated):.1%}."
        advice: tuple[str, ...] = ("take the copies out of one of the two parts",)
        if record.config.data.split == "random":
            advice = ("a new run with data.split=content keeps copies on one side", *advice)
        title = f"{count(data.separated, 'held-out picture')} can be seen in the training part"
        return Finding("copies", "warning", title, meaning, advice)
    severity = "warning" if data.twins > _MANY_COPIES * data.pictures else "note"
    meaning += " Each pulls its copies to one prototype, and pushes them away as negatives."
    return Finding(
        "copies",
        severity,
        "Some pictures are copies of others",
        meaning,
        ("leave one of each: data.exclude",),
    )


def blank(record: RunRecord) -> Finding | None:
    """Pictures of which the encoder sees next to nothing."""
    data = record.data
    sentences = [] if data is None else [summary.blank_sentence(data), summary.invisible_sentence(data)]
    if data is None or not any(sentences):
        return None
    amount = data.invisible + (0 if data.trimmed else data.blank)
    meaning = ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences if sentence) + "."
    meaning += " All of them look alike to the encoder, and share a prototype whatever they show."
    advice = []
    if data.blank and not data.trimmed:
        advice.append("a new run with data.trim=true, which cuts transparent and uniform margins")
    if data.invisible:
        advice.append(
            "a new run with data.background=black or data.background=grey (now "
            f"{record.config.data.background})"
        )
    severity = "warning" if amount > _MANY_BLANK * data.pictures else "note"
    title = f"{count(amount, 'picture')} {'is' if amount == 1 else 'are'} almost blank"
    return Finding("blank", severity, title, meaning, tuple(advice))
