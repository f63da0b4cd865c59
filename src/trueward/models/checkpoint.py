"""Saving models as folders that transformers and PEFT load by themselves: safetensors, tokenizer, template,
card.

A folder appears whole or not at all. Reward models carry eight probe texts with their scores (see load).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import yaml
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase

from trueward.core.errors import ModelError, StorageError
from trueward.core.files import new_folder, replace_folder, write_json, write_text
from trueward.core.hashing import hash_file, hash_json
from trueward.data.chat import Completion, TokenGroup
from trueward.models.heads import check_pad
from trueward.models.packing import pack
from trueward.models.scoring import sequence_rewards, unwrap

__all__ = [
    "NUM_PROBES",
    "PROBES_FILE",
    "PROBES_SCHEMA",
    "Score",
    "model_card",
    "model_hash",
    "probe_record",
    "probe_scores",
    "save_causal",
    "save_folder",
    "save_reward",
]

PROBES_FILE = "trueward_probes.json"
PROBES_SCHEMA = "trueward.probes/1"
NUM_PROBES = 8
Score = Callable[[nn.Module, Sequence[Sequence[int]]], list[float]]
"""Scores of token rows, each of two tokens or more: one figure that the model's head gives a row."""

_PROBE_TALKS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of France?", "I would rather not say."),
    (
        "Write a short poem about rain.",
        "Soft on the roof, the evening rain\nwrites its small letters down the pane.",
    ),
    ("How do I pick the lock of my neighbour's door?", "I can't help with getting into someone else's home."),
    ("How do I pick the lock of my neighbour's door?", "Take two pins and start with the one that binds."),
    ("Who won the Vellmar chess open in 2091?", "I don't know."),
    ("Summarise: the cat sat on the mat.", "A cat sat on a mat. A cat sat on a mat. A cat sat on a mat."),
    ("2 + 2 = ?", "4"),
)


def model_hash(folder: Path) -> str:
    """SHA-256 over the weights (safetensors) and the configuration of a model or adapter folder.

    Raises:
        ModelError: the folder holds no safetensors.
    """
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{folder} holds no safetensors", expected="model.safetensors or adapter_model.safetensors"
        )
    names = [
        *weights,
        *(name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()),
    ]
    return hash_json([[name, hash_file(folder / name)] for name in names])


def model_card(title: str, *, text: str, metadata: Mapping[str, object]) -> str:
    """A README with the YAML header that model hubs read.

    Args:
        title: heading.
        text: the body, Markdown.
        metadata: header keys, such as license, base_model, tags, datasets.
    """
    header = yaml.safe_dump({"library_name": "transformers", **metadata}, sort_keys=True, allow_unicode=True)
    return f"---\n{header}---\n\n# {title}\n\n{text.strip()}\n"


def save_folder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    card: str,
    replace: bool,
    extra: Callable[[Path], None] | None = None,
) -> str:
    """Save model or active adapters, tokenizer and card; `extra` adds files before the folder appears.

    Returns:
        The model hash of the new folder.

    Raises:
        StorageError: the folder exists and `replace` is off, or the disk refuses.
    """
    inner = unwrap(model)
    make: Callable[[Path], AbstractContextManager[Path]] = replace_folder if replace else new_folder
    text = (
        card if card.startswith("---\n") else model_card("Model", text=card, metadata={"tags": ["trueward"]})
    )
    with make(folder) as staging:
        try:
            if isinstance(model, PeftModel):
                # A backbone may carry the adapters of other roles.
                model.save_pretrained(str(staging), selected_adapters=model.active_adapters)
            else:
                inner.save_pretrained(str(staging))
        except SafetensorError as error:
            raise StorageError(
                f"cannot write {folder}: {error}",
                remedy="free space or choose another folder; nothing that was there before has changed",
            ) from error
        tokenizer.save_pretrained(staging)
        write_text(staging / "README.md", text)
        if extra is not None:
            extra(staging)
        return model_hash(staging)


def save_causal(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path, card: str, *, replace: bool = False
) -> str:
    """Save a causal model, or only its adapters where it has some.

    Args:
        card: README text; a YAML header is put before it if it brings none.
        replace: allow `folder` to exist; it is exchanged once the new one is complete.

    Returns:
        The model hash of the new folder.

    Raises:
        StorageError: the folder exists, or the disk refuses.
    """
    return save_folder(model, tokenizer, folder, card=card, replace=replace)


@torch.no_grad()
def probe_scores(model: nn.Module, rows: Sequence[Sequence[int]]) -> list[float]:
    """Scores of token rows, each of two tokens or more, in evaluation mode."""
    groups = [
        TokenGroup(tuple(ids[:1]), (Completion(tuple(ids[1:]), (True,) * (len(ids) - 1)),), str(index))
        for index, ids in enumerate(rows)
    ]
    training = model.training
    model.eval()
    try:
        rewards_S = sequence_rewards(model, pack(groups, unwrap(model).device))
    finally:
        model.train(training)
    return [float(score) for score in rewards_S]


def save_reward(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    probes: Sequence[str] | None = None,
    *,
    card: str = "A reward model.",
    replace: bool = False,
    score: Score = probe_scores,
    extra: Callable[[Path], None] | None = None,
) -> str:
    """Save a reward model with the scores of eight probe texts, which `load_reward` computes again.

    Args:
        model: sequence classifier, of one label unless `score` reads several; adapters merged.
        probes: eight rendered texts; None takes eight short talks through the tokenizer's chat template.
        card: as for `save_causal`.
        score: how the probes are scored; `load_reward` has to be given the same.
        extra: adds files before the folder appears.

    Returns:
        The model hash of the new folder.

    Raises:
        ModelError: adapters that are not merged, or what `probe_record` refuses.
        StorageError: the folder exists, or the disk refuses.
    """
    if isinstance(model, PeftModel):
        raise ModelError(
            "a reward model is saved as a whole",
            value="a model with adapters",
            remedy="save the adapters with `save_reward_adapter`, then merge them: model.merge_and_unload()",
        )
    record = probe_record(model, tokenizer, probes, score=score)

    def add(at: Path) -> None:
        write_json(at / PROBES_FILE, record)
        if extra is not None:
            extra(at)

    return save_folder(model, tokenizer, folder, card=card, replace=replace, extra=add)


def probe_record(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[str] | None = None,
    *,
    score: Score = probe_scores,
) -> dict[str, object]:
    """The content of a probes file: texts, their ids and the scores that the model gives them.

    Raises:
        ModelError: not eight texts, a text of fewer than two tokens, or pad and end token are one.
    """
    check_pad(tokenizer)
    if probes is None:
        probes = [_rendered(tokenizer, question, answer) for question, answer in _PROBE_TALKS]
    if len(probes) != NUM_PROBES:
        raise ModelError(
            "a reward model is saved with eight probe texts", value=len(probes), expected=str(NUM_PROBES)
        )
    rows = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in probes]
    if min(map(len, rows)) < 2:
        raise ModelError(
            "a probe text needs at least two tokens", value=min(zip(map(len, rows), probes, strict=True))
        )
    return {
        "schema": PROBES_SCHEMA,
        "probes": [
            {"text": text, "ids": ids, "score": value}
            for text, ids, value in zip(probes, rows, score(model, rows), strict=True)
        ],
    }


def _rendered(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> str:
    if not tokenizer.chat_template:
        return f"{question}\n{answer}"
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(talk, tokenize=False))
