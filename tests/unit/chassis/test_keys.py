"""API keys: where they come from, and what becomes of a file that changes."""

import hashlib
from pathlib import Path

import pytest

from chassis.keys import Keys, KeysError, Scope, parse_file, parse_list


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def table(name: str, key: str, scopes: str = '["read"]', more: str = "") -> str:
    return f'[[key]]\nname = "{name}"\nsha256 = "{sha256(key)}"\nscopes = {scopes}\n{more}\n'


def name_of(keys: Keys, key: str) -> str | None:
    found = keys.ring.find(key)
    return None if found is None else found.name


def test_a_key_is_found_by_its_hash_and_no_other_is(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", "first") + table("loader", "second", '["read", "write"]'))
    keys = Keys(file, f"root:{sha256('third')}:admin")

    assert [name_of(keys, key) for key in ("first", "second", "third")] == ["web", "loader", "root"]
    assert [name_of(keys, key) for key in ("", "firs", "first ", sha256("first"), "\udcff")] == [None] * 5
    found = keys.ring.find("second")
    assert found is not None
    assert found.scope is Scope.WRITE


def test_limits_come_from_the_file_and_a_burst_is_a_second_s_unless_told() -> None:
    told, untold, none = parse_file(
        (
            table("a", "1", more="rate_per_s = 2\nburst = 9\nconcurrent = 3")
            + table("b", "2", more="rate_per_s = 0.5")
            + table("c", "3")
        ).encode()
    )
    assert (told.limits.rate_per_s, told.limits.burst, told.limits.concurrent) == (2, 9, 3)
    assert (untold.limits.rate_per_s, untold.limits.burst, untold.limits.concurrent) == (0.5, 1, None)
    assert (none.limits.rate_per_s, none.limits.concurrent) == (None, None)


def test_a_key_s_hash_is_in_no_representation_of_it() -> None:
    caller = parse_list(f"web:{sha256('first')}:read")[0]
    assert sha256("first") not in repr(caller)
    assert repr(caller.digest) not in repr(caller)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "[[key",
        pytest.param("key = " + "[" * 100_000, id="a hundred thousand brackets"),
        "key = 3",
        "key = [3]",
        "other = 1\n" + table("web", "1"),
        table("", "1"),
        table("a b", "1"),
        table("a\\nb", "1"),
        table("web", "1").replace(sha256("1"), "abc"),
        table("web", "1").replace(sha256("1"), sha256("1").upper()),
        table("web", "1", "[]"),
        table("web", "1", '"read"'),
        table("web", "1", '["root"]'),
        table("web", "1", "[1]"),
        table("web", "1", more="rate_per_s = 0"),
        table("web", "1", more="rate_per_s = nan"),
        table("web", "1", more="rate_per_s = true"),
        table("web", "1", more="burst = 3"),
        table("web", "1", more="concurrent = 1.5"),
        table("web", "1", more="colour = 3"),
        table("web", "1") + table("web", "2"),
        table("web", "1") + table("other", "1"),
    ],
)
def test_a_file_that_is_none_is_refused_whole(text: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(KeysError):
        Keys(file, "")


@pytest.mark.parametrize("listed", ["", " , ", "secret-key", "web:secret-key:read", "web:read", "a:b:c:d"])
def test_a_list_that_is_none_is_refused_without_repeating_it(listed: str) -> None:
    with pytest.raises(KeysError) as caught:
        Keys(None, listed)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        Keys(tmp_path / "none.toml", "")


def test_a_changed_file_counts_at_the_next_look(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", "old"))
    keys = Keys(file, "")
    assert not keys.refresh()

    file.write_text(table("web", "new"))
    assert keys.refresh()
    assert (name_of(keys, "old"), name_of(keys, "new")) == (None, "web")
    assert not keys.refresh()


@pytest.mark.parametrize("spoilt", ["", "# no key any more", "[[key", "\x00"])
def test_an_emptied_or_spoilt_file_changes_nothing_until_it_is_good_again(spoilt: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(table("web", "old"))
    keys = Keys(file, "")

    file.write_text(spoilt)
    assert not keys.refresh()
    assert not keys.refresh()
    assert name_of(keys, "old") == "web"
    file.unlink()
    assert not keys.refresh()
    assert name_of(keys, "old") == "web"
    file.write_text(table("web", "new"))
    assert keys.refresh()
    assert (name_of(keys, "old"), name_of(keys, "new")) == (None, "web")
