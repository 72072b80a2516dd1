"""Which data a run's or a sweep's folder is about: its name follows from settings that leave out where the data lie."""

import json
from collections.abc import Mapping
from pathlib import Path

from ray_ltdd.data.prepared import PreparedDataset
from ray_ltdd.errors import InputError
from ray_ltdd.storage import atomic_file, readable_os_error

RECORD = "data.json"


def require_same_data(folder: Path, datasets: Mapping[str, PreparedDataset]) -> None:
    """Refuse data other than those the folder has results of.

    Args:
        folder: of a run or a sweep, which may not exist yet.
        datasets: by what they are used for.

    Raises:
        InputError: the folder's record names other images, labels or classes for the same use, or is damaged.
    """
    known = _read(folder)
    for use, data in datasets.items():
        before = known.get(use, {"fingerprint": data.fingerprint, "source": data.source})
        if before["fingerprint"] != data.fingerprint:
            raise InputError(
                f"{folder} has results of other data ({before['source']}, fingerprint {before['fingerprint'][:8]}) than these ({data.source}, "
                f"fingerprint {data.fingerprint[:8]}): give this run or sweep another name (name=...), or the former data (data.path=...)."
            )


def record_data(folder: Path, datasets: Mapping[str, PreparedDataset]) -> None:
    """Write down which data the folder's results are of, besides those it has a record of.

    Raises:
        InputError: the folder cannot be written, or its record is damaged.
    """
    known = _read(folder)
    own = {use: {"fingerprint": data.fingerprint, "source": data.source} for use, data in datasets.items() if use not in known}
    if own:
        with readable_os_error(folder), atomic_file(folder / RECORD) as temporary:
            temporary.write_text(json.dumps({**known, **own}, indent=1))


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        known = json.loads(path.read_text())
        return {use: {name: str(data[name]) for name in ("fingerprint", "source")} for use, data in known.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # not passed over: results of other data could come to stand beside these
        raise InputError(
            f"{path}, the record of the data that the results there are of, is damaged ({error}): restore it, or give this run or sweep another "
            "name (name=...); remove it only if the data are still the same."
        ) from error
