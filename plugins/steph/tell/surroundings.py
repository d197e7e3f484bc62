"""Where a record was made: machine, card, packages, branches and data, as the report's tables.

Takes a record, gives Markdown.
"""

from __future__ import annotations

from steph.base import units
from steph.record.environment import Device, GitState
from steph.record.values import Record
from steph.tell import summary
from steph.tell.markdown import Markdown, code, inline, table
from steph.tell.pieces import facts


def machine_words(record: Record) -> Markdown:
    """Say machine, card and data in one line."""
    machine, card = record.context.environment, record.context.environment.device
    rows = next((file for file in record.data if file.role == "dataset"), None)
    data = f"、{rows.rows:,} 問({'付属の見本' if rows.is_sample else '実データ'})" if rows else ""
    driver = f"、ドライバ {card.driver_version} / CUDA {card.cuda_driver_version}" if card else ""
    return inline(f"{summary.card_words(record)}{driver}、{machine.os}、Python {machine.python}{data}。")


def machine_facts(record: Record) -> Markdown:
    """Give machine, card, driver and interpreter."""
    machine, card = record.context.environment, record.context.environment.device
    cap = record.context.vram_cap_bytes
    rows = [
        ("OS", f"{machine.os}{'(WSL)' if machine.is_wsl else ''}"),
        ("CPU / メモリ", f"{machine.cpu}({machine.cpu_count} スレッド)/ {units.gib(machine.ram_bytes)}"),
        ("Python(スイート)", machine.python),
        ("パイプラインの場所", code(record.context.pipeline_root)),
        ("パイプラインの Python", code(record.context.pipeline_python)),
        (
            "プロファイル",
            Markdown(f"{code(record.context.profile)}(sha256 {code(record.context.profile_sha256[:12])})"),
        ),
    ]
    if card is None:
        return facts([*rows, ("GPU", f"なし({machine.device_error})" if machine.device_error else "なし")])
    capability = f"、compute capability {card.compute_capability}" if card.compute_capability else ""
    return facts(
        [
            *rows,
            ("GPU", f"{card.name}{'(MIG)' if card.is_mig else ''} {units.gib(card.total_bytes)}{capability}"),
            ("GPU UUID", code(card.uuid)),
            *(("並行して使う GPU", _further_words(further)) for further in machine.further_devices),
            ("開始前の使用量", units.gib(card.used_bytes)),
            ("VRAM の上限(模擬)", units.gib(cap) if cap else ""),
            ("ドライバ / CUDA", f"{card.driver_version} / CUDA {card.cuda_driver_version}"),
        ]
    )


def _further_words(card: Device) -> Markdown:
    return Markdown(f"{inline(card.name)} {units.gib(card.total_bytes)} {code(card.uuid)}")


def packages_table(record: Record) -> Markdown:
    """Give the package versions: those that the pipeline's processes loaded, and the suite's."""
    loaded: dict[str, str] = {}
    for result in record.stages.values():
        for attempt in result.attempts:
            for probe in attempt.probes:
                loaded |= {_normal(name): version for name, version in probe.packages.items()}
    own = {_normal(name): version for name, version in record.context.environment.packages.items()}
    rows = [(code(name), loaded.get(name, ""), own.get(name, "")) for name in sorted(loaded.keys() | own.keys())]
    if not rows:
        return Markdown("パッケージの版は記録されていません。")
    return table(("パッケージ", "パイプラインで読まれた版", "スイートの版"), rows)


def _normal(name: str) -> str:
    """A package's name as both pip and import lists can be held against each other (PEP 503)."""
    return name.lower().replace("_", "-")


def git_table(record: Record) -> Markdown:
    """Give branch, commit and cleanliness of suite and pipeline."""
    states = (("パイプライン", record.context.pipeline_git), ("スイート", record.context.suite_git))
    rows = [(name, code(s.branch or ""), code((s.commit or "")[:12]), _dirty(s)) for name, s in states]
    return table(("対象", "ブランチ", "コミット", "未コミットの変更"), rows)


def _dirty(state: GitState) -> str:
    if state.dirty is None:
        return "git の管理外" if state.commit is None else "不明"
    return "あり" if state.dirty else "なし"


def data_table(record: Record) -> Markdown:
    """Give the data files with rows, sha256 and whether they are the bundled sample."""
    roles = {"dataset": "評価の問題", "train_file": "学習データ", "train_file_cot": "学習データ(CoT)"}
    rows: list[tuple[str, str]] = []
    for file in record.data:
        kind = "付属の見本" if file.is_sample else "実データ"
        rows.append((roles[file.role], Markdown(f"{code(file.path)} {file.rows:,} 行、{kind}")))
        rows.append((f"{roles[file.role]}の sha256", code(file.sha256)))
    return facts(rows) if rows else Markdown("データの記録なし。")
