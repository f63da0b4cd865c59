"""PPO with its four roles on one backbone or in four models, or a policy alone, in a process of its own.

    python -m benchmarks.ppo_roles JOB.json RESULT.json
All start from the same weights, adapters and prompts, and draw with the same seed. A step an iteration, so
that the first updates are comparable: later ones differ, as values on the policy's own trunk also move that
trunk.
Memory is that of models and training together: what the process held before it loaded anything is taken off.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.vs_trl_watch import Watch, memory_bytes
from trueward.core.files import read_json, read_jsonl, write_json
from trueward.data.chat import Completion, TokenGroup, stop_ids
from trueward.models import (
    LoadedModel,
    LoraSettings,
    apply_lora,
    attach_reward,
    load_causal,
    load_reward,
    reward_from_causal,
    save_reward,
    save_reward_adapter,
)
from trueward.models.tiny import tiny_model
from trueward.rollouts.engine import Rollout
from trueward.rollouts.local import LocalEngine
from trueward.trainers.experience import PPOModels, RewardFunction, ppo_models
from trueward.trainers.optim import trainable
from trueward.trainers.ppo import PPOHooks, train_ppo
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.reward import reward_function
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import train_sft

__all__ = ["LAYOUTS", "RolesJob", "relative_difference", "run_roles", "write_rewards"]

LAYOUTS = ("one backbone", "four models", "alone")
_PROMPT_TOKENS = 48
_SAMPLED = 256
# Large against the rounding of a weight, so that an update can be read off the weights.
_LR = 1e-3


class RolesJob(NamedTuple):
    """One run.

    layout: one of LAYOUTS; `alone` is SFT of the policy on as many tokens.
    policy: full or lora, the policy's tuning.
    work: folder with `causal/`, `pairs.jsonl` and what `write_rewards` makes.
    prompts, new_tokens: completions of an iteration, one a prompt, and the tokens of each.
    """

    layout: str
    policy: str
    work: str
    iterations: int
    prompts: int
    new_tokens: int
    forward_tokens: int


def write_rewards(folder: Path) -> None:
    """Write a reward model on `causal/` twice, unless it is there: as adapters, and merged into a model."""
    if (folder / "merged").is_dir():
        return
    base = load_causal(folder / "causal")
    adapted = apply_lora(reward_from_causal(base.model, base.tokenizer, seed=3), LoraSettings(), seed=5)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # As if trained: fresh adapters would change nothing.
        for parameter in trainable(adapted).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=rng))
    save_reward_adapter(adapted, base.tokenizer, folder / "adapter", base_hash=base.hash)
    save_reward(adapted.merge_and_unload(), base.tokenizer, folder / "merged")


def _groups(job: RolesJob) -> list[TokenGroup]:
    """The ends of real prompts, with as many tokens of the chosen answer for `alone`."""
    rows = [
        row for row, _ in zip(read_jsonl(Path(job.work) / "pairs.jsonl"), range(job.prompts), strict=False)
    ]
    groups = []
    for number, row in enumerate(rows):
        answer = (row["chosen_ids"] * job.new_tokens)[: job.new_tokens]
        own = (Completion(tuple(answer), (True,) * len(answer)),) if job.layout == "alone" else ()
        groups.append(TokenGroup(tuple(row["prompt_ids"][-_PROMPT_TOKENS:]), own, str(number)))
    return groups


def _settings(job: RolesJob) -> PPOSettings:
    return PPOSettings(
        iterations=job.iterations,
        prompts_per_iteration=job.prompts,
        max_new_tokens=job.new_tokens,
        epochs=1,
        minibatches=1,
        lr=_LR,
        value_backbone="shared" if job.layout == "one backbone" else "separate",
        max_tokens_per_forward=job.forward_tokens,
        save_every=job.iterations + 1,
        tokens_every=job.iterations + 1,
    )


def _roles(job: RolesJob, policy: LoadedModel, settings: PPOSettings) -> tuple[PPOModels, RewardFunction]:
    longest, work = settings.max_tokens_per_forward, Path(job.work)
    if job.layout == "one backbone":
        shared = attach_reward(work / "adapter", policy)
        score = reward_function(shared.model, max_tokens_per_forward=longest, scope=shared.active)
        return ppo_models(policy.model, settings, backbone=shared.backbone), score
    models = ppo_models(policy.model, settings, ref=load_causal(work / "causal").model)
    return models, reward_function(load_reward(work / "merged").model, max_tokens_per_forward=longest)


def _sample(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Some elements of each tensor, evenly spaced."""
    flat = {name: parameter.detach().flatten() for name, parameter in parameters.items()}
    return {name: row[:: max(1, row.numel() // _SAMPLED)].clone() for name, row in flat.items()}


class _FirstUpdate:
    """Passes ends of iterations on, and keeps what the first one drew and did; that is not timed."""

    def __init__(self, watch: Watch, parameters: Mapping[str, nn.Parameter], score: RewardFunction) -> None:
        self._watch, self._parameters, self._score = watch, parameters, score
        self._before = _sample(parameters)
        self.moved: dict[str, list[float]] = {}
        self.ids: list[list[int]] = []

    def reward(self, prompts: Sequence[TokenGroup], rollouts: Sequence[Rollout]) -> Sequence[float]:
        """The scores, and the ids of the first round."""
        self.ids = self.ids or [list(rollout.ids) for rollout in rollouts]
        return self._score(prompts, rollouts)

    def update(self, done: int, figure: str = "") -> None:
        """An iteration has ended."""
        self._watch.update(done)
        if not self.moved:
            started_s, started_cpu_s = time.perf_counter(), time.process_time()
            after = _sample(self._parameters)
            self.moved = {name: (after[name] - row).tolist() for name, row in self._before.items()}
            self._watch.started_s += time.perf_counter() - started_s
            self._watch.started_cpu_s += time.process_time() - started_cpu_s


def run_roles(job: RolesJob, watch: Watch) -> dict[str, object]:
    """Train; time and memory are in `watch`.

    Returns:
        moved: what the first update did to the sampled weights of the policy; ids: what it was drawn from.
    """
    folder = Path(job.work) / f"run-ppo-{time.time_ns()}"
    tiny_model("llama")  # Its code is loaded before memory is looked at.
    before_bytes = memory_bytes("VmRSS")
    policy = load_causal(
        Path(job.work) / "causal", lora=LoraSettings() if job.policy == "lora" else None, seed=7
    )
    groups = _groups(job)
    if job.layout == "alone":
        settings = TrainSettings(
            lr=_LR,
            batch_size=job.prompts,
            steps=job.iterations,
            max_tokens_per_forward=job.forward_tokens,
            save_every=job.iterations + 1,
        )
        watch.loaded()
        watch.start()
        train_sft(policy.model, groups, settings=settings, folder=folder, bar=watch)
        watch.loaded_bytes = before_bytes
        return {"moved": {}, "ids": []}
    asked = _settings(job)
    models, score = _roles(job, policy, asked)
    first = _FirstUpdate(watch, trainable(policy.model), score)
    watch.loaded()
    watch.start()
    train_ppo(
        models,
        groups,
        engine=LocalEngine(policy.model, stop_ids(policy.tokenizer)),
        reward=first.reward,
        settings=asked,
        folder=folder,
        hooks=PPOHooks(bar=first),
    )
    watch.loaded_bytes = before_bytes
    return {"moved": first.moved, "ids": first.ids}


def relative_difference(ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]) -> float:
    """Norm of the difference of two updates over the norm of the second, on the parameters that both have.

    Raises:
        ValueError: they have none in common, or the second moved nothing.
    """
    names = [name for name in theirs if name in ours]
    if not names or not any(any(theirs[name]) for name in names):
        raise ValueError(f"no update to compare: {len(ours)} and {len(theirs)} parameters")
    first, second = (torch.tensor([x for name in names for x in side[name]]) for side in (ours, theirs))
    return float((first - second).norm() / second.norm())


def main() -> None:
    """Run one side."""
    asked, result = map(Path, sys.argv[1:])
    watch = Watch()
    found = run_roles(RolesJob(**read_json(asked)), watch)
    write_json(result, {**watch.figures(), **found})


if __name__ == "__main__":
    main()
