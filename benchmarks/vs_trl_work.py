"""What both sides of the comparison with TRL work on: one model folder, one tokenizer, the same pairs in the
same order.

Nothing is measured here. The pairs are real (HH-RLHF); the model is random unless a folder is given: speed
and memory do not depend on what the weights say.
"""

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import PeftModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trueward.core.errors import DataError
from trueward.core.files import read_jsonl, write_jsonl
from trueward.core.seed import generator
from trueward.data.chat import Completion, TokenGroup, tokenise_comparison
from trueward.data.importers import import_file
from trueward.data.records import Comparison
from trueward.models import load_causal, reward_from_causal
from trueward.trainers.sampling import sampler_of
from trueward.trainers.settings import Precision, TrainSettings

__all__ = [
    "METHODS",
    "SIZES",
    "Job",
    "Method",
    "Row",
    "Size",
    "batch_of",
    "batches_of",
    "data_file",
    "expected_ids",
    "gpt2_tokenizer",
    "groups_of",
    "make_model",
    "read_pairs",
    "real_tokens",
    "settings_of",
    "shared",
    "write_pairs",
]

Method = Literal["sft", "reward", "dpo", "orpo", "kto", "grpo"]
METHODS: tuple[Method, ...] = ("sft", "reward", "dpo", "orpo", "kto", "grpo")

_HH = Path("data/anthropic-hh-rlhf/harmless-base-test.jsonl.gz")
_GPT2 = Path("data/gpt2-tokenizer")
_SPECIAL = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


class Size(NamedTuple):
    """A random Llama with tied embeddings. vocab_size: None takes all of GPT-2's vocabulary."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab_size: int | None = None

    @classmethod
    def of_width(cls, width: int, layers: int) -> "Size":
        """The proportions of SmolLM: heads of 64, a third as many for keys and values."""
        return cls(width, layers, width // 64, max(1, width // 192), width * 8 // 3)


SIZES: Mapping[str, Size] = {
    "135M": Size(576, 30, 9, 3, 1536, 49_152),
    "small": Size(256, 4, 4, 2, 704),
    "tiny": Size(64, 2, 1, 1, 128, 1024),
}
"""`135M` is SmolLM's shape; `small` has GPT-2's whole vocabulary; `tiny` is for trying the programs out."""

Row = dict[str, Any]
"""prompt, chosen, rejected as messages; prompt_ids, chosen_ids, rejected_ids as lists of ids; desirable: for
KTO, which takes one answer of each pair: the chosen one as desirable, or the rejected one as not."""


class Job(NamedTuple):
    """One run of one side, as its process gets it.

    checkpointing: recompute activations in the backward (TRL's default is True, Trueward's False).
    """

    method: Method
    work: str
    steps: int
    batch: int
    max_length: int
    lr: float
    threads: int
    checkpointing: bool
    forward_tokens: int | None = None
    """Largest forward of Trueward, tokens; None takes the whole batch at once, as TRL does."""
    precision: Precision = "float32"
    """Arithmetic of the matrix products; weights and optimizer are float32 on both sides."""
    first_moment: Precision = "float32"
    """In which Trueward keeps AdamW's first moment; TRL's is float32."""
    completions: int = 8
    """GRPO: completions of a prompt."""
    new_tokens: int = 64
    """GRPO: longest completion."""


def shared() -> Path:
    """Folder of the public data sets."""
    return Path(os.environ.get("TRUEWARD_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def data_file(path: Path | None) -> Path:
    """The file of pairs: `path`, or HH-RLHF in the folder of public data sets.

    Raises:
        DataError: it is not there.
    """
    file = path or shared() / _HH
    if not file.is_file():
        raise DataError(
            f"there are no pairs at {file}",
            expected="a file of HH-RLHF comparisons (.jsonl or .jsonl.gz)",
            remedy="name one with --data, or set TRUEWARD_SHARED to the folder of the public data sets",
        )
    return file


def gpt2_tokenizer(folder: Path, *, vocab_size: int | None = None) -> PreTrainedTokenizerFast:
    """GPT-2's byte-level BPE with a chat template and a pad token of its own.

    Args:
        folder: holds encoder.json.gz and vocab.bpe.gz.
        vocab_size: keep only the first merges, so that the tokenizer has so many tokens; None keeps all.

    Raises:
        DataError: the files are not there.
    """
    if not (folder / "encoder.json.gz").is_file():
        raise DataError(
            f"{folder} does not hold GPT-2's tokenizer",
            expected="encoder.json.gz and vocab.bpe.gz",
            remedy="set TRUEWARD_SHARED, or give a model folder with --model",
        )
    with gzip.open(folder / "encoder.json.gz", "rt", encoding="utf-8") as stream:
        vocab: dict[str, int] = json.load(stream)
    with gzip.open(folder / "vocab.bpe.gz", "rt", encoding="utf-8") as stream:
        lines = stream.read().splitlines()[1:]
    merges = [(first, second) for first, second in (line.split() for line in lines if line)]
    if vocab_size is not None:
        # Ids are in the order of the merges, the bytes first.
        merges = merges[: vocab_size - len(_SPECIAL) - 256]
        vocab = {token: index for token, index in vocab.items() if index < 256 + len(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # untyped in transformers
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(folder: Path, *, path: str | None, size: Size, seed: int) -> int:
    """Write `causal/` and `reward/` into `folder`: the same backbone under a vocabulary head and a score.

    Args:
        path: a model folder to take; None makes a random Llama of `size` over GPT-2's vocabulary.

    Returns:
        Number of parameters of the causal model.
    """
    if path is None:
        tokenizer: PreTrainedTokenizerBase = gpt2_tokenizer(shared() / _GPT2, vocab_size=size.vocab_size)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.width,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            dtype="float32",
        )
        model: PreTrainedModel | PeftModel = LlamaForCausalLM(config)
    else:
        loaded = load_causal(path, dtype="float32")
        model, tokenizer = loaded.model, loaded.tokenizer
    both: dict[str, PreTrainedModel | PeftModel] = {
        "causal": model,
        "reward": reward_from_causal(model, tokenizer, seed=seed),
    }
    for name, made in both.items():
        made.save_pretrained(str(folder / name))
        tokenizer.save_pretrained(folder / name)
    return sum(parameter.numel() for parameter in model.parameters())


def write_pairs(folder: Path, file: Path, *, count: int, max_length: int, seed: int) -> None:
    """Draw `count` pairs that fit and write them to `pairs.jsonl`, as messages and as token ids.

    Args:
        max_length: longest prompt plus completion, in tokens; longer pairs are not drawn, so that neither
            side has to truncate.

    Raises:
        DataError: the file holds too few.
    """
    tokenizer = load_causal(folder / "causal", dtype="float32").tokenizer
    records = list(import_file(file, quarantine=folder / "bad.jsonl", kind="comparison"))
    rows: list[dict[str, object]] = []
    for index in generator(seed, "pairs").permutation(len(records)):
        record = records[int(index)]
        assert isinstance(record, Comparison), "asked for as comparisons"
        group = tokenise_comparison(tokenizer, record, max_tokens=max_length)
        if isinstance(group, TokenGroup):
            rows.append(
                {
                    "prompt": [{"role": m.role, "content": m.content} for m in record.prompt],
                    "chosen": [{"role": "assistant", "content": record.chosen}],
                    "rejected": [{"role": "assistant", "content": record.rejected}],
                    "prompt_ids": group.prompt_ids,
                    "chosen_ids": group.completions[0].ids,
                    "rejected_ids": group.completions[1].ids,
                }
            )
        if len(rows) == count:
            break
    if len(rows) < count:
        raise DataError(
            f"{file} holds too few pairs of at most {max_length} tokens", value=len(rows), expected=str(count)
        )
    write_jsonl(folder / "pairs.jsonl", rows)


def batch_of(method: str, batch: int) -> int:
    """Prompts of a step, where the other methods take `batch` pairs: GRPO draws 8 completions of each."""
    return max(1, batch // 4) if method == "grpo" else batch


def settings_of(job: Job) -> TrainSettings:
    """Settings of both sides: constant learning rate, AdamW without decay, gradients clipped at 1."""
    return TrainSettings(
        lr=job.lr,
        batch_size=job.batch,
        steps=job.steps,
        max_tokens_per_forward=job.forward_tokens or 2 * job.batch * job.max_length,
        schedule="constant",
        warmup_ratio=0.0,
        activation_checkpointing=job.checkpointing,
        precision=job.precision,
        first_moment=job.first_moment,
        save_every=job.steps + 1,
        seed=0,
    )


def batches_of(job: Job) -> list[list[int]]:
    """Indices of the pairs of every step, in Trueward's order, which TRL is given too."""
    sampler = sampler_of(settings_of(job), job.steps * job.batch)
    return [sampler.batch(step) for step in range(job.steps)]


