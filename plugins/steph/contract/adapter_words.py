"""Which lines say that an adapter was not applied, and which only have its name in them. Pure.

A line accuses where what it says is said of the adapter itself, not of one of its settings, not of none of them, not of
what would happen, and not of a place from which another place helped out.
"""

from __future__ import annotations

import re

_MOST_PARTS = 12  # words between an adapter and its verb
_THING = (
    r"(?<![A-Za-z_-])(?:q?lora|peft(?:model\w{0,40})?|adapters?|"
    r"adapter_config\.json|adapter_model\.\w{1,20})(?![A-Za-z_])|アダプター?"
)
_PART = re.compile(  # what may stand between an adapter and what befell it, one word at a time
    r"(?:[:：=(「『)」』-]|(?:weights?|adapters?|lora|peft|modules?|layers?|path|folder|director(?:y|ies)|checkpoint"
    r"|file|model"
    r"|config(?:uration)?|the|at|from|in|of|was|were|is|are|has|have|been|be|will|could|can|did|does|do"
    r"|loading)(?![A-Za-z])"
    r"|[\w.~-]{0,100}/[\w./~-]{0,200}|(['\"`])[^'\"`]{0,200}\1|['\"`])\s*",
    re.I,
)
_UNDONE = re.compile(
    r"(?:unavailable|not (?:be )?(?:available|loaded|applied|used|found|active|attached|valid|a valid|installed"
    r"|supported"
    r"|compatible|exist|readable|enabled|load|apply)|n't (?:be )?(?:load|apply|exist|find|read)\w{0,20}"
    r"|disabled|deactivated"
    r"|ignored|skipped|dropped|discarded|rejected|bypassed|missing|empty|corrupt(?:ed)?|broken|invalid|incompatible"
    r"|unsupported|unusable|(?:load(?:ing)? |application )?(?:fail(?:ed|ure)|errors?\b)"
    r"|has no effect|without effect"
    r"|(?:(?:rank|shape|size|key|base|version)s? )?mismatch(?:ed|es)?|turned off|off\b)",
    re.I,
)
_SETTING = (
    r"(?:[\s_-]{0,9}(?:alpha|rank pattern|ranks?\b(?! mismatch)|r\b|dropout|bias|target|scaling|dtype|caches?|cached"
    r"|merg\w{1,20}"
    r"|download\w{0,20}|saving|save|export\w{0,20}|upload\w{0,20}|conversion|validation|init\w{0,20}|argument|args?|option|key|hyper"
    r"|parameters?\b|request|hot-?swap\w{0,20}|quantization))"
)
_NAMED = re.compile(rf"(?:{_THING})(?!{_SETTING})\s{{0,9}}", re.I)
_ENGLISH = (
    re.compile(
        r"\b(?:failed to (?:load|apply|attach|find|read|open)|(?:could not|couldn't|can't|cannot|unable to) "
        r"(?:load|apply|attach|find|read|open)|errors? (?:loading|applying|while loading|reading)"
        r"|(?<!-)(?:skip|ignore|disable|(?:ignor|skipp|disabl|bypass|dropp)(?:ing|ed)))"
        rf"\b[^.,;:\n]{{0,60}}?(?:{_THING})(?!{_SETTING})",
        re.I,
    ),
    re.compile(
        r"\b(?:continu|proceed|runn|evaluat|answer|generat|load|go)\w{0,20}(?: on)?\b[^.;\n]{0,30}"
        rf"\bwithout (?:the |a |an |any )?(?:{_THING})(?!{_SETTING})",
        re.I,
    ),
    re.compile(
        rf"\bno (?:valid |usable |matching )?(?:lora |peft )?(?:{_THING})(?!{_SETTING})(?: weights?)? ?"
        r"(?:(?:was|were|is|are) )?(?:found|loaded|applied|active|given|attached)",
        re.I,
    ),
)
_BASE_INSTEAD = re.compile(
    r"\b(?:fall(?:ing|s)?|fell|fallback|revert(?:ing|ed)?|switch(?:ing|ed)?)\b[^.;\n]{0,20}\bbase(?:line)?[ -]model"
    r"|\bus(?:e|es|ing|ed) (?:only |just )?(?:the |a )?(?:plain |bare |vanilla |unmodified |original "
    r"|untuned ){1,6}base[ -]model"
    r"|\b(?:us(?:e|ing|ed)|evaluating|serving|answering (?:with|by)|running) (?:the )?base[ -]model (?:only|instead"
    r"|alone|without)"
    r"|\b(?:continu|proceed|go)\w{0,20}(?: on)? with (?:the |a )?(?:plain|bare|base|vanilla|untuned|original) model\b"
    r"|\bbase[ -]only mode|\bbase[ -]model only\s{0,9}(?:$|[.,;:)!])|\bonly (?:the )?base[ -]model (?:is|was"
    r"|will be) (?:used|loaded"
    r"|evaluated)",
    re.I,
)
_BASE_INSTEAD_JA = re.compile(
    r"(?:ベース|元の|素の)モデル(?:のみ|だけ)(?:で|を|に)|(?:代わり|替わり|フォールバック)[^。\n]{0,20}(?:ベース"
    r"|元の|素の)モデル"
    r"|(?:ベース|元の|素の)モデル(?:に|へ)(?:フォールバック|切り替え|戻)"
)
_JAPANESE = re.compile(
    rf"(?:{_THING})(?P<between>[^。\n]{{0,60}}?)"
    r"(?P<undone>読み込め|読込め|読めな|読めませ|ロードでき|見つから|見つかりませ|存在しな|存在しませ|適用でき"
    r"|適用せず|読み込まず|読み込まない|読み込みません|ロードせず|適用されな|適用されませ|適用しません"
    r"|適用しない|スキップ|失敗|使わず|使わない|使用せず|使用しない|使えな|使えませ|無効|無視|が空|は空|空です"
    r"|空だった|不一致|一致しな|一致しませ|合わな|合いませ|合わず"
    r"|壊れ|破損|外し|なしで|無しで|抜きで|エラー)",
    re.I,
)
_SETTING_JA = re.compile(
    r"(?i)設定ファイル|追加|alpha|dropout|ドロップアウト|キャッシュ|マージ|結合|保存|ランクの(?:指定|設定)|引数"
    r"|オプション|bias|バイアス|更新|学習"
)
_LIBRARY = re.compile(
    r"(?i)missing adapter keys(?!\W{0,4}(?:\[\]|0\b|none))"
    r"|loading adapter weights from .{0,300} led to (?:unexpected|missing) keys"
    r"|no module named '?peft\b|can't find '?adapter_config\.json|already has no adapter"
    r"|no adapter.{0,20}loaded\. please"
)

