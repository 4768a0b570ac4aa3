"""`hetpref export`: what was fitted, in the files of other programs. Heavy imports are inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
