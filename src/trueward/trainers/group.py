"""Policy gradients with groups: GRPO, RLOO, REINFORCE++, Dr. GRPO, DAPO, GSPO, CISPO, by choices alone.

    for each iteration:
        draw G completions of some prompts from the policy, and judge them
        (dynamic sampling: leave out groups whose scores are all equal, and draw more)
        log-probs under ref, and under policy (old), unless the one step of the round gives them
        advantage = score against the other completions of the prompt, or of the step
        some passes over them in minibatches: clipped policy loss, plus kl_coef * KL where it is in the loss
There is no value function. A round without anything to learn from updates nothing. Dropout is off.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor

from trueward.core.errors import DataError, RunError
from trueward.core.files import append_jsonl
from trueward.core.metrics import MetricsLog
from trueward.data.chat import TokenGroup
from trueward.rollouts.engine import Engine
from trueward.trainers.diagnosis import warnings_of
from trueward.trainers.group_experience import GroupModels, score_policy
from trueward.trainers.group_rollout import (
    Drawn,
    GroupReward,
    Surroundings,
    advantages_of,
    draw,
    scored_figures,
)
from trueward.trainers.group_samples import sample_row
from trueward.trainers.group_settings import Choices, GroupSettings, choices_of
from trueward.trainers.group_update import GroupObjective, correct, update_groups
from trueward.trainers.groups import groups_hash
from trueward.trainers.loop import (
    FREE_SETTINGS,
    TrainResult,
    checkpoint_activations,
    json_figures,
    open_checkpoint,
)
from trueward.trainers.optim import build_optimizer, trainable
from trueward.trainers.ppo import PPOHooks, without_dropout
from trueward.trainers.sampling import Sampler
from trueward.trainers.signals import StopRequest, stop_on_signal
from trueward.trainers.state import fingerprint, restore, save_checkpoint, trim_rows
from trueward.trainers.step import Trained

__all__ = ["train_group"]

_FREE = FREE_SETTINGS | {"samples_every", "max_error_share", "max_idle", "max_sampler_gap"}


@dataclass(slots=True)
class _State:
    """What changes from iteration to iteration beside the weights.

    draws: batches of prompts drawn so far; decides which come next.
    idle: iterations in a row without anything to learn from.
    """

    iteration: int = 0
    draws: int = 0
    idle: int = 0
    skipped: int = 0
    last: dict[str, float] = field(default_factory=dict)
    resumed_from: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """What an iteration needs; only weights and `state` change."""

    models: GroupModels
    surroundings: Surroundings
    settings: GroupSettings
    choices: Choices
    hooks: PPOHooks
    trained: Trained
    identity: Mapping[str, object]
    state: _State


def train_group(
    models: GroupModels,
    prompts: Sequence[TokenGroup],
    *,
    engine: Engine,
    reward: GroupReward,
    settings: GroupSettings,
    folder: Path,
    hooks: PPOHooks | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train `models.policy` in place against `reward`.

    Args:
        models: roles around the policy as it was before the first iteration, also when resuming.
        prompts: groups without completions, walked in a new random order each pass.
        engine: draws from `models.policy`.
        reward: score or verdict of each completion: verifiers, a reward model, rules.
        folder: run folder; gets metrics.jsonl, group_samples.jsonl, checkpoints/ and, on trouble,
            bad_batches/.
        hooks: what to watch with.
        resume: go on from the newest checkpoint in `folder`; without one, start at iteration 0.

    Returns:
        TrainResult; `warnings` holds the diagnosis.

    Raises:
        DataError: no prompts.
        RunError: sampler and trainer disagree, scores or steps are not finite, too many verdicts are errors,
            nothing to learn from for `max_idle` iterations, or a checkpoint of another run.
        StorageError: a checkpoint could not be written.
    """
    if not prompts:
        raise DataError(f"{settings.method}: there are no prompts", remedy="check the filters and the split")
    started_s, hooks = time.monotonic(), hooks or PPOHooks()
    sampler = _sampler(len(prompts), settings)
    without_dropout(models.policy)
    if settings.activation_checkpointing:
        checkpoint_activations(models.policy)
    optimizer, parameters = build_optimizer(models.policy, settings), trainable(models.policy)
    trained = Trained(model=models.policy, optimizer=optimizer, parameters=parameters, folder=folder)
    identity = _identity(models, prompts, settings)
    run = _Run(
        models=models,
        surroundings=Surroundings(
            lambda n: [prompts[i] for i in sampler.batch(n)], engine, reward, hooks.gold
        ),
        settings=settings,
        choices=choices_of(settings),
        hooks=hooks,
        trained=trained,
        identity=identity,
        state=_begin(trained, identity, resume=resume),
    )
    state = run.state
    with stop_on_signal() as stop, MetricsLog(folder, settings.track) as log:
        _iterate(run, sampler, stop, log)
        _save(run)
    return TrainResult(
        step=state.iteration,
        metrics_last=state.last,
        interrupted=state.iteration < settings.iterations,
        skipped=state.skipped,
        seconds=time.monotonic() - started_s,
        resumed_from=state.resumed_from,
        warnings=warnings_of(folder, settings),
    )


