"""``likeness search``."""

from pathlib import Path
from typing import Annotated

import typer

from likeness_client import defaults, render, render_search
from likeness_client.commands.options import (
    Collection,
    Server,
    ShownIds,
    Timeout,
    condition,
    connected,
    require_text,
    wrong_usage,
)
from likeness_client.items import Term
from likeness_client.render import Ids, SearchFormat
from likeness_client.searches import Rescore, RescoreMetric


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
    facet: Annotated[
        list[str] | None,
        typer.Option("--facet", metavar="KEY", help="Count the values of this key, over all that --where leaves."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", metavar="N", min=1, max=1000, help="Most hits.")] = defaults.TOP_K,
    offset: Annotated[
        int, typer.Option("--offset", metavar="N", min=0, max=9999, help="Best hits to leave out, for the next pages.")
    ] = 0,
    min_score: Annotated[
        float | None, typer.Option("--min-score", metavar="X", help="Only hits with at least this score.")
    ] = None,
    rescore: Annotated[
        RescoreMetric | None, typer.Option("--rescore", help="Score what was found by this metric.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option("--candidates", metavar="N", min=1, max=10_000, help="With --rescore: how many are scored."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every picture: slow, and misses none.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Tell how alike each hit is to each part.")] = False,
    collection: Collection = defaults.COLLECTION,
    ids: ShownIds = Ids.SHORT,
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

    --explain shows the cosine with each of them, in the order --image, --text,
    --id, --not-image, --not-text, --not-id.
    """
    if not (image or text or item_id):
        wrong_usage(
            "Say what to search for: --image FILE, --text TEXT or --id ID. `likeness search --help` tells more."
        )
    if candidates and not rescore:
        wrong_usage("--candidates is for --rescore METRIC: say by which metric they are scored.")
    if facet and output_format is SearchFormat.CSV:
        wrong_usage("--facet has no place in CSV: use --format json, or `likeness facets`.")
    require_text(text, item_id, not_text, not_id, facet)
    terms = [
        *(("like " + render.short_path(path), Term.image(path)) for path in image or []),
        *((f"like “{words}”", Term.text(words)) for words in text or []),
        *((f"like item {like}", Term.id(like)) for like in item_id or []),
        *(("unlike " + render.short_path(path), Term.image(path, weight=-1)) for path in not_image or []),
        *((f"unlike “{words}”", Term.text(words, weight=-1)) for words in not_text or []),
        *((f"unlike item {unlike}", Term.id(unlike, weight=-1)) for unlike in not_id or []),
    ]
    only = condition(where)
    with connected(context, server, timeout) as client:
        result = client.search(
            *(term for _, term in terms),
            where=only,
            collection=collection,
            top_k=top_k,
            offset=offset,
            min_score=min_score,
            rescore=Rescore(rescore, candidates or 0) if rescore else None,
            exact=exact,
            facets=facet or (),
            explain=explain,
        )
    match output_format:
        case SearchFormat.JSON:
            render.show_json(render_search.hits_as_json(result, explain=explain))
        case SearchFormat.CSV:
            render_search.show_hits_as_csv(result, explain=explain)
        case SearchFormat.TABLE:
            render_search.show_hits(result, [words for words, _ in terms] if explain else [], ids)
