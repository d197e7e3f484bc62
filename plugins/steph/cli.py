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

    try:
        typer.echo(run_diagnose(Path(logfile), returncode, as_json))
    except OSError as error:
        raise _failed(f"{logfile}: {error.strerror}") from error


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


@app.command("list")
def list_records(reports: Reports = Path("reports")) -> None:
    """List the records, newest first."""
    from steph.run.journal import readable_records
    from steph.tell.listing import as_text, rows

    typer.echo(as_text(rows(record for _, record in readable_records(reports / "runs"))), nl=False)


@app.command()
def compare(
    a: Annotated[str | None, typer.Argument(help="the record to hold against (default: the one before B)")] = None,
    b: Annotated[str | None, typer.Argument(help="the record to judge (default: the newest)")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, help="how much worse a figure may be, as a share: 0.1 is 10 %")
    ] = 0.10,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown instead of columns")] = False,
    reports: Reports = Path("reports"),
) -> None:
    """Hold one record against another; exit status 1 where it is worse, 2 where they can't be compared."""
    from steph.run.journal import JournalError, read_record
    from steph.tell import compare as comparing

    try:
        first, second = find_pair(reports / "runs", a, b)
        found = comparing.compare(read_record(first), read_record(second), threshold)
    except JournalError as error:
        raise _failed(str(error)) from error
    typer.echo(comparing.as_markdown(found) if as_markdown else comparing.as_text(found), nl=False)
    raise typer.Exit(found.exit_status)


def find_pair(runs: Path, a: str | None, b: str | None) -> tuple[Path, Path]:
    """The folders of two records to compare: B the newest, A the one before it, where they are not named.

    Raises JournalError where one of them is not there or both are the same.
    """
    from steph.run.journal import JournalError, record_folders

    later = find_record(runs, b)
    if a is None:
        earlier = [folder for folder in record_folders(later.parent) if folder.name < later.name]
        if not earlier:
            raise JournalError(f"{runs}: no record before {later.name} to compare with")
        return earlier[-1], later
    first = find_record(runs, a)
    if first.samefile(later):
        raise JournalError(f"{first.name}: can't be compared with itself; name another record")
    return first, later


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
