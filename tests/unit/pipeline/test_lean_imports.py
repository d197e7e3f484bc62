"""What `lean_imports` keeps away, and what it puts back."""

import gc
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
from app.fast.startup import lean_imports, let_segments_grow


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


def test_packages_for_other_work_are_hidden_during_the_imports_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """transformers finds none of them; whoever needs one later has it, and one that was imported before stays."""
    (tmp_path / "scipy.py").write_text("there = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scipy", raising=False)
    monkeypatch.setitem(sys.modules, "pandas", ModuleType("pandas"))
    with lean_imports():
        assert importlib.util.find_spec("scipy") is None
        assert __import__("pandas") is sys.modules["pandas"]
    assert __import__("scipy").there
    monkeypatch.delitem(sys.modules, "scipy")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.5"},
            {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.5,expandable_segments:True"},
        ),
        (
            {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"},
            {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64,expandable_segments:True"},
        ),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, {"PYTORCH_ALLOC_CONF": "expandable_segments:False"}),
        (
            {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
            {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"},
        ),
    ],
)
def test_what_the_environment_says_of_the_allocator_stays(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    """Segments may grow beside a cap on memory; who chose otherwise keeps it."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_segments_grow()
    assert {name: value for name, value in os.environ.items() if name.endswith("_ALLOC_CONF")} == expected
