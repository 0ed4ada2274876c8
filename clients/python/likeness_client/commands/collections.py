"""``likeness collections …`` and ``likeness alias …``."""

from typing import Annotated

import typer

from likeness_client import render, render_indexer
from likeness_client.commands.options import Indexer, OutputFormat, Timeout, connected_indexer, wrong_usage
from likeness_client.indexer.shapes import collection_as_json
from likeness_client.indexer.types import Hnsw, Metric
from likeness_client.items import Fingerprint
from likeness_client.render import Format, plain

collections_app = typer.Typer(no_args_is_help=True, help="Make, list, describe, change and delete collections.")
alias_app = typer.Typer(no_args_is_help=True, help="Other names of collections, which move at once for everybody.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection.")]
MaxNeighbors = Annotated[
    int | None, typer.Option("--max-neighbors", metavar="N", help="Links of an item, 4 to 128; 0: the default.")
]
EfConstruction = Annotated[
    int | None, typer.Option("--ef-construction", metavar="N", help="Width of adding, 16 to 2,000; 0: the default.")
]
EfSearch = Annotated[
    int | None, typer.Option("--ef-search", metavar="N", help="Width of searching, 10 to 10,000; 0: the default.")
]


@collections_app.command("create")
def create(
    context: typer.Context,
    *,
    name: Name,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="The model's name, for people.")],
    digest: Annotated[str, typer.Option("--digest", metavar="HEX", help="The model's fingerprint, 64 digits.")],
    dimension: Annotated[int, typer.Option("--dimension", metavar="N", help="Numbers of its vectors, 1 to 4,096.")],
    metric: Annotated[Metric, typer.Option("--metric", help="How likeness is measured.")] = Metric.COSINE,
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="What it is for.")] = "",
    max_neighbors: MaxNeighbors = None,
    ef_construction: EfConstruction = None,
    ef_search: EfSearch = None,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Make an empty collection for the vectors of a model."""
    with connected_indexer(context, indexer, timeout) as client:
        made = client.create_collection(
            name,
            Fingerprint(model, digest, dimension),
            metric=metric,
            hnsw=Hnsw(max_neighbors or 0, ef_construction or 0, ef_search or 0),
            description=description,
        )
    if output_format is Format.JSON:
        render.show_json({"collection": collection_as_json(made)})
    else:
        render.out().print(f"Made collection {plain(made.name)}.")


@collections_app.command("list")
def list_collections(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """List the collections."""
    with connected_indexer(context, indexer, timeout) as client:
        found = client.collections()
    if output_format is Format.JSON:
        render.show_json({"collections": list(map(collection_as_json, found))})
    else:
        render_indexer.show_collections(found)


@collections_app.command("describe")
def describe(
    context: typer.Context,
    *,
    name: Name,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Show everything that is known of a collection: what it is, where it is served from, what it takes."""
    with connected_indexer(context, indexer, timeout) as client:
        described = client.collection(name)
    if output_format is Format.JSON:
        render.show_json(render_indexer.described_as_json(described))
    else:
        render_indexer.show_described(described)


@collections_app.command("update")
def update(
    context: typer.Context,
    *,
    name: Name,
    description: Annotated[str | None, typer.Option("--description", metavar="TEXT", help="What it is for.")] = None,
    max_neighbors: MaxNeighbors = None,
    ef_construction: EfConstruction = None,
    ef_search: EfSearch = None,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Change a collection's description or HNSW parameters; what is not named stays."""
    given = (max_neighbors, ef_construction, ef_search)
    if description is None and given == (None, None, None):
        wrong_usage("Say what to change: --description, --max-neighbors, --ef-construction or --ef-search.")
    with connected_indexer(context, indexer, timeout) as client:
        hnsw = None
        if given != (None, None, None):
            # The contract sets all three at once: what is not named is sent as it is.
            present = client.collection(name).collection.hnsw
            hnsw = Hnsw(
                present.max_neighbors if max_neighbors is None else max_neighbors,
                present.ef_construction if ef_construction is None else ef_construction,
                present.ef_search if ef_search is None else ef_search,
            )
        changed = client.update_collection(name, hnsw=hnsw, description=description)
    if output_format is Format.JSON:
        render.show_json({"collection": collection_as_json(changed.collection), "needs_rebuild": changed.needs_rebuild})
        return
    called = plain(changed.collection.name)
    later = f" Some of it applies after `likeness rebuild {called}`." if changed.needs_rebuild else ""
    render.out().print(f"Changed collection {called}.{later}")


@collections_app.command("delete")
def delete(
    context: typer.Context,
    *,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Delete a collection and everything in it; asks first. Thumbnails and originals go a day later."""
    with connected_indexer(context, indexer, timeout) as client:
        if not yes:
            count = client.collection(name).collection.count
            typer.confirm(f"Delete collection {plain(name)} and its {count:,} items?", abort=True, err=True)
        client.delete_collection(name)
    if output_format is Format.JSON:
        render.show_json({"deleted": name})
    else:
        render.out().print(f"Deleted collection {plain(name)}.")


@alias_app.command("set")
def set_alias(
    context: typer.Context,
    *,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="What it is to stand for.")],
    expected: Annotated[
        str | None,
        typer.Option("--expected", metavar="COLLECTION", help="What it must stand for until now; '': nothing."),
    ] = None,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Make an alias, or move it to another collection, at once for everybody."""
    with connected_indexer(context, indexer, timeout) as client:
        previous = client.set_alias(alias, collection, expected=expected)
    if output_format is Format.JSON:
        render.show_json({"alias": alias, "collection": collection, "previous": previous})
        return
    before = f", no longer for {plain(previous)}" if previous not in ("", collection) else ""
    render.out().print(f"{plain(alias)} stands for {plain(collection)}{before}.")


@alias_app.command("delete")
def delete_alias(
    context: typer.Context,
    *,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.")],
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """Delete an alias; its collection stays."""
    with connected_indexer(context, indexer, timeout) as client:
        collection = client.delete_alias(alias)
    if output_format is Format.JSON:
        render.show_json({"alias": alias, "collection": collection})
    else:
        render.out().print(f"Deleted alias {plain(alias)}, which stood for {plain(collection)}.")


@alias_app.command("list")
def list_aliases(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    indexer: Indexer = None,
    timeout: Timeout = None,
) -> None:
    """List the aliases."""
    with connected_indexer(context, indexer, timeout) as client:
        found = client.aliases()
    if output_format is Format.JSON:
        render.show_json({"aliases": [{"name": alias.name, "collection": alias.collection} for alias in found]})
    else:
        render_indexer.show_aliases(found)
