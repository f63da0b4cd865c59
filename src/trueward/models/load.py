"""Loading models from folders or the hub: weights from safetensors only, and nothing that is missing is
made up.

transformers fills a missing weight with random numbers and goes on; here that is an error. Code from a
model folder is never run. Reward models must give their eight stored probe scores again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trueward.core.errors import DataError, ModelError, nearest
from trueward.core.files import read_json
from trueward.core.hashing import hash_json
from trueward.data.chat import template_hash
from trueward.models.backend import own_memory, prepare_cpu
from trueward.models.checkpoint import (
    NUM_PROBES,
    PROBES_FILE,
    PROBES_SCHEMA,
    Score,
    model_hash,
    probe_scores,
)
from trueward.models.heads import check_pad
from trueward.models.lora import LoraSettings, apply_lora, check_new_tokens

__all__ = ["DTYPES", "LoadedModel", "Located", "load_causal", "load_reward", "locate_model", "verify_probes"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# Errors of the hub's HTTP library, whichever it is, count too: those of a proxy are no OSErrors.
_FETCH_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
)
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model with what belongs to it."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    path: str
    """Folder or hub id, as it was asked for."""
    commit: str = ""
    """Commit of the hub that a hub id stood for; empty for a folder."""
    hash: str
    """SHA-256 of weights and configuration (with adapters: of both)."""
    template_hash: str
    """Hash of the chat template; empty where there is none."""


class Located(NamedTuple):
    """Where a model lies. commit: that of the hub; empty for a folder."""

    folder: Path
    commit: str


def locate_model(path_or_id: str | Path, *, download: bool = True) -> Located:
    """The folder of a model: itself, or the snapshot of a hub id in the hub's cache.

    Args:
        download: fetch what the cache lacks, and look for a newer commit, where there is a network.

    Raises:
        ModelError: no such folder, and no hub id that can be had.
    """
    path = Path(path_or_id).expanduser()
    if path.is_dir():
        return Located(path, "")
    name = str(path_or_id)
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"{path_or_id} is no model folder",
            expected="a folder, or a hub id of the form owner/name",
            remedy="check the path",
        )
    try:
        folder = Path(snapshot_download(name, allow_patterns=_WANTED, local_files_only=not download))
    except _FETCH_ERRORS as error:
        why = (
            f"and could not be fetched: {type(error).__name__}" if download else "and was not downloaded yet"
        )
        raise ModelError(
            f"{name} is no folder here, has no whole copy in the hub's cache, {why}",
            remedy=f"check the name and the network, run `hf download {name}`, or give a folder",
        ) from error
    return Located(folder, folder.name)


def _check_files(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{folder} holds weights only as pickles ({', '.join(pickles[:3])}): they run code when read",
            expected="safetensors",
            remedy="load it once where you trust it and save it again with model.save_pretrained(folder)",
        )
    raise ModelError(f"{folder} holds no weights", expected="config.json and model.safetensors")


def _load_tokenizer(folder: Path, *, require_template: bool) -> PreTrainedTokenizerBase:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{folder} has no tokenizer",
            expected="tokenizer.json",
            remedy="copy the tokenizer's files from the model it was made from",
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the tokenizer in {folder} does not load: {_line(error)}") from error
    if require_template and not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer in {folder} has no chat template",
            remedy="put a chat_template.jinja into the folder, for example that of the model's chat version",
        )
    return tokenizer


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _load_weights(auto: Any, folder: Path, dtype: str, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """The model, and the names of weights the folder did not hold."""
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", remedy=nearest(dtype, DTYPES))
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", expected="a model saved with save_pretrained")
    try:
        model, info = auto.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model in {folder} does not load: {_line(error)}") from error
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    if mismatched:
        raise ModelError(
            f"{folder}: weights of another shape than the configuration says", value=mismatched[:3]
        )
    own_memory(model)
    return model, set(info["missing_keys"])


def _refuse_missing(folder: Path, missing: Sequence[str]) -> None:
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} weights that would have to be made up at random",
            value=sorted(missing)[:3],
            expected="every weight of the configuration",
            remedy="check that the folder is complete and of the right kind",
        )


def _check_vocabulary(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    rows = next(model.get_input_embeddings().parameters()).shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer in {folder} has more tokens than the model has embeddings",
            value=len(tokenizer),
            expected=f"at most {rows}",
            remedy="use the tokenizer that belongs to the model",
        )


def load_causal(
    path_or_id: str | Path,
    *,
    dtype: str = "float32",
    lora: LoraSettings | None = None,
    device: str = "cpu",
    require_template: bool = True,
    new_tokens: int = 0,
    seed: int = 0,
) -> LoadedModel:
    """Load a causal language model: a folder, an adapter folder, or a hub id.

    Args:
        dtype: float32, bfloat16 or float16.
        lora: put fresh adapters on it. An adapter folder brings its own, trainable.
        require_template: refuse a tokenizer without chat template.
        new_tokens: how many of the tokenizer's tokens the base model was never trained on.
        seed: decides fresh adapters.

    Returns:
        The model in evaluation mode with its tokenizer and hashes.

    Raises:
        ModelError: a folder that is incomplete, holds pickles only, lacks tokenizer or template, or does
            not fit.
    """
    prepare_cpu()
    folder, commit = locate_model(path_or_id)
    if (folder / "adapter_config.json").is_file():
        adapted = _load_adapters(
            folder, dtype=dtype, lora=lora, device=device, require_template=require_template
        )
        return replace(adapted, path=str(path_or_id), commit=commit)
    _check_files(folder)
    tokenizer = _load_tokenizer(folder, require_template=require_template)
    model, missing = _load_weights(AutoModelForCausalLM, folder, dtype)
    _refuse_missing(folder, sorted(missing))
    _check_vocabulary(folder, model, tokenizer)
    nn.Module.to(model, device)
    wrapped = model if lora is None else apply_lora(model, lora, seed=seed)
    check_new_tokens(wrapped, new_tokens)
    return LoadedModel(
        model=wrapped.eval(),
        tokenizer=tokenizer,
        path=str(path_or_id),
        commit=commit,
        hash=model_hash(folder),
        template_hash=template_hash(tokenizer) if tokenizer.chat_template else "",
    )


def _load_adapters(
    folder: Path, *, dtype: str, lora: LoraSettings | None, device: str, require_template: bool
) -> LoadedModel:
    if lora is not None:
        raise ModelError(
            f"{folder} brings its own adapters", remedy="leave out lora, or name the base model instead"
        )
    _check_files(folder)
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))[
            "base_model_name_or_path"
        ]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}/adapter_config.json does not name a base model") from error
    loaded = load_causal(str(base), dtype=dtype, device=device, require_template=False)
    tokenizer = loaded.tokenizer
    if any((folder / name).is_file() for name in _TOKENIZER_FILES):
        tokenizer = _load_tokenizer(folder, require_template=require_template)
    try:
        model = PeftModel.from_pretrained(loaded.model, folder, is_trainable=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the adapters in {folder} do not fit {base}: {_line(error)}") from error
    return replace(
        loaded,
        model=model.eval(),
        tokenizer=tokenizer,
        path=str(folder),
        hash=hash_json([loaded.hash, model_hash(folder)]),
        template_hash=template_hash(tokenizer) if tokenizer.chat_template else "",
    )


def load_reward(
    path: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    require_probes: bool = True,
    labels: int = 1,
    score: Score = probe_scores,
) -> LoadedModel:
    """Load a reward model and verify that it still gives the scores it was saved with.

    Args:
        labels: outputs of the head.
        score: how the probes were scored when it was saved.
        require_probes: refuse a model that stores no probe scores (one not saved by Trueward).

    Raises:
        ModelError: a head that is missing (transformers would make one up), more than one label, pad and
            end token that are one, probes missing, or other scores than stored.
    """
    prepare_cpu()
    folder, commit = locate_model(path)
    _check_files(folder)
    tokenizer = _load_tokenizer(folder, require_template=False)
    check_pad(tokenizer)
    model, missing = _load_weights(AutoModelForSequenceClassification, folder, dtype)
    head = sorted(name for name in missing if "score" in name or "classifier" in name)
    if head:
        raise ModelError(
            f"{folder} has no reward head: {head[0]} would be made up at random",
            expected="a sequence classifier with one trained label",
            remedy="train a reward model first; a language model's folder is none",
        )
    _refuse_missing(folder, sorted(missing))
    if model.config.num_labels != labels:
        what = "a reward model has one label" if labels == 1 else f"this head has {labels} labels"
        raise ModelError(what, value=model.config.num_labels, expected=f"num_labels={labels}")
    _check_vocabulary(folder, model, tokenizer)
    if model.config.get_text_config().pad_token_id != tokenizer.pad_token_id:
        raise ModelError(
            f"{folder}: its model and tokenizer name two pad ids, so scores would be read at the wrong token",
            value=model.config.get_text_config().pad_token_id,
            expected=str(tokenizer.pad_token_id),
            remedy="set pad_token_id in config.json",
        )
    nn.Module.to(model, device)
    model.train(False)
    if require_probes or (folder / PROBES_FILE).is_file():
        verify_probes(folder, model, tokenizer, score=score)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        path=str(path),
        commit=commit,
        hash=model_hash(folder),
        template_hash=template_hash(tokenizer) if tokenizer.chat_template else "",
    )


def verify_probes(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    score: Score = probe_scores,
) -> None:
    """Compute the probe scores of a saved reward model again.

    Raises:
        ModelError: no readable probes, other ids of their texts, or other scores.
    """
    file = folder / PROBES_FILE
    try:
        record = read_json(file)
        probes = record["probes"]
        texts, rows = [str(p["text"]) for p in probes], [[int(i) for i in p["ids"]] for p in probes]
        stored = [float(p["score"]) for p in probes]
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{folder} has no readable probe scores ({PROBES_FILE}), so its head cannot be verified",
            remedy="save it with `save_reward`, or pass require_probes=False if you trust the folder",
        ) from error
    if record.get("schema") != PROBES_SCHEMA or len(probes) != NUM_PROBES:
        raise ModelError(
            f"{file} has another form", value=record.get("schema"), expected=f"8 probes, {PROBES_SCHEMA}"
        )
    for text, ids in zip(texts, rows, strict=True):
        now = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if now != ids:
            raise ModelError(f"{folder}: the tokenizer is not the one the model was saved with", value=text)
    # Another processor sums in another order: 1e-4 in float32; sixteen bits keep two to three digits.
    tolerance = 1e-4 if model.dtype == torch.float32 else 5e-2
    for text, expected, got in zip(texts, stored, score(model, rows), strict=True):
        if not abs(got - expected) <= tolerance * max(1.0, abs(expected)):
            raise ModelError(
                f"{folder} does not give its stored score for {text!r}",
                value=round(got, 6),
                expected=f"{expected:.6f}",
                remedy="weights or tokenizer changed after saving; restore the folder from its source",
            )
