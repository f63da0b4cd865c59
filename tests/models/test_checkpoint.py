"""What is saved is what transformers alone loads; what is missing, changed or unsafe is refused."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.models.rows import MIXED, padded, plain_rows, random_groups
from trueward.core.errors import ModelError, StorageError
from trueward.models.checkpoint import PROBES_FILE, save_causal, save_reward
from trueward.models.heads import reward_from_causal
from trueward.models.load import load_causal, load_reward
from trueward.models.lora import LoraSettings, apply_lora
from trueward.models.packing import pack
from trueward.models.scoring import reference, score_completions, sequence_rewards
from trueward.models.tiny import KINDS, Kind, tiny_model, tiny_tokenizer


@pytest.fixture
def causal_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "causal"
    save_causal(tiny_model("llama", 1), tiny_tokenizer(), folder, "A test model.")
    return folder


@pytest.fixture
def reward_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "reward"
    save_reward(
        reward_from_causal(tiny_model("llama", 1), tiny_tokenizer(), seed=3), tiny_tokenizer(), folder
    )
    return folder


def test_a_causal_folder_comes_back_the_same(causal_folder: Path) -> None:
    packed = pack(random_groups(0, MIXED))
    loaded = load_causal(causal_folder)
    expected = score_completions(tiny_model("llama", 1), packed).logps_N
    assert torch.equal(score_completions(loaded.model, packed).logps_N, expected)
    assert loaded.tokenizer.chat_template == tiny_tokenizer().chat_template
    assert len(loaded.hash) == 64
    assert loaded.hash == load_causal(causal_folder).hash
    assert (causal_folder / "README.md").read_text().startswith("---\n")
    AutoModelForCausalLM.from_pretrained(causal_folder)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_gives_the_same_rewards(kind: Kind, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_reward(reward_from_causal(tiny_model(kind, 2), tokenizer, seed=3), tokenizer, tmp_path / "reward")
    groups = random_groups(4, MIXED)
    with torch.no_grad():
        rewards = sequence_rewards(load_reward(tmp_path / "reward").model, pack(groups))
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
        ids, mask = padded([row for row, _ in plain_rows(groups)], pad=other.config.pad_token_id)
        expected = other(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert other.config.num_labels == 1
    torch.testing.assert_close(rewards, expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 1e-3
    assert AutoTokenizer.from_pretrained(tmp_path / "reward").chat_template


def test_a_reward_head_that_was_never_trained_is_refused(causal_folder: Path) -> None:
    with pytest.raises(ModelError, match="no reward head"):
        load_reward(causal_folder)


def test_a_changed_weight_is_found_by_the_probes(reward_folder: Path) -> None:
    file = reward_folder / "model.safetensors"
    weights = load_file(file)
    weights["score.weight"] = weights["score.weight"] * 1.01
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="stored score"):
        load_reward(reward_folder)


def test_probes_are_required_and_can_be_waived(reward_folder: Path) -> None:
    record = json.loads((reward_folder / PROBES_FILE).read_text())
    assert len(record["probes"]) == 8
    (reward_folder / PROBES_FILE).unlink()
    with pytest.raises(ModelError, match="probe scores"):
        load_reward(reward_folder)
    load_reward(reward_folder, require_probes=False)


def test_a_missing_weight_is_refused(causal_folder: Path) -> None:
    file = causal_folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="made up at random"):
        load_causal(causal_folder)


def test_pickles_are_refused(causal_folder: Path) -> None:
    (causal_folder / "model.safetensors").rename(causal_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        load_causal(causal_folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [("tokenizer*", "no tokenizer"), ("chat_template*", "no chat template"), ("config.json", "config.json")],
    ids=["tokenizer", "template", "config"],
)
def test_an_incomplete_folder_is_refused(causal_folder: Path, gone: str, message: str) -> None:
    for path in causal_folder.glob(gone):
        path.unlink()
    with pytest.raises(ModelError, match=message):
        load_causal(causal_folder)


def test_a_folder_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no model folder"):
        load_causal("./nothing/here")


def test_pad_that_is_also_the_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ModelError, match="pad token of its own"):
        reward_from_causal(tiny_model("llama"), tokenizer, seed=0)


def test_saving_never_harms_what_is_there(causal_folder: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in causal_folder.iterdir())
    with pytest.raises(StorageError, match="exists already"):
        save_causal(tiny_model("llama", 9), tiny_tokenizer(), causal_folder, "other")
    assert sorted((path.name, path.read_bytes()) for path in causal_folder.iterdir()) == before
    save_causal(tiny_model("llama", 9), tiny_tokenizer(), causal_folder, "other", replace=True)
    assert [path.name for path in causal_folder.parent.iterdir()] == [causal_folder.name]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_adapters_are_saved_loaded_and_switched_off(kind: Kind, tmp_path: Path) -> None:
    base = tiny_model(kind, 1)
    save_causal(base, tiny_tokenizer(), tmp_path / "base", "base")
    packed = pack(random_groups(0, MIXED))
    expected_ref = score_completions(base, packed).logps_N.detach()
    loaded = load_causal(tmp_path / "base", lora=LoraSettings(r=4), seed=5)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.05)
    tuned = score_completions(loaded.model, packed).logps_N
    assert (tuned - expected_ref).abs().max() > 0.01
    tuned.sum().backward()
    assert all((p.grad is not None) == ("lora_" in n) for n, p in loaded.model.named_parameters())
    with reference(loaded.model) as frozen, torch.no_grad():
        torch.testing.assert_close(score_completions(frozen, packed).logps_N, expected_ref, atol=1e-6, rtol=0)
    save_causal(loaded.model, loaded.tokenizer, tmp_path / "adapter", "adapter")
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= names
    assert "model.safetensors" not in names
    again = load_causal(tmp_path / "adapter")
    torch.testing.assert_close(score_completions(again.model, packed).logps_N, tuned, atol=1e-6, rtol=0)
    assert again.hash != load_causal(tmp_path / "base").hash


def test_new_tokens_under_adapters_need_trained_embeddings(causal_folder: Path) -> None:
    with pytest.raises(ModelError, match="never be trained"):
        load_causal(causal_folder, lora=LoraSettings(r=2), new_tokens=1)
    loaded = load_causal(causal_folder, lora=LoraSettings(r=2, train_embeddings=True), new_tokens=1)
    groups = random_groups(0, MIXED)
    expected = score_completions(tiny_model("llama", 1), pack(groups)).logps_N
    torch.testing.assert_close(
        score_completions(loaded.model, pack(groups)).logps_N, expected, atol=1e-5, rtol=0
    )


def test_more_tokens_than_embeddings_are_refused(causal_folder: Path) -> None:
    small = tiny_model("llama", 1, vocab_size=200)
    shutil.rmtree(causal_folder)
    save_causal(small, tiny_tokenizer(), causal_folder, "small")
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        load_causal(causal_folder)


def test_adapters_that_fit_nothing_are_refused() -> None:
    with pytest.raises(ModelError, match="target_modules"):
        apply_lora(tiny_model("llama"), LoraSettings(target_modules=("nothing",)), seed=0)


def test_truncated_weights_are_refused(causal_folder: Path) -> None:
    file = causal_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="does not load"):
        load_causal(causal_folder)


def test_code_in_a_model_folder_is_not_run(causal_folder: Path, tmp_path: Path) -> None:
    config = json.loads((causal_folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (causal_folder / "config.json").write_text(json.dumps(config))
    (causal_folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="does not load"):
        load_causal(causal_folder)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_harms_nothing(causal_folder: Path) -> None:
    before = sorted((path.name, path.read_bytes()) for path in causal_folder.iterdir())
    model, tokenizer = tiny_model("llama", 9), tiny_tokenizer()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(StorageError, match="cannot write"):
            save_causal(model, tokenizer, causal_folder, "other", replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert sorted((path.name, path.read_bytes()) for path in causal_folder.iterdir()) == before
    assert [path.name for path in causal_folder.parent.iterdir()] == [causal_folder.name]
