"""The blocking checks before step 1: the data's own (`data.preflight`) and those that need the model.

Prints what was counted and one coloured example.
"""

from collections.abc import Sequence

import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn

from trueward.core.errors import PreflightError
from trueward.data.chat import Dropped, TokenGroup, Tokenizer
from trueward.data.preflight import MAX_DROPPED, PreflightReport, Spans, coloured_example, preflight
from trueward.models.lora import embeddings_trained
from trueward.models.scoring import unwrap

__all__ = ["check_vocabulary", "checked"]

# An embedding this close to the mean of all, relative to the usual distance, is the initial value of a new
# token.
_SAME_AS_MEAN = 0.01


def checked(
    model: nn.Module,
    groups: Sequence[TokenGroup],
    tokenizer: Tokenizer,
    *,
    dropped: Sequence[Dropped] = (),
    max_dropped: float = MAX_DROPPED,
    template_hash_expected: str | None = None,
    completions: bool = True,
    spans: Spans = "answers",
    console: Console | None = None,
) -> PreflightReport:
    """Run every check; print the report and one example.

    Args:
        dropped: records left out when tokenising.
        template_hash_expected: hash of the chat template that the model or the data was made with.
        max_dropped: largest share of dropped records in [0, 1].
        completions: False for prompts to generate from.
        spans: what is trained.
        console: where to print; None prints nothing.

    Raises:
        PreflightError: the first thing that is wrong.
    """
    report = preflight(
        groups,
        tokenizer,
        dropped=dropped,
        max_dropped=max_dropped,
        template_hash_expected=template_hash_expected,
        completions=completions,
        spans=spans,
    )
    check_vocabulary(model, groups)
    if console is not None:
        for line in report.lines():
            console.print(line, markup=False, highlight=False)
        console.print(coloured_example(groups[0], tokenizer))
    return report


def check_vocabulary(model: nn.Module, groups: Sequence[TokenGroup]) -> None:
    """Every id has an embedding; with adapters, no id has an embedding that nobody trained or trains.

    A token added with `resize_token_embeddings` starts at the mean of all embeddings (or at 0), and an
    adapter that leaves the embeddings frozen keeps it there: the model would learn around a token that says
    nothing.

    Raises:
        PreflightError: names the id.
    """
    embedding = unwrap(model).get_input_embeddings()
    weight_VD = embedding.weight
    assert isinstance(weight_VD, Tensor), "an embedding has a weight matrix"
    used = {i for group in groups for i in group.prompt_ids}
    used |= {i for group in groups for completion in group.completions for i in completion.ids}
    if max(used) >= weight_VD.shape[0]:
        raise PreflightError(
            "the data holds a token id that the model has no embedding for",
            value=max(used),
            expected=f"ids below {weight_VD.shape[0]}",
            remedy="use the tokenizer that belongs to the model, or resize its embeddings and train them",
        )
    if not isinstance(model, PeftModel) or embeddings_trained(model):
        return
    ids = torch.tensor(sorted(used), device=weight_VD.device)
    with torch.no_grad():
        rows_VD = weight_VD[ids].float()
        distances_V = (rows_VD - weight_VD.float().mean(0)).norm(dim=1)
        untrained_V = (distances_V < _SAME_AS_MEAN * distances_V.median()) | (rows_VD.abs().amax(1) == 0)
    if bool(untrained_V.any()):
        raise PreflightError(
            "the data holds a new token whose embedding the adapter does not train",
            value=int(ids[untrained_V][0]),
            expected="trained embeddings for every token in use",
            remedy="set lora.train_embeddings=true, or train without adapters",
        )
