"""A configuration as it may be shown, sent and stored: without the passwords that its addresses may hold."""

from __future__ import annotations

from pcl_ray.config.loading import with_overrides
from pcl_ray.config.run_config import RunConfig
from pcl_ray.errors import Problem
from pcl_ray.support import redaction
from pcl_ray.support.redaction import TRACKING_URI


def secret_knobs(config: RunConfig) -> list[Problem]:
    """The knobs whose value is an address with a password or a key in it, each as a mistake."""
    return [
        Problem(name, redaction.public_uri(value), redaction.refusal(name))
        for name, value in _addresses(config).items()
        if redaction.holds_secret(value)
    ]


def public_config(config: RunConfig) -> RunConfig:
    """The configuration with addresses without passwords, which old runs may have in `tracking.uri`."""
    private = {
        name: value
        for name, value in _addresses(config).items()
        if name == TRACKING_URI or redaction.holds_secret(value)
    }
    public = {name: redaction.public_uri(value) for name, value in private.items()}
    changes = {name: value for name, value in public.items() if value != private[name]}
    return with_overrides(config, changes) if changes else config


def stored_secret(config: RunConfig) -> str:
    """What to tell whoever goes on with a run that has a password in its configuration; "" for all others."""
    return redaction.STORED_SECRET if secret_knobs(config) else ""


def _addresses(config: RunConfig) -> dict[str, str]:
    return {
        name: value
        for name, value in config.flatten().items()
        if isinstance(value, str) and (name == TRACKING_URI or "://" in value)
    }
