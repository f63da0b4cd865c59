"""The training stages as functions of a workspace: load, tokenise, check, train, save, record.

Each makes one run folder below the run and one model in it; what a stage needs from another it reads from
disk.
"""

from collections.abc import Sequence

import torch

from trueward.core.errors import RunError
from trueward.core.hashing import short
from trueward.data.chat import Dropped, TokenGroup, TrainOn, tokenise_many
from trueward.data.records import Comparison, Demonstration
from trueward.models.checkpoint import model_card, model_hash, save_causal, save_reward
from trueward.models.heads import reward_from_causal
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import FeedbackData, demonstrations, pairs
from trueward.pipeline.workspace import Begun, Workspace
from trueward.trainers.checks import checked
from trueward.trainers.loop import TrainResult
from trueward.trainers.preference import evaluate_preference, reference_pairs, train_preference
from trueward.trainers.reward import RewardPair, evaluate_reward, train_reward
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import evaluate_sft, train_sft

__all__ = ["dpo", "reward", "reward_pairs", "sft", "tokenised"]


def tokenised(
    loaded: LoadedModel,
    records: Sequence[Demonstration] | Sequence[Comparison],
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


def _settings(workspace: Workspace, stage: str, settings: TrainSettings) -> TrainSettings:
    return settings.model_copy(update={"seed": workspace.seed(stage, settings.seed)})


def _card(workspace: Workspace, stage: str, parent: LoadedModel, data: FeedbackData, text: str) -> str:
    metadata = {
        "base_model": parent.path,
        "tags": ["trueward", stage],
        "trueward": {
            "stage": stage,
            "parent": parent.hash,
            "data": {data.name: data.hash},
            "charter": workspace.charter.hash,
            "template": parent.template_hash,
            "seed": workspace.recipe.seed,
        },
    }
    return model_card(f"{workspace.recipe.name}: {stage}", text=text, metadata=metadata)


def _begin(
    workspace: Workspace, stage: str, config: object, parent: LoadedModel, data: FeedbackData
) -> Begun:
    parents = {
        "model": parent.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": parent.template_hash,
    }
    return workspace.begin(
        stage, config={"section": config, "max_tokens": workspace.recipe.data.max_tokens}, parents=parents
    )


def _check(
    workspace: Workspace, loaded: LoadedModel, groups: Sequence[TokenGroup], dropped: Sequence[Dropped]
) -> dict[str, object]:
    report = checked(
        loaded.model,
        groups,
        loaded.tokenizer,
        dropped=dropped,
        template_hash_expected=loaded.template_hash,
        console=workspace.console,
    )
    return {
        "rows": report.num_rows,
        "tokens": report.num_tokens,
        "trained": report.num_trained,
        "dropped": report.dropped,
    }


def _total(settings: TrainSettings, items: int) -> int:
    if settings.steps is not None:
        return settings.steps
    return max(1, round((settings.epochs or 1.0) * items / settings.batch_size))


def _figures(result: TrainResult) -> dict[str, object]:
    return {
        "seconds": result.seconds,
        "steps": result.step,
        "skipped": result.skipped,
        "warnings": list(result.warnings),
    }


def sft(workspace: Workspace) -> None:
    """Supervised fine-tuning of the base model on demonstrations."""
    recipe = workspace.recipe
    base = workspace.load("base", lora=True)
    data = demonstrations(workspace)
    begun = _begin(workspace, "sft", recipe.sft.model_dump(mode="json"), base, data)
    if begun.done:
        return
    groups, dropped = tokenised(
        base, data.train, max_tokens=recipe.data.max_tokens, train_on=recipe.sft.train_on
    )
    held_out, _ = tokenised(base, data.test, max_tokens=recipe.data.max_tokens, train_on=recipe.sft.train_on)
    counts = _check(workspace, base, groups, dropped)
    settings = _settings(workspace, "sft", recipe.sft.train)
    with workspace.bar("SFT", _total(settings, len(groups))) as bar:
        result = train_sft(
            base.model, groups, settings=settings, folder=begun.folder.path, bar=bar, resume=begun.resume
        )
    workspace.check_finished(begun.folder, result)
    text = f"Fine-tuned on {len(groups)} demonstrations (data set {data.name}, {short(data.hash)})."
    save_causal(
        base.model,
        base.tokenizer,
        begun.folder.model,
        _card(workspace, "sft", base, data, text),
        replace=begun.resume,
    )
    held: dict[str, object] = {}
    if held_out:
        figures = evaluate_sft(base.model, held_out, max_tokens_per_forward=settings.max_tokens_per_forward)
        held = {
            "loss": figures.loss,
            "mean_token_accuracy": figures.mean_token_accuracy,
            "tokens": figures.num_tokens,
        }
    workspace.finish(
        begun.folder,
        results={**_figures(result), "preflight": counts, "held_out": held},
        model=model_hash(begun.folder.model),
        parents=data.records,
    )


def reward_pairs(groups: Sequence[TokenGroup], records: Sequence[Comparison]) -> list[RewardPair]:
    """Token groups with the margins and soft labels of their records."""
    by_id = {record.id: record for record in records}
    return [RewardPair(group, by_id[group.id].margin, by_id[group.id].soft_label) for group in groups]


def reward(workspace: Workspace) -> None:
    """A reward model on the SFT model's backbone, from comparisons."""
    recipe = workspace.recipe
    parent = workspace.load("sft")
    if recipe.model.lora is not None:
        raise RunError(
            "a reward model is trained on full weights, but the SFT model is an adapter",
            remedy="set model.lora=null for SFT and reward, or merge the adapter first",
        )
    data = pairs(workspace)
    begun = _begin(workspace, "reward", recipe.reward.model_dump(mode="json"), parent, data)
    if begun.done:
        return
    groups, dropped = tokenised(parent, data.train, max_tokens=recipe.data.max_tokens)
    counts = _check(workspace, parent, groups, dropped)
    model = reward_from_causal(parent.model, parent.tokenizer, seed=workspace.seed("reward", "head"))
    settings = _settings(workspace, "reward", recipe.reward.train)
    train_pairs = reward_pairs(groups, data.train)
    with workspace.bar("reward model", _total(settings, len(groups))) as bar:
        result = train_reward(
            model,
            train_pairs,
            settings=settings,
            reward=recipe.reward.objective,
            folder=begun.folder.path,
            bar=bar,
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    text = f"A reward model from {len(groups)} comparisons (data set {data.name}, {short(data.hash)})."
    card = _card(workspace, "reward", parent, data, text)
    save_reward(model, parent.tokenizer, begun.folder.model, card=card, replace=begun.resume)
    test_groups, _ = tokenised(parent, data.test, max_tokens=recipe.data.max_tokens)
    held = evaluate_reward(
        model, reward_pairs(test_groups, data.test), max_tokens_per_forward=settings.max_tokens_per_forward
    )
    workspace.say(f"reward model: held-out accuracy {held.accuracy.shown()} over {held.accuracy.n} pairs")
    workspace.finish(
        begun.folder,
        results={
            **_figures(result),
            "preflight": counts,
            "held_out": {"accuracy": held.accuracy._asdict(), "ece": held.ece},
        },
        model=model_hash(begun.folder.model),
        parents=[*data.records, workspace.record_of("sft", "model")],
    )


def dpo(workspace: Workspace) -> None:
    """Direct preference optimisation of the SFT model, which is also the reference."""
    recipe = workspace.recipe
    policy = workspace.load("sft")
    data = pairs(workspace)
    begun = _begin(workspace, "dpo", recipe.dpo.model_dump(mode="json"), policy, data)
    if begun.done:
        return
    groups, dropped = tokenised(policy, data.train, max_tokens=recipe.data.max_tokens)
    test_groups, _ = tokenised(policy, data.test, max_tokens=recipe.data.max_tokens)
    counts = _check(workspace, policy, groups, dropped)
    settings = _settings(workspace, "dpo", recipe.dpo.train)
    budget = settings.max_tokens_per_forward
    held_pairs = reference_pairs(
        policy.model, test_groups, ref_model=None, cache=begun.folder.path, max_tokens_per_forward=budget
    )
    with workspace.bar("DPO", _total(settings, len(groups))) as bar:
        result = train_preference(
            policy.model,
            groups,
            settings=settings,
            preference=recipe.dpo.objective,
            folder=begun.folder.path,
            bar=bar,
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    text = f"DPO on {len(groups)} comparisons (data set {data.name}, {short(data.hash)})."
    card = _card(workspace, "dpo", policy, data, text)
    save_causal(policy.model, policy.tokenizer, begun.folder.model, card, replace=begun.resume)
    with torch.no_grad():
        held = evaluate_preference(
            policy.model, held_pairs, preference=recipe.dpo.objective, max_tokens_per_forward=budget
        )
    workspace.finish(
        begun.folder,
        results={**_figures(result), "preflight": counts, "held_out": {"accuracy": held.accuracy._asdict()}},
        model=model_hash(begun.folder.model),
        parents=[*data.records, workspace.record_of("sft", "model")],
    )
