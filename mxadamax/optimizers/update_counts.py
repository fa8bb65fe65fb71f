# SPDX-License-Identifier: Apache-2.0
"""How often parameters have been updated, which MXNet counts for each device."""

from typing import Any, Collection, Dict, Iterable, Mapping, Optional

from .step_tracker import Index


def latest(tables: Iterable[Mapping[Index, int]]) -> Dict[Index, int]:
    """The largest of each count: counts only grow, on the devices that are in use."""
    found: Dict[Index, int] = {}
    for table in tables:
        for index, count in table.items():
            found[index] = max(count, found.get(index, count))
    return found


def move_counts(
    entries: Dict[str, Any], devices: Iterable[int], used: Optional[Collection[int]] = None
) -> None:
    """Give some devices the counts of a training, and forget those of all others.

    Parameters
    ----------
    entries : dict
        The attributes of an optimizer, as they are pickled.
    devices : iterable of int
        Who gets the counts. So does device 0, as which MXNet counts updates on a key-value store.
    used : collection of int, optional
        The devices that the training is on; by default it may be any.
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
    """Let an optimizer know parameters by other keys.

    Parameters
    ----------
    entries : dict
        The attributes of an optimizer, as they are pickled.
    keys : mapping
        The new key of each parameter, by its old one. What belongs to others is left out.
    """

    def renumbered(table: Mapping[Index, Any]) -> Dict[Index, Any]:
        # Multipliers can be those of names.
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
