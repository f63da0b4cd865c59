"""The PPO stage: the SFT model against the reward model under a KL budget, beside a run without one."""

from collections.abc import Callable, Sequence

import torch

from trueward.data.chat import TokenGroup, stop_ids
from trueward.data.records import Prompt
from trueward.models.checkpoint import model_card, model_hash, save_causal
from trueward.models.load import LoadedModel
from trueward.pipeline.datasets import pairs, train_prompts
from trueward.pipeline.sampling import prompt_ids, text_of
from trueward.pipeline.workspace import Workspace
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine
from trueward.testbed import gold_reward, task_of
from trueward.trainers.experience import RewardFunction, ppo_models
from trueward.trainers.loop import TrainResult
from trueward.trainers.ppo import PPOHooks, train_ppo
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.reward import reward_function

__all__ = ["ppo", "unbounded"]


def _gold(policy: LoadedModel, prompts: Sequence[Prompt]) -> RewardFunction:
    tasks = {prompt.id: task_of(prompt.meta) for prompt in prompts}

    def score(groups: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> list[float]:
        return [gold_reward(tasks[groups[r.prompt].id], text_of(policy, r)).total for r in rollouts]

    return score


def _decode(policy: LoadedModel) -> Callable[[Sequence[int]], str]:
    return lambda ids: str(policy.tokenizer.decode(list(ids)))


def _run(workspace: Workspace, stage: str, settings: PPOSettings) -> None:
    recipe = workspace.recipe
    policy = workspace.load("sft", lora=False)
    scorer = workspace.load_reward()
    data, prompts = pairs(workspace), train_prompts(workspace)
    parents = {
        "model": policy.hash,
        "reward_model": scorer.hash,
        "data": data.hash,
        "charter": workspace.charter.hash,
        "template": policy.template_hash,
    }
    begun = workspace.begin(stage, config={"section": settings.model_dump(mode="json")}, parents=parents)
    if begun.done:
        return
    _, groups = prompt_ids(policy, prompts, max_tokens=recipe.data.max_tokens - settings.max_new_tokens)
    torch.manual_seed(workspace.seed(stage, "init"))
    settings = settings.model_copy(update={"seed": workspace.seed(stage, settings.seed)})
    models = ppo_models(policy.model, settings)
    gold = _gold(policy, prompts) if recipe.data.source == "testbed" else None
    with workspace.bar(stage.replace("_", " ").replace("ppo", "PPO"), settings.iterations) as bar:
        result = train_ppo(
            models,
            groups,
            engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
            reward=reward_function(scorer.model, max_tokens_per_forward=settings.max_tokens_per_forward),
            settings=settings,
            folder=begun.folder.path,
            hooks=PPOHooks(gold=gold, decode=_decode(policy), bar=bar),
            resume=begun.resume,
        )
    if result.stopped:
        workspace.say(f"{stage}: {result.stopped}")
    workspace.check_finished(begun.folder, result)
    card = model_card(
        f"{recipe.name}: {stage}",
        text=f"PPO against reward model {scorer.hash[:16]}, {result.step} iterations.",
        metadata={"base_model": policy.path, "tags": ["trueward", stage], "trueward": {"parents": parents}},
    )
    save_causal(policy.model, policy.tokenizer, begun.folder.model, card, replace=begun.resume)
    workspace.finish(
        begun.folder,
        results=_figures(result),
        model=model_hash(begun.folder.model),
        parents=[*data.records, workspace.record_of("sft", "model"), workspace.record_of("reward", "model")],
    )


def _figures(result: TrainResult) -> dict[str, object]:
    return {
        "seconds": result.seconds,
        "iterations": result.step,
        "skipped": result.skipped,
        "stopped": result.stopped,
        "warnings": list(result.warnings),
    }


def ppo(workspace: Workspace) -> None:
    """PPO as the recipe asks, then, where it asks for it, a run without KL penalty and budget."""
    _run(workspace, "ppo", workspace.recipe.ppo.train)
    if workspace.recipe.ppo.unbounded_iterations:
        unbounded(workspace)


def unbounded(workspace: Workspace) -> None:
    """The same PPO without KL penalty and budget: it shows where the reward model stops being right."""
    section = workspace.recipe.ppo
    free = {
        "kl_coef": 0.0,
        "kl_budget": None,
        "kl_controller": "fixed",
        "iterations": section.unbounded_iterations,
    }
    _run(workspace, "ppo_unbounded", section.train.model_copy(update=free))
