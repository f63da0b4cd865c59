"""Peak memory of a stage: what lies in memory at each of its widest moments, part by part; the peak is the
widest moment.

    training      weights + gradients + AdamW's two moments + frozen roles + activations + the head's chunk
    scoring       weights + frozen roles + one layer at work (reference pass, held-out items, rollouts)
    drawing       weights + frozen roles + moments + keys and values + logits (PPO, GRPO)
Gradients appear while the activations go, so a step has two widest moments: where its backward starts, and
where it ends. With several GPUs everything is per GPU, under FSDP2: weights, gradients and moments in shards.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from trueward.pipeline.hardware import Device
from trueward.pipeline.predict_activations import (
    SLOT_WASTE,
    Arithmetic,
    Row,
    cast_weights,
    kept_per_layer,
    kept_rest,
    spared_last,
    working_backward,
    working_forward,
)
from trueward.pipeline.predict_shape import Shape
from trueward.pipeline.predict_work import TrainedStage, Work
from trueward.pipeline.recipe import Recipe
from trueward.trainers.group_settings import GroupSettings
from trueward.trainers.ppo_settings import PPOSettings
from trueward.trainers.settings import TrainSettings

__all__ = ["Memory", "Moment", "Part", "Roles", "predict_memory", "roles_of", "row_of"]

_FLOAT, _HALF = 4, 2
_BYTES = {"float32": 4, "bfloat16": 2}
# models.head: logits of one chunk; up to as many their softmax is kept, in the same place.
_CHUNK_ELEMENTS, _CHUNK_BYTES_GPU = 1 << 24, 1 << 29
# rollouts.local: bounds of one part of the drawing, and from how many steps on weights are laid out;
# rollouts.cache: slots that are made at a time.
_KV_BYTES, _KV_SHARE_GPU, _LAY_STEPS, _ROOM = 1 << 30, 0.125, 16, 32
_LOGITS_ELEMENTS, _LOGITS_ELEMENTS_GPU = 1 << 25, 1 << 28
# rollouts.sampling.draw: logits, their log-softmax and its exponential in float32, cumulative sum in float64.
_DRAW_BYTES = 4 + 4 + 4 + 8
# What lies in the heap, among what comes and goes; the rest lies apart (models.memory).
_HEAP = (
    "gradients at work",
    "vocabulary head at work",
    "one layer at work",
    "keys and values",
    "logits being drawn from",
    "prompts at work",
)
# Of checkpointed layers all of it does: they are left alone there.
_HEAP_CHECKPOINTED = (
    *_HEAP,
    "inputs of the layers",
    "one layer computed again",
    "one layer's activations",
    "weights cast to bfloat16",
)


class Part(NamedTuple):
    """Bytes of one kind of thing."""

    name: str
    size: float


class Moment(NamedTuple):
    """What lies in memory together."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> float:
        return sum(part.size for part in self.parts)


