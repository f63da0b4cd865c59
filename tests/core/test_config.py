"""Recipes: YAML in, frozen configuration out; every mistake is one sentence that names the way out."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError, model_validator

from trueward.core.config import Config, apply_overrides, build, read_yaml
from trueward.core.errors import ConfigError


class Lora(Config):
    rank: int = 8
    alpha: float = 16.0


class Train(Config):
    learning_rate: float = 1e-4
    lora: Lora | None = None
    parts: tuple[Lora, ...] = ()
    named: dict[str, Lora] = Field(default_factory=dict)


class Cosine(Config):
    kind: Literal["cosine"]
    warmup: int = 0


class Linear(Config):
    kind: Literal["linear"]
    stretch: int = 0


class Recipe(Config):
    name: str
    train: Train = Train()
    schedule: Annotated[Cosine | Linear, Field(discriminator="kind")] = Cosine(kind="cosine")
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> "Recipe":
        if self.low > self.high:
            raise ValueError("low lies above high")
        return self


def test_values_and_defaults() -> None:
    recipe = build(Recipe, {"name": "a", "train": {"lora": {"rank": 4}}}, source="r.yaml")
    assert recipe.train.lora == Lora(rank=4, alpha=16.0)
    assert recipe.train.learning_rate == 1e-4


def test_configuration_is_frozen() -> None:
    recipe = build(Recipe, {"name": "a"}, source="r.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nam": "a"}, "r.yaml: unknown key 'nam'; did you mean 'name'?"),
        (
            {"name": "a", "train": {"learning_rte": 1}},
            "r.yaml: unknown key 'train.learning_rte'; did you mean 'learning_rate'?",
        ),
        (
            {"name": "a", "train": {"lora": {"rnk": 1}}},
            "r.yaml: unknown key 'train.lora.rnk'; did you mean 'rank'?",
        ),
        (
            {"name": "a", "train": {"parts": [{}, {"alhpa": 1}]}},
            "r.yaml: unknown key 'train.parts.1.alhpa'; did you mean 'alpha'?",
        ),
        (
            {"name": "a", "train": {"named": {"x": {"alhpa": 1}}}},
            "r.yaml: unknown key 'train.named.x.alhpa'; did you mean 'alpha'?",
        ),
        (
            {"name": "a", "schedule": {"kind": "linear", "strech": 1}},
            "r.yaml: unknown key 'schedule.linear.strech'; did you mean 'stretch'?",
        ),
        (
            {"name": "a", "train": {"zzz": 1}},
            "r.yaml: unknown key 'train.zzz'; known names: learning_rate, lora, named, parts",
        ),
    ],
    ids=["top", "nested", "optional", "list", "mapping", "union", "nothing near"],
)
def test_an_unknown_key_names_the_nearest(mapping: dict[str, Any], message: str) -> None:
    mapping = {"name": "a", **mapping} if "nam" not in mapping else {**mapping, "name": "a"}
    with pytest.raises(ConfigError) as error:
        build(Recipe, mapping, source="r.yaml")
    assert str(error.value) == message


def test_a_missing_key_says_how_to_set_it() -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml: name is missing; set it: name=\.\.\.$"):
        build(Recipe, {}, source="r.yaml")


def test_a_wrong_value_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml: train.learning_rate: .*valid number.*, got 'fast'$"):
        build(Recipe, {"name": "a", "train": {"learning_rate": "fast"}}, source="r.yaml")


def test_a_rule_over_several_keys_reads_as_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml: low lies above high, got \{"):
        build(Recipe, {"name": "a", "low": 2}, source="r.yaml")


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^r.yaml: 1"):
        build(Recipe, {"name": "a", 1: 2}, source="r.yaml")  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lora.rank=4", 4),
        ("train.lora.rank=1e-3", "1e-3"),
        ("train.lora.rank=[1, b]", [1, "b"]),
        ("train.lora.rank=null", None),
        ("train.lora.rank=true", True),
        ("train.lora.rank=", ""),
        ("train.lora.rank=a=b", "a=b"),
    ],
)
def test_an_override_is_read_as_yaml(override: str, value: object) -> None:
    assert apply_overrides({}, [override]) == {"train": {"lora": {"rank": value}}}


def test_overrides_keep_their_neighbours_and_leave_the_original_alone() -> None:
    mapping = {"train": {"lora": None, "epochs": 1}, "name": "a"}
    result = apply_overrides(mapping, ["train.lora.rank=4", "name=b", "name=c"])
    assert result == {"train": {"lora": {"rank": 4}, "epochs": 1}, "name": "c"}
    assert mapping == {"train": {"lora": None, "epochs": 1}, "name": "a"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train", "not of the form key.path=value, got 'train'"),
        ("=3", "not of the form key.path=value, got '=3'"),
        ("train..rank=3", "not of the form"),
        ("name=[1,", r"the value of name is not YAML, got '\[1,'; put it in quotes"),
        ("name.inner=3", "name.inner goes through 'name', which is no section, got 'a'"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides({"name": "a"}, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not YAML"),
        (b"a: \xff", "is not YAML"),
        (b"- 1\n- 2\n", r"does not hold a mapping, got \[1, 2\]"),
        (b"", "does not hold a mapping, got None"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "the key 'c' is there twice"),
        (b"a: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
    ids=["syntax", "encoding", "list", "empty", "twice", "code"],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_yaml(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; `trueward recipes ls`"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a YAML file"):
        read_yaml(tmp_path)


def test_anchors_and_merges_still_work(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n")
    assert read_yaml(path)["other"] == {"x": 1, "y": 3}
