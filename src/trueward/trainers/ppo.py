"""Proximal policy optimization on completions (Schulman et al. 2017; Stiennon et al. 2020, section 3.4).

    for each iteration:
        draw completions of some prompts from the policy, and score them
        log-probs under policy (old) and ref, and the value before each token
        reward of a token = -kl_coef * (log-prob old - log-prob ref), plus the score at the last token
        advantages and returns by GAE; whiten the advantages
        some passes over them in minibatches: clipped policy loss + value_coef * clipped value loss
Departs from the papers by the stop rule on KL. Dropout is off: a ratio is 1 before the first update.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from trueward.core.errors import DataError
from trueward.core.files import append_jsonl
from trueward.core.metrics import MetricsLog
from trueward.data.chat import TokenGroup
from trueward.rollouts.engine import Engine
from trueward.trainers.diagnosis import warnings_of
from trueward.trainers.experience import PPOModels, RewardFunction
from trueward.trainers.groups import groups_hash
from trueward.trainers.loop import (
    FREE_SETTINGS,
    Evaluate,
    Progress,
    TrainResult,
    checkpoint_activations,
    json_figures,
    open_checkpoint,
)
from trueward.trainers.optim import build_optimizer, trainable
from trueward.trainers.ppo_constraint import initial_log_lambda, priced
from trueward.trainers.ppo_ptx import PtxObjective, demonstrations_of_step
from trueward.trainers.ppo_rollout import Drawn, Environment, Learning, advantages_of, draw
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.ppo_tokens import Decode, token_row
from trueward.trainers.ppo_update import PPOObjective, update_policy
from trueward.trainers.sampling import Sampler
from trueward.trainers.signals import StopRequest, stop_on_signal
from trueward.trainers.state import assign, fingerprint, load_tensors, restore, save_checkpoint, trim_rows
from trueward.trainers.step import Trained

__all__ = ["PPOHooks", "adapted_kl_coef", "train_ppo", "without_dropout"]

# Ziegler et al. 2019, section 2.2: the proportional error is held within +-0.2.
_ERROR_CLIP = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class PPOHooks:
    """What a caller may watch with.

    gold: true scores of rollouts, only reported.
    decode: text of token ids, for ppo_tokens.jsonl.
    bar: shows iterations, reward and KL.
    evaluate: declared metric name -> figure, on the policy in eval mode.
    """

    gold: RewardFunction | None = None
    decode: Decode | None = None
    bar: Progress | None = None
    evaluate: Evaluate | None = None


@dataclass(slots=True)
class _State:
    """What changes from iteration to iteration beside the weights.

    safe: weights of the last policy that was measured within the KL budget.
    """

    kl_coef: float
    log_lambda: float | None
    iteration: int = 0
    skipped: int = 0
    last: dict[str, float] = field(default_factory=dict)
    safe: dict[str, Tensor] = field(default_factory=dict)
    resumed_from: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What an iteration needs; only weights and `state` change.

    beside: demonstrations of each optimizer step.
    """

    models: PPOModels
    beside: Callable[[int], Sequence[TokenGroup]]
    environment: Environment
    settings: PPOSettings
    hooks: PPOHooks
    trained: Trained
    identity: Mapping[str, object]
    state: _State


