"""The `steph` command: everything that can be asked without running a stage."""

from __future__ import annotations

import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from steph import __version__
from steph.base.terms import NAMED_TRAINERS, TrainerName

if TYPE_CHECKING:
    import pytest

    from steph.contract.options import Options
    from steph.contract.settings import Profile
    from steph.memory.calibration import Calibration
    from steph.memory.forecast import Sharing
    from steph.memory.shapes import ModelShape

JOURNAL = "events.jsonl"  # a record's, in its folder
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Reports = Annotated[Path, typer.Option("--reports", help="folder that holds runs/")]
Trainer = Annotated[
    str | None,
    typer.Option(
        help=f"how the pipeline's trainer uses memory: {', '.join(NAMED_TRAINERS)} "
        "(default: the record's, else any of them)"
    ),
]
ProfileOption = Annotated[str | None, typer.Option("--profile", "--steph-profile", help="as for pytest")]
RootOption = Annotated[str | None, typer.Option("--pipeline-root", "--steph-pipeline-root", help="as for pytest")]
PythonOption = Annotated[str | None, typer.Option("--pipeline-python", "--steph-pipeline-python", help="as for pytest")]
LanguageOption = Annotated[str | None, typer.Option("--language", "--steph-language", help="as for pytest")]


def _speak(context: typer.Context, parameter: typer.CallbackParam, word: str) -> None:
    """Everything that the command says from here to its end is in this language."""
    from steph.base.messages import speaking
    from steph.contract.options import OptionError, parse_language

    source = context.get_parameter_source(parameter.name or "")
    named = "STEPH_LANGUAGE" if source is not None and source.name == "ENVIRONMENT" else "--language"
    try:
        context.with_resource(speaking(parse_language(word, named)))
    except OptionError as error:
        raise _failed(str(error)) from error


Spoken = Annotated[
    str,
    typer.Option(
        "--language",
        "--steph-language",
        envvar="STEPH_LANGUAGE",
        callback=_speak,
        is_eager=True,
        expose_value=False,
        help="language of what is said: ja or en",
    ),
]
FromRecord = Annotated[
    str | None, typer.Option(help="a record whose measured peaks correct it, best one of pytest --steph-calibrate")
]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"steph {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="print the version and exit")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


@app.command()
def diagnose(
    logfile: Annotated[str, typer.Argument(help="a log file, or - for standard input")],
    returncode: Annotated[int | None, typer.Option(help="the process's exit code; negative: a signal")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    language: Spoken = "ja",
) -> None:
    """Say why a training or evaluation run failed, from its log: text, a notebook, JSON lines, also gzipped."""
    from steph.base.messages import phrase
    from steph.diagnose.engine import run_diagnose

    try:
        found = run_diagnose(Path(logfile), returncode, as_json)
    except FileNotFoundError as error:
        raise _failed(f"{logfile}: {phrase('setting.no_file')}") from error
    except OSError as error:
        raise _failed(f"{logfile}: {error.strerror}") from error
    typer.echo(found)


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(help="a record's id or folder (default: the newest)")] = None,
    as_html: Annotated[
        bool, typer.Option("--html", help="one page of HTML to send instead: pictures inside, names and tokens masked")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="the file to write (default: the report's own, or beside it with .html)")
    ] = None,
    reports: Reports = Path("reports"),
    language: Spoken = "ja",
) -> None:
    """Write a record's report again from its journal, as Markdown or as HTML."""
    from steph.base.messages import phrase
    from steph.conduct.session import settle_lost_runs, tell, tell_apart
    from steph.run.journal import JournalError, read_record, write_record

    try:
        folder = find_record(reports / "runs", run)
        settle_lost_runs(folder.parent)
        record = read_record(folder)
        if not record.live:
            with contextlib.suppress(OSError):  # made from the journal at any time; a folder may be read-only
                write_record(folder, record)
        if as_html or output is not None:
            is_page = output is not None and output.suffix.lower() in (".html", ".htm")
            if as_html and output is not None and not is_page:
                raise _failed(phrase("report.no_page_name", output=output))
            as_html = as_html or is_page
            typer.echo(str(tell_apart(folder.parent, record, output, as_html=as_html)))
        else:
            typer.echo(str(tell(folder.parent, record)))
    except (JournalError, OSError) as error:
        raise _failed(str(error)) from error


@app.command("list")
def list_records(reports: Reports = Path("reports"), language: Spoken = "ja") -> None:
    """List the records, newest first, with what each takes on the disk."""
    from steph.run.journal import JournalError, folder_bytes, read_record, record_folders
    from steph.tell.compare import damaged_rows, listing_rows, listing_text

    found, damaged = [], []
    for folder in record_folders(reports / "runs"):
        try:
            found.append((read_record(folder), folder_bytes(folder)))
        except JournalError as error:
            typer.echo(f"steph: {error}", err=True)
            damaged.append((folder.name, folder_bytes(folder)))
    typer.echo(listing_text((*listing_rows(found), *damaged_rows(damaged))), nl=False)


