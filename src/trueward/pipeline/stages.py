"""SFT, reward model and DPO as functions of a workspace: load, tokenise, check, train, save, record.

Each makes one run folder below the run and one model in it; what a stage needs of another it reads from disk.
PPO has a module of its own.
"""

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel

from trueward.core.hashing import short
from trueward.data.chat import TokenGroup
from trueward.data.records import Comparison
from trueward.models.checkpoint import save_reward
from trueward.models.heads import reward_from_causal
from trueward.models.load import LoadedModel
from trueward.models.lora import apply_lora
from trueward.models.reward_adapter import save_reward_adapter
from trueward.pipeline.datasets import Decided, FeedbackData, decided, demonstrations, pairs
from trueward.pipeline.held_out import judge_pairs, preference_looks, reward_looks, sft_looks
from trueward.pipeline.online import online_dpo
from trueward.pipeline.training import (
    begin_stage,
    card,
    check,
    parents_of,
    save_policy,
    settings_of,
    tokenised,
    training_figures,
)
from trueward.pipeline.workspace import Begun, Workspace, hub_origin
from trueward.trainers.preference import evaluate_preference, preference_pairs, train_preference
from trueward.trainers.reward import RewardPair, train_reward
from trueward.trainers.sampling import num_steps
from trueward.trainers.sft import evaluate_sft, train_sft

__all__ = ["dpo", "reward", "reward_pairs", "sft"]