def read_pairs(job: Job) -> list[Row]:
    """The rows of `pairs.jsonl` that the job's steps use; every second one is desirable."""
    rows = islice(read_jsonl(Path(job.work) / "pairs.jsonl"), job.steps * job.batch)
    return [{**row, "desirable": number % 2 == 0} for number, row in enumerate(rows)]


def groups_of(job: Job) -> list[TokenGroup]:
    """The pairs as token groups; for SFT with the chosen answer only, for KTO with one of the two, for GRPO
    with none."""
    return [
        TokenGroup(
            tuple(row["prompt_ids"]),
            tuple(
                Completion(tuple(row[name]), (True,) * len(row[name])) for name in _answers(job.method, row)
            ),
            id=str(number),
        )
        for number, row in enumerate(read_pairs(job))
    ]


def _answers(method: str, row: Row) -> tuple[str, ...]:
    """Names of the answers of a row that a method takes."""
    if method == "grpo":
        return ()
    if method == "kto":
        return ("chosen_ids" if row["desirable"] else "rejected_ids",)
    return ("chosen_ids",) if method == "sft" else ("chosen_ids", "rejected_ids")


def real_tokens(groups: Sequence[TokenGroup]) -> int:
    """Tokens of the sequences without padding: prompt and completion, once for every completion. The same for
    both sides, however often a side really computes a prompt.
    """
    return sum(len(g.prompt_ids) + len(c.ids) for g in groups for c in g.completions)


def expected_ids(method: str, row: Row) -> dict[str, list[int]]:
    """The columns that TRL's trainers should hold for a row."""
    prompt, chosen, rejected = row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
    if method == "sft":
        return {"input_ids": prompt + chosen, "labels": [-100] * len(prompt) + chosen}
    if method == "reward":
        return {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
    if method == "orpo":
        return {
            "prompt_input_ids": prompt,
            "chosen_input_ids": prompt + chosen,
            "rejected_input_ids": prompt + rejected,
            "chosen_labels": [-100] * len(prompt) + chosen,
        }
    if method == "kto":
        (answer,) = _answers(method, row)
        return {"prompt_ids": prompt, "completion_ids": row[answer]}
    return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
