"""Import of llama2.c checkpoints, against a float64 forward and an encoder written from its own rules."""

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trueward.core.errors import ModelError
from trueward.models.llama2c import import_llama2c

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, "
    "she saw a big, red ball. She wanted to play with it, but it was too high."
)
LAYOUT = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256))]
PIECES = [" t", "he", " the", "in", "ing", " ", "t", "h", "e", "i", "n", "g", "a", "b", "s", "é"]
SIZES = {"dim": 24, "hidden": 20, "layers": 2, "heads": 6, "kv_heads": 2, "context": 32}


def write_vocabulary(path: Path, tokens: list[str], scores: list[float]) -> Path:
    rows = [struct.pack("<fi", s, len(t.encode())) + t.encode() for t, s in zip(tokens, scores, strict=True)]
    path.write_bytes(struct.pack("<i", max(len(t.encode()) for t in tokens)) + b"".join(rows))
    return path


def tensors(vocab: int, tied: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    dim, hidden, layers, context = (SIZES[k] for k in ("dim", "hidden", "layers", "context"))
    size = dim // SIZES["heads"]
    kv = SIZES["kv_heads"] * size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (vocab, dim),
        "norm1": (layers, dim),
        "wq": (layers, dim, dim),
    }
    shapes |= {
        "wk": (layers, kv, dim),
        "wv": (layers, kv, dim),
        "wo": (layers, dim, dim),
        "norm2": (layers, dim),
    }
    shapes |= {
        "w1": (layers, hidden, dim),
        "w2": (layers, dim, hidden),
        "w3": (layers, hidden, dim),
        "norm": (dim,),
    }
    shapes |= {"cos": (context, size // 2), "sin": (context, size // 2)}
    if not tied:
        shapes["classifier"] = (vocab, dim)
    return {name: (0.5 * rng.standard_normal(shape)).astype("<f4") for name, shape in shapes.items()}


def write_checkpoint(path: Path, vocab: int, *, tied: bool = True) -> Path:
    values = [
        *(SIZES[k] for k in ("dim", "hidden", "layers", "heads", "kv_heads")),
        vocab if tied else -vocab,
    ]
    header = struct.pack("<7i", *values, SIZES["context"])
    path.write_bytes(header + b"".join(t.tobytes() for t in tensors(vocab, tied).values()))
    return path


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    tokens = LAYOUT + PIECES
    scores = [0.0] * len(LAYOUT) + [-float(i) for i in range(len(PIECES))]
    return write_checkpoint(tmp_path / "w.bin", len(tokens)), write_vocabulary(
        tmp_path / "v.bin", tokens, scores
    )


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight * x / np.sqrt((x * x).mean() + 1e-5)


def rotate(x: np.ndarray, position: int, size: int) -> np.ndarray:
    out = x.copy()
    for i in range(0, len(x), 2):
        angle = position / 10000.0 ** ((i % size) / size)
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[i + 1] = x[i] * c - x[i + 1] * s, x[i] * s + x[i + 1] * c
    return out


def forward(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits after each token, one token at a time with a cache, as run.c does it."""
    w = {k: v.astype(np.float64) for k, v in w.items()}
    heads, size = SIZES["heads"], SIZES["dim"] // SIZES["heads"]
    shared_by = heads // SIZES["kv_heads"]
    keys: list[list[np.ndarray]] = [[] for _ in range(SIZES["layers"])]
    values: list[list[np.ndarray]] = [[] for _ in range(SIZES["layers"])]
    logits = []
    for position, token in enumerate(ids):
        x = w["embedding"][token].copy()
        for layer in range(SIZES["layers"]):
            h = norm(x, w["norm1"][layer])
            q = rotate(w["wq"][layer] @ h, position, size)
            keys[layer].append(rotate(w["wk"][layer] @ h, position, size))
            values[layer].append(w["wv"][layer] @ h)
            parts = []
            for head in range(heads):
                at = slice(head // shared_by * size, (head // shared_by + 1) * size)
                scores = np.array(
                    [q[head * size : (head + 1) * size] @ k[at] for k in keys[layer]]
                ) / math.sqrt(size)
                p = np.exp(scores - scores.max())
                parts.append(sum(a * v[at] for a, v in zip(p / p.sum(), values[layer], strict=True)))
            x = x + w["wo"][layer] @ np.concatenate(parts)
            h = norm(x, w["norm2"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        logits.append(w.get("classifier", w["embedding"]) @ norm(x, w["norm"]))
    return np.array(logits)


def encode(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """llama2.c's encode: characters or bytes, then the best-scoring neighbours join until none can."""
    index = {token: i for i, token in enumerate(tokens)}
    ids: list[int] = [index[" "]] if text else []
    for character in text:
        ids += [index[character]] if character in index else [byte + 3 for byte in character.encode()]
    while True:
        best, where = -1e10, -1
        for i in range(len(ids) - 1):
            joined = index.get(tokens[ids[i]] + tokens[ids[i + 1]])
            if joined is not None and scores[joined] > best:
                best, where = scores[joined], i
        if where < 0:
            return [1, *ids]
        ids[where : where + 2] = [index[tokens[ids[where]] + tokens[ids[where + 1]]]]


def read_vocabulary(path: Path) -> tuple[list[str], list[float]]:
    raw, at = path.read_bytes(), 4
    tokens, scores = [], []
    while at < len(raw):
        score, length = struct.unpack_from("<fi", raw, at)
        tokens.append(raw[at + 8 : at + 8 + length].decode())
        scores.append(score)
        at += 8 + length
    return tokens, scores


def load(folder: Path) -> tuple[Any, Any]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_equal_the_format_s_own_forward(tmp_path: Path, files: tuple[Path, Path], tied: bool) -> None:
    vocab = len(LAYOUT + PIECES)
    weights = write_checkpoint(tmp_path / "w2.bin", vocab, tied=tied)
    import_llama2c(weights, files[1], tmp_path / "out")
    model, _ = load(tmp_path / "out")
    ids = [1, *np.random.default_rng(1).integers(0, vocab, 20).tolist()]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    # Float32 against float64 over two layers; wrong row orders differ by whole units.
    np.testing.assert_allclose(logits, forward(tensors(vocab, tied), ids), atol=2e-4)
    assert model.config.tie_word_embeddings is tied and model.config.num_key_value_heads == 2


def test_weights_come_through_bit_by_bit(tmp_path: Path, files: tuple[Path, Path]) -> None:
    import_llama2c(*files, tmp_path / "out")
    model, _ = load(tmp_path / "out")
    written, state = tensors(len(LAYOUT + PIECES), True), model.state_dict()
    assert np.array_equal(state["model.embed_tokens.weight"].numpy(), written["embedding"])
    assert np.array_equal(state["model.layers.1.mlp.up_proj.weight"].numpy(), written["w3"][1])
    # One head of width 4: rows 0 1 2 3 become 0 2 1 3.
    assert np.array_equal(
        state["model.layers.0.self_attn.k_proj.weight"].numpy()[:4], written["wk"][0][[0, 2, 1, 3]]
    )


@pytest.mark.parametrize("text", ["", "the thing", "  the\n", "é ü \U0001f600", "hehehe in  ing", "<0x0A>"])
def test_tokenizer_joins_like_llama2c(tmp_path: Path, files: tuple[Path, Path], text: str) -> None:
    import_llama2c(*files, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens, scores = read_vocabulary(files[1])
    ids = tokenizer(text)["input_ids"]
    assert ids == encode(text, tokens, scores)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_special_tokens_and_template(tmp_path: Path, files: tuple[Path, Path]) -> None:
    import_llama2c(*files, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    messages = [{"role": "user", "content": "the"}, {"role": "assistant", "content": " thing"}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert whole == "<s>User: the</s>Assistant:  thing</s>"
    whole_ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert whole_ids[: len(prompt_ids)] == prompt_ids and whole_ids[-1] == 2 and whole_ids.count(1) == 1


def test_real_checkpoint_tells_the_documented_story(tmp_path: Path, shared: Path) -> None:
    source = shared / "stories260K"
    import_llama2c(source / "stories260K.bin", source / "tok512.bin", tmp_path / "out")
    model, tokenizer = load(tmp_path / "out")
    ids = model.generate(torch.tensor([[1]]), max_new_tokens=80, do_sample=False)[0]
    assert tokenizer.decode(ids, skip_special_tokens=True).startswith(STORY)
    with torch.no_grad():
        loss = model(
            torch.tensor([tokenizer(STORY)["input_ids"]]),
            labels=torch.tensor([tokenizer(STORY)["input_ids"]]),
        )
    assert loss.loss.item() < 0.7


def test_real_vocabulary_joins_like_llama2c(tmp_path: Path, shared: Path) -> None:
    source = shared / "stories260K"
    import_llama2c(source / "stories260K.bin", source / "tok512.bin", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens, scores = read_vocabulary(source / "tok512.bin")
    texts = [
        STORY,
        "“Qu'est-ce que c’est?”  said Zoë…\n\tHe ran 3.14 miles!!! 日本",
        "aaaa eee sssss ..... !!!! ~[]<>|%",
    ]
    rng = np.random.default_rng(0)
    texts += ["".join(rng.choice(tokens[259:], 60)) for _ in range(20)]
    for text in texts:
        assert tokenizer(text)["input_ids"] == encode(text, tokens, scores)
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def header(**changes: int) -> bytes:
    values = {**SIZES, "vocab": len(LAYOUT + PIECES)} | changes
    return struct.pack(
        "<7i", *(values[k] for k in ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "context"))
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"abc", "no llama2.c checkpoint"),
        (header() + bytes(100), "truncated"),
        (header(layers=0), "header is impossible"),
        (header(heads=5), "header is impossible"),
        (header(kv_heads=4), "header is impossible"),
        (header(dim=-24), "header is impossible"),
        (header(hidden=2**31 - 1, context=2**31 - 1), "truncated"),
        (struct.pack("<7i", 0x616B3432, 1, 0, 0, 0, 0, 0), "version 1"),
    ],
    ids=["short", "truncated", "no layers", "heads", "kv heads", "negative", "huge", "version 1"],
)
def test_wrong_checkpoint_is_refused(
    tmp_path: Path, files: tuple[Path, Path], content: bytes, message: str
) -> None:
    (tmp_path / "bad.bin").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        import_llama2c(tmp_path / "bad.bin", files[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_longer_and_non_finite_checkpoints_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    raw = files[0].read_bytes()
    (tmp_path / "long.bin").write_bytes(raw + bytes(4))
    with pytest.raises(ModelError, match="longer than its header says"):
        import_llama2c(tmp_path / "long.bin", files[1], tmp_path / "out")
    (tmp_path / "nan.bin").write_bytes(raw[:28] + struct.pack("<f", math.nan) + raw[32:])
    with pytest.raises(ModelError, match="embedding holds values that are not finite"):
        import_llama2c(tmp_path / "nan.bin", files[1], tmp_path / "out")


@pytest.mark.parametrize(
    ("tokens", "cut", "message"),
    [
        ((LAYOUT + PIECES)[:-1], 0, "does not belong to"),
        (LAYOUT + PIECES, 1, "truncated"),
        (LAYOUT + PIECES, 10**6, "truncated"),
        (["<unk>", "<s>", "x", *LAYOUT[3:], *PIECES], 0, "token 2 is no </s>"),
        ([*LAYOUT, *PIECES[:-1], "t"], 0, "repeated"),
        (LAYOUT[:100], 0, "token 100 is no"),
    ],
    ids=["size", "truncated", "empty", "layout", "repeated", "no bytes"],
)
def test_wrong_vocabulary_is_refused(
    tmp_path: Path, files: tuple[Path, Path], tokens: list[str], cut: int, message: str
) -> None:
    bad = write_vocabulary(tmp_path / "bad.bin", tokens, [0.0] * len(tokens))
    bad.write_bytes(bad.read_bytes()[: max(0, bad.stat().st_size - cut)])
    with pytest.raises(ModelError, match=message):
        import_llama2c(files[0], bad, tmp_path / "out")


def test_existing_folder_and_missing_files_are_refused(tmp_path: Path, files: tuple[Path, Path]) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists already"):
        import_llama2c(*files, tmp_path / "out")
    with pytest.raises(ModelError, match="cannot read"):
        import_llama2c(tmp_path / "none.bin", files[1], tmp_path / "new")
    with pytest.raises(ModelError, match="cannot read"):
        import_llama2c(files[0], tmp_path / "none.bin", tmp_path / "new")
