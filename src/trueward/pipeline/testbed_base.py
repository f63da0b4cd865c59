"""The testbed's base model: where it lies in the package, and how it is trained again.

What ships was made by `build_base` with its defaults; the folder's `trueward_base.json` says so, with hashes.
"""

from collections.abc import Iterable, Iterator
from itertools import islice, tee
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueward.core.errors import ModelError, StorageError
from trueward.core.files import write_json
from trueward.core.hashing import canonical_json, hash_lines
from trueward.core.progress import stage_bar
from trueward.core.run import code_version, versions
from trueward.data.chat import Completion, TokenGroup, tokenise_prompts
from trueward.models.backend import prepare_cpu
from trueward.models.checkpoint import model_card, model_hash, save_causal
from trueward.models.scratch import ScratchSettings, new_llama
from trueward.testbed import World, declarations, make_world, to_prompt, web_chats, write_tokenizer
from trueward.trainers.settings import TrainSettings
from trueward.trainers.sft import train_sft

__all__ = [
    "BASE_SHAPE",
    "BASE_TRAIN",
    "HASHED_CHATS",
    "base_corpus",
    "build_base",
    "corpus_hash",
    "shipped_base",
]

NUM_CHATS = 120_000
REPLIES = 3
NUM_DECLARATIONS = 80_000
CORPUS_SEED = 1
# Chats from the start of the corpus whose hash the manifest holds: enough to see that it changed.
HASHED_CHATS = 500
BASE_SHAPE = ScratchSettings(
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    intermediate_size=352,
    max_positions=256,
    seed=0,
)
BASE_TRAIN = TrainSettings(
    lr=3e-3,
    batch_size=64,
    steps=4000,
    warmup_ratio=0.02,
    adam_beta2=0.99,
    weight_decay=0.01,
    schedule="cosine",
    save_every=1000,
    log_every=50,
)


def shipped_base() -> Path:
    """Folder of the base model in the package.

    Raises:
        ModelError: the package was installed without it.
    """
    folder = Path(__file__).parent.parent / "testbed" / "base"
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            "the testbed's base model is not in the package",
            remedy=f"make it with `trueward testbed build {folder}`",
        )
    return folder


def corpus_hash(groups: Iterable[TokenGroup]) -> str:
    """Hash of token ids, by which the manifest of the base model tells what it read."""
    return hash_lines(canonical_json([g.prompt_ids, [c.ids for c in g.completions]]) for g in groups)


def base_corpus(world: World, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenGroup]:
    """What the base model reads: true statements, and chats with three replies of mixed quality each.

    The replies to one prompt share it, so the prompt is computed once.
    """
    eos, bos = int(tokenizer.eos_token_id), int(tokenizer.bos_token_id)

    def completion(text: str) -> Completion:
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], eos)
        return Completion(ids, (True,) * len(ids))

    asked, answered = tee(web_chats(world, NUM_CHATS, REPLIES, CORPUS_SEED))
    for prompt, chat in zip(
        tokenise_prompts(tokenizer, (to_prompt(c.task) for c in asked)), answered, strict=True
    ):
        assert isinstance(prompt, TokenGroup), f"the testbed's own prompt does not tokenise: {prompt}"
        yield TokenGroup(prompt.prompt_ids, tuple(completion(reply) for reply in chat.replies), prompt.id)
    for index, text in enumerate(declarations(world, NUM_DECLARATIONS, CORPUS_SEED)):
        yield TokenGroup((bos,), (completion(text),), f"text-{index}")


def build_base(out: Path, *, steps: int | None = None) -> None:
    """Train the base model into the new folder `out`.

    Args:
        steps: optimizer steps; None is the number that the shipped model had.

    Raises:
        StorageError: `out` exists.
    """
    if out.exists():
        raise StorageError(f"{out} exists already", remedy="choose another folder, or move the old one away")
    prepare_cpu()
    world, work = make_world(), out.with_name(f".{out.name}.run")
    write_tokenizer(world, work / "tokenizer")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        work / "tokenizer", local_files_only=True
    )
    with stage_bar("corpus", NUM_CHATS + NUM_DECLARATIONS) as bar:
        groups = []
        stream = base_corpus(world, tokenizer)
        while chunk := list(islice(stream, 2000)):
            groups += chunk
            bar.advance(len(chunk))
    model = new_llama(tokenizer, BASE_SHAPE)
    settings = BASE_TRAIN.model_copy(update={"steps": steps} if steps else {})
    with stage_bar("base model", settings.steps or 0) as bar:
        result = train_sft(model, groups, settings=settings, folder=work / "run", bar=bar, resume=True)
    if result.interrupted:
        raise StorageError(f"stopped after step {result.step}", remedy="run the same command again to go on")
    text = (
        "The base model of Trueward's testbed: it has read true statements about an invented world and chats "
        "of mixed quality. It is no assistant, and knows nothing of the real world."
    )
    card = model_card(
        "Testbed base model", text=text, metadata={"license": "apache-2.0", "tags": ["trueward"]}
    )
    with torch.no_grad():
        save_causal(model, tokenizer, out, card)
    write_json(
        out / "trueward_base.json",
        {
            "schema": "trueward.base/1",
            "command": f"trueward testbed build {out.name}",
            "corpus": {
                "chats": NUM_CHATS,
                "replies": REPLIES,
                "declarations": NUM_DECLARATIONS,
                "seed": CORPUS_SEED,
                "first_chats": corpus_hash(groups[:HASHED_CHATS]),
            },
            "shape": BASE_SHAPE.model_dump(mode="json"),
            "train": settings.model_dump(mode="json"),
            "last": {key: value for key, value in result.metrics_last.items() if key in ("loss", "tokens")},
            "model_hash": model_hash(out),
            "code": code_version()["source"],
            "versions": versions(),
        },
    )
