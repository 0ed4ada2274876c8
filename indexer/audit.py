"""Which calls of the indexer are logged when they succeed too, and what of them: see ``chassis.audit``.

What changes collections as a whole, their aliases and backups, and what deletes for good or by filter.
"""

from likeness.indexer.v1 import indexer_pb2

from chassis.audit import Record, fields, where_filtered

_SERVICE = indexer_pb2.DESCRIPTOR.services_by_name["IndexerService"].full_name

_RECORDS: dict[str, Record] = {
    "CreateCollection": fields(collection="name"),
    "UpdateCollection": fields(collection="name"),
    "DeleteCollection": fields(collection="name"),
    "SetAlias": fields("alias", "collection", expected="expected_collection"),
    "DeleteAlias": fields("alias"),
    "DeleteItems": where_filtered(fields("collection")),
    "EraseItems": fields("collection", "ids", "delete_snapshots"),
    "CreateSnapshot": fields("collection"),
    "DeleteSnapshot": fields(snapshot="name"),
    "RestoreSnapshot": fields("snapshot", "collection"),
    "RebuildCollection": fields("collection"),
}
RECORDS = {f"/{_SERVICE}/{name}": record for name, record in _RECORDS.items()}
