"""A program is asked for `--help` only where its own text shows that it would answer."""

from __future__ import annotations

import pytest
from steph.contract.programs import answers_help

ASKED = {
    "argparse": "import argparse\np = argparse.ArgumentParser()\nargs = p.parse_args()",
    "argparse under another name": "import argparse as ap\nargs, rest = ap.ArgumentParser().parse_known_args()",
    "argparse's class alone": "from argparse import ArgumentParser as P\ndef main(argv=None):\n P().parse_args(argv)",
    "argparse, arguments of the process": "import argparse, sys\nargparse.ArgumentParser().parse_args(sys.argv[1:])",
    "a parser of its own": "import argparse\nclass P(argparse.ArgumentParser): pass\nP().parse_args()",
    "click": "import click\n@click.command()\n@click.option('--lr')\ndef main(lr): pass\nmain()",
    "click, imported bare": "from click import command\n@command()\ndef main(): pass\nmain()",
    "typer": "import typer\napp = typer.Typer()\napp()",
    "typer, one function": "import typer\ntyper.run(print)",
    "fire": "import fire\nfire.Fire(print)",
    "fire, imported bare": "from fire import Fire\nFire(print)",
    "HfArgumentParser": "from transformers import HfArgumentParser\nHfArgumentParser(A).parse_args_into_dataclasses()",
    "TrlParser": "from trl import TrlParser\nTrlParser((A,)).parse_args_and_config()",
    "tyro": "import tyro\ntyro.cli(dict)",
    "absl": "from absl import app, flags\napp.run(main)",
    "docopt": "from docopt import docopt\nargs = docopt(__doc__)",
    "optparse": "from optparse import OptionParser\no, a = OptionParser().parse_args()",
    "parent parsers": "from argparse import ArgumentParser as P\nq = P(add_help=False)\nP(parents=[q]).parse_args()",
}
NOT_ASKED = {
    "a notebook's export": "LR = 2e-4\ntrain(LR)",
    "words in a comment": "# argparse, click and ArgumentParser().parse_args() are not used here\ntrain()",
    "words in a text": "print('usage: argparse.ArgumentParser().parse_args()')\ntrain()",
    "a namespace only": "import argparse\nargs = argparse.Namespace(lr=1)\ntrain(args)",
    "arguments that stand in the text": "import argparse\nargs = argparse.ArgumentParser().parse_args([])\ntrain(args)",
    "the same by name": "import argparse\nargs = argparse.ArgumentParser().parse_args(args=['--lr', '1'])\ntrain(args)",
    "a parser that never parses": "import argparse\np = argparse.ArgumentParser()\ntrain()",
    "a parser without help": "import argparse as a\na.ArgumentParser(add_help=False).parse_known_args()\ntrain()",
    "an import that is not used": "import click, fire, typer\ntrain()",
    "a variable of the same name": "fire = Gun()\nfire.Fire(1)\ntrain()",
    "sys.argv": "import sys\ntrain(sys.argv[1])",
    "no Python": "#!/bin/sh\nexec python train.py --help argparse",
    "nothing": "",
    "a magic of a notebook": "%pip install click\nimport argparse\nargparse.ArgumentParser().parse_args()",
    "a null byte": "import argparse\0",
    "nested too deep": "(" * 100_000,
}


@pytest.mark.parametrize("source", ASKED.values(), ids=ASKED)
def test_a_text_with_a_command_line_is_asked(source: str) -> None:
    """Each usual parser is known, by whatever name it is imported."""
    assert answers_help(source)


@pytest.mark.parametrize("source", NOT_ASKED.values(), ids=NOT_ASKED)
def test_a_text_without_one_is_never_started_to_be_asked(source: str) -> None:
    """What would train when it is started, or may, is not asked."""
    assert not answers_help(source)
