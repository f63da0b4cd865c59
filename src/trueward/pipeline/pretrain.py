"""Pretraining: a small Llama from scratch on running text and chats, with its own tokenizer and template."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueward.core.errors import ConfigError, DataError
from trueward.core.hashing import hash_file, hash_json, short
from trueward.core.seed import generator
from trueward.data.bpe import train_bpe
from trueward.data.chat import Dropped, TokenGroup, template_hash, tokenise_many
from trueward.data.dataset import DatasetInfo, write_dataset
from trueward.data.importers import import_file
from trueward.data.records import Comparison, Demonstration, Message, Meta, Text
from trueward.data.windows import text_windows
from trueward.models.backend import prepare_cpu
from trueward.models.checkpoint import model_card, model_hash, save_causal
from trueward.models.packing import count_tokens
from trueward.models.scratch import new_llama
from trueward.pipeline.workspace import Workspace
from trueward.trainers.sft import evaluate_sft, train_sft

__all__ = ["pretrain"]

# Texts are read in pieces, so that the test share is of pieces and no book has to fit into memory as tokens.
_PIECE_CHARACTERS = 20_000
_TEST_SHARE = 0.02


def _paths(value: tuple[Path, ...] | Path | None) -> list[Path]:
    return [] if value is None else [value] if isinstance(value, Path) else list(value)


def _texts(workspace: Workspace) -> list[str]:
    """The running text in pieces, CRLF as LF, up to the recipe's limit of characters."""
    section = workspace.recipe.pretrain
    paths = _paths(section.text)
    if not paths:
        raise ConfigError("pretrain.text is missing", remedy="name a file of running text: pretrain.text=...")
    left = section.max_characters
    pieces: list[str] = []
    for path in paths:
        rows = import_file(
            path, quarantine=workspace.out / "data" / "quarantine" / f"{path.name}.jsonl", kind="text"
        )
        for record in rows:
            assert isinstance(record, Text), "the import was asked for texts"
            text = record.text.replace("\r\n", "\n")
            text = text if left is None else text[:left]
            left = None if left is None else left - len(text)
            pieces += [text[i : i + _PIECE_CHARACTERS] for i in range(0, len(text), _PIECE_CHARACTERS)]
            if left == 0:
                return [piece for piece in pieces if piece.strip()]
    return [piece for piece in pieces if piece.strip()]


def _chats(workspace: Workspace) -> list[Demonstration]:
    """Whole chats of the training split: the test prompts of later stages are never read."""
    section = workspace.recipe.data
    records: list[Demonstration] = []
    for path in _paths(section.path):
        quarantine = workspace.out / "data" / "quarantine" / f"{path.name}.jsonl"
        rows = import_file(
            path,
            quarantine=quarantine,
            format=section.format,
            meta=Meta(source=path.name),
            max_bad=section.max_bad,
        )
        info = DatasetInfo(
            licence=section.licence,
            fractions={"train": 1 - section.test_share, "test": section.test_share},
            seed=workspace.recipe.seed,
        )
        version = write_dataset(
            workspace.out / "data", f"chats-{len(records)}", rows, imports=[rows], info=info
        )
        for record in version.records("train"):
            if isinstance(record, Comparison):
                messages = (*record.prompt, Message("assistant", record.chosen))
                records.append(Demonstration(id=record.id, messages=messages, meta=record.meta))
            elif isinstance(record, Demonstration):
                records.append(record)
    return records


def _chat_groups(
    tokenizer: PreTrainedTokenizerBase, chats: Sequence[Demonstration], *, max_tokens: int
) -> tuple[list[TokenGroup], int]:
    items = list(tokenise_many(tokenizer, chats, max_tokens=max_tokens, train_on="all"))
    groups = [item for item in items if not isinstance(item, Dropped)]
    return groups, len(items) - len(groups)


def _repeated(groups: Sequence[TokenGroup], tokens: float) -> Iterator[TokenGroup]:
    """The groups again and again until they hold `tokens` tokens."""
    held = 0
    for turn in range(10_000):
        for group in groups:
            if held >= tokens:
                return
            held += count_tokens(group)
            yield TokenGroup(group.prompt_ids, group.completions, f"{group.id}#{turn}")


