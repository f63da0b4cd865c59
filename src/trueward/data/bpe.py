"""Training a byte-level BPE tokenizer with a chat template, saved as a Hugging Face tokenizer folder.

Any text can be encoded and comes back byte for byte: there is no unknown token. Each role opens with a token
of its own and every turn ends in <|end|>, so that no text can imitate a turn. Padding is a token apart from
the end.
"""

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trueward.core.errors import DataError
from trueward.core.files import new_folder, write_json, write_text

__all__ = ["BOS", "CHAT_TEMPLATE", "END", "PAD", "SPECIAL_TOKENS", "train_bpe"]

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
SPECIAL_TOKENS = (PAD, BOS, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
"""Ids 0 to 6, in this order."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""`<|bos|><|user|>hi<|end|><|assistant|>hello<|end|>`, nothing trimmed, no newline anywhere."""

_NUM_BYTES = 256


def train_bpe(
    texts: Iterable[str],
    *,
    vocab_size: int,
    folder: Path,
    max_positions: int,
    min_frequency: int = 2,
    extra_special_tokens: Iterable[str] = (),
) -> int:
    """Learn merges from `texts` and write tokenizer.json and tokenizer_config.json.

    The result depends on the texts and their order alone.

    Args:
        texts: running text, read once, streaming.
        vocab_size: tokens wanted, special ones and the 256 bytes included.
        folder: the folder to make; must not exist.
        max_positions: the longest input of the model it is for, in tokens, > 0; written down, not enforced.
        min_frequency: a pair seen less often is not merged, >= 1.
        extra_special_tokens: more special tokens, behind those of the template.

    Returns:
        Tokens in the vocabulary: fewer than `vocab_size` where the texts hold too few different pairs.

    Raises:
        DataError: sizes that cannot be, a repeated special token, or texts without a character.
        StorageError: the folder exists, or the disk refused.

    Source:
        Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units", on bytes as in
        Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2.
    """
    special = [*SPECIAL_TOKENS, *extra_special_tokens]
    if len(set(special)) < len(special) or "" in special:
        raise DataError("a special token is empty or stands twice", value=special)
    if vocab_size < _NUM_BYTES + len(special):
        raise DataError(
            "vocab_size is too small",
            value=vocab_size,
            expected=f"at least {_NUM_BYTES + len(special)}: 256 bytes and {len(special)} special tokens",
        )
    if max_positions <= 0 or min_frequency <= 0:
        raise DataError("max_positions and min_frequency must be > 0", value=(max_positions, min_frequency))
    tokenizer = _train(texts, vocab_size, min_frequency, special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, special.index(BOS))]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    with new_folder(folder) as staging:
        write_text(staging / "tokenizer.json", tokenizer.to_str(pretty=True))
        write_json(staging / "tokenizer_config.json", config)
    return tokenizer.get_vocab_size()


def _train(texts: Iterable[str], vocab_size: int, min_frequency: int, special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    num_characters = 0

    def counted() -> Iterable[str]:
        nonlocal num_characters
        for text in texts:
            num_characters += len(text)
            yield text

    tokenizer.train_from_iterator(counted(), trainer)
    if not num_characters:
        raise DataError(
            "there is no text to train a tokenizer on", remedy="check the sources and their filters"
        )
    return tokenizer
