"""Cheap checks of a model's name and an adapter's folder, before any large import."""

import json
from pathlib import Path

from app.core.errors import PipelineError


def require_model(name: str, flag: str) -> None:
    """Raise `PipelineError` where `name` is meant as a folder (it exists, or starts like a path) but holds no model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PipelineError(f"{flag} {name} is a folder without config.json; name a model folder or a Hub id")
    elif name.startswith((".", "/", "~")):
        raise PipelineError(
            f"{flag} {name} does not exist; name a model folder or a Hub id such as Qwen/Qwen1.5-1.8B-Chat"
        )


def require_adapter(folder: Path, base: str, flag: str) -> None:
    """Raise `PipelineError` unless `folder` holds a whole LoRA adapter that was trained on `base`."""
    remedy = "train one with scripts/train_qwen_law_ft.py --do-train, or name its --output-dir"
    if not folder.is_dir():
        raise PipelineError(f"{flag} {folder} is not a folder; {remedy}")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise PipelineError(f"{flag} {folder} has no {name}; {remedy}")
    config_path = folder / "adapter_config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        trained_on = config["base_model_name_or_path"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PipelineError(f"{config_path} has no readable key 'base_model_name_or_path'; {remedy}") from error
    if not _same_model(str(trained_on), base):
        raise PipelineError(
            f"{config_path} key 'base_model_name_or_path' is {trained_on!r}, but --hf-model-name is {base!r}; "
            "an adapter only works on the base it was trained on: name that base or train on this one"
        )


def _same_model(one: str, other: str) -> bool:
    if one == other:
        return True
    paths = [Path(name).expanduser() for name in (one, other)]
    return all(path.is_dir() for path in paths) and paths[0].resolve() == paths[1].resolve()
