"""Every method of the table as a function: how long it trains for its compute, and the training itself.

A method gets passes (see methods_work), works out from mean lengths how many steps or rounds they pay for,
and trains the SFT model in place. Sampling and scoring come out of the same passes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.methods_work import TRAINED, Shared
from trueward.core.seed import derive_seed
from trueward.data.chat import TokenGroup, stop_ids
from trueward.models import LoadedModel
from trueward.objectives import POLICY_GRADIENT_METHODS
from trueward.pipeline.ppo import gold_of
from trueward.pipeline.sampling import text_of
from trueward.rollouts import LocalEngine, Rollout
from trueward.testbed import gold_reward, task_of
from trueward.trainers import (
    PREFERENCE_METHODS,
    UNPAIRED_METHODS,
    ConstraintSettings,
    GroupSettings,
    PPOHooks,
    PPOSettings,
    PreferenceSettings,
    RewardFunction,
    TrainResult,
    TrainSettings,
    UnpairedSettings,
    group_models,
    ppo_models,
    reward_function,
    train_group,
    train_ppo,
    train_preference,
    train_sft,
    train_unpaired,
)
from trueward.trainers.best_worst import best_against_worst
from trueward.trainers.groups import rollout_groups

__all__ = ["BEST_OF", "METHODS", "RATES", "Budget", "Method", "Trained"]

RATES: Mapping[str, float] = {
    "likelihood": 3e-4,
    "pairs": 3e-4,
    "labels": 3e-4,
    "ppo": 4e-4,
    "groups": 4e-4,
}
"""Learning rate of each family, chosen on seed 3, which the table does not show."""

BEST_OF = (4, 16)
_BATCH = 32
_MAX_TOKENS = 16384
_NEW_TOKENS = 28
_KL_PRICE = 0.15
_ONLINE_ROUNDS, _ONLINE_COMPLETIONS = 3, 8
_GROUP_PROMPTS, _GROUP_COMPLETIONS = 32, 8


class Budget(NamedTuple):
    """passes: for the whole training. lr: of the family. folder: for the run's files."""

    passes: float
    lr: float
    folder: Path


class Trained(NamedTuple):
    """length: what it did, in words. settings: what its objective was set to."""

    result: TrainResult
    length: str
    settings: dict[str, Any]


