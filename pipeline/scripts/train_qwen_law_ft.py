"""Train a LoRA adapter on legal multiple-choice rows: `python scripts/train_qwen_law_ft.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.core.errors import PipelineError, exit_code_of
from app.core.files import require_writable_place
from app.core.model_source import require_model
from app.fast.startup import lean_imports
from app.training.rows import read_rows
from app.training.settings import TrainingSettings, parse_settings


def require_checkpoint(settings: TrainingSettings) -> None:
    """Raise `PipelineError` where the run should resume and there is no checkpoint."""
    if settings.resume_from_checkpoint is None:
        return
    asked = settings.resume_from_checkpoint
    folders = list(settings.output_dir.glob("checkpoint-*")) if asked == "latest" else [Path(asked)]
    if not any((folder / "trainer_state.json").is_file() for folder in folders):
        place = f"{settings.output_dir}/checkpoint-*" if asked == "latest" else asked
        raise PipelineError(f"--resume-from-checkpoint: {place} has no trainer_state.json; name a checkpoint-N folder")


def main() -> int:
    """Check every input first, then import the large libraries and train."""
    settings = parse_settings()
    require_model(settings.model_name, "--model-name")
    rows = read_rows(settings.train_file, settings.train_mode)
    require_writable_place(settings.output_dir, "--output-dir", folder=True)
    require_checkpoint(settings)
    if not settings.do_train:
        print(f"{len(rows)} 行の入力を確認しました。--do-train がないため、学習は行いません。")
        return 0
    with lean_imports():
        from app.training.run import train
    train(settings, rows)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
