"""Four roles on one backbone do what four models do, in less memory."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.trainers import language, toy
from tests.trainers.test_ppo import prompts, settings
from trueward.models import (
    LoadedModel,
    LoraSettings,
    apply_lora,
    attach_reward,
    load_causal,
    load_reward,
    reward_from_causal,
    save_causal,
    save_reward,
    save_reward_adapter,
)
from trueward.models.tiny import tiny_model, tiny_tokenizer
from trueward.rollouts import LocalEngine
from trueward.trainers import PPOModels, RewardFunction, RewardPair, RewardSettings, ppo_models
from trueward.trainers.experience import score_rollouts
from trueward.trainers.ppo import train_ppo
from trueward.trainers.reward import reward_function, train_reward

LAYOUTS = pytest.mark.parametrize("adapted", [True, False], ids=["policy-lora", "policy-full"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, and a reward model trained as adapters on it, saved both ways."""
    folder, tokenizer = tmp_path_factory.mktemp("roles"), tiny_tokenizer()
    save_causal(tiny_model("llama", 0, width=16, layers=1, scale=1.0), tokenizer, folder / "base", "base")
    base = load_causal(folder / "base")
    model = apply_lora(reward_from_causal(base.model, tokenizer, seed=0), LoraSettings(r=4), seed=0)
    pairs = [RewardPair(group) for group in language.comparisons()]
    chosen = toy.settings(lr=0.03, steps=20, max_tokens_per_forward=200)
    train_reward(model, pairs, settings=chosen, reward=RewardSettings(), folder=folder / "run")
    save_reward_adapter(model, tokenizer, folder / "adapter", base_hash=base.hash)
    save_reward(model.merge_and_unload(), tokenizer, folder / "merged")
    return folder


class Roles(NamedTuple):
    policy: LoadedModel
    models: PPOModels
    reward: RewardFunction
    scorer: nn.Module


def roles(world: Path, *, adapted: bool, one: bool) -> Roles:
    policy = load_causal(world / "base", lora=LoraSettings(r=4) if adapted else None, seed=1)
    if not one:
        scorer = load_reward(world / "merged").model
        models = ppo_models(policy.model, settings())
        return Roles(policy, models, reward_function(scorer, max_tokens_per_forward=60), scorer)
    shared = attach_reward(world / "adapter", policy)
    scores = reward_function(shared.model, max_tokens_per_forward=60, scope=shared.active)
    return Roles(policy, ppo_models(policy.model, settings(), backbone=shared.backbone), scores, shared.model)


def run(at: Roles, folder: Path, *, resume: bool = False, iterations: int = 2) -> dict[str, Tensor]:
    engine = LocalEngine(at.policy.model, [language.STOP])
    chosen = settings(iterations=iterations, save_every=2)
    options = {"engine": engine, "reward": at.reward, "settings": chosen, "folder": folder, "resume": resume}
    train_ppo(at.models, prompts(), **options)  # type: ignore[arg-type]
    return {name: p.detach().clone() for name, p in at.models.trained().named_parameters() if p.requires_grad}


@LAYOUTS
def test_one_backbone_trains_as_separate_models_do(adapted: bool, world: Path, tmp_path: Path) -> None:
    separate, shared = (roles(world, adapted=adapted, one=one) for one in (False, True))
    engine = LocalEngine(separate.policy.model, [language.STOP])
    groups = prompts(12)
    rollouts = engine.generate(
        [g.prompt_ids for g in groups], num_completions=2, max_new_tokens=6, temperature=1.0, seed=0
    )
    rewards = [torch.tensor(list(at.reward(groups, rollouts))) for at in (separate, shared)]
    torch.testing.assert_close(rewards[1], rewards[0], atol=1e-4, rtol=0)
    assert rewards[0].std() > 0.03
    trained = [run(at, tmp_path / name) for at, name in ((separate, "separate"), (shared, "shared"))]
    assert trained[0].keys() == trained[1].keys()
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-4, rtol=0, msg=name)
    # The policies have moved by now, the references have not.
    loose = settings(max_sampler_gap=100.0)
    seen = [score_rollouts(at.models, groups, rollouts, loose) for at in (separate, shared)]
    torch.testing.assert_close(seen[1].ref_logps_BT, seen[0].ref_logps_BT, atol=1e-4, rtol=0)
    assert (seen[1].old_logps_BT - seen[1].ref_logps_BT).abs().max() > 1e-2


@LAYOUTS
def test_one_backbone_resumes_bit_equal(adapted: bool, world: Path, tmp_path: Path) -> None:
    whole, first, after = (roles(world, adapted=adapted, one=True) for _ in range(3))
    expected = run(whole, tmp_path / "whole", iterations=4)
    assert toy.equal(run(first, tmp_path / "cut", iterations=4), expected), "a run is a function of its seed"
    for path in sorted((tmp_path / "cut" / "checkpoints").iterdir())[1:]:
        path.rename(tmp_path / path.name)
    assert toy.equal(run(after, tmp_path / "cut", iterations=4, resume=True), expected)


def num_bytes(modules: Iterable[nn.Module | None]) -> int:
    """Bytes of all parameters, each counted once."""
    held = {id(p): p for module in modules if module is not None for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in held.values())


@LAYOUTS
def test_one_backbone_holds_fewer_bytes(adapted: bool, world: Path) -> None:
    separate, shared = (
        num_bytes((at.models.trained(), at.models.frozen, at.scorer))
        for at in (roles(world, adapted=adapted, one=False), roles(world, adapted=adapted, one=True))
    )
    base = num_bytes([load_causal(world / "base").model])
    # Beside the backbone: value head, score head, and the matrices of one or two sets of adapters.
    copies = 1 if adapted else 2
    assert shared < copies * base + 0.25 * base
    assert shared < separate - 0.4 * base
