"""What training stages share: beginning, tokens with counts, checks, settings, card, saving, figures."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from trueward.core.errors import DataError
from trueward.data.chat import Dropped, TokenGroup, TrainOn, tokenise_many
from trueward.data.preflight import MAX_DROPPED, Spans
from trueward.data.records import Comparison, Demonstration, Label
from trueward.models.checkpoint import model_card, model_hash, save_causal
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData
from trueward.pipeline.workspace import Begun, Workspace
from trueward.trainers.checks import checked
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.settings import TrainSettings

__all__ = [
    "begin_stage",
    "card",
    "check",
    "parents_of",
    "save_policy",
    "settings_of",
    "tokenised",
    "training_figures",
]

S = TypeVar("S", TrainSettings, PPOSettings, GroupSettings)


def parents_of(workspace: Workspace, parent: LoadedModel, data: FeedbackData[Any]) -> dict[str, str]:
    """Name -> hash of what a stage on fixed data is made from."""
    return {
        "model": parent.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": parent.template_hash,
    }


def begin_stage(
    workspace: Workspace,
    stage: str,
    section: object,
    parents: dict[str, str],
    *,
    adapters: bool = True,
    origin: Mapping[str, Any] = MappingProxyType({}),
) -> Begun:
    """The run folder of a stage on fixed data; see `Workspace.begin`.

    Args:
        section: of the recipe, as JSON values.
        adapters: False where the stage knows nothing of `model.lora`.
        origin: more of the configuration: where the model came from.
    """
    recipe = workspace.recipe
    lora = recipe.model.lora if adapters else None
    config = {
        "section": section,
        "lora": None if lora is None else lora.model_dump(mode="json"),
        "dtype": recipe.model.dtype,
        "max_tokens": recipe.data.max_tokens,
        "limit": recipe.data.limit,
        **origin,
    }
    return workspace.begin(stage, config=config, parents=parents)


def tokenised(
    loaded: LoadedModel,
    records: Sequence[Demonstration] | Sequence[Comparison] | Sequence[Label],
    *,
    max_tokens: int,
    train_on: TrainOn = "last",
) -> tuple[list[TokenGroup], list[Dropped]]:
    """Token groups, and the records that were left out with the reason."""
    groups: list[TokenGroup] = []
    dropped: list[Dropped] = []
    for item in tokenise_many(loaded.tokenizer, records, max_tokens=max_tokens, train_on=train_on):
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            groups.append(item)
    return groups, dropped


def check(
    workspace: Workspace,
    loaded: LoadedModel,
    groups: Sequence[TokenGroup],
    dropped: Sequence[Dropped] = (),
    *,
    completions: bool = True,
    spans: Spans = "answers",
    max_dropped: float = MAX_DROPPED,
    quiet: bool = False,
) -> dict[str, object]:
    """The blocking checks before step 1; their counts for the manifest.

    Args:
        completions: False for prompts to generate from.
        spans: what is trained.
        max_dropped: largest share of dropped records in [0, 1].
        quiet: print nothing.

    Raises:
        DataError: nothing is left to train on; names the first reason.
        PreflightError: the data and the tokenizer would train on something else than meant.
    """
    if not groups:
        what = f"none of the {len(dropped):,} records can be used" if dropped else "there is no record to use"
        reason = f", the first because: {dropped[0].reason} ({dropped[0].detail})" if dropped else ""
        raise DataError(f"{what}{reason}", remedy="raise data.max_tokens or check the data")
    report = checked(
        loaded.model,
        groups,
        loaded.tokenizer,
        dropped=dropped,
        template_hash_expected=loaded.template_hash,
        completions=completions,
        spans=spans,
        max_dropped=max_dropped,
        console=None if quiet else workspace.console,
    )
    return {
        "rows": report.num_rows,
        "tokens": report.num_tokens,
        "trained": report.num_trained,
        "dropped": report.dropped,
    }


def settings_of(workspace: Workspace, stage: str, settings: S) -> S:
    """A stage's settings with its own seed and the recipe's trackers."""
    track = tuple(dict.fromkeys((*workspace.recipe.track, *settings.track)))
    return settings.model_copy(update={"seed": workspace.seed(stage, settings.seed), "track": track})


def card(
    workspace: Workspace, stage: str, parent: LoadedModel, *, text: str, made_from: dict[str, str]
) -> str:
    """The README of a model that a stage made.

    Args:
        made_from: name -> hash of everything it was made from.
    """
    metadata = {
        "base_model": parent.path,
        "tags": ["trueward", stage],
        "trueward": {"stage": stage, "made_from": made_from, "seed": workspace.recipe.seed},
    }
    return model_card(f"{workspace.recipe.name}: {stage}", text=text, metadata=metadata)


def save_policy(loaded: LoadedModel, begun: Begun, text: str) -> tuple[PreTrainedModel, str]:
    """Save a trained policy as a whole model, and its adapters beside it where it has some.

    The next stage starts from, and is compared with, the model as a whole: merged weights keep that reference
    when new adapters are put on and taken off.

    Returns:
        The model as it was saved, and its hash.
    """
    model: nn.Module = loaded.model
    if isinstance(model, PeftModel):
        save_causal(model, loaded.tokenizer, begun.folder.path / "adapter", text, replace=begun.resume)
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel), "a merged model is the base model's class again"
    digest = save_causal(model, loaded.tokenizer, begun.folder.model, text, replace=begun.resume)
    assert digest == model_hash(begun.folder.model), "the folder is what was saved"
    return model, digest


def training_figures(result: TrainResult) -> dict[str, object]:
    """How a training ended, for the manifest."""
    return {
        "seconds": result.seconds,
        "steps": result.step,
        "skipped": result.skipped,
        "stopped": result.stopped,
        "warnings": list(result.warnings),
    }
