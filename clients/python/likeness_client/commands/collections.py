"""``likeness collections …``."""

from typing import Annotated

import typer

from likeness_client import render, render_indexer
from likeness_client.commands.options import (
    IndexerInstead,
    OutputFormat,
    Server,
    Timeout,
    asks_indexer,
    confirm,
    connected,
    connected_indexer,
    connected_to_either,
    in_text,
    wrong_usage,
)
from likeness_client.indexer.shapes import collection_as_json
from likeness_client.indexer.types import Collection, CollectionUpdate, Hnsw, Metric
from likeness_client.items import Fingerprint
from likeness_client.render import Format, plain

collections_app = typer.Typer(no_args_is_help=True, help="Make, list, describe, change and delete collections.")

AT_THE_INDEXER = "Options that only the indexer takes"

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection.", callback=in_text)]
MaxNeighbors = Annotated[
    int | None,
    typer.Option(
        "--max-neighbors",
        metavar="N",
        min=0,
        max=128,
        help="Links of an item, 4 to 128; 0: the default.",
        rich_help_panel=AT_THE_INDEXER,
    ),
]
EfConstruction = Annotated[
    int | None,
    typer.Option(
        "--ef-construction",
        metavar="N",
        min=0,
        max=2000,
        help="Width of adding, 16 to 2,000; 0: the default.",
        rich_help_panel=AT_THE_INDEXER,
    ),
]
EfSearch = Annotated[
    int | None,
    typer.Option(
        "--ef-search",
        metavar="N",
        min=0,
        max=10_000,
        help="Width of searching, 10 to 10,000; 0: the default.",
        rich_help_panel=AT_THE_INDEXER,
    ),
]


@collections_app.command("create")
def create(
    context: typer.Context,
    *,
    name: Name,
    metric: Annotated[Metric, typer.Option("--metric", help="How likeness is measured.")] = Metric.COSINE,
    description: Annotated[
        str, typer.Option("--description", metavar="TEXT", help="What it is for.", callback=in_text)
    ] = "",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The model's name, for people; required there.",
            callback=in_text,
            rich_help_panel=AT_THE_INDEXER,
        ),
    ] = None,
    digest: Annotated[
        str | None,
        typer.Option(
            "--digest",
            metavar="HEX",
            help="The model's fingerprint, 64 digits; required there.",
            callback=in_text,
            rich_help_panel=AT_THE_INDEXER,
        ),
    ] = None,
    dimension: Annotated[
        int | None,
        typer.Option(
            "--dimension",
            metavar="N",
            min=1,
            max=4096,
            help="Numbers of its vectors; required there.",
            rich_help_panel=AT_THE_INDEXER,
        ),
    ] = None,
    max_neighbors: MaxNeighbors = None,
    ef_construction: EfConstruction = None,
    ef_search: EfSearch = None,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Make an empty collection: for the model of the gateway's embedder, or at the indexer for any."""
    if asks_indexer(context, server, indexer):
        if model is None or digest is None or dimension is None:
            wrong_usage(
                "The indexer knows no model: name it by --model, --digest and --dimension, all three; or ask the "
                "gateway, which takes its embedder's, by --server ADDRESS."
            )
        with connected_indexer(context, indexer, timeout) as at_indexer:
            made = at_indexer.create_collection(
                name,
                Fingerprint(model, digest, dimension),
                metric=metric,
                hnsw=Hnsw(max_neighbors or 0, ef_construction or 0, ef_search or 0),
                description=description,
            )
    else:
        _refuse_at_gateway(
            model=model,
            digest=digest,
            dimension=dimension,
            max_neighbors=max_neighbors,
            ef_construction=ef_construction,
            ef_search=ef_search,
        )
        with connected(context, server, timeout) as at_gateway:
            made = at_gateway.create_collection(name, metric=metric, description=description)
    if output_format is Format.JSON:
        render.show_json({"collection": collection_as_json(made)})
    else:
        render.out().print(f"Made collection {plain(made.name)}.")


@collections_app.command("list")
def list_collections(
    context: typer.Context,
    *,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """List the collections."""
    with connected_to_either(context, server, indexer, timeout) as client:
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
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Show everything that is known of a collection; the indexer adds where it is served from and what it takes."""
    with connected_to_either(context, server, indexer, timeout) as client:
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
    description: Annotated[
        str | None, typer.Option("--description", metavar="TEXT", help="What it is for.", callback=in_text)
    ] = None,
    max_neighbors: MaxNeighbors = None,
    ef_construction: EfConstruction = None,
    ef_search: EfSearch = None,
    output_format: OutputFormat = Format.TABLE,
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Change a collection's description or, at the indexer, its HNSW parameters; what is not named stays."""
    given = (max_neighbors, ef_construction, ef_search)
    if description is None and given == (None, None, None):
        wrong_usage(
            "Say what to change: --description; or, at the indexer, --max-neighbors, --ef-construction or --ef-search."
        )
    if asks_indexer(context, server, indexer):
        with connected_indexer(context, indexer, timeout) as at_indexer:
            hnsw = None
            if given != (None, None, None):
                # The contract sets all three at once: what is not named is sent as it is.
                present = at_indexer.collection(name).collection.hnsw or Hnsw()
                hnsw = Hnsw(
                    present.max_neighbors if max_neighbors is None else max_neighbors,
                    present.ef_construction if ef_construction is None else ef_construction,
                    present.ef_search if ef_search is None else ef_search,
                )
            changed = at_indexer.update_collection(name, hnsw=hnsw, description=description)
    else:
        _refuse_at_gateway(max_neighbors=max_neighbors, ef_construction=ef_construction, ef_search=ef_search)
        assert description is not None
        with connected(context, server, timeout) as at_gateway:
            changed = CollectionUpdate(at_gateway.update_collection(name, description=description), needs_rebuild=False)
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
    server: Server = None,
    indexer: IndexerInstead = None,
    timeout: Timeout = None,
) -> None:
    """Delete a collection and everything in it; asks first.

    Through the gateway its thumbnails and originals go with it. The indexer
    knows nothing of them: of what is deleted there they go a day later.
    """
    with connected_to_either(context, server, indexer, timeout) as client:
        if not yes:
            told = client.collection(name)
            count = (told if isinstance(told, Collection) else told.collection).count
            confirm(f"Delete collection {plain(name)} and its {count:,} items?")
        client.delete_collection(name)
    if output_format is Format.JSON:
        render.show_json({"deleted": name})
    else:
        render.out().print(f"Deleted collection {plain(name)}.")


def _refuse_at_gateway(**options: object) -> None:
    """Options that the gateway does not take are wrong usage where it is asked."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        wrong_usage(
            f"The gateway does not take {', '.join(given)}: leave out what is the indexer's, or ask the indexer by "
            "--indexer ADDRESS."
        )
