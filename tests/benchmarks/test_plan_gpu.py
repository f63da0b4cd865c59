"""What the plan says of a GPU beside what was measured on one: the lines of this repository."""

import pytest
from benchmarks.plan_gpu import compare, main, measured_lines

from trueward.models import compiled
from trueward.pipeline import predict_activations
from trueward.pipeline.predict_activations import Arithmetic, Row, kept_per_layer
from trueward.pipeline.predict_shape import shape_of

LINES = measured_lines()


def test_there_are_lines_of_both_models_and_several_methods() -> None:
    assert {line.name.split("/")[1] for line in LINES} == {"135M", "1.5B"}
    assert {line.name.split("/")[2] for line in LINES} >= {"sft", "reward", "dpo", "grpo"}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name.replace("/", " "))
def test_the_peak_that_is_predicted_is_the_one_that_was_measured(line: object) -> None:
    found = compare(line)  # type: ignore[arg-type]  # a line
    assert abs(found.error) < 0.05, found


def test_rows_are_compiled_from_the_length_that_the_plan_counts_with() -> None:
    assert predict_activations.LEAST_TOKENS == compiled.LEAST_TOKENS


def test_the_table_says_what_was_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "| 1.5B | dpo |" in out
    assert "Largest error of the peak:" in out


def test_bytes_of_a_compiled_layer_by_hand() -> None:
    # Width 8, 4 heads of 2 over 2 of keys, inner width 20: per token, in bfloat16 over float32 weights, the
    # stream twice 2 * 4 * 8; two norms 2 * 2 * 8; gate, up and product 3 * 2 * 20; queries, result, and keys
    # and values of every head 4 * 2 * 8; log-sum-exp 4 * 4.
    config = {"model_type": "llama", "vocab_size": 16, "hidden_size": 8, "intermediate_size": 20}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape = shape_of({**config, **heads, "max_position_embeddings": 64, "tie_word_embeddings": True})
    how = Arithmetic(weight_bytes=4, autocast=True, lora=0, gpu=True)
    row = Row(tokens=2000, queries=2000, keys=2000, scored=0, mask=0, read=2000)
    assert kept_per_layer(shape, how, row) == 2000 * (64 + 32 + 120 + 64 + 16)
    # A short row runs uncompiled: autograd keeps what it wants, which is more.
    short = Row(tokens=1000, queries=1000, keys=1000, scored=0, mask=0, read=1000)
    assert kept_per_layer(shape, how, short) > 1000 * (64 + 32 + 120 + 64 + 16)
