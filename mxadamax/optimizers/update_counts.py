# SPDX-License-Identifier: Apache-2.0
"""Convert update counts of parameters, which MXNet keeps per device."""

from typing import Any, Collection, Dict, Iterable, Mapping, Optional

from .step_tracker import Index


def latest(tables: Iterable[Mapping[Index, int]]) -> Dict[Index, int]:
    """Return the largest of each count: counts only grow, on the devices in use."""
    found: Dict[Index, int] = {}
    for table in tables:
        for index, count in table.items():
            found[index] = max(count, found.get(index, count))
    return found


def move_counts(
    entries: Dict[str, Any], devices: Iterable[int], used: Optional[Collection[int]] = None
) -> None:
    """Give devices the counts of a training, and drop those of all others.

    Parameters
    ----------
    entries : dict
        The pickled attributes of an optimizer.
    devices : iterable of int
        The devices that get the counts. Device 0, which MXNet uses for key-value stores, does too.
    used : collection of int, optional
        The devices of the training; any by default.
    """
    devices = list(dict.fromkeys(devices))
    tables = entries["_all_index_update_counts"]
    found = list(tables.values())
    if used is not None:
        found = [table for device, table in tables.items() if device in used]
        found.append(entries["_index_update_count"])
    counts = latest(found)
    tables = {device: dict(counts) for device in (0, *devices)}
    entries["_all_index_update_counts"] = tables
    entries["_index_update_count"] = tables[0]

    step_trackers = entries.get("_step_trackers")
    if step_trackers:
        of_used = [
            entry for device, entry in step_trackers.items() if used is None or device in used
        ]
        skipped, totals = zip(*(of_used or step_trackers.values()))
        entries["_step_trackers"] = dict.fromkeys(devices, (latest(skipped), max(totals)))


def renumber(entries: Dict[str, Any], keys: Mapping[Index, Index]) -> None:
    """Change the keys by which an optimizer knows its parameters.

    Parameters
    ----------
    entries : dict
        The pickled attributes of an optimizer.
    keys : mapping
        The new key of each parameter, by its old one. Other parameters are dropped.
    """

    def renumbered(table: Mapping[Index, Any]) -> Dict[Index, Any]:
        # Multipliers can be keyed by name.
        return {
            keys.get(index, index): value
            for index, value in table.items()
            if index in keys or isinstance(index, str)
        }

    for name in ("lr_mult", "wd_mult", "idx2name", "_index_update_count"):
        entries[name] = renumbered(entries[name])
    tables = entries["_all_index_update_counts"]
    entries["_all_index_update_counts"] = {d: renumbered(table) for d, table in tables.items()}
    entries["_step_trackers"] = {
        device: (renumbered(skipped), total)
        for device, (skipped, total) in entries.get("_step_trackers", {}).items()
    }
