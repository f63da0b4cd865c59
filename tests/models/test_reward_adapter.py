"""A reward model of adapters: PEFT and transformers alone give its scores, and a backbone takes it beside
others."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tests.models.rows import MIXED, padded, plain_rows, random_groups
from trueward.core.errors import ModelError
from trueward.models import (
    LoadedModel,
    LoraSettings,
    apply_lora,
    attach_reward,
    load_causal,
    load_reward,
    pack,
    reference,
    reward_from_causal,
    save_causal,
    save_reward,
    save_reward_adapter,
    score_completions,
    sequence_rewards,
)
from trueward.models.tiny import KINDS, Kind, tiny_model, tiny_tokenizer

GROUPS = random_groups(4, MIXED)
LORA = LoraSettings(r=4)


def moved(model: PeftModel, seed: int) -> PeftModel:
    """Adapters and head as if trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def world(folder: Path, kind: Kind = "llama", **lora: bool) -> Tensor:
    """A base model in `base`, a reward model on it in `adapter` and `merged`; the scores of GROUPS."""
    tokenizer = tiny_tokenizer()
    save_causal(tiny_model(kind, 1), tokenizer, folder / "base", "base")
    base = load_causal(folder / "base")
    fresh = reward_from_causal(base.model, tokenizer, seed=3)
    model = moved(apply_lora(fresh, LORA.model_copy(update=lora), seed=5), 0)
    with torch.no_grad():
        scores_S = sequence_rewards(model, pack(GROUPS))
    save_reward_adapter(model, tokenizer, folder / "adapter", base_hash=base.hash)
    save_reward(model.merge_and_unload(), tokenizer, folder / "merged")
    return scores_S


def policy(folder: Path, adapted: bool) -> LoadedModel:
    loaded = load_causal(folder / "base", lora=LoraSettings(r=2) if adapted else None, seed=7)
    if isinstance(loaded.model, PeftModel):
        moved(loaded.model, 1)
    return loaded


@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_transformers_alone_give_the_same_scores(kind: Kind, tmp_path: Path) -> None:
    scores_S = world(tmp_path, kind)
    ids, mask = padded([row for row, _ in plain_rows(GROUPS)])
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    # What a user of PEFT does: a classifier on the base, its head at random, then the adapters with theirs.
    classifier = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=1, pad_token_id=0
    )
    adapted = PeftModel.from_pretrained(classifier, tmp_path / "adapter").eval()
    with torch.no_grad():
        for model in (merged, adapted):
            got = model(input_ids=ids, attention_mask=mask).logits[:, 0]
            torch.testing.assert_close(got, scores_S, atol=1e-4, rtol=1e-4)
    assert scores_S.std() > 1e-2
    load_reward(tmp_path / "merged")


@pytest.mark.parametrize("adapted", [True, False], ids=["policy-lora", "policy-full"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_takes_the_reward_beside_its_own_role(kind: Kind, adapted: bool, tmp_path: Path) -> None:
    scores_S = world(tmp_path, kind)
    loaded, packed = policy(tmp_path, adapted), pack(GROUPS)
    base = load_causal(tmp_path / "base").model
    with torch.no_grad():
        before_N = score_completions(loaded.model, packed).logps_N
        base_N = score_completions(base, packed).logps_N
    trained = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    shared = attach_reward(tmp_path / "adapter", loaded)
    for _ in range(2):
        with torch.no_grad():
            with shared.active():
                got_S = sequence_rewards(shared.model, packed)
            with reference(shared.backbone) as ref:
                ref_N = score_completions(ref, packed).logps_N
            after_N = score_completions(loaded.model, packed).logps_N
        torch.testing.assert_close(got_S, scores_S, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ref_N, base_N, atol=1e-6, rtol=0)
        assert torch.equal(after_N, before_N)
        assert [name for name, p in loaded.model.named_parameters() if p.requires_grad] == trained
    assert (shared.backbone is loaded.model) == adapted
    own = {id(p) for p in shared.backbone.parameters()}
    assert {id(p) for p in shared.model.parameters()} - own == {
        id(shared.model.get_parameter("score.weight"))
    }


def test_attaching_draws_no_random_numbers_and_saves_with_nobody(tmp_path: Path) -> None:
    world(tmp_path)
    loaded = policy(tmp_path, adapted=True)
    assert isinstance(loaded.model, PeftModel)
    save_causal(loaded.model, loaded.tokenizer, tmp_path / "before", "policy")
    state = torch.random.get_rng_state()
    attach_reward(tmp_path / "adapter", loaded)
    assert torch.equal(state, torch.random.get_rng_state())
    save_causal(loaded.model, loaded.tokenizer, tmp_path / "after", "policy")
    before, after = (
        {
            p.relative_to(tmp_path / name).as_posix(): p.read_bytes()
            for p in (tmp_path / name).rglob("*.safetensors")
        }
        for name in ("before", "after")
    )
    assert before == after and before.keys() == {"adapter_model.safetensors"}
    with torch.no_grad():
        expected_N = score_completions(loaded.model, pack(GROUPS)).logps_N
        merged = loaded.model.merge_and_unload()
        assert isinstance(merged, PreTrainedModel)
        torch.testing.assert_close(
            score_completions(merged, pack(GROUPS)).logps_N, expected_N, atol=1e-4, rtol=0
        )


def test_another_base_is_refused(tmp_path: Path) -> None:
    world(tmp_path)
    save_causal(tiny_model("llama", 2), tiny_tokenizer(), tmp_path / "base", "other", replace=True)
    with pytest.raises(ModelError, match="trained on another model"):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))


def test_adapters_that_also_train_embeddings_cannot_share(tmp_path: Path) -> None:
    world(tmp_path, train_embeddings=True)
    load_reward(tmp_path / "merged")
    with pytest.raises(ModelError, match=r"cannot be shared.*embed_tokens.*train_embeddings=false"):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))


@pytest.mark.parametrize(
    ("key", "message"),
    [("score.weight", "no score head"), ("layers.1.self_attn.q_proj.lora_B", "other matrices")],
    ids=["head", "matrix"],
)
def test_a_missing_tensor_is_refused(key: str, message: str, tmp_path: Path) -> None:
    world(tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if key not in name}, file)
    with pytest.raises(ModelError, match=message):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))


def test_a_changed_tensor_is_found_by_the_probes(tmp_path: Path) -> None:
    world(tmp_path)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_B" in name)
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, file)
    with pytest.raises(ModelError, match="stored score"):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))


def test_a_folder_without_its_base_is_refused(tmp_path: Path) -> None:
    world(tmp_path)
    (tmp_path / "adapter" / "trueward_base.json").write_text(json.dumps({"schema": "other", "hash": ""}))
    with pytest.raises(ModelError, match="another form"):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))
    (tmp_path / "adapter" / "trueward_base.json").unlink()
    with pytest.raises(ModelError, match="does not say on which model"):
        attach_reward(tmp_path / "adapter", policy(tmp_path, adapted=True))


def test_adapters_are_merged_before_a_reward_model_is_saved_whole(tmp_path: Path) -> None:
    fresh = reward_from_causal(tiny_model("llama", 1), tiny_tokenizer(), seed=3)
    with pytest.raises(ModelError, match="saved as a whole"):
        save_reward(apply_lora(fresh, LORA, seed=5), tiny_tokenizer(), tmp_path / "reward")
