"""Settings, sizes, and where the numbers come from, as plain data for the template to lay out."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.filesize import decimal

from ray_ltdd.config import ExperimentConfig
from ray_ltdd.results.report.contents import RunContents, dotted, value
from ray_ltdd.results.trace import SETTINGS


@dataclass(frozen=True)
class Setting:
    """A setting: dotted name, value as JSON, whether it differs from the default."""

    name: str
    text: str
    is_changed: bool


def settings_by_section(settings: Mapping[str, Any]) -> dict[str, list[Setting]]:
    """All settings by the first part of their names."""
    defaults = dict(dotted(ExperimentConfig().model_dump(mode="json")))
    sections: dict[str, list[Setting]] = {}
    for name, own in dotted(settings):
        is_changed = name not in defaults or defaults[name] != own
        section = name.partition(".")[0] if "." in name else "experiment"
        sections.setdefault(section, []).append(Setting(name, json.dumps(own, ensure_ascii=False), is_changed))
    return sections


def changed_settings(settings: Mapping[str, Any]) -> list[Setting]:
    """The settings that differ from the defaults, without those the roles inherit from `experts` and without folders."""
    common = value(settings, "experts", {})
    found = []
    for own in (setting for section in settings_by_section(settings).values() for setting in section):
        role, _, rest = own.name.partition(".training.")
        inherited = role in ("observer", "teacher") and rest in common and value(settings, own.name) == common[rest]
        if own.is_changed and not inherited and not own.name.startswith(("output.", "data.root")):
            found.append(own)
    return found


def provenance(contents: RunContents) -> list[tuple[str, list[str]]]:
    """Where the numbers come from: name and lines."""
    found: list[tuple[str, list[str]]] = [("run", [contents.folder.absolute().name])]
    if contents.rows is not None:
        rows = contents.rows
        versions = [", ".join(f"{name} {number}" for name, number in json.loads(text).items()) for text in rows["versions"].dropna().unique()]
        created = sorted(rows["created"].dropna())
        found += [
            ("settings, fingerprint", list(rows["fingerprint"].unique())),
            (
                "split",
                [f"{r['split']}, fingerprint {r['split_fingerprint'][:12]}" for r in rows.drop_duplicates("split_fingerprint").to_dict("records")],
            ),
            ("device", list(rows["device"].dropna().unique())),
            ("versions", versions),
            ("tested", [" to ".join(dict.fromkeys(minute(moment) for moment in (created[0], created[-1]))) + " UTC"] if created else []),
            ("peak memory", [f"{rows['peak_memory_mb'].max():,.0f} MB in one process"] if rows["peak_memory_mb"].notna().any() else []),
            ("artifacts of the rows", [f"{r['method']} {r['number']}: {r['artifact']}" for r in rows.to_dict("records")]),
        ]
    elif contents.summary is not None:
        found += [("settings, fingerprint", [str(contents.summary.get("fingerprint"))]), ("split", [str(contents.summary.get("split"))])]
    return [(name, lines) for name, lines in found if lines]


def command(contents: RunContents) -> str:
    """The command that makes the same run anew, in a folder of its own."""
    path = shlex.quote(str(contents.folder.absolute() / SETTINGS))
    return f"ray-ltdd run {path} output.root=runs-again output.store=runs-again/store"


def sizes(contents: RunContents) -> tuple[str, str] | None:
    """Bytes of the images and of the labels that must be kept, as people write them; None where they are not known."""
    rows = contents.rows
    known = rows[rows["image_bytes"].notna()] if rows is not None else None
    if known is None or known.empty:
        return None
    row = known.iloc[0]
    return decimal(int(row["image_bytes"])), decimal(int(row["label_bytes"] if pd.notna(row["label_bytes"]) else 0))


def imbalance(factor: float) -> str:
    """An imbalance factor as people write it: the largest class over the smallest is seldom a whole number as drawn."""
    return f"{factor:.3g}" if factor < 1000 else f"{factor:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def minute(moment: str | None) -> str:
    """A time of a row (ISO, UTC) to the minute; nothing for none."""
    return moment[:16].replace("T", " ") if isinstance(moment, str) else ""
