"""Pretraining: a small Llama from scratch on running text and chats, with its own tokenizer and template."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueward.core.errors import ConfigError, DataError
from trueward.core.hashing import hash_file, hash_json, short
from trueward.core.seed import generator
from trueward.data.bpe import train_bpe
from trueward.data.chat import Dropped, TokenGroup, template_hash, tokenise_many
from trueward.data.dataset import write_dataset
from trueward.data.importers import import_file
from trueward.data.records import Demonstration, Meta, Text, kind_of
from trueward.data.windows import text_windows
from trueward.models.backend import prepare_cpu
from trueward.models.checkpoint import model_card, save_causal
from trueward.models.packing import count_tokens
from trueward.models.scratch import new_llama
from trueward.pipeline.data import dataset_info
from trueward.pipeline.held_out import sft_looks
from trueward.pipeline.inputs import data_files, renamed, short_names
from trueward.pipeline.training import settings_of, training_figures
from trueward.pipeline.workspace import Workspace
from trueward.trainers.checks import checked
from trueward.trainers.sampling import num_steps
from trueward.trainers.sft import evaluate_sft, train_sft

__all__ = ["pretrain"]

# Texts are read in pieces, so that the test share is of pieces and no book has to fit into memory as tokens.
_PIECE_CHARACTERS = 20_000
_TEST_SHARE = 0.02


class _Inputs(NamedTuple):
    """Files to read, by name."""

    texts: dict[str, Path]
    chats: dict[str, Path]

    def hashes(self) -> dict[str, str]:
        return {name: hash_file(path) for name, path in {**self.texts, **self.chats}.items()}


def _inputs(workspace: Workspace) -> _Inputs:
    texts = data_files(workspace.recipe.pretrain.text, key="pretrain.text")
    path = workspace.recipe.data.path
    if workspace.recipe.data.test_path is not None:
        raise ConfigError(
            "pretrain holds out a share of data.path and does not know data.test_path",
            remedy="leave it out here, and give data.path no file that shares prompts with it",
        )
    chats = [] if path is None else data_files(path, key="data.path")
    named = dict(zip(short_names([*texts, *chats]), [*texts, *chats], strict=True))
    return _Inputs(dict(list(named.items())[: len(texts)]), dict(list(named.items())[len(texts) :]))


def _texts(workspace: Workspace, files: Mapping[str, Path], folder: Path) -> list[str]:
    """The running text in pieces, CRLF as LF, up to the recipe's limit of characters."""
    left = workspace.recipe.pretrain.max_characters
    pieces: list[str] = []
    for name, path in files.items():
        for record in import_file(path, quarantine=folder / "quarantine" / f"{name}.jsonl"):
            if not isinstance(record, Text):
                raise DataError(
                    f"{path} holds {kind_of(record)} records, no running text",
                    expected="JSON lines with a `text` column, or a text file",
                    remedy="name chats in data.path and running text in pretrain.text",
                )
            text = record.text.replace("\r\n", "\n")
            text = text if left is None else text[:left]
            left = None if left is None else left - len(text)
            pieces += [text[i : i + _PIECE_CHARACTERS] for i in range(0, len(text), _PIECE_CHARACTERS)]
            if left == 0:
                break
    return [piece for piece in pieces if piece.strip()]