def sft(workspace: Workspace) -> None:
    """Supervised fine-tuning of the base model on demonstrations."""
    recipe = workspace.recipe
    base = workspace.load_to_train("base")
    data = demonstrations(workspace)
    parents = parents_of(workspace, base, data)
    begun = begin_stage(
        workspace, "sft", recipe.sft.model_dump(mode="json"), parents, origin=hub_origin(base)
    )
    if begun.done:
        return
    longest, on = recipe.data.max_tokens, recipe.sft.train_on
    groups, dropped = tokenised(base, data.train, max_tokens=longest, train_on=on)
    held_out, _ = tokenised(base, data.test, max_tokens=longest, train_on=on)
    counts = check(workspace, base, groups, dropped)
    settings = settings_of(workspace, "sft", recipe.sft.train)
    looks = sft_looks(held_out, settings)
    with workspace.bar("SFT", num_steps(settings, len(groups))) as bar:
        result = train_sft(
            base.model,
            groups,
            settings=settings,
            folder=begun.folder.path,
            bar=bar,
            evaluate=looks,
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    text = f"Fine-tuned on {len(groups):,} demonstrations (data set {data.name}, {short(data.hash)})."
    model, digest = save_policy(base, begun, card(workspace, "sft", base, text=text, made_from=parents))
    held: dict[str, object] = {}
    if held_out:
        figures = evaluate_sft(model, held_out, max_tokens_per_forward=settings.max_tokens_per_forward)
        held = {
            "loss": figures.loss,
            "mean_token_accuracy": figures.mean_token_accuracy,
            "tokens": figures.num_tokens,
        }
    workspace.finish(
        begun.folder,
        results={**training_figures(result), "preflight": counts, "held_out": held},
        model=digest,
        parents=[*data.records, workspace.base_record(base)],
    )


def reward_pairs(groups: Sequence[TokenGroup], records: Sequence[Comparison]) -> list[RewardPair]:
    """Token groups with the margins and soft labels of their records."""
    by_id = {record.id: record for record in records}
    return [RewardPair(group, by_id[group.id].margin, by_id[group.id].soft_label) for group in groups]


def _reward_model(workspace: Workspace, parent: LoadedModel) -> PreTrainedModel | PeftModel:
    """A reward model before training: a fresh head on the parent's backbone, adapters where asked for."""
    model = reward_from_causal(parent.model, parent.tokenizer, seed=workspace.seed("reward", "head"))
    lora = workspace.recipe.reward.lora
    return model if lora is None else apply_lora(model, lora, seed=workspace.seed("reward", "lora"))


def _save_reward(
    model: PreTrainedModel | PeftModel, parent: LoadedModel, begun: Begun, text: str
) -> tuple[PreTrainedModel, str]:
    """Save a reward model as a whole, and its adapters beside it where it has some.

    Returns:
        The model as it was saved, and its hash.
    """
    tokenizer, again = parent.tokenizer, begun.resume
    if isinstance(model, PeftModel):
        at = begun.folder.path / "adapter"
        save_reward_adapter(model, tokenizer, at, base_hash=parent.hash, card=text, replace=again)
        model = model.merge_and_unload()
    assert isinstance(model, PreTrainedModel), "a merged model is the classifier's class again"
    return model, save_reward(model, tokenizer, begun.folder.model, card=text, replace=again)


def reward(workspace: Workspace) -> None:
    """A reward model on the SFT model's backbone, from comparisons."""
    recipe = workspace.recipe
    parent = workspace.load_to_train("sft", adapters=False)
    data = pairs(workspace)
    parents = parents_of(workspace, parent, data)
    begun = begin_stage(workspace, "reward", recipe.reward.model_dump(mode="json"), parents, adapters=False)
    if begun.done:
        return
    groups, dropped = tokenised(parent, data.train, max_tokens=recipe.data.max_tokens)
    test_groups, test_dropped = tokenised(parent, data.test, max_tokens=recipe.data.max_tokens)
    counts = check(workspace, parent, groups, dropped)
    check(workspace, parent, test_groups, test_dropped, quiet=True)
    if ties := decided(data.train).ties:
        workspace.say(
            f"reward model: {ties:,} of {len(data.train):,} comparisons are ties, learnt as one half each"
        )
    model = _reward_model(workspace, parent)
    settings = settings_of(workspace, "reward", recipe.reward.train)
    held_pairs = reward_pairs(test_groups, data.test)
    with workspace.bar("reward model", num_steps(settings, len(groups))) as bar:
        result = train_reward(
            model,
            reward_pairs(groups, data.train),
            settings=settings,
            reward=recipe.reward.objective,
            folder=begun.folder.path,
            bar=bar,
            evaluate=reward_looks(held_pairs, settings),
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    text = f"A reward model from {len(groups):,} comparisons (data set {data.name}, {short(data.hash)})."
    readme = card(workspace, "reward", parent, text=text, made_from=parents)
    saved, digest = _save_reward(model, parent, begun, readme)
    held = judge_pairs(saved, held_pairs, max_tokens_per_forward=settings.max_tokens_per_forward)
    workspace.say(f"reward model: held-out accuracy {held.accuracy.shown()} over {held.accuracy.n} pairs")
    workspace.finish(
        begun.folder,
        results={
            **training_figures(result),
            "preflight": counts,
            "held_out": {"accuracy": held.accuracy._asdict(), "ece": held.ece},
        },
        model=digest,
        parents=[*data.records, workspace.record_of("sft", "model")],
    )


def _preferences(workspace: Workspace, data: FeedbackData[Comparison]) -> tuple[Decided, Decided]:
    """Training and test pairs for DPO and its kin, whose losses know no soft label."""
    train, test = decided(data.train), decided(data.test)
    if train.ties or train.turned or test.ties:
        workspace.say(
            f"DPO: {train.ties:,} ties of {len(data.train):,} comparisons are left out, and {train.turned:,} "
            f"whose soft label prefers the rejected answer are turned round; {test.ties:,} of "
            f"{len(data.test):,} held out are ties too"
        )
    return train, test


def dpo(workspace: Workspace) -> None:
    """Preference tuning of the SFT model, which is also the reference where the method has one; in rounds on
    its own answers where the recipe asks for it."""
    recipe = workspace.recipe
    if recipe.dpo.online is not None:
        online_dpo(workspace)
        return
    policy = workspace.load_to_train("sft")
    data = pairs(workspace)
    parents = parents_of(workspace, policy, data)
    begun = begin_stage(workspace, "dpo", recipe.dpo.model_dump(mode="json"), parents)
    if begun.done:
        return
    train, test = _preferences(workspace, data)
    groups, dropped = tokenised(policy, train.records, max_tokens=recipe.data.max_tokens)
    test_groups, test_dropped = tokenised(policy, test.records, max_tokens=recipe.data.max_tokens)
    counts = check(workspace, policy, groups, dropped)
    check(workspace, policy, test_groups, test_dropped, quiet=True)
    settings = settings_of(workspace, "dpo", recipe.dpo.train)
    budget = settings.max_tokens_per_forward
    objective = recipe.dpo.objective
    held_pairs = preference_pairs(
        policy.model,
        test_groups,
        preference=objective,
        ref_model=None,
        cache=begun.folder.path,
        max_tokens_per_forward=budget,
    )
    with workspace.bar("DPO", num_steps(settings, len(groups))) as bar:
        result = train_preference(
            policy.model,
            groups,
            settings=settings,
            preference=objective,
            folder=begun.folder.path,
            bar=bar,
            evaluate=preference_looks(held_pairs, settings, objective),
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    name = "DPO" if objective.method == "dpo" else f"Preference tuning ({objective.method})"
    text = f"{name} on {len(groups):,} comparisons (data set {data.name}, {short(data.hash)})."
    model, digest = save_policy(policy, begun, card(workspace, "dpo", policy, text=text, made_from=parents))
    held = evaluate_preference(model, held_pairs, preference=objective, max_tokens_per_forward=budget)
    workspace.finish(
        begun.folder,
        results={
            **training_figures(result),
            "preflight": counts,
            "ties": {"train": train.ties, "test": test.ties},
            "held_out": {"accuracy": held.accuracy._asdict()},
        },
        model=digest,
        parents=[*data.records, workspace.record_of("sft", "model")],
    )
