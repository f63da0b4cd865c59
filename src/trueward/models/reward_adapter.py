"""A reward model as adapters and a score head, on a backbone that has other roles too (PEFT's multi-adapter).

    adapter_model.safetensors   low-rank matrices and score head, as PEFT itself saves and loads them
    trueward_base.json          hash of the model whose backbone they belong to
    trueward_probes.json        eight texts with their scores, computed again when the adapters are put on
With its adapters off the backbone is the model it was: the reference of PPO.
"""

import copy
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trueward.core.errors import DataError, ModelError
from trueward.core.files import read_json, write_json
from trueward.core.hashing import short
from trueward.models.checkpoint import PROBES_FILE, model_hash, probe_record, save_folder
from trueward.models.heads import reward_over
from trueward.models.load import LoadedModel, verify_probes
from trueward.models.lora import adapter_on
from trueward.models.scoring import unwrap

__all__ = ["BASE_FILE", "SharedReward", "attach_reward", "save_reward_adapter"]

BASE_FILE = "trueward_base.json"
BASE_SCHEMA = "trueward.base/1"
_NAME = "reward"
_HEAD = "base_model.model.score.weight"
_HEADS = {"score", "classifier"}  # PEFT names both for every sequence classifier.


class SharedReward(NamedTuple):
    """A reward model on a backbone that it shares.

    backbone: the model with the adapters; without any adapter it is the model they were trained on.
    model: sequence classifier over the very modules of `backbone`; a reward model within `active` only.
    hash: SHA-256 of the adapters and their configuration.
    """

    backbone: PeftModel
    model: PreTrainedModel
    hash: str

    def active(self) -> AbstractContextManager[None]:
        """The scope in which the backbone is that of the reward model."""
        return adapter_on(self.backbone, _NAME)


def save_reward_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    base_hash: str,
    card: str = "Adapters of a reward model.",
    replace: bool = False,
) -> str:
    """Save adapters and score head of a reward model.

    Args:
        base_hash: hash of the causal model on whose backbone they were trained (`LoadedModel.hash`).
        card: as for `save_causal`.

    Returns:
        The model hash of the new folder.

    Raises:
        ModelError: pad and end token are one.
        StorageError: the folder exists and `replace` is off, or the disk refuses.
    """
    probes = probe_record(model, tokenizer)
    base = {"schema": BASE_SCHEMA, "hash": base_hash}

    def extra(at: Path) -> None:
        write_json(at / PROBES_FILE, probes)
        write_json(at / BASE_FILE, base)

    return save_folder(model, tokenizer, folder, card=card, replace=replace, extra=extra)


def attach_reward(folder: Path, base: LoadedModel) -> SharedReward:
    """Put a reward model's adapters on a model's backbone, beside the adapters that it may have.

    Args:
        folder: written by `save_reward_adapter`.
        base: the causal model that they were trained on. Under adapters its own backbone takes them, and its
            adapters stay the active ones; where it is trained in full, a frozen copy of it does.

    Raises:
        ModelError: another model than they were trained on, files that are missing or do not fit, adapters
            that also train embeddings, or other probe scores than stored.
    """
    _check_base(folder, base)
    config = _config(folder)
    matrices = _tensors(folder)
    head_1D = matrices.pop(_HEAD)
    with torch.random.fork_rng(devices=[]):  # PEFT draws first values, which are replaced.
        backbone = _with_adapters(base, config)
    _fill(backbone, matrices, folder)
    reward = reward_over(backbone, base.tokenizer, head_1D)
    shared = SharedReward(backbone, reward, model_hash(folder))
    with shared.active():
        verify_probes(folder, reward, base.tokenizer)
    return shared


def _check_base(folder: Path, base: LoadedModel) -> None:
    try:
        record = read_json(folder / BASE_FILE)
        schema, saved = record["schema"], str(record["hash"])
    except (DataError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} does not say on which model its adapters were trained ({BASE_FILE})",
            remedy="train the reward model again with reward.lora, or use its merged model",
        ) from error
    if schema != BASE_SCHEMA:
        raise ModelError(f"{folder / BASE_FILE} has another form", value=schema, expected=BASE_SCHEMA)
    if saved != base.hash:
        raise ModelError(
            f"the reward adapters in {folder} were trained on another model than {base.path}",
            value=short(base.hash),
            expected=short(saved),
            remedy="train the reward model on this model, or use its merged model (ppo.one_backbone=false)",
        )


def _config(folder: Path) -> LoraConfig:
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError, json.JSONDecodeError) as error:
        raise ModelError(f"{folder}/adapter_config.json does not load: {error}") from error
    others = sorted(set(config.modules_to_save or ()) - _HEADS)
    if others:
        raise ModelError(
            f"the reward adapters in {folder} train whole modules, which cannot be shared",
            value=others,
            expected="low-rank matrices and the score head",
            remedy="set reward.lora.train_embeddings=false, or use the merged model (ppo.one_backbone=false)",
        )
    # The base stays a causal model; the score head is kept beside it.
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", True
    return config


def _tensors(folder: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"the adapters in {folder} do not load: {error}") from error
    if _HEAD not in tensors:
        raise ModelError(f"{folder} holds no score head", value=sorted(tensors)[:3], expected=_HEAD)
    return tensors


def _with_adapters(base: LoadedModel, config: LoraConfig) -> PeftModel:
    try:
        if isinstance(base.model, PeftModel):
            before = base.model.active_adapter
            base.model.add_adapter(_NAME, config)
            base.model.set_adapter(before, inference_mode=base.model.peft_config[before].inference_mode)
            return base.model
        frozen = copy.deepcopy(unwrap(base.model)).requires_grad_(False)
        wrapped: PeftModel = get_peft_model(frozen, config, adapter_name=_NAME)
        wrapped.train(False)
        wrapped.set_adapter(_NAME, inference_mode=True)
    except ValueError as error:
        raise ModelError(
            f"the reward adapters do not fit {base.path}: {' '.join(str(error).split())}"
        ) from error
    return wrapped


def _fill(backbone: PeftModel, matrices: dict[str, Tensor], folder: Path) -> None:
    """Copy the saved matrices in; every one must have its place, and every place its matrix."""
    try:
        # PEFT's annotation of the result is a function's name.
        result: Any = set_peft_model_state_dict(backbone, matrices, adapter_name=_NAME)
    except (RuntimeError, KeyError) as error:
        raise ModelError(
            f"the adapters in {folder} do not fit: {' '.join(str(error).split())[:300]}"
        ) from error
    odd = [*result.unexpected_keys, *(key for key in result.missing_keys if f".{_NAME}." in key)]
    if odd:
        raise ModelError(f"{folder} holds other matrices than the backbone takes", value=sorted(odd)[:3])


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
