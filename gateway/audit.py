"""Which calls of the gateway are logged when they succeed too, and what of them: see ``chassis.audit``.

All that need a key for administration, and deletion by filter. Ingest that makes its collection says so itself.
"""

from typing import Any

from chassis.audit import Record, Touched, fields, where_filtered
from gateway.requests import DEFAULT_COLLECTION
from gateway.scopes import SERVICE


def _named(record: Record) -> Record:
    """The same of requests that may leave the collection out: then it is the default one."""

    def take(request: Any) -> Touched | None:
        return {"collection": DEFAULT_COLLECTION, **(record(request) or {})}

    return take


_RECORDS: dict[str, Record] = {
    "CreateCollection": fields(collection="name"),
    "UpdateCollection": fields(collection="name"),
    "DeleteCollection": fields(collection="name"),
    "SetAlias": fields("alias", "collection", expected="expected_collection"),
    "DeleteAlias": fields("alias"),
    "ReembedCollection": _named(fields("collection", "target", "alias")),
    "DeleteItems": where_filtered(_named(fields("collection"))),
}
RECORDS = {f"/{SERVICE}/{name}": record for name, record in _RECORDS.items()}