def _chats(workspace: Workspace, files: Mapping[str, Path], folder: Path) -> list[Demonstration]:
    """Whole chats of the training split.

    Stages that follow never test on them, as long as their recipe has the same seed and data.test_share: the
    split of a prompt depends on nothing else.
    """
    section = workspace.recipe.data
    records: list[Demonstration] = []
    for number, (name, path) in enumerate(files.items()):
        rows = import_file(
            path,
            quarantine=folder / "quarantine" / f"{name}.jsonl",
            format=section.format,
            kind="demonstration",
            meta=Meta(source=name, licence=section.licence),
            max_bad=section.max_bad,
        )
        info = dataset_info(workspace, test=section.test_share, licence=section.licence)
        version = write_dataset(
            folder, f"chats-{number}", renamed(rows, path, name), imports=[rows], info=info
        )
        workspace.say(f"{rows.detected}: {rows.summary()}")
        records += [record for record in version.records("train") if isinstance(record, Demonstration)]
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
        DataError: too little text, or files that hold none.
    """
    prepare_cpu()
    recipe, section = workspace.recipe, workspace.recipe.pretrain
    inputs = _inputs(workspace)
    parents = {"data": hash_json(sorted(inputs.hashes().values())), "charter": workspace.charter.hash}
    chats_as = recipe.data.model_dump(mode="json", include={"format", "max_tokens", "test_share"})
    config = {"section": section.model_dump(mode="json"), "chats": chats_as}
    begun = workspace.begin("pretrain", config=config, parents=parents)
    if begun.done:
        return
    corpus = _corpus(workspace, inputs, begun.folder.path)
    shape = section.shape.model_copy(update={"seed": workspace.seed("pretrain", "init") % 2**31})
    model = new_llama(corpus.tokenizer, shape)
    nn.Module.to(model, workspace.device)
    if corpus.chats:
        checked(model, corpus.chats, corpus.tokenizer, console=workspace.console)
    settings = settings_of(workspace, "pretrain", section.train)
    with workspace.bar("pretraining", num_steps(settings, len(corpus.groups))) as bar:
        result = train_sft(
            model,
            corpus.groups,
            settings=settings,
            folder=begun.folder.path,
            bar=bar,
            evaluate=sft_looks(corpus.held_out, settings, stage="pretrain"),
            resume=begun.resume,
        )
    workspace.check_finished(begun.folder, result)
    figures = evaluate_sft(model, corpus.held_out, max_tokens_per_forward=settings.max_tokens_per_forward)
    per_character = figures.loss * figures.num_tokens / corpus.held_out_characters / float(np.log(2))
    text = (
        f"A {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M-parameter Llama trained from scratch on "
        f"{len(inputs.hashes())} files. Held-out: {figures.loss:.3f} nats a token, "
        f"{per_character:.3f} bits a character."
    )
    readme = model_card(
        f"{recipe.name}: pretrained", text=text, metadata={"tags": ["trueward", "pretrained"]}
    )
    digest = save_causal(model, corpus.tokenizer, begun.folder.model, readme, replace=begun.resume)
    held = {"loss": figures.loss, "bits_per_character": per_character, "tokens": figures.num_tokens}
    template = short(template_hash(corpus.tokenizer))
    results = {**training_figures(result), "held_out": held, "template": template, "inputs": inputs.hashes()}
    workspace.finish(begun.folder, results=results, model=digest)
    workspace.say(text)
    workspace.say(f"model: {begun.folder.model}")


class _Corpus(NamedTuple):
    """What is trained on (`groups`: windows of text, then chats) and what is held out."""

    tokenizer: PreTrainedTokenizerBase
    groups: list[TokenGroup]
    chats: list[TokenGroup]
    held_out: list[TokenGroup]
    held_out_characters: int


def _corpus(workspace: Workspace, inputs: _Inputs, folder: Path) -> _Corpus:
    section = workspace.recipe.pretrain
    texts = _texts(workspace, inputs.texts, folder / "data")
    train_texts, test_texts = _split(texts, workspace.seed("pretrain"))
    if not train_texts:
        raise DataError(
            "there is too little text to pretrain on",
            value=f"{sum(map(len, texts)):,} characters",
            expected=f"more than {_PIECE_CHARACTERS:,}, or several texts",
        )
    chats = _chats(workspace, inputs.chats, folder / "data")
    tokenizer = _tokenizer(workspace, folder / "tokenizer", train_texts, chats)
    windows = list(text_windows(tokenizer, train_texts, window_tokens=section.window_tokens))
    held = list(text_windows(tokenizer, test_texts, window_tokens=section.window_tokens))
    chat_groups, dropped = _chat_groups(tokenizer, chats, max_tokens=workspace.recipe.data.max_tokens)
    wanted = sum(map(count_tokens, windows)) * section.chat_share / (1 - section.chat_share)
    groups = [*windows, *(_repeated(chat_groups, wanted) if chat_groups else ())]
    workspace.say(
        f"pretraining on {sum(map(count_tokens, groups)):,} tokens: {len(windows):,} windows of text and "
        f"{len(groups) - len(windows):,} chats ({len(chat_groups):,} different ones, "
        f"{dropped:,} too long and left out)"
    )
    return _Corpus(tokenizer, groups, chat_groups, held, sum(map(len, test_texts)))


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
