"""Hashes are SHA-256 over bytes that anyone can make again."""

import hashlib
from pathlib import Path

import pytest

from trueward.core.hashing import (
    canonical_json,
    hash_bytes,
    hash_file,
    hash_folder,
    hash_json,
    hash_lines,
    short,
)

# FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_bytes_by_the_standards_example() -> None:
    assert hash_bytes(b"abc") == ABC
    assert short(ABC) == "ba7816bf8f01cfea"


def test_equal_values_give_equal_json() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None, "é"]}) == '{"a":[1.5,null,"é"],"b":1}'
    assert hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 1.5})


def test_nan_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_json(float("nan"))


def test_lines_are_joined_with_newlines() -> None:
    assert hash_lines(["a", "bc"]) == hashlib.sha256(b"a\nbc\n").hexdigest()
    assert hash_lines(["ab", "c"]) != hash_lines(["a", "bc"])
    assert hash_lines([]) == hash_bytes(b"")


@pytest.mark.parametrize("size", [0, 3, 1 << 20, (1 << 20) + 1])
def test_a_file_is_hashed_as_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a") == hash_bytes(data)


def test_a_folder_is_its_names_and_contents(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, order in ((one, "ab"), (two, "ba")):
        folder.mkdir()
        for name in order:
            (folder / name).write_text(name)
    assert hash_folder(one) == hash_folder(two)
    before = hash_folder(one)
    (one / "a").rename(one / "aa")
    assert hash_folder(one) != before
    (one / "aa").rename(one / "a")
    (one / "b").write_text("changed")
    assert hash_folder(one) != before
    assert hash_folder(one, "a*") == hash_folder(two, "a*")