@app.command()
def compare(
    a: Annotated[
        str | None,
        typer.Argument(
            help="the record to hold against: an id or a folder (default: B's predecessor of its kind); "
            "or, alone, a folder with records of many machines"
        ),
    ] = None,
    b: Annotated[str | None, typer.Argument(help="the record to judge (default: the newest)")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, help="how much worse a figure may be, as a share; a duration also by more than 10 s")
    ] = 0.10,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print Markdown instead of columns")] = False,
    reports: Reports = Path("reports"),
    language: Spoken = "ja",
) -> None:
    """Hold one record against another, or the records of many machines against each other.

    Exit status 1 where one is worse, slower or fuller, 2 where they can't be compared.
    """
    from steph.run.journal import JournalError, read_record
    from steph.tell import compare as comparing

    if a is not None and b is None and not (Path(a) / JOURNAL).is_file() and next(Path(a).rglob(JOURNAL), None):
        raise typer.Exit(_compare_machines(Path(a), threshold, as_markdown=as_markdown))
    try:
        first, second = find_pair(reports / "runs", a, b)
        found = comparing.compare(read_record(first), read_record(second), threshold)
    except JournalError as error:
        raise _failed(str(error)) from error
    typer.echo(comparing.as_markdown(found) if as_markdown else comparing.as_text(found), nl=False)
    raise typer.Exit(found.exit_status)


def _compare_machines(folder: Path, threshold: float, *, as_markdown: bool) -> int:
    from steph.base.messages import phrase
    from steph.run.journal import JournalError, read_record
    from steph.tell import compare as comparing

    found = []
    for journal in sorted(folder.rglob(JOURNAL)):
        try:
            found.append((journal.parent.relative_to(folder), read_record(journal.parent)))
        except JournalError as error:
            typer.echo(f"steph: {error}", err=True)
    if not found:
        raise _failed(phrase("record.none_readable", folder=folder))
    rows = comparing.machines(found, threshold)
    typer.echo(comparing.machines_told(rows, threshold, as_markdown=as_markdown), nl=False)
    return int(any(row.outliers or not row.is_green for row in rows))


