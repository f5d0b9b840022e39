"""Differences between what a checkpoint holds and what is asked of it, as tables for messages."""

from collections.abc import Mapping

from jaxseg.base import config
from jaxseg.base.config import flag, two_columns


def identity(meta: Mapping) -> dict[str, object]:
    """Settings that a resumed run cannot change: how files are read, architecture, and the optimizer's state."""
    settings, description = config.from_dict(meta["config"]), meta["description"]
    model, optimization = settings.model, settings.optimization
    fixed = {name: getattr(model, name) for name in ("encoder", "widths", "upsample", "conv_bias")}
    names = ("optimizer", "momentum", "clip_norm", "ema", "freeze_encoder", "encoder_lr_factor")
    fixed |= {name: getattr(optimization, name) for name in names}
    flags = {flag(name): value for name, value in fixed.items()}
    flags["--schedule plateau"] = optimization.schedule == "plateau"
    names = {"classes": "class names", "in_channels": "channels"}
    reading = dict(description.get("reading", {}))
    labels = reading.pop("labels", {})
    return (
        {label: description[key] for key, label in names.items() if key in description}
        | {f"labels: {name}": value for name, value in labels.items()}
        | {f"images: {name}": value for name, value in reading.items()}
        | flags
    )


def table(left: str, a: Mapping, right: str, b: Mapping) -> str:
    """Formats the differences in keys that both have, in two columns; empty if there are none."""
    rows = [(name, _text(a[name]), _text(b[name])) for name in a if name in b and a[name] != b[name]]
    return two_columns(rows, left, right) if rows else ""


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "-" if value is None else str(value)
