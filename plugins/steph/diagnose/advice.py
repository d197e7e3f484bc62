"""What to do next, for each cause and phase: one or two concrete steps, in Japanese."""

from __future__ import annotations

import re
from collections.abc import Sequence

from steph.base.terms import Cause, Phase

_FOR_PHASE: dict[tuple[Cause, Phase], tuple[str, ...]] = {
    (Cause.CUDA_OOM, Phase.LOAD): (
        "モデルの読み込み中に VRAM が足りません。batch-size や max-seq-length を下げても直らないため、"
        "より小さいモデルを選ぶか --use-4bit を付けてください。",
        "nvidia-smi で、ほかのプロセスが VRAM を使っていないか確認してください。",
    ),
    (Cause.CUDA_OOM, Phase.PREPARE): (
        "prepare_model_for_kbit_training が埋め込み層と出力層を fp32 に上げる所で VRAM が足りません。"
        "より小さいモデルを選んでください。",
        "パイプライン側で fp32 への変換を省ければ、同じモデルのまま通ることがあります。",
    ),
    (Cause.CUDA_OOM, Phase.SAVE): (
        "学習は進んでいますが、保存時に VRAM が足りません。LoRA アダプタだけを保存し、マージや全重みの保存は "
        "CPU で行ってください。",
    ),
    (Cause.CUDA_OOM, Phase.EVAL): (
        "評価の生成中に VRAM が足りません。--hf-load-in-4bit を付け、"
        "生成トークン数の上限とプロンプト長(--top-k、few-shot)を減らしてください。",
        "学習プロセスが残って VRAM を使っていないか nvidia-smi で確認してください。",
    ),
    (Cause.HOST_OOM, Phase.LOAD): (
        "読み込み中に主記憶(RAM)が足りません。ほかのプログラムを閉じるか、スワップ(WSL2 では .wslconfig の "
        "memory と swap)を増やしてください。",
        "low_cpu_mem_usage と safetensors 形式の重みを使うと、読み込み時の RAM は小さくなります。",
    ),
    (Cause.HUB_NOT_FOUND, Phase.EVAL): (
        "評価で指定したモデル名または --hf-lora-path が見つかりません。adapter_config.json "
        "のあるフォルダを指定しているか確認してください。",
    ),
    (Cause.NAN_LOSS, Phase.FIRST_STEP): (
        "最初のステップから loss が NaN です。--bnb-4bit-compute-dtype を bfloat16 に(fp16 を避ける)し、"
        "学習率を 1/10 に下げて試してください。",
    ),
    (Cause.TIMEOUT, Phase.LOAD): (
        "読み込み中に制限時間を超えました。先にモデルをダウンロードしておき、HF_HUB_OFFLINE=1 で再実行してください。",
    ),
    (Cause.TIMEOUT, Phase.EVAL): (
        "評価が制限時間を超えました。応答が止まらず長く続いていないかを確認し、生成トークン数の上限を下げてください。",
    ),
    (Cause.DISK_FULL, Phase.LOAD): (
        "ダウンロード先のディスクに空きがありません。df -h で確認し、hf cache の古いモデルを消すか、HF_HOME "
        "を空きのあるディスクへ移してください。",
    ),
}

