"""What stages read: demonstrations, comparisons and prompts, from the data set versions of the run.

On the testbed the comparisons are made here, of the SFT model's own replies, when they are first asked for.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

from trueward.core.errors import DataError
from trueward.core.files import read_json
from trueward.core.hashing import hash_json, short
from trueward.data.convert import as_comparison, as_demonstration, as_prompt
from trueward.data.dataset import DatasetVersion, open_dataset, write_dataset
from trueward.data.records import Comparison, Demonstration, Message, Prompt, Record, RecordError
from trueward.pipeline.data import dataset_info
from trueward.pipeline.operating_point import own_system, under
from trueward.pipeline.sampling import draw, prompt_ids
from trueward.pipeline.workspace import Workspace
from trueward.testbed import compare_replies

__all__ = [
    "Decided",
    "FeedbackData",
    "HeldOutPrompts",
    "asked_records",
    "data_in_force",
    "decided",
    "demonstrations",
    "feedback_kinds",
    "has_comparisons",
    "pairs",
    "test_prompts",
    "train_prompts",
]

_SPLITS = ("train", "test")
TIE = 0.5
R = TypeVar("R", bound=Record)


class FeedbackData(NamedTuple, Generic[R]):
    """The records of a stage. `records` are the registry ids of the data set."""

    name: str
    hash: str
    train: list[R]
    test: list[R]
    records: tuple[str, ...]


class HeldOutPrompts(NamedTuple):
    """Prompts to evaluate on, and the data set they are from with its registry id."""

    prompts: list[Prompt]
    name: str
    hash: str
    record: str


class Decided(NamedTuple):
    """Comparisons as preferences: the better answer first, ties left out and counted."""

    records: list[Comparison]
    ties: int
    turned: int


def _versions(workspace: Workspace, name: str) -> list[DatasetVersion]:
    """The whole versions of a data set; a folder that a killed writer left under another name is none."""
    found = [
        open_dataset(file.parent) for file in sorted((workspace.out / "data" / name).glob("*/manifest.json"))
    ]
    return [version for version in found if version.path.name == short(version.hash)]


def _open(workspace: Workspace, name: str) -> DatasetVersion:
    versions = _versions(workspace, name)
    if len(versions) != 1:
        raise DataError(
            f"{workspace.out / 'data' / name} holds {len(versions)} versions of data set {name}",
            expected="one",
            remedy="move the others away" if versions else "run the data stage first: stages=[data]",
        )
    versions[0].verify()
    return versions[0]


def _record(workspace: Workspace, version: DatasetVersion) -> str:
    """Registry id of a data set. It comes from the charter; the testbed's comparisons from a policy too."""
    parents = [workspace.charter_record()]
    if version.name == "comparisons":
        parents += [_record(workspace, _open(workspace, "prompts")), workspace.record_of("sft", "model")]
    sources = [
        {key: source[key] for key in ("file", "sha256", "made_by") if key in source}
        for source in version.manifest["sources"]
    ]
    body = {
        "name": version.name,
        "hash": version.hash,
        "counts": version.manifest["counts"],
        "licence": version.manifest["licence"],
        "sources": sources,
    }
    return workspace.registry.put("dataset", body, parents)


def data_in_force(workspace: Workspace) -> dict[str, str]:
    """Name and hash of every data set as it lies on disk now: evidence about other versions is stale."""
    manifests = sorted((workspace.out / "data").glob("*/*/manifest.json"))
    bodies = [body for file in manifests if file.parent.name == short((body := read_json(file))["hash"])]
    return {str(body["name"]): str(body["hash"]) for body in bodies}


def _under(workspace: Workspace, records: Iterable[Record]) -> list[Record]:
    """Records as they are sent: under the operating point's system prompt, where the recipe names one."""
    system, found = workspace.system, list(records)
    if not system:
        return found
    own = sum(own_system(record, system) for record in found)
    if own:
        workspace.say(
            f"operating point {workspace.recipe.operating_point}: {own:,} of {len(found):,} records have a "
            "system turn of their own and keep it"
        )
    return [under(record, system) for record in found]


