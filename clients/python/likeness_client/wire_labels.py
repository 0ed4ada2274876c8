"""Between labels or duplicates and the contract's messages."""

from collections.abc import Mapping, Sequence

from likeness.gateway.v1 import gateway_pb2

from likeness_client.duplicates import DuplicateGroup, DuplicateItem
from likeness_client.items import Term, TermKind
from likeness_client.labelling import Classification, LabelScore, LabelSuggestion
from likeness_client.lists import listed
from likeness_client.rpc_errors import from_item_error
from likeness_client.wire import item_from_proto


def input_to_proto(picture: Term) -> gateway_pb2.ClassifyInput:
    """A picture to classify.

    Raises:
        TypeError: the term is a text or a vector, which cannot be classified.
    """
    message = gateway_pb2.ClassifyInput()
    match picture.kind, picture.value:
        case TermKind.IMAGE, bytes(encoded):
            message.image.encoded = encoded
        case TermKind.ID, str(item_id):
            message.id = item_id
        case kind, _:
            raise TypeError(f"a {kind.value} cannot be classified; expected Term.image or Term.id")
    return message


def labelling_to_proto(labels: Sequence[str], templates: Sequence[str], scale: float | None) -> gateway_pb2.Labelling:
    """Labels to choose from, and in what words."""
    return gateway_pb2.Labelling(labels=listed(labels, "labels"), templates=listed(templates, "templates"), scale=scale)


def renames_to_proto(rename: Mapping[str, str]) -> list[gateway_pb2.LabelRename]:
    """What labels are to be called, by what they are called now."""
    # "from" is a word of Python.
    return [gateway_pb2.LabelRename(**{"from": old}, to=new) for old, new in rename.items()]


def classification_from_proto(message: gateway_pb2.Classification) -> Classification:
    """What one picture is."""
    error = from_item_error(message.error) if message.HasField("error") else None
    return Classification(tuple(map(_score_from_proto, message.labels)), error)


def suggestion_from_proto(message: gateway_pb2.LabelSuggestion) -> LabelSuggestion:
    """Labels that fit an item."""
    return LabelSuggestion(message.id, tuple(map(_score_from_proto, message.labels)))


def group_from_proto(message: gateway_pb2.DuplicateGroup) -> DuplicateGroup:
    """Items that are the same picture, or nearly."""
    items = (DuplicateItem(item_from_proto(each.item), each.score) for each in message.items)
    return DuplicateGroup(tuple(items), message.count)


def _score_from_proto(message: gateway_pb2.LabelScore) -> LabelScore:
    return LabelScore(message.label, message.probability, message.similarity)
