"""Shows classes and duplicates: as tables for people, as JSON for programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from likeness_client.duplicates import DuplicateGroup
from likeness_client.labelling import Classification, ClassifyResult, LabelScore, LabelSuggestion
from likeness_client.render import (
    Ids,
    counted,
    out,
    path_text,
    seven_digits,
    short_id,
    short_path,
    short_uri,
    shown_ids,
    size,
    told,
)
from likeness_client.render_indexer import table


def classes_as_json(pictures: Sequence[Path | str], classified: ClassifyResult) -> dict[str, Any]:
    """The labels of each picture: a path, or a stored one's id."""
    return {
        "model": classified.fingerprint.model,
        "digest": classified.fingerprint.digest,
        "scale": seven_digits(classified.scale),
        "results": [
            {
                "picture": path_text(picture) if isinstance(picture, Path) else None,
                "id": None if isinstance(picture, Path) else picture,
                "labels": _labels_as_json(result.labels),
                "error": None if result.error is None else str(result.error),
            }
            for picture, result in zip(pictures, classified.results, strict=True)
        ],
    }


def show_classes(pictures: Sequence[Path | str], results: Sequence[Classification]) -> None:
    """A row a label, the most probable of a picture first; failed pictures are left to stderr."""
    rows: list[Sequence[str]] = []
    for picture, result in zip(pictures, results, strict=True):
        name = short_path(picture.absolute()) if isinstance(picture, Path) else short_id(picture)
        for number, label in enumerate(result.labels):
            rows.append(("" if number else name, label.label, f"{label.probability:.1%}", f"{label.similarity:.3f}"))
    if rows:
        table(("Picture", "Label", "Probability", "Similarity"), rows, right=("Probability", "Similarity"))


def suggestions_as_json(suggested: Sequence[LabelSuggestion]) -> dict[str, Any]:
    """The labels of each stored picture that has some."""
    return {"suggestions": [{"id": each.id, "labels": _labels_as_json(each.labels)} for each in suggested]}


def show_suggestions(suggested: Sequence[LabelSuggestion], ids: Ids = Ids.SHORT) -> None:
    """A row a label, the most probable of a picture first."""
    if not suggested:
        out().print("No suggestions.")
        return
    shown, wider = shown_ids((each.id for each in suggested), ids)
    rows = [
        ("" if number else item_id, label.label, f"{label.probability:.1%}", f"{label.similarity:.3f}")
        for item_id, each in zip(shown, suggested, strict=True)
        for number, label in enumerate(each.labels)
    ]
    table(("Id", "Label", "Probability", "Similarity"), rows, right=("Probability", "Similarity"), wider=wider)
    out().print(f"{counted(len(suggested), 'picture')}.")


def groups_as_json(groups: Sequence[DuplicateGroup]) -> dict[str, Any]:
    """The groups, with the first 500 items of each."""
    return {
        "groups": [
            {
                "count": group.count,
                "items": [
                    {"id": each.item.id, "score": seven_digits(each.score), **told(each.item)} for each in group.items
                ],
            }
            for group in groups
        ]
    }


def show_groups(groups: Sequence[DuplicateGroup], ids: Ids = Ids.SHORT) -> None:
    """A row an item, group by group."""
    if not groups:
        out().print("No duplicates.")
        return
    rows: list[Sequence[str]] = []
    wider = 0
    for number, group in enumerate(groups, start=1):
        shown, more = shown_ids((each.item.id for each in group.items), ids)
        wider = max(wider, more)
        for place, (each, item_id) in enumerate(zip(group.items, shown, strict=True)):
            item = each.item
            group_number, labels = "" if place else str(number), ", ".join(item.labels)
            uri = short_uri(item.uri)
            rows.append((group_number, f"{each.score:.3f}", labels, uri, size(item), item_id))
        if group.count > len(group.items):
            rows.append(("", "", "", f"… and {group.count - len(group.items):,} more", "", ""))
    table(("Group", "Score", "Labels", "Picture", "Size", "Id"), rows, right=("Group", "Score", "Size"), wider=wider)
    out().print(f"{counted(len(groups), 'group')}, {counted(sum(group.count for group in groups), 'picture')}.")


def _labels_as_json(labels: Sequence[LabelScore]) -> list[dict[str, Any]]:
    return [
        {
            "label": each.label,
            "probability": seven_digits(each.probability),
            "similarity": seven_digits(each.similarity),
        }
        for each in labels
    ]
