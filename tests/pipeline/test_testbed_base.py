"""The base model that ships: what its manifest says is true of its files and of today's corpus."""

import json
from itertools import islice

from transformers import AutoTokenizer

from trueward.models.checkpoint import model_hash
from trueward.pipeline.testbed_base import (
    BASE_SHAPE,
    BASE_TRAIN,
    HASHED_CHATS,
    base_corpus,
    corpus_hash,
    shipped_base,
)
from trueward.testbed import make_world


def _manifest() -> dict[str, object]:
    manifest: dict[str, object] = json.loads((shipped_base() / "trueward_base.json").read_text())
    return manifest


def test_weights_and_settings_are_those_of_the_manifest() -> None:
    manifest = _manifest()
    assert manifest["model_hash"] == model_hash(shipped_base())
    assert manifest["shape"] == BASE_SHAPE.model_dump(mode="json")
    # Settings that came later have the value they had then.
    assert type(BASE_TRAIN).model_validate(manifest["train"]) == BASE_TRAIN


def test_todays_corpus_is_the_one_it_read() -> None:
    tokenizer = AutoTokenizer.from_pretrained(shipped_base(), local_files_only=True)
    groups = list(islice(base_corpus(make_world(), tokenizer), HASHED_CHATS))
    corpus = _manifest()["corpus"]
    assert isinstance(corpus, dict)
    assert corpus["first_chats"] == corpus_hash(groups)
    assert corpus["first_chats"] != corpus_hash(groups[:-1])
