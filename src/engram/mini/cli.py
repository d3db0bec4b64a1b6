"""`engram mini`: train the built-in model from scratch, measure it, and write its model card."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TaskID

from engram.mini import weights_folder

app = typer.Typer(no_args_is_help=True, help="Train, measure and describe the built-in model.")

_FOLDER = typer.Option(help="Folder of the model; without it, the packaged one.")
_THREADS = typer.Option(min=1, help="Threads that PyTorch may use.")


@app.command()
def train(
    folder: Annotated[Path, typer.Option(help="Where the model goes; a checkpoint beside it makes the run resumable.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; without it, the recipe's.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and text.")] = 0,
    threads: Annotated[int, _THREADS] = 2,
) -> None:
    """Train mini from scratch, or go on where an interrupted run stopped.

    Example: engram mini train --folder my-mini
    """
    import torch

    from engram.mini.package import round_to_half_, save_package
    from engram.mini.recipe import Recipe
    from engram.mini.training import Progress
    from engram.mini.training import train as run
    from engram.mini.world import load_world

    torch.set_num_threads(threads)
    recipe = Recipe(seed=seed) if steps is None else Recipe(seed=seed, steps=steps)
    console = Console(stderr=True)
    with Bar(console=console) as bar:
        task = bar.add_task("training", total=recipe.steps)

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.step, description=f"training, loss {progress.loss:.3f}")

        model, tokenizer = run(load_world(), recipe, checkpoint=folder / "checkpoint.safetensors", on_step=show)
    round_to_half_(model)
    save_package(model, tokenizer, folder)
    console.print(f"The model is in {folder}. Next: engram mini measure --folder {folder}")


@app.command()
def measure(
    folder: Annotated[Path | None, _FOLDER] = None,
    threads: Annotated[int, _THREADS] = 2,
) -> None:
    """Measure accuracy and perplexity, and write measured.json and missed.json into the folder.

    Example: engram mini measure --folder my-mini
    """
    import torch

    from engram.mini.card import measure_model, write_measurements

    torch.set_num_threads(threads)
    folder = weights_folder() if folder is None else folder
    console = Console(stderr=True)
    with Bar(console=console) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        measured, missed = measure_model(folder, on_progress=show)
    write_measurements(folder, measured, missed)
    console.print(f"Wrote {folder / 'measured.json'}. Next: engram mini card --folder {folder}")


@app.command()
def card(folder: Annotated[Path | None, _FOLDER] = None) -> None:
    """Write the model card README.md from measured.json.

    Example: engram mini card --folder my-mini
    """
    from engram.mini.card import write_card

    write_card(weights_folder() if folder is None else folder)
