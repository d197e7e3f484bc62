"""The `steph` command: everything that can be asked without running a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Reports = Annotated[Path, typer.Option("--reports", help="folder that holds runs/")]


@app.command()
def diagnose(
    logfile: Annotated[str, typer.Argument(help="a log file, or - for standard input")],
    returncode: Annotated[int | None, typer.Option(help="the process's exit code; negative: a signal")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
) -> None:
    """Say why a training or evaluation run failed, from its log."""
    from steph.judge.diagnose import run_diagnose

    if logfile != "-" and not Path(logfile).is_file():
        raise _failed(f"{logfile}: no such file")
    typer.echo(run_diagnose(Path(logfile), returncode, as_json))


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(help="a record's id or folder (default: the newest)")] = None,
    reports: Reports = Path("reports"),
) -> None:
    """Write a record's Markdown again from its journal."""
    from steph.run.journal import JournalError, read_record, write_record
    from steph.session import settle_lost_runs, tell

    try:
        folder = find_record(reports / "runs", run)
        settle_lost_runs(folder.parent)
        record = read_record(folder)
        if not record.live:
            write_record(folder, record)
        typer.echo(str(tell(folder.parent, record)))
    except JournalError as error:
        raise _failed(str(error)) from error


def find_record(runs: Path, run: str | None) -> Path:
    """The folder of a record by id, by folder, or the newest; raises JournalError where there is none."""
    from steph.run.journal import JournalError, record_folders

    if run is not None:
        for folder in (Path(run), runs / run):
            if (folder / "events.jsonl").is_file():
                return folder
        raise JournalError(f"{run}: no record of this name under {runs}")
    folders = record_folders(runs)
    if not folders:
        raise JournalError(f"{runs}: no records yet; run pytest -m gpu")
    return folders[-1]


def _failed(message: str) -> typer.Exit:
    typer.echo(f"steph: {message}", err=True)
    return typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