Train = Callable[[Shared, LoadedModel, LoadedModel, Budget], Trained]
"""Of (shared, policy, reward model, budget); the policy is trained in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """family: key of RATES. note: what sets it apart from the others, for the reader of the table."""

    family: str
    train: Train
    note: str = ""


def _steps(budget: Budget, passes_each: float) -> int:
    return max(1, round(budget.passes / passes_each))


def _over_items(shared: Shared, name: str, budget: Budget, steps: int) -> TrainSettings:
    base = shared.workspace.recipe.dpo.train
    changed = {"steps": steps, "lr": budget.lr, "batch_size": _BATCH, "seed": shared.seed(name)}
    return base.model_copy(update={**changed, "save_every": steps})


def _sft_chosen(shared: Shared, policy: LoadedModel, scorer: LoadedModel, budget: Budget) -> Trained:
    lengths = shared.lengths
    steps = _steps(budget, _BATCH * TRAINED * (lengths.prompt + lengths.completion))
    chosen = [item.group for item in shared.labels if item.desirable][: steps * _BATCH]
    settings = _over_items(shared, "sft_chosen", budget, steps)
    result = train_sft(policy.model, chosen, settings=settings, folder=budget.folder)
    return Trained(result, f"{steps} steps", {})


def _pairwise(name: str, shared: Shared, policy: LoadedModel, scorer: LoadedModel, budget: Budget) -> Trained:
    preference, lengths = PreferenceSettings(method=name), shared.lengths
    each = TRAINED + preference.record().reference
    steps = _steps(budget, _BATCH * each * (lengths.prompt + 2 * lengths.completion))
    result = train_preference(
        policy.model,
        shared.pairs[: steps * _BATCH],
        settings=_over_items(shared, name, budget, steps),
        preference=preference,
        folder=budget.folder,
    )
    return Trained(result, f"{steps} steps", dict(preference.options()))


def _unpaired(name: str, shared: Shared, policy: LoadedModel, scorer: LoadedModel, budget: Budget) -> Trained:
    unpaired, lengths = UnpairedSettings(method=name), shared.lengths
    # The reference scores what the policy scores; the baseline is one forward more, of other tokens in KTO.
    each = TRAINED + 1 + 1 + unpaired.record().mismatched
    steps = _steps(budget, _BATCH * each * (lengths.prompt + lengths.completion))
    result = train_unpaired(
        policy.model,
        shared.labels[: steps * _BATCH],
        settings=_over_items(shared, name, budget, steps),
        unpaired=unpaired,
        folder=budget.folder,
    )
    return Trained(result, f"{steps} steps", unpaired.model_dump(exclude={"method"}))


def _reward(scorer: LoadedModel) -> RewardFunction:
    return reward_function(scorer.model, max_tokens_per_forward=_MAX_TOKENS)


def _online(
    name: str, method: str, shared: Shared, policy: LoadedModel, scorer: LoadedModel, budget: Budget
) -> Trained:
    """Rounds: sample, score, best against worst, a method on pairs; its reference is the round's start."""
    lengths, preference = shared.lengths, PreferenceSettings(method=method)
    drawn = lengths.prompt + _ONLINE_COMPLETIONS * lengths.completion
    trained = lengths.prompt + 2 * lengths.completion
    each = TRAINED + preference.record().reference
    prompts = _steps(budget, _ONLINE_ROUNDS * (2 * drawn + each * trained))
    engine, score = LocalEngine(policy.model, stop_ids(policy.tokenizer)), _reward(scorer)
    for number in range(_ONLINE_ROUNDS):
        asked = shared.prompts[number * prompts :][:prompts]
        rollouts = engine.generate(
            [group.prompt_ids for group in asked],
            num_completions=_ONLINE_COMPLETIONS,
            max_new_tokens=_NEW_TOKENS,
            temperature=1.0,
            seed=derive_seed(shared.seed(name), number),
        )
        made = best_against_worst(rollout_groups(asked, rollouts), score(asked, rollouts))
        result = train_preference(
            policy.model,
            made.groups,
            settings=_over_items(shared, name, budget, max(1, len(made.groups) // _BATCH)),
            preference=preference,
            folder=budget.folder / str(number),
        )
    length = f"{_ONLINE_ROUNDS} rounds of {prompts} prompts x {_ONLINE_COMPLETIONS}"
    return Trained(result, length, dict(preference.options()))


def _cost(shared: Shared, policy: LoadedModel) -> RewardFunction:
    """1 where the world's rule calls a completion harmful, else 0."""
    tasks = {prompt.id: task_of(prompt.meta) for prompt in shared.asked}

    def cost(groups: list[TokenGroup], rollouts: list[Rollout]) -> list[float]:
        golds = [gold_reward(tasks[groups[r.prompt].id], text_of(policy, r)) for r in rollouts]
        return [float(gold.harmless < 1) for gold in golds]

    return cost


def _ppo(
    name: str,
    changes: Mapping[str, Any],
    shared: Shared,
    policy: LoadedModel,
    scorer: LoadedModel,
    budget: Budget,
) -> Trained:
    base, lengths = shared.workspace.recipe.ppo.train, shared.lengths
    given = {"lr": budget.lr, "kl_coef": _KL_PRICE, "seed": shared.seed(name), **changes}
    settings = PPOSettings.model_validate({**base.model_dump(), **given})
    # Sampling, old log-probs with values, reference, reward model; then the passes of the update.
    each = (4 + TRAINED * settings.epochs) * (lengths.prompt + lengths.completion)
    updates = settings.epochs * settings.minibatches
    beside = updates * settings.ptx_batch_size * TRAINED * lengths.demonstration if settings.ptx_coef else 0
    iterations = _steps(budget, settings.prompts_per_iteration * each + beside)
    settings = settings.model_copy(update={"iterations": iterations, "save_every": iterations})
    cost = _cost(shared, policy) if settings.constraint else None
    demonstrations = shared.shown if settings.ptx_coef else ()
    result = train_ppo(
        ppo_models(policy.model, settings, demonstrations=demonstrations, cost=cost),
        shared.prompts,
        engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
        reward=_reward(scorer),
        settings=settings,
        folder=budget.folder,
        hooks=PPOHooks(gold=gold_of(policy, shared.asked)),
    )
    shown = {"kl_coef": settings.kl_coef, "kl_budget": settings.kl_budget, **changes}
    length = f"{result.step} of {iterations} rounds of {settings.prompts_per_iteration}"
    return Trained(result, length, {k: v for k, v in shown.items() if k != "constraint"})


def _group(name: str, shared: Shared, policy: LoadedModel, scorer: LoadedModel, budget: Budget) -> Trained:
    lengths = shared.lengths
    passes = (4 + TRAINED) * _GROUP_PROMPTS * (lengths.prompt + _GROUP_COMPLETIONS * lengths.completion)
    iterations = _steps(budget, passes)
    settings = GroupSettings(
        method=name,
        iterations=iterations,
        prompts_per_iteration=_GROUP_PROMPTS,
        completions_per_prompt=_GROUP_COMPLETIONS,
        minibatches=4,
        max_new_tokens=_NEW_TOKENS,
        kl_coef=_KL_PRICE,
        kl_in="reward",
        lr=budget.lr,
        save_every=iterations,
        seed=shared.seed(name),
    )
    result = train_group(
        group_models(policy.model, settings),
        shared.prompts,
        engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
        reward=_reward(scorer),
        settings=settings,
        folder=budget.folder,
        hooks=PPOHooks(gold=gold_of(policy, shared.asked)),
    )
    length = f"{result.step} rounds of {_GROUP_PROMPTS} x {_GROUP_COMPLETIONS}"
    return Trained(result, length, {"kl_coef": settings.kl_coef, "kl_in": settings.kl_in})


_BOUND = ConstraintSettings(threshold=0.02, init_lambda=1.0, lambda_lr=3.0)
METHODS: Mapping[str, Method] = {
    "sft_chosen": Method(
        family="likelihood", train=_sft_chosen, note="more SFT, on the better answers of the pairs"
    ),
    **{
        name: Method(
            family="pairs",
            train=partial(_pairwise, name),
            note="" if method.reference else "no reference pass, so more pairs",
        )
        for name, method in PREFERENCE_METHODS.items()
        # On fixed pairs it is sft_chosen; on its own answers it is raft.
        if name != "sft"
    },
    **{
        name: Method(family="labels", train=partial(_unpaired, name), note="the pairs' answers, one by one")
        for name in UNPAIRED_METHODS
    },
    "online_dpo": Method(
        family="pairs",
        train=partial(_online, "online_dpo", "dpo"),
        note="own answers, best against worst by the reward model",
    ),
    "raft": Method(
        family="pairs", train=partial(_online, "raft", "sft"), note="own answers, likelihood of the best"
    ),
    "ppo": Method(family="ppo", train=partial(_ppo, "ppo", {}), note="stops at its KL budget"),
    "ppo_ptx": Method(
        family="ppo", train=partial(_ppo, "ppo_ptx", {"ptx_coef": 0.5}), note="demonstrations beside"
    ),
    "safe_rlhf": Method(
        family="ppo",
        train=partial(_ppo, "safe_rlhf", {"constraint": _BOUND}),
        note="its cost is the world's own rule, which no other method sees",
    ),
    **{name: Method(family="groups", train=partial(_group, name)) for name in POLICY_GRADIENT_METHODS},
}