class Memory(NamedTuple):
    """All wide moments of a stage; the peak is the widest. tokens: of the largest forward with gradients."""

    stage: TrainedStage
    moments: tuple[Moment, ...]
    tokens: float

    @property
    def peak(self) -> Moment:
        return max(self.moments, key=lambda moment: moment.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """What a stage holds beside its data, parameters. trained: moved by the optimizer.

    base: of the model that is trained, its frozen part included. frozen: roles beside it, float32, by name.
    tables: vocabulary tables that are trained (0, 1, 2). tied: the trained table is head and embeddings.
    looked_up: parameters of a trained table whose gradient and moments have only the rows that came (see
        trainers.row_adamw).
    kept_policies: copies of the trained weights that PPO has at most, for its KL budget.
    """

    how: Arithmetic
    base: int
    trained: int
    frozen: tuple[tuple[str, int], ...]
    tables: int
    tied: bool
    scored: bool
    looked_up: int = 0
    kept_policies: int = 0


def _settings(recipe: Recipe, stage: TrainedStage) -> TrainSettings | PPOSettings | GroupSettings:
    trains: dict[TrainedStage, TrainSettings | PPOSettings | GroupSettings] = {
        "sft": recipe.sft.train,
        "reward": recipe.reward.train,
        "dpo": recipe.dpo.train,
        "ppo": recipe.ppo.train,
        "grpo": recipe.grpo.train,
    }
    return trains[stage]


def _arithmetic(recipe: Recipe, stage: TrainedStage, *, gpu: bool) -> Arithmetic:
    lora = recipe.reward.lora if stage == "reward" else recipe.model.lora
    frozen = _BYTES[recipe.model.dtype] if lora is not None and stage != "reward" else _FLOAT
    return Arithmetic(
        weight_bytes=frozen,
        autocast=_settings(recipe, stage).precision == "bfloat16",
        lora=0 if lora is None else lora.r,
        gpu=gpu,
        checkpointing=_settings(recipe, stage).activation_checkpointing,
    )


def roles_of(recipe: Recipe, shape: Shape, stage: TrainedStage, *, gpu: bool = False) -> Roles:
    """Which models a stage holds, as `pipeline.stages` and `pipeline.ppo` load them."""
    how, lora = (
        _arithmetic(recipe, stage, gpu=gpu),
        recipe.reward.lora if stage == "reward" else recipe.model.lora,
    )
    base = shape.backbone_parameters if stage == "reward" else shape.num_parameters
    tables = (1 if shape.tied or stage == "reward" else 2) if lora is None or lora.train_embeddings else 0
    untied = tables > 0 and (stage == "reward" or not shape.tied)
    by_rows = untied and not gpu and not _settings(recipe, stage).weight_decay
    trained = base if lora is None else shape.adapter_parameters(lora.r) + tables * shape.table_parameters
    frozen: list[tuple[str, int]] = []
    kept = 0
    if stage == "reward":
        frozen.append(("the SFT model it starts from", shape.num_parameters))
    if stage == "grpo" and lora is None and recipe.grpo.train.reference:
        frozen.append(("reference", shape.num_parameters))
    if stage == "ppo":
        train = recipe.ppo.train
        shared = recipe.ppo.one_backbone and recipe.reward.lora is not None
        if lora is None:
            frozen.append(("reference and reward model" if shared else "reference", shape.num_parameters))
        if not shared:
            frozen.append(("reward model", shape.backbone_parameters))
        if train.value_backbone == "separate":
            trained, base = 2 * trained, 2 * base
        kept = 0 if train.kl_budget is None else 2
    return Roles(
        how=how,
        base=base,
        trained=trained,
        frozen=tuple(frozen),
        tables=tables,
        tied=shape.tied,
        scored=stage != "reward",
        looked_up=shape.table_parameters if by_rows else 0,
        kept_policies=kept,
    )


def row_of(work: Work, tokens: float, *, gpu: bool) -> Row:
    """A row of `tokens` tokens of a stage's items. gpu: flex-attention, which reads the row as it is."""
    items = tokens / work.item_tokens
    scored = tokens * work.completion_share
    completion = scored / items / work.completions
    prompt = work.item_tokens - completion * work.completions
    read = items * work.completions if work.stage == "reward" else scored
    if gpu:
        return Row(tokens=tokens, queries=tokens, keys=tokens, scored=scored, mask=0.0, read=read)
    shared = work.completions - 1
    return Row(
        tokens=tokens,
        queries=tokens * SLOT_WASTE,
        keys=(tokens + items * shared * prompt) * SLOT_WASTE,
        scored=scored,
        mask=items * shared * completion * (prompt + completion),
        read=read,
    )


def _head(shape: Shape, scored: float, how: Arithmetic) -> float:
    """Bytes of the vocabulary head at work: the logits of a chunk, in float32, changed in place.

    In sixteen bits they come in a copy of their own, and their gradient goes in one. On a GPU that is all:
    compiled passes turn the one into the other.
    """
    each = how.compute_bytes if how.gpu else _FLOAT
    most = _CHUNK_BYTES_GPU // each if how.gpu else _CHUNK_ELEMENTS
    chunk = min(scored * shape.vocab_size, max(most, shape.vocab_size))
    if how.gpu:
        return 2 * each * chunk
    copies = 2 * _HALF if how.compute_bytes == _HALF else 0
    return (_FLOAT + copies) * chunk


def _parts(named: Iterable[tuple[str, float]]) -> tuple[Part, ...]:
    return tuple(Part(name, size) for name, size in named if size > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """What the moments of one stage are made of."""

    work: Work
    shape: Shape
    roles: Roles
    device: Device

    @property
    def shards(self) -> int:
        return self.device.gpus

    @property
    def held(self) -> list[tuple[str, float]]:
        """There at every moment."""
        roles, how = self.roles, self.roles.how
        weights = how.weight_bytes * roles.base + (0 if how.full else _FLOAT * roles.trained)
        held = [("process", float(self.device.process_bytes)), ("weights", weights / self.shards)]
        held += [(name, _FLOAT * count / self.shards) for name, count in roles.frozen]
        if self.shards > 1:
            held.append(("whole weights of two layers, gathered, with gradients", self._gathered()))
        if roles.kept_policies:
            held.append(("policy kept for the KL budget", _FLOAT * roles.trained / self.shards))
        return held

    def _gathered(self) -> float:
        """FSDP2 holds the layer in use and the next one whole in bfloat16, the tables throughout, and a
        layer's gradients in float32 until they are reduced."""
        tables = (1 if self.shape.tied else 2) * self.shape.table_parameters
        gradient = _FLOAT * self.shape.layer_parameters if self.roles.how.full else 0
        return _HALF * (2 * self.shape.layer_parameters + tables) + gradient

    def _with_state(self, tokens: float) -> float:
        """Trained weights that have a gradient, or moments, once so many tokens were read: as if all of them
        were different words, which is the most there can be."""
        absent = self.roles.looked_up * max(0.0, 1 - tokens / self.shape.vocab_size)
        return (self.roles.trained - absent) / self.shards

    @property
    def gradients(self) -> float:
        return _FLOAT * self._with_state(self.work.step_tokens)

    @property
    def moments(self) -> float:
        steps = math.inf if self.work.steps is None else self.work.steps * self.work.updates
        each = _FLOAT + (_HALF if self.work.first_moment == "bfloat16" else _FLOAT)
        return each * self._with_state(self.work.step_tokens * steps)

    @property
    def table(self) -> float:
        """Gradient of one vocabulary table; every GPU makes the whole one."""
        return _FLOAT * self.shape.table_parameters if self.roles.tables else 0.0

    def training(self) -> list[Moment]:
        """The widest moments of a step, from the second step on."""
        work, shape, how = self.work, self.shape, self.roles.how
        row = row_of(work, work.forward_tokens, gpu=how.gpu)
        layer, rest = kept_per_layer(shape, how, row), kept_rest(shape, how, row)
        casts = 0 if self.shards > 1 else cast_weights(shape, how, row)
        if work.checkpointing:
            stream = how.weight_bytes * shape.width * row.tokens
            kept = [
                ("inputs of the layers", shape.num_layers * stream + rest),
                ("one layer computed again", layer),
            ]
        else:
            layers = shape.num_layers * layer - (0.0 if how.gpu else spared_last(shape, how, row))
            kept = [("activations", layers + rest), ("weights cast to bfloat16", casts)]
        held = [*self.held, ("moments of AdamW", self.moments)]
        before = self.gradients if work.forwards > 1 else 0.0
        cast = [
            *held,
            ("gradients so far", before),
            ("inputs of the layers", shape.num_layers * how.weight_bytes * shape.width * row.tokens + rest),
            ("weights cast to bfloat16", casts),
            ("one layer at work", working_forward(shape, how, row)),
        ]
        head = [
            ("vocabulary head at work", _head(shape, row.scored, how)),
            # Of several forwards the first has made it; the others add to it where it lies.
            ("gradient of the head", 0.0 if work.forwards > 1 else self.table),
        ]
        start = [
            *held,
            ("gradients so far", before),
            *kept,
            ("gradients at work", working_backward(shape, how, row)),
            *(head if self.roles.scored else []),
        ]
        # On a processor autograd makes the rows that were looked up, else the whole table.
        added = (self.roles.tied and self.roles.scored) or work.forwards > 1
        looked_up = self.table if how.gpu else 2 * _FLOAT * shape.width * row.tokens
        end = [
            *held,
            ("gradients", self.gradients),
            ("gradient of the embeddings, before it is added", looked_up * added),
            ("one layer's activations", layer + working_backward(shape, how, row)),
        ]
        moments = [
            Moment("start of the backward", _parts(start)),
            Moment("end of the backward", _parts(end)),
        ]
        # Autocast keeps its casts to the end of a forward; without checkpointing they last into the backward.
        return [Moment("end of the forward", _parts(cast)), *moments] if work.checkpointing else moments

    def scoring(self) -> Moment:
        """A forward without gradients."""
        row = row_of(self.work, self.work.scoring_tokens, gpu=self.device.gpu)
        # Held-out items and rollouts are scored in the precision of the weights, whatever training has.
        full = replace(self.roles.how, autocast=False)
        work = working_forward(self.shape, full, row)
        hidden = 2 * _FLOAT * self.shape.width * row.tokens + _FLOAT * row.mask
        parts = [
            *self.held,
            ("moments of AdamW", self.moments),
            ("one layer at work", work + hidden),
            (
                "vocabulary head at work",
                _head(self.shape, row.scored, full) if self.roles.scored else 0.0,
            ),
        ]
        return Moment("a forward without gradients", _parts(parts))

    def drawing(self) -> Moment:
        """Rollouts, with the moments of AdamW beside them."""
        work, shape = self.work, self.shape
        per_token = 2 * shape.num_layers * shape.kv_width * self.roles.how.weight_bytes
        capacity = -(-work.new_tokens // _ROOM) * _ROOM
        prompt = work.sequence_tokens - work.new_tokens
        gpu = self.device.gpu
        logits_bound = _LOGITS_ELEMENTS_GPU if gpu else _LOGITS_ELEMENTS
        cache_bound = _KV_SHARE_GPU * self.device.memory_bytes if gpu else _KV_BYTES
        whole = (prompt + work.new_tokens) * per_token
        rows = max(1.0, min(work.rows, logits_bound / shape.vocab_size, cache_bound / whole))
        # While the slots of a layer grow, its old ones are still there.
        cache = per_token * rows * (prompt / work.completions + capacity) * (1 + 1 / shape.num_layers)
        laid = not gpu and work.new_tokens >= _LAY_STEPS and rows > 1
        logits = rows * shape.vocab_size * _DRAW_BYTES
        prefill = Row(rows * prompt / work.completions, 0, 0, 0, 0, 0)
        extra = _FLOAT * self.roles.trained / self.shards if self.roles.kept_policies > 1 else 0.0
        parts = [
            *self.held,
            ("moments of AdamW", self.moments),
            ("keys and values", cache),
            ("weights laid out for few rows", self._laying() if laid else 0.0),
            ("logits being drawn from", logits),
            ("prompts at work", working_forward(shape, self.roles.how, prefill)),
            ("policy being copied", extra),
        ]
        return Moment("drawing completions", _parts(parts))

    def _laying(self) -> float:
        """What is there besides while weights are laid out for few rows (see models.relaid): a weight.
        A table that is the embeddings too goes block by block.
        """
        return float(self.roles.how.weight_bytes * self.shape.inner * self.shape.width)


def predict_memory(recipe: Recipe, shape: Shape, work: Work, device: Device) -> Memory:
    """Peak memory of a stage on a device (per GPU, where there are several)."""
    work = _per_gpu(work, device.gpus)
    stage = _Stage(
        work=work, shape=shape, roles=roles_of(recipe, shape, work.stage, gpu=device.gpu), device=device
    )
    moments = [*stage.training(), stage.scoring()]
    if work.new_tokens:
        moments.append(stage.drawing())
    if not device.gpu:
        moments = _with_heap(moments, _HEAP_CHECKPOINTED if work.checkpointing else _HEAP)
    return Memory(work.stage, tuple(moments), work.forward_tokens)


def _with_heap(moments: Sequence[Moment], heap: Sequence[str]) -> list[Moment]:
    """On a processor freed memory stays in the heap for the next work, beside what lies apart from it.

    heap: names of the parts that lie there.
    """
    at_work = [sum(part.size for part in moment.parts if part.name in heap) for moment in moments]
    return [
        Moment(
            moment.name, (*moment.parts, *_parts([("kept in the heap from other work", max(at_work) - own)]))
        )
        for moment, own in zip(moments, at_work, strict=True)
    ]


def _per_gpu(work: Work, gpus: int) -> Work:
    """The share of one GPU: the items of a step are divided, one item at least."""
    if gpus == 1:
        return work
    step = max(work.item_tokens, work.step_tokens / gpus)
    tokens = min(step, work.max_tokens_per_forward)
    rows, prompts = math.ceil(work.rows / gpus), math.ceil(work.prompts / gpus)
    return replace(work, forward_tokens=tokens, forwards=math.ceil(step / tokens), rows=rows, prompts=prompts)