@app.command()
def fit(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="a Hub id or a common model's name, a model folder, or a config.json")],
    vram: Annotated[str | None, typer.Option(help="the card's memory, as in 20GiB")] = None,
    card: Annotated[str | None, typer.Option(help="the card's name instead, as in 'RTX 3080'")] = None,
    trainer: Trainer = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="rows of a micro-batch (default: a grid)")] = None,
    max_seq_length: Annotated[int | None, typer.Option(min=1, help="tokens of a row (default: a grid)")] = None,
    gradient_accumulation_steps: Annotated[int, typer.Option(min=1, max=4096)] = 4,
    lora_r: Annotated[int, typer.Option(min=1, max=65536)] = 16,
    target_modules: Annotated[
        str | None,
        typer.Option(
            help="names with commas between, all-linear, or a regular expression as peft takes it (default: q and v)"
        ),
    ] = None,
    modules_to_save: Annotated[str, typer.Option(help="modules trained as a whole, with commas between")] = "",
    dora: Annotated[bool, typer.Option("--dora", help="DoRA instead of LoRA")] = False,
    use_4bit: Annotated[bool, typer.Option("--use-4bit/--no-4bit")] = True,
    bits: Annotated[int | None, typer.Option(help="of the base model: 4, 8 or 16")] = None,
    double_quant: Annotated[bool, typer.Option("--double-quant/--no-double-quant")] = True,
    full_finetuning: Annotated[bool, typer.Option("--full-finetuning", help="all weights are trained")] = False,
    recompute: Annotated[
        str | None, typer.Option(help="gradient checkpointing: on or off (default: on; without --trainer both)")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="transformers' name of it")] = "adamw_torch",
    packing: Annotated[bool, typer.Option("--packing", help="rows are packed, without padding")] = False,
    cards: Annotated[int, typer.Option(min=1, max=1024, help="how many such cards share the run")] = 1,
    sharing: Annotated[str, typer.Option(help="how they do: ddp, fsdp or zero3")] = "ddp",
    data: Annotated[
        str | None, typer.Option(help="a training file: its longest row and answer count, for trainer answer")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="tokenizer.json for --data (default: the model folder's)")
    ] = None,
    from_record: FromRecord = None,
    reports: Reports = Path("reports"),
    pipeline_python: PythonOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of text")] = False,
    language: Spoken = "ja",
) -> None:
    """Predict a training run's GPU memory and say whether it fits a card; no weights are loaded or downloaded.

    Common models are answered from a table, at once; others are counted by transformers and peft, in seconds and once.
    """
    from steph.conduct.fit import CountingError, LoraOptions, fit_basis, fit_json, fit_text, subject
    from steph.conduct.preparation import cache_dir
    from steph.memory import fit as fitting
    from steph.memory.forecast import SHARINGS
    from steph.memory.shapes import ShapeError
    from steph.run.inputs import InputError

    saved = tuple(filter(None, map(str.strip, modules_to_save.split(","))))
    own = Path(".venv/bin/python")
    python = str(Path(pipeline_python).expanduser() if pipeline_python else own if own.is_file() else sys.executable)
    try:
        known, usable_bytes = fitting.card_of(card, vram)
        fitting.require("--bits", bits, (4, 8, 16))
        fitting.require("--sharing", sharing, SHARINGS)
        fitting.require("--recompute", recompute, ("on", "off"))
        lora = LoraOptions(target_modules, lora_r, saved, dora, python, cache_dir(), partial(typer.echo, err=True))
        found = subject(model, lora)
        record = _calibration(reports, from_record, model, found.shape) if from_record is not None else None
        kind = fitting.trainer_named(trainer or (record.trainer if record else TrainerName.UNKNOWN))
        recomputes = None if recompute is None else recompute == "on"
        names = ("lora_r", "gradient_accumulation_steps", "optimizer", "double_quant", "packing", "dora")
        work = fitting.workload_of_options(
            kind,
            found.targets,
            recomputes,
            fitting.bits_of(found.weights.form, found.weights.bits, bits, use_4bit=use_4bit),
            modules_to_save=saved,
            adapter=found.adapter,
            **{name: context.params[name] for name in names},
        )
        setting = fitting.Setting(
            kind, recomputes, cards, cast("Sharing", sharing), known is None or known.computes_bf16,
            found.weights.form, found.taken_for,
        )  # fmt: skip
        answer = fitting.fit(
            model,
            found.shape,
            work,
            usable_bytes,
            setting,
            batches=(batch_size,) if batch_size else fitting.GRID_BATCHES,
            lengths=(max_seq_length,) if max_seq_length else fitting.GRID_LENGTHS,
            rows=fitting.rows_of(data, tokenizer, model) if data else None,
            forecast=record.forecast if record else None,
            trains_all=full_finetuning,
        )
    except fitting.FitError as error:
        raise _failed(str(error)) from error
    except (ShapeError, CountingError, InputError, OSError) as error:
        raise _failed(f"--model {error}") from error
    if as_json:
        return typer.echo(fit_json(answer, known))
    basis = fit_basis(record, kind, found.shape) if record else ""
    return typer.echo(fit_text(answer, known, basis, _typed(context)))


def _typed(context: typer.Context) -> str:
    """The command with the options that were typed, to be pasted into a shell."""
    words = ["steph", str(context.info_name)]
    for parameter in context.command.params:
        source, value = context.get_parameter_source(parameter.name or ""), context.params.get(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or value is None:
            continue
        if isinstance(value, bool):
            words.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            words += [parameter.opts[0], str(value)]
    return shlex.join(words)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def doctor(
    context: typer.Context,
    profile: ProfileOption = None,
    pipeline_root: RootOption = None,
    pipeline_python: PythonOption = None,
    language: LanguageOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="without libraries and the 4-bit operation")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of lines")] = False,
    gate: Annotated[bool, typer.Option("--gate", help="exit status 3 where a run is sure to fail, else 0")] = False,
) -> None:
    """Look at machine, pipeline and Hub before anything is downloaded: one line a check, with its remedy.

    Takes every other option of a run, too. Exit status 1 where a check fails, 2 where an option can't be used.
    """
    from steph.doctor.command import doctor_status

    words = _run_options(profile, pipeline_root, pipeline_python, language)
    asked = [*words, *context.args]
    raise typer.Exit(doctor_status(asked, typer.echo, is_quick=quick, as_json=as_json, is_gate=gate))


