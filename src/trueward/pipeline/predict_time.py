"""Time of a step and of a run: operations over the rate that is reached, bytes over bandwidth.

    layers      2 N operations a token forward and 4 N backward (2 N where the weights are frozen), N weights
                in matrices; 2 N more where activations are computed again (Kaplan et al. 2020, section 2.1)
    attention   4 A operations a layer and query-key cell forward, 2.5 times that backward
    head        2 D V operations a completion token forward, once more for the softmax, 4 D V backward
    AdamW       28 bytes a trained weight, 8 more for the norm
    drawing     every weight and every key is read once a token of all rows, or their operations if longer
Loading, tokenising, checkpoints and evaluation are not counted.
"""

from typing import NamedTuple

from trueward.pipeline.hardware import Device
from trueward.pipeline.predict_memory import roles_of
from trueward.pipeline.predict_shape import Shape
from trueward.pipeline.predict_work import TrainedStage, Work
from trueward.pipeline.recipe import Recipe

__all__ = ["Duration", "predict_time"]

_ADAM_BYTES = 28
_NORM_BYTES = 8
_BACKWARD_ATTENTION = 2.5


class Duration(NamedTuple):
    """step_s: one optimizer step (PPO, GRPO: one iteration). setup_s: the reference pass before.

    parts: seconds of a step by what they are spent on. run_s: of the whole stage.
    """

    stage: TrainedStage
    step_s: float
    setup_s: float
    run_s: float
    parts: tuple[tuple[str, float], ...]


class _Costs(NamedTuple):
    """Operations of one token of a mean item. head: of one token, averaged over completion and prompt."""

    layers: float
    attention: float
    head: float


def _costs(shape: Shape, work: Work) -> _Costs:
    # Half of the cells of a causal table are seen; a completion sees its prompt and itself.
    cells = work.sequence_tokens / 2
    return _Costs(
        layers=2.0 * shape.matrix_parameters,
        attention=4.0 * shape.num_layers * shape.query_width * cells,
        head=2.0 * shape.table_parameters * work.completion_share if work.stage != "reward" else 0.0,
    )


def _forward(costs: _Costs, tokens: float) -> float:
    return tokens * (costs.layers + costs.attention + costs.head)


def _training(costs: _Costs, tokens: float, *, full: bool, checkpointing: bool) -> float:
    again = costs.layers + costs.attention if checkpointing else 0.0
    backward = costs.layers * (2 if full else 1) + _BACKWARD_ATTENTION * costs.attention
    # The softmax is computed again chunk by chunk; frozen heads get no gradient of their own.
    head = costs.head * (3 if full else 2)
    return _forward(costs, tokens) + tokens * (backward + head + again)


def predict_time(recipe: Recipe, shape: Shape, work: Work, device: Device) -> Duration:
    """Time of a stage on a device. Several GPUs share the tokens; their exchange hides behind the computation
    as far as it is shorter."""
    roles, costs = roles_of(recipe, shape, work.stage), _costs(shape, work)
    rate = device.flops(work.precision if roles.how.weight_bytes == 4 else "bfloat16") * device.gpus
    tokens = work.mean_step_tokens
    train_s = _training(costs, tokens, full=roles.how.full, checkpointing=work.checkpointing) / rate
    update_s = (_ADAM_BYTES + _NORM_BYTES) * roles.trained / device.gpus / device.memory_bytes_per_s
    link_s = _exchange(shape, roles.trained, work, device)
    waiting_s = max(0.0, link_s - train_s)
    parts = [("forward and backward", train_s), ("AdamW", update_s), ("waiting for other GPUs", waiting_s)]
    parts = [(name, seconds * work.updates) for name, seconds in parts]
    scoring_s = work.scorers * _forward(costs, work.scored_items * work.item_tokens) / rate
    setup_s = 0.0
    if work.new_tokens:
        # The reward model has no head.
        judged = _forward(costs._replace(head=0.0), work.prompts * work.item_tokens) / rate
        parts += [
            ("drawing", _drawing(shape, work, device, costs, roles.how.weight_bytes)),
            ("scoring", scoring_s + (judged if work.stage == "ppo" else 0.0)),
        ]
    else:
        setup_s = scoring_s
    step_s = sum(seconds for _, seconds in parts)
    run_s = setup_s + step_s * (work.steps or 0)
    return Duration(work.stage, step_s, setup_s, run_s, tuple((n, s) for n, s in parts if s > 0))


def _exchange(shape: Shape, trained: int, work: Work, device: Device) -> float:
    """Seconds in which FSDP2 gathers bfloat16 weights twice and scatters float32 gradients, per step."""
    if device.gpus == 1:
        return 0.0
    others = (device.gpus - 1) / device.gpus
    sent = 2 * 2 * shape.num_parameters * work.forwards + 4 * trained
    return others * sent / device.link_bytes_per_s


def _drawing(shape: Shape, work: Work, device: Device, costs: _Costs, weight_bytes: int) -> float:
    """Seconds of drawing a round of completions; prompts are read in one forward before."""
    rate = device.flops("float32" if weight_bytes == 4 else "bfloat16") * device.gpus
    prompt = work.sequence_tokens - work.new_tokens
    prefill_s = work.prompts * prompt * (costs.layers + costs.attention) / rate
    weights = weight_bytes * (shape.matrix_parameters + shape.table_parameters)
    keys = 2 * shape.num_layers * shape.kv_width * weight_bytes
    read = weights + keys * (work.prompts * prompt + work.rows * work.new_tokens / 2)
    bytes_s = read / (device.memory_bytes_per_s * device.gpus)
    flops_s = work.rows * (costs.layers + 2.0 * shape.table_parameters) / rate
    return prefill_s + work.new_tokens * max(bytes_s, flops_s)