_FOR_CAUSE: dict[Cause, tuple[str, ...]] = {
    Cause.CUDA_OOM: (
        "max-seq-length を 512 → 384 → 256、次に batch-size を 1(勾配累積は 2 倍)へ下げて再実行してください。",
        "nvidia-smi で、ほかのプロセスが VRAM を使っていないか確認してください。",
    ),
    Cause.HOST_OOM: (
        "主記憶(RAM)が足りず、プロセスが止められました。free -g と dmesg の oom-kill を確認し、RAM "
        "かスワップを増やしてください。",
        "DataLoader のワーカー数を 0 にすると、RAM と共有メモリ(/dev/shm)の使用が減ります。",
    ),
    Cause.BNB_SETUP: (
        "python -m bitsandbytes を実行して CUDA とライブラリの組を確認し、pip install -U bitsandbytes "
        "で入れ直してください。",
        "急ぐ場合は --use-4bit を外し、bf16(非対応の GPU では fp16)で実行してください。",
    ),
    Cause.IMPORT_ERROR: (
        "エラーに出ているパッケージを、パイプラインと同じ Python 環境に入れるか、版を揃えてください(pip check "
        "で不整合を確認できます)。",
    ),
    Cause.API_DRIFT: (
        "スクリプトとライブラリの版が合っていません。スクリプトが前提とする版(transformers、peft、trl "
        "など)に固定するか、該当する引数を新しい名前へ直してください。",
    ),
    Cause.BAD_DATA: (
        "入力データを確認してください。エラーに出たファイルが存在し、各行が正しい JSON で、input と output "
        "の列があり、空でないことが必要です。出力先のエラーなら、そのフォルダーをスクリプトが作る必要があります。",
        "トークナイザに pad_token がない場合は、eos_token を pad_token に設定してください。",
    ),
    Cause.HUB_UNREACHABLE: (
        "Hugging Face Hub に接続できません。ネットワークとプロキシ、HF_HUB_OFFLINE の設定を確認し、"
        "時間をおいて再実行してください。",
        "手元のキャッシュまたはローカルフォルダにモデル一式があれば、そのパスをモデル名に指定できます。",
    ),
    Cause.HUB_GATED: (
        "このモデルには利用許諾とトークンが必要です。モデルのページで利用を申請し、hf auth login "
        "でログインしてください。",
        "申請が不要なモデル(例: Qwen/Qwen1.5-1.8B-Chat)に替えることもできます。",
    ),
    Cause.HUB_NOT_FOUND: (
        "モデル名、リビジョン、またはローカルフォルダのパスが正しいか、config.json "
        "などのファイルが揃っているか確認してください。",
    ),
    Cause.DISK_FULL: (
        "ディスクの空き(または割り当て)がありません。df -h と quota を確認し、古い checkpoint や hf cache "
        "を消してから再実行してください。",
    ),
    Cause.NAN_LOSS: (
        "loss が NaN(または 0.0)になりました。学習率を下げ、計算型を bfloat16 にしてください。"
        "このアダプタは使えません。",
        "正解トークンが切り捨てられて、すべてのラベルが -100 になっていないか確認してください。",
    ),
    Cause.CUDA_ASSERT: (
        "CUDA_LAUNCH_BLOCKING=1 を付けて再実行し、落ちる行を確かめてください。多くは語彙数を超えるトークン ID "
        "か、ラベルの範囲外です。",
        "トークナイザに語を足した場合は、model.resize_token_embeddings(len(tokenizer)) を呼んでください。",
    ),
    Cause.CUDA_DRIVER: (
        "nvidia-smi が動くか確認してください。Driver/library version mismatch "
        "なら再起動(またはドライバの再読み込み)が必要です。",
        "ドライバが古い、または GPU が新しすぎる場合は、ドライバを更新するか、その GPU に対応した PyTorch "
        "を入れてください。",
    ),
    Cause.TIMEOUT: (
        "制限時間を超えました。最後の出力で止まった箇所を確認し、ステップ数を減らすか、"
        "プロファイルの制限時間を延ばしてください。",
        "複数 GPU の場合は、先に止まったランクがないか、NCCL_DEBUG=INFO を付けて確認してください。",
    ),
    Cause.OTHER: ("既知の原因に当てはまりません。根拠の行とトレースバックの最初の例外から調べてください。",),
    Cause.NONE: (),
}


# a form of a cause whose fix is known, by the words that stand in its evidence
_FOR_WORDS: tuple[tuple[Cause, re.Pattern[str], tuple[str, ...]], ...] = (
    (
        Cause.OTHER,
        re.compile(r"EOFError: EOF when reading a line"),
        (
            "スクリプトが input() などでキーボード入力を待っていますが、実行中は標準入力が閉じています。"
            "入力を求めない形(引数や設定ファイル)に直してください。",
        ),
    ),
    (
        Cause.OTHER,
        re.compile(r"\b(?:Syntax|Indentation|Tab)Error: "),
        (
            "スクリプトに文法エラーがあります。エラーに出ているファイルと行を直してください。"
            "その Python の版では使えない書き方のこともあります(--steph-pipeline-python で別の Python を選べます)。",
        ),
    ),
    (
        Cause.API_DRIFT,
        re.compile(r"support bf16", re.I),
        (
            "この実行先は bf16 に対応していません。--bf16 を外すか、GPU なら --fp16 にしてください。",
            "CPU で動かすときは、スクリプトの TrainingArguments に use_cpu=True が必要です。",
        ),
    ),
)


def advice_for(cause: Cause, phase: Phase | None, evidence: Sequence[str] = ()) -> tuple[str, ...]:
    """One or two next steps; empty only where nothing failed. `evidence`: the lines that told the cause."""
    for of_cause, words, steps in _FOR_WORDS:
        if of_cause is cause and any(map(words.search, evidence)):
            return steps
    return _FOR_PHASE.get((cause, phase), _FOR_CAUSE[cause]) if phase else _FOR_CAUSE[cause]
