"""Which lines say that an adapter was not applied, and which only have its name in them."""

from __future__ import annotations

import pytest
from steph.contract.lines import says_not_applied

NOT_APPLIED = (
    "PeftModel not loaded",
    "Running in base-only mode",
    "skip lora",
    "ModuleNotFoundError: No module named 'peft'; continuing with the plain model",
    "アダプターを読み込まずに評価します",
    "Could not find adapter weights; proceeding with base",
    "LoRA を無効化してベースモデルを使います",
    "PEFT unavailable - using plain base model",
    "LoRA disabled: rank mismatch",
    "LoRAの適用をスキップしました",
    "LoRA重みが空のためベースモデルのみで推論します",
    "Adapter path is not a valid PEFT checkpoint; evaluating base model",
    "UserWarning: Found missing adapter keys while loading the checkpoint: ['x'].",
    "WARNING LoRA weights could not be loaded, continuing with the base model",
    "Failed to load LoRA adapter from runs/x",
    "ValueError: Can't find 'adapter_config.json' at 'runs/x'",
    "WARNING: falling back to base model",
    "adapter_config.json broken, continuing without LoRA",
    "Skipping the adapter: version mismatch",
    "no adapter was found in runs/x",
    "LoRAアダプターの読み込みに失敗しました",
    "LoRA を読み込めないため、ベースモデルで評価します",
    "アダプタが見つかりません: runs/x",
    "WARNING: LoRA adapter not found, using the base model",
    "LoRAを読み込めないため、ベースモデルで評価します",
    "adapter ignored: base model differs",
    "Ignoring LoRA adapter at runs/x (incompatible)",
    "LoRA weights are incompatible with this base, skipped",
    "Could not apply LoRA: shape mismatch",
    "Adapter not loaded",
    "LoRA adapter 'default' is disabled",
    "peft is not installed; running without adapter",
    "アダプターは適用されません",
    "LoRA は使わず、素のモデルで答えます",
    "アダプターを無視して続行します",
    "LoRAなしで推論を続けます",
    "evaluating the base model instead",
    "Adapter load failed: KeyError",
    "LoRA adapter file is empty",
    "WARNING:root:no LoRA weights were applied",
    "アダプターの形が合わないため適用できません",
    "Reverting to base model",
    "LoRA: load error (rank 16 != 8)",
    "Loading adapter weights from x led to unexpected keys not found in the model",
    "error loading adapter: unexpected EOF",
    "Adapter at runs/x does not exist",
    "LoRA path does not exist: runs/x",
    "ベースモデルにフォールバックします",
    "LoRA adapter discarded (dtype)",
    "LoRA skipped",
)
HARMLESS = (
    "LoRA weights not merged, using them unmerged",
    "adapter: loaded 96/96",
    "LoRAは適用済みです",
    "LoRAを適用しました（スキップ 0 件）",
    "--skip-lora is not set",
    "disable_adapters: available",
    "LoRA alpha not found in args, using default",
    "no adapter was found in cache, loading from disk",
    "LoRA: 読み込み失敗 0 件",
    "loading base model first",
    "INFO lora rank pattern not found in config, using r=16",
    "lora_config.json does not exist; reading adapter_config.json",
    "LoRA 重み 96 個を読み込みました（失敗 0 件）",
    "INFO  adapter_config.json: optional key 'corda_config' not found",
    "lora_target not found in cli, using default target_modules",
    "LoRAの設定ファイルが見つからないので既定値を使います",
    "  LoRA Path: runs/debug_small_model/direct_norag_small_4bit",
    "Failed to load CPU gemm_4bit_forward: No module named 'kernels'",
    "Loading adapter weights from runs/x",
    "README.md not found",
    "Using base model: Qwen/Qwen1.5-1.8B-Chat",
    "Loading base model, then the LoRA adapter",
    "LoRA アダプターを読み込みました",
    "Merging the LoRA adapter into the base model",
    "Evaluating base model first, then the adapter",
    "LoRA dropout disabled for inference",
    "Loaded adapter, missing keys: 0",
    "adapter loaded: no missing keys",
    "Skipping adapter merge: 4-bit base",
    "まずベースモデルだけで評価します（比較用）",
    "LoRA のマージをスキップしました",
    "Baseline (LoRA disabled): 1/3",
    "if the adapter is not found, the base model is used",
    "adapter_model.safetensors not found, trying adapter_model.bin",
    "No chat template is set for this tokenizer, falling back to a default",
    "LoRA bias: none",
    "Adapter weights loaded (0 missing, 0 unexpected)",
    "アダプターの読み込みに問題はありません",
    "LoRA の学習率を既定値にしました",
    "LoRA rank: 16, alpha: 32, dropout: 0.05",
    "Gradient checkpointing disabled, LoRA adapter loaded",
    "adapter cache disabled",
    "Adapter download skipped: already local",
    "PEFT 0.17: adapter attached, 96 modules",
    "base model only needs 3 GB",
    "LoRA adapters are active: ['default']",
    "Error Analysis:",
    "アダプターが見つかりました: runs/x",
    "LoRA adapter loaded without errors",
    "peft: optional dependency 'eetq' not available",
)


@pytest.mark.parametrize("line", NOT_APPLIED)
def test_a_line_that_says_that_the_adapter_is_not_in_the_model_is_a_finding(line: str) -> None:
    """In the words of PEFT, of transformers and of scripts in two languages."""
    assert says_not_applied(line)
    assert says_not_applied(f"[rank0]: 2026-01-01 12:00:00 WARNING eval.py: {line}")


@pytest.mark.parametrize("line", HARMLESS)
def test_the_adapters_name_in_a_line_accuses_nobody(line: str) -> None:
    """A setting, a count of none, another place that helped out, a comparison and a condition are no finding."""
    assert not says_not_applied(line)


@pytest.mark.parametrize(
    "unit", ["adapter ", "lora failed ", "LoRAあ", "using the plain base ", "a/", "LoRA 'x' ", "'"]
)
def test_a_line_of_one_word_again_and_again_is_read_at_once(unit: str) -> None:
    """No wording makes the patterns try every way to part a line; a hang would end this test by its time limit."""
    says_not_applied((unit * 2000)[:2000])
