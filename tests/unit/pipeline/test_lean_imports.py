"""What `lean_imports` keeps away, and what it puts back."""

import gc
import sys

import pytest
from app.fast.startup import lean_imports


def test_the_compiler_is_asked_at_the_first_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions decorated during the imports are compiled once, when called; afterwards compiling is as before."""
    import torch

    compiled = []

    def compile_now(function: object, **options: object) -> object:
        compiled.append((function, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_now)
    with lean_imports():
        double = torch.compile(dynamic=False)(lambda number: 2 * number)

    assert compiled == []
    assert torch.compile is compile_now
    assert [double(3), double(4)] == [6, 8]
    assert [options for _, options in compiled] == [{"dynamic": False}]


def test_the_collector_is_on_again_even_after_a_failed_import() -> None:
    """Whatever happens inside, cyclic garbage is collected afterwards."""

    def import_what_is_not_there() -> None:
        with lean_imports():
            assert not gc.isenabled()
            __import__("no_such_module_anywhere")

    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        import_what_is_not_there()
    assert gc.isenabled()
    gc.unfreeze()


def test_the_data_folder_does_not_pass_for_a_package() -> None:
    """`import datasets` fails although a folder of that name lies on the path."""
    with lean_imports():
        assert sys.modules["datasets"] is None
        with pytest.raises(ModuleNotFoundError):
            __import__("datasets")