def _limited(workspace: Workspace, version: DatasetVersion, split: str) -> list[Record]:
    records = _under(workspace, version.records(split))
    limit = workspace.recipe.data.limit
    if limit is None:
        return records
    return records[: limit if split == "train" else max(10, limit // 10)]


def _feedback(
    workspace: Workspace, version: DatasetVersion, see: Callable[[Record], R], what: str
) -> FeedbackData[R]:
    """Both splits of a version, every record seen as one kind; those that cannot be are counted."""
    found: dict[str, list[R]] = {split: [] for split in _SPLITS}
    left_out = 0
    for split in _SPLITS:
        for record in _limited(workspace, version, split):
            try:
                found[split].append(see(record))
            except RecordError:
                left_out += 1
    if not found["train"]:
        raise DataError(
            f"the training split of data set {version.name} holds no {what}",
            value=dict(version.manifest["counts"]),
            remedy="give data with demonstrations or comparisons",
        )
    if left_out:
        workspace.say(f"data set {version.name}: {left_out:,} records hold no {what} and are left out")
    return FeedbackData(
        version.name, version.hash, found["train"], found["test"], (_record(workspace, version),)
    )


def decided(records: Sequence[Comparison]) -> Decided:
    """Comparisons as plain preferences: a soft label below one half turns the pair, one half is a tie."""
    kept: list[Comparison] = []
    ties = turned = 0
    for record in records:
        if record.soft_label == TIE:
            ties += 1
        elif record.soft_label is not None and record.soft_label < TIE:
            turned += 1
            margin = None if record.margin is None else -record.margin
            kept.append(
                replace(
                    record,
                    chosen=record.rejected,
                    rejected=record.chosen,
                    soft_label=1 - record.soft_label,
                    margin=margin,
                )
            )
        else:
            kept.append(record)
    return Decided(kept, ties, turned)


def _good_answer(record: Record) -> Demonstration:
    """The record as a demonstration: of a comparison the answer that was preferred, either one of a tie."""
    if isinstance(record, Comparison):
        record = next(iter(decided([record]).records), record)
    return as_demonstration(record)


def demonstrations(workspace: Workspace) -> FeedbackData[Demonstration]:
    """Demonstrations to imitate; of comparisons and rankings, the best answer.

    Raises:
        DataError: no such data.
    """
    name = "demonstrations" if workspace.recipe.data.source == "testbed" else "feedback"
    return _feedback(workspace, _open(workspace, name), _good_answer, "answer known to be good")


def feedback_kinds(workspace: Workspace) -> set[str]:
    """Kinds of records in the imported files."""
    return set(_open(workspace, "feedback").manifest["counts"])


def has_comparisons(workspace: Workspace) -> bool:
    """Whether the data can give pairs; on the testbed it always can."""
    if workspace.recipe.data.source == "testbed":
        return True
    return bool({"comparison", "ranking"} & feedback_kinds(workspace))


def pairs(workspace: Workspace) -> FeedbackData[Comparison]:
    """Comparisons. On the testbed the SFT model's own replies are compared, once, when first asked for.

    Raises:
        DataError: the data holds no comparison, or none to test on.
    """
    testbed = workspace.recipe.data.source == "testbed"
    version = _simulated_pairs(workspace) if testbed else _open(workspace, "feedback")
    found = _feedback(workspace, version, as_comparison, "comparison")
    if not decided(found.test).records:
        raise DataError(
            f"the test split of data set {version.name} holds no comparison to measure on",
            value=dict(version.manifest["splits"]),
            remedy="raise data.test_share or give more data",
        )
    return found


def _simulated_pairs(workspace: Workspace) -> DatasetVersion:
    if _versions(workspace, "comparisons"):
        return _open(workspace, "comparisons")
    asked = _open(workspace, "prompts")
    policy = workspace.load("sft")
    records = [record for record in _under(workspace, asked.records()) if isinstance(record, Prompt)]
    settings = workspace.recipe.eval
    kept, groups = prompt_ids(policy, records, max_tokens=workspace.recipe.data.max_tokens)
    with workspace.bar("feedback", 2 * len(groups)) as bar:
        drawn = draw(
            policy,
            groups,
            max_new_tokens=settings.max_new_tokens,
            temperature=1.0,
            num_completions=2,
            seed=workspace.seed("feedback"),
            bar=bar,
        )
    replies = list(zip(drawn.texts[::2], drawn.texts[1::2], strict=True))
    usable = [(records[i], reply) for i, reply in zip(kept, replies, strict=True) if all(reply)]
    compared = compare_replies(
        [prompt for prompt, _ in usable],
        [reply for _, reply in usable],
        charter=workspace.charter.hash,
        seed=workspace.seed("annotators"),
    )
    version = write_dataset(
        workspace.out / "data",
        "comparisons",
        compared,
        sources=[{"made_by": "trueward.testbed", "policy": policy.hash, "prompts": asked.hash}],
        info=dataset_info(workspace, test=workspace.recipe.data.test_share, licence="Apache-2.0"),
    )
    same = sum(a == b for _, (a, b) in usable)
    workspace.say(
        f"data set comparisons {short(version.hash)}: {version.num_records:,} pairs from {len(records):,} "
        f"prompts; {same:,} had two identical replies, {len(replies) - len(usable):,} an empty one, "
        f"{len(records) - len(kept):,} were too long"
    )
    return version


def train_prompts(workspace: Workspace) -> list[Prompt]:
    """Prompts to draw completions for in PPO: those of the comparisons' training split."""
    return _different(pairs(workspace).train)


def asked_records(workspace: Workspace) -> FeedbackData[Record]:
    """Records to ask about as they are, with whatever says what is right: both splits.

    On the testbed these are the prompts of the feedback and those held out, two data sets.
    """
    if workspace.recipe.data.source == "testbed":
        train, test = _open(workspace, "prompts"), _open(workspace, "held-out")
    else:
        train = test = _open(workspace, "feedback")
    ids = tuple(dict.fromkeys(_record(workspace, version) for version in (train, test)))
    return FeedbackData(
        train.name,
        train.hash if train is test else hash_json([train.hash, test.hash]),
        _limited(workspace, train, "train"),
        _limited(workspace, test, "test"),
        ids,
    )


def test_prompts(workspace: Workspace) -> HeldOutPrompts:
    """Held-out prompts for evaluation, each once."""
    testbed = workspace.recipe.data.source == "testbed"
    version = _open(workspace, "held-out" if testbed else "feedback")
    limit = None if testbed else workspace.recipe.eval.prompts
    found = _different(_limited(workspace, version, "test"))[:limit]
    if not found:
        raise DataError(
            f"the test split of data set {version.name} holds no prompt to evaluate on",
            value=dict(version.manifest["splits"]),
            remedy="raise data.test_share or give more data",
        )
    return HeldOutPrompts(found, version.name, version.hash, _record(workspace, version))


def _different(records: Sequence[Record]) -> list[Prompt]:
    """The prompts behind records, each conversation once."""
    unique: dict[tuple[Message, ...], Prompt] = {}
    for prompt in map(as_prompt, records):
        unique.setdefault(prompt.messages, prompt)
    return list(unique.values())
