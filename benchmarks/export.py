"""`hetpref export`: what was fitted, in the files of other programs. Heavy imports are inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import split_names

app = typer.Typer(help="Write what was fitted in the files of other programs.", no_args_is_help=True)


@app.command()
def peft(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="A method with adapters, as p-share-lora.")],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="A person's id, or row number, in the dataset.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder for the adapter.")],
    dataset: Annotated[str | None, typer.Option(metavar="NAME", help="The dataset to fit on.")] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="ID", help="The text model to train in: by default the dataset's.")
    ] = None,
    n_train: Annotated[
        str | None, typer.Option(metavar="N", help="Units per seen person, or all (the default).")
    ] = None,
    n_support: Annotated[
        str, typer.Option(metavar="N", help="Units of a person who was not seen in training, or all.")
    ] = "all",
    seed: Annotated[int | None, typer.Option(min=0, max=14, help="As in a run; seed s is fold s mod 5.")] = None,
    config: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the method; may be given often.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--from", metavar="DIR", help="Do not fit: read what --save has written.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="DIR", help="Also keep the fitted method, for --from.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Fit a method as a run does, and write one person's adapter as a PEFT LoRA folder.

    Example: hetpref export peft p-share-lora --dataset tldr-top5 --user 0 --config rank=8 --out adapter --save fitted

    Everybody else, from the same fit: hetpref export peft p-share-lora --from fitted --user 1 --out adapter-1
    """
    from benchmarks.peft_export import Wanted, count, export_adapter, options

    wanted = Wanted(
        method=method,
        config=options(config or []),
        dataset=dataset,
        encoder=encoder,
        n_train=None if n_train is None else count("--n-train", n_train, least=1),
        seed=seed,
        device=device,
        saved=saved,
    )
    print(export_adapter(wanted, user, out, n_support=count("--n-support", n_support, least=0), save=save))


@app.command()
def lm_eval(
    datasets: Annotated[str, typer.Option("--datasets", metavar="A,B", help="Whose comparisons to ask about.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder for the tasks.")],
    seed: Annotated[int, typer.Option(min=0, max=14, help="As in a run; seed s is fold s mod 5.")] = 0,
    n_train: Annotated[str, typer.Option(metavar="N", help="Units told of a seen person, or all.")] = "all",
    n_support: Annotated[int, typer.Option(min=0, help="Units told of a person who was not seen in training.")] = 2,
    history_tokens: Annotated[int, typer.Option(min=0, help="The most tokens of a history, the newest kept.")] = 1024,
    response_tokens: Annotated[int, typer.Option(min=4, help="Answers in a history are cut to so many tokens.")] = 128,
) -> None:
    """Write tasks for lm-eval, one per dataset and regime, that ask a language model about each person.

    Example: hetpref export lm-eval --datasets electricity,llmfao --out tasks

    Then: lm_eval --include_path tasks --tasks hetpref_electricity_unseen --model hf --model_args pretrained=MODEL
    """
    from benchmarks.lm_eval_bridge.export import Exported, export_tasks
    from benchmarks.peft_export import count

    settings = Exported(
        seed=seed,
        n_train=count("--n-train", n_train, least=1),
        n_support=n_support,
        history_tokens=history_tokens,
        response_tokens=response_tokens,
    )
    print(export_tasks(split_names(datasets) or [], out, settings))