def _split(pieces: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    held = generator(seed, "held-out text").random(len(pieces)) < _TEST_SHARE
    held[int(np.argmin(held))] = False
    if not held.any():
        held[-1] = True
    train = [p for p, out in zip(pieces, held, strict=True) if not out]
    return train, [p for p, out in zip(pieces, held, strict=True) if out]


def pretrain(workspace: Workspace) -> None:
    """Tokenizer, model and training; the result is `<out>/pretrain/model`, ready for `model.path`.

    Raises:
        DataError: too little text.
    """
    prepare_cpu()
    recipe = workspace.recipe
    section = recipe.pretrain
    inputs = {str(p): hash_file(p) for p in (*_paths(section.text), *_paths(recipe.data.path)) if p.is_file()}
    parents = {"data": hash_json(sorted(inputs.values())), "charter": workspace.charter.hash}
    begun = workspace.begin("pretrain", config={"section": section.model_dump(mode="json")}, parents=parents)
    if begun.done:
        return
    train_texts, test_texts = _split(_texts(workspace), workspace.seed("pretrain"))
    if not train_texts:
        raise DataError(
            "there is too little text to pretrain on", value=len(train_texts), expected="two pieces or more"
        )
    chats = _chats(workspace)
    tokenizer = _tokenizer(workspace, begun.folder.path / "tokenizer", train_texts, chats)
    windows = list(text_windows(tokenizer, train_texts, window_tokens=section.window_tokens))
    held = list(text_windows(tokenizer, test_texts, window_tokens=section.window_tokens))
    chat_groups, dropped = _chat_groups(tokenizer, chats, max_tokens=recipe.data.max_tokens)
    wanted = sum(map(count_tokens, windows)) * section.chat_share / (1 - section.chat_share)
    groups = [*windows, *(_repeated(chat_groups, wanted) if chat_groups else ())]
    workspace.say(
        f"pretraining on {sum(map(count_tokens, groups)):,} tokens: {len(windows):,} windows of text and "
        f"{len(groups) - len(windows):,} chats ({len(chat_groups):,} different ones, "
        f"{dropped:,} too long and left out)"
    )
    shape = section.shape.model_copy(update={"seed": workspace.seed("pretrain", "init") % 2**31})
    model = new_llama(tokenizer, shape)
    settings = section.train.model_copy(update={"seed": workspace.seed("pretrain", section.train.seed)})
    total = settings.steps or max(1, round((settings.epochs or 1) * len(groups) / settings.batch_size))
    with workspace.bar("pretraining", total) as bar:
        result = train_sft(
            model, groups, settings=settings, folder=begun.folder.path, bar=bar, resume=begun.resume
        )
    workspace.check_finished(begun.folder, result)
    figures = evaluate_sft(model, held, max_tokens_per_forward=settings.max_tokens_per_forward)
    characters = sum(map(len, test_texts))
    per_character = figures.loss * figures.num_tokens / characters / float(np.log(2))
    text = (
        f"A {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M-parameter Llama trained from scratch on "
        f"{len(inputs)} files. Held-out: {figures.loss:.3f} nats a token, "
        f"{per_character:.3f} bits a character."
    )
    card = model_card(f"{recipe.name}: pretrained", text=text, metadata={"tags": ["trueward", "pretrained"]})
    save_causal(model, tokenizer, begun.folder.model, card, replace=begun.resume)
    workspace.say(text)
    workspace.finish(
        begun.folder,
        results={
            "seconds": result.seconds,
            "steps": result.step,
            "warnings": list(result.warnings),
            "held_out": {
                "loss": figures.loss,
                "bits_per_character": per_character,
                "tokens": figures.num_tokens,
            },
            "template": short(template_hash(tokenizer)),
            "inputs": inputs,
        },
        model=model_hash(begun.folder.model),
    )
    workspace.say(f"model: {begun.folder.model}")


def _tokenizer(
    workspace: Workspace, folder: Path, texts: Sequence[str], chats: Sequence[Demonstration]
) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        said = (message.content for chat in chats for message in chat.messages)
        size = train_bpe(
            chain(texts, said),
            vocab_size=workspace.recipe.pretrain.vocab_size,
            folder=folder,
            max_positions=workspace.recipe.pretrain.shape.max_positions,
        )
        workspace.say(f"tokenizer: {size:,} tokens")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer
