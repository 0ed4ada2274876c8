import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness_client import AllOf, AnyOf, Comparison, Filter, NoneOf, Operator, WhereError, parse_where, to_where
from likeness_client.filters import Value

CAT = Comparison("labels", Operator.CONTAINS, ("cat",))
DOG = Comparison("labels", Operator.CONTAINS, ("dog",))
WIDE = Comparison("width", Operator.GE, (300,))
CAMERA = Comparison("camera", Operator.EXISTS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('label = "cat" and width >= 300', AllOf((CAT, WIDE))),
        ('label = "cat" or label = "dog" and width >= 300', AnyOf((CAT, AllOf((DOG, WIDE))))),
        ('(label = "cat" or label = "dog") and width >= 300', AllOf((AnyOf((CAT, DOG)), WIDE))),
        ('not label = "cat" and width >= 300', AllOf((NoneOf((CAT,)), WIDE))),
        ('not (label = "cat" or camera exists)', NoneOf((CAT, CAMERA))),
        ("not not camera exists", NoneOf((NoneOf((CAMERA,)),))),
        ("NOT camera EXISTS", NoneOf((CAMERA,))),
        ("camera != 'Canon \\'5D\\''", Comparison("camera", Operator.NE, ("Canon '5D'",))),
        ('format in ("PNG", "GIF")', Comparison("format", Operator.IN, ("PNG", "GIF"))),
        ("width not in (1, 2.5, -3)", Comparison("width", Operator.NOT_IN, (1, 2.5, -3))),
        ('tags contains "red"', Comparison("tags", Operator.CONTAINS, ("red",))),
        ("latitude<-33.5e0", Comparison("latitude", Operator.LT, (-33.5,))),
        ("flash = true", Comparison("flash", Operator.EQ, (True,))),
        ("focal-length.mm_x <= 50", Comparison("focal-length.mm_x", Operator.LE, (50,))),
        ("android exists", Comparison("android", Operator.EXISTS)),
        ("`in` exists", Comparison("in", Operator.EXISTS)),
        (r'name = "a\n\u00e9\\"', Comparison("name", Operator.EQ, ("a\né\\",))),
    ],
)
def test_a_condition_means_what_it_says(text: str, expected: Filter) -> None:
    assert parse_where(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('label = "cat"', CAT),
        ('label contains "cat"', CAT),
        ('label != "cat"', NoneOf((CAT,))),
        ('label in ("cat")', CAT),
        ('label in ("cat", "dog")', AnyOf((CAT, DOG))),
        ('label not in ("cat", "dog")', NoneOf((CAT, DOG))),
        ("label exists", Comparison("labels", Operator.EXISTS)),
        ('`label` = "cat"', Comparison("label", Operator.EQ, ("cat",))),
    ],
)
def test_label_stands_for_the_list_of_labels(text: str, expected: Filter) -> None:
    assert parse_where(text) == expected


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("2019-01-01", 1546300800),
        ("2019-01-01T10:00:00", 1546336800),
        ("2019-01-01T10:00Z", 1546336800),
        ("2019-01-01T10:00:00+02:00", 1546329600),
        ("1969-12-31", -86400),
    ],
)
def test_a_date_is_seconds_of_utc(date: str, seconds: int) -> None:
    assert parse_where(f"taken_at >= {date}") == Comparison("taken_at", Operator.GE, (seconds,))


@pytest.mark.parametrize(
    ("text", "position", "words"),
    [
        ("", 0, "a key"),
        ("width >=", 8, "a number"),
        ("width >= and x = 1", 9, "a number"),
        ('width >= "a"', 9, "a number or a date"),
        ("x = 1 y = 2", 6, "`and`, `or` or the end"),
        ("(a = 1", 6, "`)`"),
        ("a = 1)", 5, "the end"),
        ('a = "x', 4, 'expected another "'),
        (r'a = "\q"', 4, "no escape"),
        (r'a = "\ud800"', 4, "UTF-8"),
        ("a in ()", 6, "a string in quotes"),
        ('a in (1, "b")', 9, "expected a number"),
        ("a in (true, 1)", 12, "expected a bool"),
        ("a == 3", 3, "a number"),
        ("a = 3px", 4, "a number"),
        ("and = 3", 0, "a key"),
        ("label < 3", 6, "labels have no order"),
        ("label = 3", 8, "a string in quotes"),
        ("a contains 3", 11, "a string in quotes"),
        ("taken_at > 2019-13-01", 11, "no such day"),
        ("a = 99999999999999999999", 4, "64 bits"),
        ("a = 1e999", 4, "1.8e308"),
        (f"{'k' * 129} = 1", 0, "128 characters"),
        ("not " * 16 + "a = 1", 0, "16 levels"),
        ("not " * 20_000 + "a = 1", 0, "16 levels"),
        (" or ".join(["a = 1"] * 256), 0, "256 conditions"),
        (f"a in ({', '.join(['1'] * 257)})", 6 + 256 * 3, "256 values"),
    ],
)
def test_an_error_shows_the_place_and_what_was_expected_there(text: str, position: int, words: str) -> None:
    with pytest.raises(WhereError) as caught:
        parse_where(text)
    assert caught.value.position == position
    assert words in caught.value.problem


def test_the_caret_stands_under_the_fault_on_its_own_line() -> None:
    with pytest.raises(WhereError) as caught:
        parse_where("a = 1 and\n\tb ~ 2")
    assert str(caught.value).splitlines()[:2] == ["\tb ~ 2", "\t  ^"]


keys = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True) | st.sampled_from(
    ["label", "labels", "and", "In"]
)
texts = st.text(max_size=12)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def comparison(ops: list[Operator], values: st.SearchStrategy[tuple[Value, ...]]) -> st.SearchStrategy[Filter]:
    return st.builds(Comparison, keys, st.sampled_from(ops), values)


def one(values: st.SearchStrategy[Value]) -> st.SearchStrategy[tuple[Value, ...]]:
    return st.tuples(values)


def some(values: st.SearchStrategy[Value]) -> st.SearchStrategy[tuple[Value, ...]]:
    return st.lists(values, min_size=1, max_size=4).map(tuple)


leaves = (
    comparison([Operator.EQ, Operator.NE], one(texts | numbers | st.booleans()))
    | comparison([Operator.LT, Operator.LE, Operator.GT, Operator.GE], one(numbers))
    | comparison([Operator.IN, Operator.NOT_IN], some(texts) | some(numbers) | some(st.booleans()))
    | comparison([Operator.EXISTS], st.just(()))
    | comparison([Operator.CONTAINS], one(texts))
)


def branches(children: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(children, min_size=2, max_size=4).map(tuple)
    # none_of(any_of(x, y)) and none_of(x, y) are one condition, which is read as the latter.
    single = children.filter(lambda child: not isinstance(child, AnyOf)).map(lambda child: (child,))
    return st.builds(AllOf, several) | st.builds(AnyOf, several) | st.builds(NoneOf, several | single)


@settings(deadline=None)  # the first call builds the parser
@given(st.recursive(leaves, branches, max_leaves=12))
def test_a_filter_written_as_text_is_read_as_the_same_filter(node: Filter) -> None:
    read = parse_where(to_where(node))
    assert read == node
    assert repr(read) == repr(node)  # equality alone takes 1, 1.0 and true for one


@settings(deadline=None)  # the first call builds the parser
@given(st.text(alphabet=string.printable, max_size=40))
def test_any_text_is_a_condition_or_a_fault_with_a_place(text: str) -> None:
    fault: WhereError | None = None
    try:
        parse_where(text)
    except WhereError as error:
        fault = error
    assert fault is None or (0 <= fault.position <= len(text) and fault.problem)


def test_a_number_that_the_language_cannot_say_is_refused() -> None:
    with pytest.raises(ValueError, match="inf"):
        to_where(Comparison("a", Operator.LT, (float("inf"),)))
