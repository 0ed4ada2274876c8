"""``likeness search``."""

from pathlib import Path
from typing import Annotated

import typer

from likeness_client import defaults, render
from likeness_client.commands.options import Collection, Server, Timeout, connected, wrong_usage
from likeness_client.items import Term
from likeness_client.render import SearchFormat


def search(
    context: typer.Context,
    *,
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="FILE", exists=True, dir_okay=False, readable=True, help="Like this picture."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", metavar="TEXT", help="Like what this says.")] = None,
    item_id: Annotated[list[str] | None, typer.Option("--id", metavar="ID", help="Like this stored picture.")] = None,
    not_image: Annotated[
        list[Path] | None,
        typer.Option("--not-image", metavar="FILE", exists=True, dir_okay=False, readable=True, help="Unlike this."),
    ] = None,
    not_text: Annotated[list[str] | None, typer.Option("--not-text", metavar="TEXT", help="Unlike this.")] = None,
    not_id: Annotated[list[str] | None, typer.Option("--not-id", metavar="ID", help="Unlike this.")] = None,
    where: Annotated[
        str | None,
        typer.Option("--where", metavar="CONDITION", help="Only pictures for which it is true; see above."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, max=1000, help="Most hits.")] = defaults.TOP_K,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="X", help="Only hits with at least this score.")
    ] = None,
    collection: Collection = defaults.COLLECTION,
    output_format: Annotated[SearchFormat, typer.Option("--format", help="How to print.")] = SearchFormat.TABLE,
    server: Server = None,
    timeout: Timeout = None,
) -> None:
    """Find the pictures most like pictures, texts and stored pictures together.

    Give --image, --text and --id as often as you like, at least one of them.
    All count alike; --not-image, --not-text and --not-id count against.

    --where takes a condition over metadata:
    label = "cat" and (width >= 300 or not camera exists)
    It knows = != < <= > >=, in ("a", "b"), not in ("a"), contains, exists,
    and, or, not; strings, numbers, true, false and dates as 2019-01-31.
    """
    if not (image or text or item_id):
        wrong_usage(
            "Say what to search for: --image FILE, --text TEXT or --id ID. `likeness search --help` tells more."
        )
    terms = [
        *map(Term.image, image or []),
        *map(Term.text, text or []),
        *map(Term.id, item_id or []),
        *(Term.image(path, weight=-1) for path in not_image or []),
        *(Term.text(words, weight=-1) for words in not_text or []),
        *(Term.id(unlike, weight=-1) for unlike in not_id or []),
    ]
    condition = None
    if where is not None:
        from likeness_client.where import WhereError, parse_where  # noqa: PLC0415  # lark takes 0.2 s to import

        try:
            condition = parse_where(where)
        except WhereError as error:
            wrong_usage(f"--where is no condition:\n{error}")
    with connected(context, server, timeout) as client:
        result = client.search(*terms, where=condition, collection=collection, top_k=top_k, min_score=min_score)
    match output_format:
        case SearchFormat.JSON:
            render.show_json(render.hits_as_json(result))
        case SearchFormat.CSV:
            render.show_hits_as_csv(result)
        case SearchFormat.TABLE:
            render.show_hits(result)
