"""The PPO stage: the SFT model against the reward model under a KL budget, beside a run without one."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from trueward.core.hashing import short
from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.records import Demonstration, Prompt
from trueward.models.checkpoint import model_hash
from trueward.models.load import LoadedModel, load_reward
from trueward.models.reward_adapter import attach_reward
from trueward.pipeline.datasets import FeedbackData, demonstrations, pairs, test_prompts, train_prompts
from trueward.pipeline.held_out import rollout_looks
from trueward.pipeline.rewards import Asked, reward_hashes, same_tokens, summed_reward, uses_own
from trueward.pipeline.sampling import prompt_ids, text_of
from trueward.pipeline.training import (
    card,
    check,
    save_policy,
    settings_of,
    tokenised,
    training_figures,
)
from trueward.pipeline.workspace import Workspace
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine
from trueward.testbed import gold_reward, task_of
from trueward.trainers.experience import PPOModels, RewardFunction, ppo_models
from trueward.trainers.loop import Evaluate
from trueward.trainers.ppo import PPOHooks, train_ppo
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.reward import reward_function

__all__ = ["decode_with", "gold_of", "ppo", "unbounded"]


def gold_of(policy: LoadedModel, prompts: Sequence[Prompt]) -> RewardFunction:
    """The testbed's true reward of the completions of these prompts."""
    tasks = {prompt.id: task_of(prompt.meta) for prompt in prompts}

    def score(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        return [gold_reward(tasks[groups[r.prompt].id], text_of(policy, r)).total for r in rollouts]

    return score


def decode_with(policy: LoadedModel) -> Callable[[Sequence[int]], str]:
    """Text of token ids, special tokens included."""
    return lambda ids: str(policy.tokenizer.decode(list(ids)))


def _prompts(
    workspace: Workspace, policy: LoadedModel, settings: PPOSettings
) -> tuple[list[Prompt], list[TokenGroup]]:
    """The usable prompts and their token groups, checked; those too long are counted."""
    prompts = train_prompts(workspace)
    longest = workspace.recipe.data.max_tokens - settings.max_new_tokens
    kept, groups = prompt_ids(policy, prompts, max_tokens=longest)
    if len(kept) < len(prompts):
        workspace.say(
            f"PPO: {len(prompts) - len(kept):,} of {len(prompts):,} prompts are too long and left out"
        )
    check(workspace, policy, groups, completions=False, quiet=True)
    return [prompts[index] for index in kept], groups


def _beside(
    workspace: Workspace, policy: LoadedModel, settings: PPOSettings
) -> tuple[FeedbackData[Demonstration] | None, list[TokenGroup]]:
    """The demonstrations of PPO-ptx, those of SFT, where the recipe asks for them, and their token groups."""
    if settings.ptx_coef == 0:
        return None, []
    recipe, data = workspace.recipe, demonstrations(workspace)
    groups, dropped = tokenised(
        policy, data.train, max_tokens=recipe.data.max_tokens, train_on=recipe.sft.train_on
    )
    check(workspace, policy, groups, dropped, quiet=True)
    return data, groups


def _cost_model(workspace: Workspace, policy: LoadedModel, settings: PPOSettings) -> LoadedModel | None:
    """The cost model of Safe RLHF, where the recipe bounds a cost; it reads the very ids that were drawn."""
    path = workspace.recipe.ppo.cost_model
    if settings.constraint is None or path is None:
        return None
    loaded = load_reward(path, device=workspace.device)
    same_tokens(loaded, policy, what="the cost model")
    return loaded


def _roles(
    workspace: Workspace,
    policy: LoadedModel,
    settings: PPOSettings,
    *,
    beside: Sequence[TokenGroup],
    coster: LoadedModel | None,
) -> tuple[PPOModels, RewardFunction | None]:
    """Policy, value and reference, and the run's reward, where it takes part: a model of its own, or adapters
    on one backbone with the others."""
    adapter, longest = workspace.out / "reward" / "adapter", settings.max_tokens_per_forward
    trunk = workspace.load_reward().model if settings.value_backbone == "separate" else None
    cost = None if coster is None else reward_function(coster.model, max_tokens_per_forward=longest)
    make = partial(ppo_models, policy.model, settings, value_backbone=trunk, demonstrations=beside, cost=cost)
    if not uses_own(workspace.recipe.ppo.rewards):
        return make(), None
    if not (workspace.recipe.ppo.one_backbone and adapter.is_dir()):
        scorer = workspace.load_reward().model
        return make(), reward_function(scorer, max_tokens_per_forward=longest)
    shared = attach_reward(adapter, policy)
    scores = reward_function(shared.model, max_tokens_per_forward=longest, scope=shared.active)
    return make(backbone=shared.backbone), scores


def _scores(
    workspace: Workspace,
    policy: LoadedModel,
    asked: Asked,
    own: RewardFunction | None,
) -> RewardFunction:
    """What is maximised: the run's reward model, or the sum that the recipe names."""
    section = workspace.recipe.ppo.rewards
    if section is None:
        assert own is not None, "without a sum the run's own scores"
        return own
    return summed_reward(workspace, policy, section, asked, own=own)


def _looks(
    workspace: Workspace, policy: LoadedModel, settings: PPOSettings, reward: RewardFunction
) -> Evaluate | None:
    """Looks at completions of the prompts that the evaluation stage will draw for."""
    if settings.eval_every == 0:
        return None
    prompts = test_prompts(workspace).prompts
    longest = workspace.recipe.data.max_tokens - settings.max_new_tokens
    _, groups = prompt_ids(policy, prompts, max_tokens=longest)
    gold = gold_of(policy, prompts) if workspace.recipe.data.source == "testbed" else None
    seed = workspace.seed("ppo", "looks")
    return rollout_looks(policy, groups, settings, reward=reward, gold=gold, seed=seed)


def _run(workspace: Workspace, stage: str, settings: PPOSettings) -> None:
    recipe = workspace.recipe
    policy, data = workspace.load_to_train("sft"), pairs(workspace)
    shown, beside = _beside(workspace, policy, settings)
    coster = _cost_model(workspace, policy, settings)
    rewards = reward_hashes(recipe.ppo.rewards)
    if uses_own(recipe.ppo.rewards):
        rewards["reward_model"] = model_hash(Path(workspace.model_path("reward")))
    parents = {
        "model": policy.hash,
        **rewards,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": policy.template_hash,
        **({"demonstrations": shown.hash} if shown else {}),
        **({"cost_model": coster.hash} if coster else {}),
    }
    config = {
        "section": settings.model_dump(mode="json"),
        "model": _model_config(workspace),
        "limit": recipe.data.limit,
        **({"rewards": recipe.ppo.rewards.model_dump(mode="json")} if recipe.ppo.rewards else {}),
    }
    begun = workspace.begin(stage, config=config, parents=parents)
    if begun.done:
        return
    prompts, groups = _prompts(workspace, policy, settings)
    settings = settings_of(workspace, stage, settings)
    models, own = _roles(workspace, policy, settings, beside=beside, coster=coster)
    asked = Asked(prompts, groups, settings.max_new_tokens, settings.max_tokens_per_forward)
    scores = _scores(workspace, policy, asked, own)
    gold = gold_of(policy, prompts) if recipe.data.source == "testbed" else None
    looks = _looks(workspace, policy, settings, scores)
    with workspace.bar(stage.replace("_", " ").replace("ppo", "PPO"), settings.iterations) as bar:
        result = train_ppo(
            models,
            groups,
            engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
            reward=scores,
            settings=settings,
            folder=begun.folder.path,
            hooks=PPOHooks(gold=gold, decode=decode_with(policy), bar=bar, evaluate=looks),
            resume=begun.resume,
        )
    if result.stopped:
        workspace.say(f"{stage}: {result.stopped}")
    workspace.check_finished(begun.folder, result)
    scorers = " + ".join(f"{name} {short(digest)}" for name, digest in rewards.items()) or "verifiers"
    text = f"PPO against {scorers}, {result.step} iterations."
    _, digest = save_policy(policy, begun, card(workspace, stage, policy, text=text, made_from=parents))
    workspace.finish(
        begun.folder,
        results=training_figures(result),
        model=digest,
        parents=[
            *dict.fromkeys((*data.records, *(shown.records if shown else ()))),
            workspace.record_of("sft", "model"),
            *([workspace.record_of("reward", "model")] if "reward_model" in rewards else []),
        ],
    )


def _model_config(workspace: Workspace) -> dict[str, object]:
    section = workspace.recipe.model.model_dump(mode="json")
    return {
        "lora": section["lora"],
        "one_backbone": workspace.recipe.ppo.one_backbone,
        "dtype": section["dtype"],
        "max_tokens": workspace.recipe.data.max_tokens,
    }


def ppo(workspace: Workspace) -> None:
    """PPO as the recipe asks, then, where it asks for it, a run without KL penalty and budget."""
    _run(workspace, "ppo", workspace.recipe.ppo.train)
    if workspace.recipe.ppo.unbounded is not None:
        unbounded(workspace)


def unbounded(workspace: Workspace) -> None:
    """The same PPO without KL penalty, budget, demonstrations and constraint: it shows where the reward model
    stops being right."""
    section = workspace.recipe.ppo
    assert section.unbounded is not None, "only called where the recipe asks for it"
    bounds = {"kl_coef": 0.0, "kl_budget": None, "kl_controller": "fixed"}
    terms = {"ptx_coef": 0.0, "constraint": None}
    free = {**bounds, **terms, **section.unbounded.model_dump()}
    _run(workspace, "ppo_unbounded", section.train.model_copy(update=free))