@app.command()
def init(
    root: Annotated[Path, typer.Argument(help="the pipeline's folder (default: this one)")] = Path(),
    language: Spoken = "ja",
) -> None:
    """Look into a folder, say what was found, and write a first steph.toml; asks nothing, overwrites nothing."""
    from steph.base.messages import phrase
    from steph.contract.description import FILE_NAME, UNKNOWN
    from steph.contract.draft import draft, findings, survey

    target = root / FILE_NAME
    if not root.is_dir():
        raise _failed(phrase("init.no_folder", root=root))
    if target.exists():
        raise _failed(phrase("init.is_there", path=target))
    found = survey(root)
    typer.echo("\n".join(findings(found)) or phrase("init.nothing", root=root))
    text = draft(found)
    with target.open("x", encoding="utf-8") as file:
        file.write(text)
    command = f"steph check {shlex.quote(str(root))}"
    then = phrase("init.fill_first" if UNKNOWN in text else "init.next", command=command, unknown=UNKNOWN)
    typer.echo(f"\n{phrase('init.written', path=target)}\n\n{text}\n{then}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def check(
    context: typer.Context,
    root: Annotated[str | None, typer.Argument(help="the pipeline's folder, as --steph-pipeline-root")] = None,
    profile: ProfileOption = None,
    pipeline_root: RootOption = None,
    pipeline_python: PythonOption = None,
    language: LanguageOption = None,
) -> None:
    """Show the commands that a description stands for, and which core checks can be measured; starts nothing.

    Takes every other option of a run, too. Exit status 2 where a run would refuse the description or its inputs.
    """
    from steph.conduct.check import check_lines
    from steph.doctor.command import with_run_options
    from steph.pytest_options import join_values

    others = join_values([*filter(None, [root]), *context.args])  # a run's option may stand before the folder
    root = next((word for word in others if not word.startswith("-")), None)
    others = [word for word in others if word != root]
    words = _run_options(profile, pipeline_root or root, pipeline_python, language)

    def show(_: pytest.Config, options: Options, profile: Profile) -> int:
        typer.echo("\n".join(check_lines(options, profile)))
        return 0

    raise typer.Exit(with_run_options([*words, *others], show))


def _run_options(profile: str | None, root: str | None, python: str | None, language: str | None) -> list[str]:
    """The options as pytest would be given them."""
    named = {"profile": profile, "pipeline-root": root, "pipeline-python": python, "language": language}
    return [f"--steph-{name}={value}" for name, value in named.items() if value is not None]


@app.command()
def slow(
    run: Annotated[str | None, typer.Argument(help="a record's id or folder (default: the newest)")] = None,
    reports: Reports = Path("reports"),
    language: Spoken = "ja",
) -> None:
    """Say why a record's training was slow: spilled memory, data, padding, loading, recompute, or the card itself."""
    from steph.memory.calibration import NothingTrainedError, why_slow
    from steph.run.journal import JournalError, read_record

    try:
        found = why_slow(read_record(find_record(reports / "runs", run)))
    except (JournalError, OSError, NothingTrainedError) as error:
        raise _failed(str(error)) from error
    typer.echo("\n".join(map(str, found)))


def _calibration(reports: Path, run: str, model: str, shape: ModelShape) -> Calibration:
    from steph.base.messages import phrase
    from steph.memory.calibration import calibration_of
    from steph.memory.shapes import ShapeError
    from steph.run.journal import JournalError, read_record

    try:
        found = calibration_of(read_record(find_record(reports / "runs", run)))
    except ShapeError as error:  # of the model that the record is about
        raise _failed(f"--from-record {run}: {error}") from error
    except (JournalError, OSError) as error:
        raise _failed(str(error)) from error
    if found.carries_over or shape == found.shape:
        return found
    raise _failed(phrase("fit.record.no_formula", run=run, model=model))


def find_pair(runs: Path, a: str | None, b: str | None) -> tuple[Path, Path]:
    """The folders to compare, unless named: B the newest, A its predecessor of its kind; raises JournalError."""
    from steph.base.messages import say
    from steph.run.journal import JournalError, read_record, readable_records

    later = find_record(runs, b)
    if a is None:
        kind = read_record(later).context.kind
        earlier = [
            folder
            for folder, record in readable_records(later.parent)
            if folder.name < later.name and record.context.kind is kind
        ]
        if not earlier:
            raise JournalError(say(f"record.no_earlier.{kind}", folder=runs, record=later.name))
        return earlier[-1], later
    first = find_record(runs, a)
    if first.samefile(later):
        raise JournalError(say("record.itself", record=first.name))
    return first, later


def find_record(runs: Path, run: str | None) -> Path:
    """The folder of a record by id, by folder, or the newest; raises JournalError where there is none."""
    from steph.base.messages import say
    from steph.pytest_options import suite_command
    from steph.run.journal import JournalError, record_folders

    if run is not None:
        for folder in (Path(run), runs / run):
            if folder.is_dir() and (folder in record_folders(folder.parent) or (folder / JOURNAL).is_file()):
                return folder
        raise JournalError(say("record.unknown", record=run, folder=runs))
    folders = record_folders(runs)
    if not folders:
        raise JournalError(say("record.none", folder=runs, command=suite_command()))
    return folders[-1]


def _failed(message: str) -> typer.Exit:
    typer.echo(f"steph: {message}", err=True)
    return typer.Exit(2)


def main() -> None:
    """Entry point of the console script."""
    from steph.base.text import make_printable

    make_printable(sys.stdout, sys.stderr)
    try:
        app()
    except OSError as error:  # a name too long for any disk, a folder that may not be read
        typer.echo(f"steph: {error.filename or ''}: {error.strerror}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
