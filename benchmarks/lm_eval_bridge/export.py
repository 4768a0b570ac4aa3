"""What `hetpref export lm-eval` writes: one task per dataset and regime, a group, and a README."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.display import LiveProgress
from datasets_registry.atomic_write import write_atomically
from datasets_registry.errors import RequestError
from datasets_registry.protocol import PROTOCOL, Count, Regime, Repetition
from datasets_registry.records import PreferenceData

TASK_VERSION = 1
REGIMES: tuple[Regime, ...] = ("seen", "unseen")
GROUP = "hetpref"
_FUNCTIONS = "benchmarks.lm_eval_bridge.tasks"


@dataclass(frozen=True, slots=True)
class Exported:
    """What the tasks of an export hold: the split, how much each person said, and how much of it is told."""

    seed: int = 0
    n_train: Count = "all"
    n_support: int = 2
    history_tokens: int = 1024
    response_tokens: int = 128


def export_tasks(names: Sequence[str], out: Path, settings: Exported) -> str:
    """Write the tasks of datasets to a folder and return what to tell of them; a task of another export is replaced.

    Raises RequestError for an unknown dataset, or a folder that holds something else; DataError for a dataset whose
    format leaks the answer, or that cannot be had.
    """
    from benchmarks.runner import prepare
    from benchmarks.suites import DatasetPlan
    from datasets_registry import canonical_id, find_dataset
    from datasets_registry.splits import split

    must_be_ours(out)
    at = Repetition(settings.seed)
    written: list[str] = []
    ids = list(dict.fromkeys(canonical_id(name) for name in names))
    for dataset in ids:
        # the gate of every run: a dataset whose format tells the answer makes no task
        ready = prepare(DatasetPlan(dataset, find_dataset(dataset).card.encoder), LiveProgress(), [])
        cut = split(ready.data, fold=at.fold, draw=at.draw)
        for regime in REGIMES:
            name = task_name(dataset, regime)
            text = task_yaml(name, ready.data, regime, settings, ready.data.digest, cut.digest)
            write_atomically(out / f"{name}.yaml", text.encode())
            written.append(name)
        write_atomically(out / f"{task_name(dataset)}.yaml", group_yaml(task_name(dataset), written[-2:]).encode())
    write_atomically(out / f"{GROUP}.yaml", group_yaml(GROUP, written).encode())
    write_atomically(out / "README.md", readme(written, ids, settings).encode())
    some = next((name for name in written if name.endswith("unseen")), written[0])
    command = f"lm_eval --model hf --model_args pretrained=MODEL --include_path {out} --tasks {some}"
    return f"{out}: {', '.join(written)}\n{command}"


def task_name(dataset: str, regime: str = "") -> str:
    """Return the name of a dataset's task, or of its group.

    >>> task_name("electricity@1", "unseen"), task_name("planted@1+users=60")
    ('hetpref_electricity_unseen', 'hetpref_planted_users_60')
    """
    family, _, rest = dataset.partition("@")
    number, _, options = rest.partition("+")
    parts = [GROUP, family, "" if number == "1" else f"v{number}", options, regime]
    return "_".join(re.sub(r"[^a-z0-9]+", "_", part.lower()) for part in parts if part)


def task_yaml(
    name: str, data: PreferenceData, regime: Regime, settings: Exported, dataset_sha256: str, split_sha256: str
) -> str:
    """Return a task as lm-eval reads it."""
    told: dict[str, Any] = {
        "version": TASK_VERSION,
        "hetpref": version("hetpref"),
        "protocol": PROTOCOL,
        "dataset": data.id,
        "dataset_sha256": dataset_sha256,
        "split_sha256": split_sha256,
        "regime": regime,
        "seed": settings.seed,
        "n_train": settings.n_train,
        "n_support": settings.n_support,
        "history_tokens": settings.history_tokens,
        "response_tokens": settings.response_tokens,
        "licence": data.card.licence,
    }
    lines = [
        f"task: {name}",
        f"tag: {GROUP}_{regime}",
        f"custom_dataset: !function {_FUNCTIONS}.documents",
        "test_split: test",
        "output_type: multiple_choice",
        f"doc_to_text: !function {_FUNCTIONS}.text",
        f"doc_to_choice: !function {_FUNCTIONS}.choices",
        f"doc_to_target: !function {_FUNCTIONS}.target",
        'target_delimiter: " "',
        f"process_results: !function {_FUNCTIONS}.results",
        "num_fewshot: 0",
        "metric_list:",
    ]
    for metric, function in (("acc_macro", "macro"), ("worst10", "worst_tenth"), ("acc_macro_per_byte", "macro")):
        lines += [
            f"  - metric: {metric}",
            f"    aggregation: !function {_FUNCTIONS}.{function}",
            "    higher_is_better: true",
        ]
    lines.append("metadata:")
    lines += [f"  {key}: {_scalar(value)}" for key, value in told.items()]
    return "\n".join(lines) + "\n"


def group_yaml(name: str, tasks: Sequence[str]) -> str:
    """Return a group without an aggregation of its own: lm-eval ignores one that is not its mean over documents."""
    lines = [f"group: {name}", "task:", *(f"  - {task}" for task in tasks), "metadata:", f"  version: {TASK_VERSION}"]
    return "\n".join(lines) + "\n"


def readme(tasks: Sequence[str], datasets: Sequence[str], settings: Exported) -> str:
    """Return the page that stands beside the tasks."""
    listed = "\n".join(f"- `{task}`" for task in tasks)
    return f"""# hetpref tasks for lm-eval

Written by hetpref {version("hetpref")}, protocol {PROTOCOL}, task version {TASK_VERSION}, from {", ".join(datasets)}.

```
lm_eval --model hf --model_args pretrained=MODEL --include_path . --tasks {tasks[-1]}
```

{listed}

The group `{GROUP}` holds them all, the tags `{GROUP}_seen` and `{GROUP}_unseen` those of a regime. The folder holds no
data: the tasks load the datasets through the installed package `hetpref`, which verifies them, and refuse to run where
it would give others.

Each document is one comparison by one person. Before it stands what that person said, the oldest first:

- `seen`: on training prompts, units per person: {settings.n_train};
- `unseen`: on prompts that nobody was trained on, units per person: {settings.n_support};
- at most {settings.history_tokens} tokens, the newest kept; answers in it are cut to {settings.response_tokens} tokens.

A token is counted as four bytes.

- `acc_macro`: the mean over people of the mean over their units; predicted ties count one half, labelled ties are left
  out, and a model that always prefers the first answer gets one half.
- `worst10`: the mean accuracy of the lowest tenth of people, cross-fitted.
- `acc_macro_per_byte`: `acc_macro` of log-likelihoods per byte of the answer.

Standard errors read N/A: `hetpref` gives intervals over people. Leave `--use_cache`, `--cache_requests` and
`--log_samples` off: the first two tell neither people nor models apart, the last writes what people said to a log.
Fold and draw are those of seed {settings.seed}.
"""


def must_be_ours(out: Path) -> None:
    """Raise RequestError for a folder that holds something else than tasks of an export."""
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; give a new folder")
    names = [path.name for path in out.glob("*")]
    if strange := [name for name in names if not name.startswith(GROUP) and name not in ("README.md", "__pycache__")]:
        raise RequestError(f"--out {out} holds {strange[0]!r}, which is no task of an export; give a new folder")


def _scalar(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