def train_ppo(
    models: PPOModels,
    prompts: Sequence[TokenGroup],
    *,
    engine: Engine,
    reward: RewardFunction,
    settings: PPOSettings,
    folder: Path,
    hooks: PPOHooks | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train `models.policy` in place against `reward`.

    Args:
        models: roles around the policy as it was before the first iteration, also when resuming.
        prompts: groups without completions, walked in a new random order each pass.
        engine: draws from `models.policy`.
        reward: score of each completion: a reward model (`reward.reward_function`), verifiers, rules.
        folder: run folder; gets metrics.jsonl, ppo_tokens.jsonl, checkpoints/ and, on trouble, bad_batches/.
        resume: go on from the newest checkpoint in `folder`; without one, start at iteration 0.

    Returns:
        TrainResult; `stopped` tells if the KL budget ended the run, `warnings` holds the diagnosis.

    Raises:
        DataError: no prompts.
        RunError: sampler and trainer disagree, scores or steps are not finite, a checkpoint of another run.
        StorageError: a checkpoint could not be written.
    """
    if not prompts:
        raise DataError("ppo: there are no prompts", remedy="check the filters and the split")
    started_s, hooks = time.monotonic(), hooks or PPOHooks()
    trained = _trained(models, settings, folder)
    identity = _identity(models, prompts, settings)
    run = _Run(
        models=models,
        beside=demonstrations_of_step(models.demonstrations, settings),
        environment=Environment(engine, reward, hooks.gold),
        settings=settings,
        hooks=hooks,
        trained=trained,
        identity=identity,
        state=_begin(trained, identity, settings, resume=resume),
    )
    with stop_on_signal() as stop, MetricsLog(folder, settings.track) as log:
        ended = _iterate(run, prompts, stop, log)
        _save(run)
    state = run.state
    return TrainResult(
        step=state.iteration,
        metrics_last=state.last,
        interrupted=ended is None,
        skipped=state.skipped,
        seconds=time.monotonic() - started_s,
        resumed_from=state.resumed_from,
        warnings=warnings_of(folder, settings),
        stopped=ended or "",
    )


def _iterate(run: _Run, prompts: Sequence[TokenGroup], stop: StopRequest, log: MetricsLog) -> str | None:
    """The algorithm, from the present iteration on.

    Returns:
        Why it ended before its last iteration, nothing if it did not; None where a signal ended it.
    """
    settings, state = run.settings, run.state
    sampler = _sampler(len(prompts), settings)
    while not stop:
        at_end = state.iteration == settings.iterations
        if at_end and settings.kl_budget is None:
            return ""
        batch = [prompts[i] for i in sampler.batch(state.iteration)]
        drawn = draw(run.models, batch, run.environment, settings, iteration=state.iteration)
        if stop:
            break
        stopped = _check_budget(run, drawn)
        if stopped or at_end:
            return stopped
        state.log_lambda, price = priced(state.log_lambda, drawn.figures, settings)
        learning = advantages_of(drawn, settings, kl_coef=state.kl_coef, log_lambda=state.log_lambda)
        _show_tokens(run, drawn, learning)
        updated = _update(run, drawn, learning)
        state.last = {**drawn.figures, **price, **updated, "epoch": sampler.epoch(state.iteration + 1)}
        state.kl_coef = adapted_kl_coef(state.kl_coef, drawn.figures["objective/kl"], settings)
        state.iteration += 1
        _watch(run)
        log.log(state.last, step=state.iteration)
        if state.iteration % settings.save_every == 0:
            _save(run)
    return None


def _trained(models: PPOModels, settings: PPOSettings, folder: Path) -> Trained:
    parts = models.trained()
    without_dropout(parts)
    if settings.activation_checkpointing:
        checkpoint_activations(models.policy)
    scales = dict.fromkeys(("value_head", "cost_value_head"), settings.value_lr_scale)
    optimizer = build_optimizer(parts, settings, lr_scales=scales)
    return Trained(model=parts, optimizer=optimizer, parameters=trainable(parts), folder=folder)


def _sampler(num_prompts: int, settings: PPOSettings) -> Sampler:
    # One batch beyond the last update, to measure what it did.
    num_drawn = (settings.iterations + 1) * settings.prompts_per_iteration
    return Sampler(
        num_prompts, batch_size=settings.prompts_per_iteration, num_drawn=num_drawn, seed=settings.seed
    )


def without_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, so that the log-probs of a row are the same in every pass."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(vars(module).get("attention_dropout"), float):
            vars(module)["attention_dropout"] = 0.0


def _identity(models: PPOModels, prompts: Sequence[TokenGroup], settings: PPOSettings) -> dict[str, object]:
    return {
        "objective": "ppo",
        "data": groups_hash(prompts),
        "demonstrations": groups_hash(models.demonstrations),
        "frozen weights": fingerprint(models.trained(), frozen_only=True),
        "reference weights": None if models.frozen is None else fingerprint(models.frozen),
        **{k: v for k, v in settings.model_dump(mode="json").items() if k not in FREE_SETTINGS},
    }


def _begin(
    trained: Trained, identity: Mapping[str, object], settings: PPOSettings, *, resume: bool
) -> _State:
    checkpoint = open_checkpoint(trained.folder, identity, resume=resume)
    trim_rows(trained.folder / "ppo_tokens.jsonl", checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return _State(kl_coef=settings.kl_coef, log_lambda=initial_log_lambda(settings))
    restore(checkpoint, trained.model, trained.optimizer)
    safe = checkpoint.path / "safe.safetensors"
    return _State(
        kl_coef=float(checkpoint.state["kl_coef"]),
        log_lambda=checkpoint.state["log_lambda"],
        iteration=checkpoint.step,
        skipped=int(checkpoint.state["skipped"]),
        last=dict(checkpoint.state["metrics"]),
        safe=load_tensors(safe) if safe.exists() else {},
        resumed_from=checkpoint.step,
    )


def _save(run: _Run) -> None:
    state = run.state
    prices = {"kl_coef": state.kl_coef, "log_lambda": state.log_lambda}
    figures = {"skipped": state.skipped, **prices, "metrics": json_figures(state.last)}
    save_checkpoint(
        run.trained.folder,
        step=state.iteration,
        model=run.trained.model,
        optimizer=run.trained.optimizer,
        state={"identity": run.identity, **figures},
        keep=run.settings.keep_checkpoints,
        sections={"safe": state.safe} if state.safe else None,
    )


def _check_budget(run: _Run, drawn: Drawn) -> str:
    """Remember a policy within the budget; put the last such one back when the present one is not.

    Returns:
        Why the run ends, or nothing.
    """
    budget, state, parameters = run.settings.kl_budget, run.state, run.trained.parameters
    if budget is None:
        return ""
    if drawn.kl_k3 <= budget:
        state.safe = {name: p.detach().clone() for name, p in parameters.items()}
        return ""
    # The checkpoint holds the weights before they are put back: resuming measures again and comes to the same
    # end.
    _save(run)
    over = (
        f"KL to the reference is {drawn.kl_k3:.2f} nats after {state.iteration} iterations, budget {budget:g}"
    )
    if not state.safe:
        return f"{over}; it was so from the start, nothing was trained"
    assign(parameters, state.safe, source=run.trained.folder)
    return f"{over}; the last policy measured within the budget was put back"


def adapted_kl_coef(kl_coef: float, kl: float, settings: PPOSettings) -> float:
    """The KL price of the next iteration.

    Args:
        kl_coef: the present one.
        kl: measured KL(policy || ref), k1, nats per completion.

    Source:
        Ziegler et al. 2019, section 2.2: e = clip(KL / target - 1, -0.2, 0.2), beta <- beta (1 + K e); K is n
        / horizon for n completions, as in the released code.
    """
    if settings.kl_controller == "fixed":
        return kl_coef
    error = min(max(kl / settings.kl_target - 1.0, -_ERROR_CLIP), _ERROR_CLIP)
    num_completions = settings.prompts_per_iteration * settings.completions_per_prompt
    return kl_coef * (1.0 + error * num_completions / settings.kl_horizon)


def _show_tokens(run: _Run, drawn: Drawn, learning: Learning) -> None:
    if run.state.iteration % run.settings.tokens_every:
        return
    tables = {
        "reward": learning.rewards_CBT[0],
        "kl": drawn.kl_BT,
        "value": drawn.experience.old_values_CBT[0],
        "advantage": learning.targets.advantages_BT,
    }
    step, score = run.state.iteration + 1, float(drawn.scores_CB[0, 0])
    row = token_row(drawn.experience, tables, step=step, score=score, decode=run.hooks.decode)
    append_jsonl(run.trained.folder / "ppo_tokens.jsonl", row)


def _update(run: _Run, drawn: Drawn, learning: Learning) -> dict[str, float]:
    start_s = time.monotonic()
    settings, state, trained = run.settings, run.state, run.trained
    models = run.models
    ppo = PPOObjective(models, drawn.experience, learning.targets, settings)
    objective = PtxObjective(ppo, models.policy, coef=settings.ptx_coef)
    # Layers compute activations twice in training mode only; dropout is off in both.
    trained.model.train(settings.activation_checkpointing)
    updated = update_policy(
        trained,
        objective,
        settings,
        beside=run.beside,
        iteration=state.iteration,
        skipped=state.skipped,
    )
    trained.model.eval()
    # Drawing comes next, and needs memory for keys and values.
    trained.memory.give_back()
    state.skipped = updated.skipped
    update_s = time.monotonic() - start_s
    return {
        **updated.means,
        **learning.figures,
        "objective/kl_coef": state.kl_coef,
        "skipped": state.skipped,
        "time/update_s": update_s,
        "step_s": drawn.seconds + update_s,
    }


def _watch(run: _Run) -> None:
    hooks, settings, state = run.hooks, run.settings, run.state
    due = settings.eval_every > 0 and state.iteration % settings.eval_every == 0
    if hooks.evaluate is not None and (due or state.iteration == settings.iterations):
        state.last |= hooks.evaluate(run.models.policy)
    if hooks.bar is not None:
        figures = f"reward {state.last['reward']:.3f}, KL {state.last['objective/kl_k3']:.2f}"
        hooks.bar.update(state.iteration, figures)