def _iterate(run: _Run, sampler: Sampler, stop: StopRequest, log: MetricsLog) -> None:
    settings, state = run.settings, run.state
    while state.iteration < settings.iterations and not stop:
        with _saved(run):
            drawn = draw(run.models, run.surroundings, settings, run.choices, first_draw=state.draws)
        if stop:
            return
        advantages_BT = advantages_of(drawn, settings, run.choices)
        _show_samples(run, drawn, advantages_BT)
        with _saved(run) if settings.scored_by_update else nullcontext():
            updated = _update(run, drawn, advantages_BT)
        state.iteration, state.draws = state.iteration + 1, state.draws + drawn.num_draws
        figures = {**drawn.figures, **scored_figures(drawn.experience)}
        state.last = {**figures, **updated, "epoch": sampler.epoch(state.draws)}
        _watch(run)
        log.log(state.last, step=state.iteration)
        if state.iteration % settings.save_every == 0:
            _save(run)
        _check_idle(run, drawn)


@contextmanager
def _saved(run: _Run) -> Iterator[None]:
    """What fails within leaves the weights as the last whole iteration did: nothing of it is lost."""
    try:
        yield
    except RunError:
        _save(run)
        raise


def _sampler(num_prompts: int, settings: GroupSettings) -> Sampler:
    num_drawn = settings.iterations * settings.max_draws * settings.prompts_per_iteration
    each = settings.prompts_per_iteration
    return Sampler(num_prompts, batch_size=each, num_drawn=num_drawn, seed=settings.seed)


def _identity(
    models: GroupModels, prompts: Sequence[TokenGroup], settings: GroupSettings
) -> dict[str, object]:
    chosen = asdict(choices_of(settings))
    return {
        "objective": "group",
        "choices": chosen,
        "data": groups_hash(prompts),
        "frozen weights": fingerprint(models.policy, frozen_only=True),
        "reference weights": None if models.frozen is None else fingerprint(models.frozen),
        **{k: v for k, v in settings.model_dump(mode="json").items() if k not in _FREE},
    }


def _begin(trained: Trained, identity: Mapping[str, object], *, resume: bool) -> _State:
    checkpoint = open_checkpoint(trained.folder, identity, resume=resume)
    trim_rows(trained.folder / "group_samples.jsonl", checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return _State()
    restore(checkpoint, trained.model, trained.optimizer)
    saved = checkpoint.state
    return _State(
        iteration=checkpoint.step,
        draws=int(saved["draws"]),
        idle=int(saved["idle"]),
        skipped=int(saved["skipped"]),
        last=dict(saved["metrics"]),
        resumed_from=checkpoint.step,
    )


def _save(run: _Run) -> None:
    state = run.state
    figures = {
        "draws": state.draws,
        "idle": state.idle,
        "skipped": state.skipped,
        "metrics": json_figures(state.last),
    }
    save_checkpoint(
        run.trained.folder,
        step=state.iteration,
        model=run.trained.model,
        optimizer=run.trained.optimizer,
        state={"identity": run.identity, **figures},
        keep=run.settings.keep_checkpoints,
    )


def _update(run: _Run, drawn: Drawn, advantages_BT: Tensor) -> dict[str, float]:
    start_s = time.monotonic()
    settings, state, trained = run.settings, run.state, run.trained
    weights_BT, corrected = correct(drawn.experience, settings)
    figures = {"mismatch/corrected": corrected}
    # Adam would move the weights by its momentum alone.
    teaches = bool(advantages_BT.any())
    if not teaches and settings.scored_by_update:
        score_policy(run.models, drawn.experience, settings)
    if teaches:
        objective = partial(
            GroupObjective,
            drawn.experience,
            advantages_BT,
            weights_BT,
            settings=settings,
            choices=run.choices,
        )
        # Layers compute activations twice in training mode only; dropout is off in both.
        trained.model.train(settings.activation_checkpointing)
        updated = update_groups(
            trained,
            objective,
            settings=settings,
            num_groups=len(drawn.experience.groups),
            iteration=state.iteration,
            skipped=state.skipped,
        )
        trained.model.eval()
        # Drawing comes next, and needs memory for keys and values.
        trained.memory.give_back()
        state.skipped = updated.skipped
        figures |= updated.means
    state.idle = 0 if teaches else state.idle + 1
    update_s = time.monotonic() - start_s
    return {
        **figures,
        "skipped": state.skipped,
        "time/update_s": update_s,
        "step_s": drawn.seconds + update_s,
    }


def _check_idle(run: _Run, drawn: Drawn) -> None:
    if run.state.idle < run.settings.max_idle:
        return
    _save(run)
    raise RunError(
        f"nothing to learn from for {run.state.idle} iterations: all scores of every group are equal",
        value=drawn.figures["reward"],
        expected="scores that differ between the completions of a prompt",
        remedy="the prompts are all too hard or too easy for this policy, or the verifier expects another "
        "form; see group_samples.jsonl",
    )


def _show_samples(run: _Run, drawn: Drawn, advantages_BT: Tensor) -> None:
    if run.state.iteration % run.settings.samples_every:
        return
    row = sample_row(
        drawn.experience,
        drawn.verdicts,
        advantages_BT,
        step=run.state.iteration + 1,
        each=run.settings.completions_per_prompt,
        decode=run.hooks.decode,
    )
    append_jsonl(run.trained.folder / "group_samples.jsonl", row)


def _watch(run: _Run) -> None:
    hooks, settings, state = run.hooks, run.settings, run.state
    due = settings.eval_every > 0 and state.iteration % settings.eval_every == 0
    if hooks.evaluate is not None and (due or state.iteration == settings.iterations):
        state.last |= hooks.evaluate(run.models.policy)
    if hooks.bar is not None:
        figures = f"reward {state.last['reward']:.3f}, length {state.last['completions/mean_length']:.0f}"
        hooks.bar.update(state.iteration, figures)