_NONE_OF_IT = re.compile(
    r"(?i)\b(?:failed|failures?|errors?|missing|skipped|unexpected)(?:[ _]keys)?\W{0,4}(?:0\b(?!\.)|none\b|\[\]|no\b)"
    r"|\b(?:0|no|zero|without) (?:failed|failures?|errors?|missing|skipped|unexpected|mismatch)"
    r"|(?:失敗|エラー|不足|不一致|スキップ)\W{0,4}(?:0|ゼロ|なし|無し|ありません|は(?:ない|0|ありません))"
    r"|問題(?:なし|ありません|なく)"
)
_OTHER_PLACE = re.compile(
    r"(?i)\b(?:loading|load|reading|read|trying|try|using|use"
    r"|download\w{0,20}|fetch\w{0,20}|retry\w{0,20})\b[^;\n]{0,40}"
    r"(?:from (?:disk|local|the hub|hub|remote|file)|\blocal\b|adapter_config\.json|adapter_model\.\w{1,20}"
    r"|\.safetensors|\.bin\b|again)"
    r"|ディスクから|ローカルから|再試行|読み直"
)
_SUPPOSED = re.compile(
    r"(?i)\b(?:if|when|unless|whether|should|would|may|might|in case)\b[^;\n]*|場合|とき(?:は|に)|なければ|と表示され"
)
_COMPARED = re.compile(
    r"(?i)\bbaseline|\bcompar\w+|\bfirst\b|\bfor reference|before (?:the )?(?:lora|adapter|tuned)|比較|(?<!込)まず|先に"
    r"|最初に|ベースライン|対照"
)


_WORDS = ("lora", "peft", "adapter", "base", "model", "アダプタ", "モデル")  # one is in each line that accuses


def says_not_applied(line: str) -> bool:
    """Whether a line says that an adapter, or a part of its weights, is not in the model that answers."""
    if not any(word in line.lower() for word in _WORDS):
        return False
    if _LIBRARY.search(line):
        return True
    if _NONE_OF_IT.search(line) or _COMPARED.search(line):
        return False
    if _BASE_INSTEAD.search(line) or _BASE_INSTEAD_JA.search(line):
        return True
    said = _SUPPOSED.sub(" ", line)
    told = any(pattern.search(said) for pattern in _ENGLISH) or _is_undone(said) or _is_undone_in_japanese(said)
    return told and not _OTHER_PLACE.search(said)


def _is_undone(line: str) -> bool:
    """Whether an adapter's name leads, over words of its own kind, to what befell it."""
    for named in _NAMED.finditer(line):
        at = named.end()
        for _ in range(_MOST_PARTS):
            if _UNDONE.match(line, at):
                return True
            part = _PART.match(line, at)
            if part is None:
                break
            at = part.end()
    return False


def _is_undone_in_japanese(line: str) -> bool:
    hits = _JAPANESE.finditer(line)
    return any(not _SETTING_JA.search(hit["between"]) for hit in hits)
