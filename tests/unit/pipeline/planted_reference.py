"""Defects of the reference pipeline: text of its own scripts changed, as a person might have written it."""

from __future__ import annotations

import compileall
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from small_run import PIPELINE

Change = tuple[str, str, str]  # file, what stands there once, what stands there instead

ROWS, RUN, METRICS = "app/training/rows.py", "app/training/run.py", "app/training/metrics.py"
COLLATOR = "app/training/collator.py"
LLM, LOADING, REPORT = "app/llm/hf_llm.py", "app/llm/loading.py", "app/evaluation/run.py"
ENCODED = 'encoded.append({"input_ids": ids, "labels": prompt_labels + answer})'
RANK = "            r=settings.lora_r,\n"
BASE = "    base.config.use_cache = False\n"
READ = "rows = read_rows(settings.train_file, settings.train_mode)"
ON = "self._model = _with_adapter(base, config.lora_path) if config.lora_path else base"
CALL = "output = self._model.generate("
ENCODE = "encoded = [encode_prompt(self._tokenizer, prompt).ids for prompt in prompts]"
ANSWERED = "            return self._generate_batch(batch, sample_seed)\n"
SWITCH = "    fast.attach(trainer)\n"
LOSSES = "        self._losses.append"
LOSS = "        loss = self.run_micro_batch(model, inputs, num_items_in_batch)\n"
ACCUMULATED = (
    RUN,
    "per_device_train_batch_size=fast.batch_size,\n        gradient_accumulation_steps=fast.accumulation_steps",
    "per_device_train_batch_size=1, gradient_accumulation_steps=2",
)
STEPS = "\n\n\ndef reset_peak_memory("
LABELS, MASK = '"labels": labels,', '_padded([[1] * len(row["input_ids"]) for row in rows], width, 0)'
MADE_OF_TOKENS = '_padded([[int(one != self.pad_token_id) for one in row["input_ids"]] for row in rows], width, 0)'
POSITIONS = '"answer_positions": next_tokens(labels).flatten().ne(IGNORED).nonzero().flatten(),'
PADDED = "[*row, *[filler] * (width - len(row))]"
ANSWER = "answer = encode_answer(tokenizer, row.answer)"
CAUSAL, PLACES = "torch.ones(width, width).tril().bool()", "torch.arange(width)"
AGES = f"({PLACES}[:, None] - {PLACES}[None, :])"
WARMUP = "warmup_steps=settings.warmup_ratio"
DECAY = "weight_decay=settings.weight_decay"
SCRIPT_TRAIN, SCRIPT_EVALUATE = "scripts/train_qwen_law_ft.py", "scripts/evaluate_multiple_choice.py"


@dataclass(frozen=True)
class Planted:
    """A variant of the pipeline, and the checks of what was seen that do not hold in it."""

    what: str
    changes: tuple[Change, ...]
    broken: frozenset[str] = frozenset()


def planted(what: str, *changes: Change, broken: str = "") -> Planted:
    """A variant; `broken` has the checks' ids, separated by spaces."""
    return Planted(what, changes, frozenset(broken.split()))


def first_of_each_kind(variants: Iterable[Planted]) -> Iterator[Planted]:
    """Defects that break a check that none before them breaks; sound variants that change a file that none did."""
    met = set[object]()
    for variant in variants:
        kinds: set[object] = {*(variant.broken or (name for name, _, _ in variant.changes))} or {"as it is"}
        if not met >= kinds:
            yield variant
        met |= kinds


def copy_of(variant: Planted, target: Path, *, whole: bool = False) -> Path:
    """The pipeline with this variant in it, and where `whole` with its data set.

    A text that is not there once has moved on, and so must the variant.
    """
    compileall.compile_dir(PIPELINE / "app", quiet=1)  # the copy's unchanged files then need not be
    left = ("runs", "results", *(() if whole else ("datasets",)))
    shutil.copytree(PIPELINE, target, ignore=shutil.ignore_patterns(*left))
    for name, old, new in variant.changes:
        path = target / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{variant.what}: {old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")
    return target


def _scheduler(steps: int) -> Change:
    body = f"        return super().create_scheduler({steps}, optimizer)\n"
    return (METRICS, STEPS, f"\n    def create_scheduler(self, num_training_steps, optimizer=None):\n{body}{STEPS}")


def _given(name: str, value: str) -> Change:
    """The model gets this beside its batch, or in place of what the batch has."""
    sizes = '        rows, width = inputs["input_ids"].shape\n'
    return (METRICS, LOSS, sizes + LOSS.replace("inputs,", f'{{**inputs, "{name}": {value}}},'))


def _seen(mask: str) -> Change:
    """A mask of (width, width) for every row."""
    return _given("attention_mask", f"({mask})[None, None].expand(rows, -1, -1, -1)")


EACH_ROW = '        width = max(len(row["input_ids"]) for row in rows)\n'
OPTIMIZER = "\n    def create_optimizer(self, *model):\n        made = super().create_optimizer(*model)\n"
REPORTED = "        report_to=[],\n"
ASKED = "prompts = [item.prompt for item in prepared]"
READY = "        self._model.eval()\n"
FASTER_B = (
    "        bs = [p for n, p in self.model.named_parameters() if 'lora_B' in n]\n        own = set(map(id, bs))\n"
    "        for group in made.param_groups:\n"
    "            group['params'] = [p for p in group['params'] if id(p) not in own]\n"
    "        made.add_param_group({'params': bs, 'lr': self.args.learning_rate * 16, 'weight_decay': 0.0})\n"
)
NO_ACTIVATION = "        for layer in base.model.layers: layer.mlp.act_fn = torch.nn.Identity()\n"


def _rows_as(changed: str) -> Change:
    return (COLLATOR, EACH_ROW, f"        rows = {changed}\n{EACH_ROW}")


CHAT, PADS = "app/llm/chat_tokens.py", '    tokenizer.padding_side = "left"\n'
QUANTISED = "    quantised = any("
TOLD = "    _tell(settings, encoded)\n"
LIKE_TEXT = "    rows = [row['input_ids'] for row in encoded.rows]\n"


def _as_rows(rows: str) -> Change:
    """These lists of tokens, all of them learnt, in the place of the rows."""
    return (
        RUN,
        TOLD,
        f"{LIKE_TEXT}    encoded.rows[:] = [{{'input_ids': one, 'labels': one}} for one in {rows}]\n{TOLD}",
    )


SAVED = "        _save(trainer, settings.output_dir)\n"
TASK = '            task_type="CAUSAL_LM",\n        ),\n'
FROM_FOLDER = (
    "from_pretrained(str(config.lora_path), quantization_config="
    "__import__('app.llm.loading', fromlist=['one'])._bitsandbytes_config(_quantization(config), _dtype()))"
)
SINGLE = (LLM, "self._batch_size = config.batch_size", "self._batch_size = 1")
GENERATED = "            output = self._model.generate(**inputs, **self._generation_options(sample_seed is not None))"
TOOK = "took, memory = recorder.metrics(trainer.accelerator), memory_metrics()"
RENDERED = "    rendered = render_chat(tokenizer, prompt)\n"
OWN_LOSS = "self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)"
ONE_PASS = "(model(**batch).loss / 2).backward()"
STEP = "optimizer.step()\n                    optimizer.zero_grad()\n"


def _own_loop(then: str) -> tuple[Change, ...]:
    """Two epochs of two steps of two micro-batches, from the last row, then the first, in a loop that a person wrote.

    `then` follows each backward.
    """
    return (
        (RUN, TOOK, "took, memory = {}, memory_metrics()"),
        (
            RUN,
            "    trainer.train(resume_from_checkpoint=_resume(settings))\n",
            "    trained = [weight for weight in model.parameters() if weight.requires_grad]\n"
            "    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate)\n    model.train()\n"
            "    for epoch in range(2):\n        rows = encoded.rows[:: 2 * epoch - 1]\n"
            "        for step in range(2):\n            for part in range(2):\n"
            "                first = 4 * step + 2 * part\n"
            "                batch = collator(rows[first : first + 2])\n"
            "                for name in ('answer_positions', 'logits_to_keep'): batch.pop(name, None)\n"
            f"                {ONE_PASS}\n{then}",
        ),
    )


def _pass_of_loop(body: str) -> tuple[Change, ...]:
    """A loop that does this with a micro-batch, and steps after two of them."""
    loop = _own_loop("                if part:\n                    " + STEP)
    return tuple((file, old, new.replace(ONE_PASS, body)) for file, old, new in loop)


def _own_step(body: str) -> tuple[Change, ...]:
    """Two micro-batches a step, and a `training_step` that a person wrote; `halves` are the two rows of a batch."""
    return (
        ACCUMULATED,
        (RUN, SWITCH, ""),
        (
            METRICS,
            LOSS,
            "        inputs = self._prepare_inputs(inputs)\n"
            "        for name in ('answer_positions', 'logits_to_keep'): inputs.pop(name, None)\n"
            "        self._turn = getattr(self, '_turn', 0) + 1\n"
            f"{body}        loss = loss.detach()\n",
        ),
    )


def _averaged(rate: float) -> tuple[Change, ...]:
    """An exponential moving average of the weights is saved in their place."""
    return (
        (
            RUN,
            "    trainer.train(",
            "    from transformers import TrainerCallback\n"
            "    kept = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}\n"
            "    class Average(TrainerCallback):\n        def on_step_end(self, *_, **__):\n"
            "            for name, one in model.named_parameters():\n"
            f"                if name in kept: kept[name].lerp_(one.detach(), {rate})\n"
            "    trainer.add_callback(Average())\n    trainer.train(",
        ),
        (
            RUN,
            "    if is_first():\n        _save",
            "    for name, one in model.named_parameters():\n        if name in kept: one.data.copy_(kept[name])\n"
            "    if is_first():\n        _save",
        ),
    )


def _saved_in(kind: str) -> Change:
    save = "    if is_first():\n        _save"
    own = f"        if weight.requires_grad: weight.data = weight.data.to(torch.{kind})\n"
    return (RUN, save, f"    for weight in model.parameters():\n{own}{save}")


def _rendered(text: str) -> Change:
    return ("app/llm/chat_tokens.py", RENDERED, f"    rendered = {text}\n")


def _tokens_after(text: str) -> Change:
    """Tokens behind the header of the answer's turn."""
    own = f"self._tokenizer('{text}', add_special_tokens=False)['input_ids']"
    return (LLM, ENCODE, ENCODE.replace("prompt).ids", f"prompt).ids + {own}"))


_BELOW = "str({root} / 'sound' / 'out')"
ON_ANOTHER = planted(
    "on top of a frozen adapter",
    (
        RUN,
        BASE,
        BASE + "    base.enable_input_require_grads()\n"
        f"    below = {_BELOW.format(root='settings.output_dir.parents[1]')}\n"
        "    model = PeftModel.from_pretrained(base, below, 'below')\n"
        "    model.add_adapter('default', LoraConfig(r=settings.lora_r, lora_alpha=settings.lora_alpha,\n"
        "        lora_dropout=settings.lora_dropout, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM'))\n"
        "    model.base_model.set_adapter(['below', 'default'])\n"
        "    for name, weight in model.named_parameters(): weight.requires_grad_('.default.' in name)\n"
        "    model.train()\n    return model\n",
    ),
    (
        LLM,
        ON,
        f"{ON}\n        below = {_BELOW.format(root='config.lora_path.parents[1]')}\n"
        "        self._model.load_adapter(below, 'below')\n"
        "        self._model.base_model.set_adapter(['below', 'default'])",
    ),
)


def _bos(times: int) -> tuple[Change, ...]:
    """A tokenizer with a BOS token, which stands at the front of each prompt."""
    tokens = "app/llm/chat_tokens.py"
    side = '    tokenizer.padding_side = "left"\n'
    return (
        (
            tokens,
            side,
            f"{side}    tokenizer.bos_token, tokenizer.pad_token = tokenizer.pad_token, tokenizer.eos_token\n",
        ),
        (tokens, 'ids: list[int] = encoded["input_ids"]', IDS.format(times=times)),
    )


IDS = "ids: list[int] = [tokenizer.bos_token_id] * {times} + encoded['input_ids']"
WITH_BOS, WITHOUT_BOS = planted("a BOS in front", *_bos(1)), planted("no BOS in front", *_bos(0))
TWO_BOS = planted("two BOS in front", *_bos(2))
ON_MERGED = planted(
    "on a base that another adapter was merged into",
    (
        RUN,
        BASE,
        f"{BASE}    below = {_BELOW.format(root='settings.output_dir.parents[1]')}\n"
        "    base = PeftModel.from_pretrained(base, below).merge_and_unload()\n",
    ),
)
ALSO_ON_MERGED = planted(
    "the same merge in the evaluation",
    (
        LLM,
        ON,
        f"below = {_BELOW.format(root='config.lora_path.parents[1]')}\n"
        "        base = PeftModel.from_pretrained(base, below).merge_and_unload()\n"
        "        self._model = _with_adapter(base, config.lora_path)",
    ),
)
TWICE = _rendered("render_chat(tokenizer, render_chat(tokenizer, prompt))")
EVALUATED = (
    '        eval_strategy="steps", eval_steps=2, metric_for_best_model="eval_loss", per_device_eval_batch_size=2,\n'
)


# bitsandbytes lays 4-bit weights out for the CPU in the first evaluation, and then can't train with them any more
STAYS_TRAINABLE = (
    "    for layer in model.modules():\n"
    "        if hasattr(layer, 'support_avx512bf16_for_cpu'): layer.support_avx512bf16_for_cpu = False\n"
)


def _stopping(callback: str, *, setup: str = "", arguments: str = EVALUATED) -> tuple[Change, ...]:
    """A training with a callback beside its own ones, and with evaluations."""
    given = "        eval_dataset=encoded.rows[:2],\n        data_collator=collator,\n"
    return (
        (RUN, REPORTED, REPORTED + arguments),
        (RUN, "        data_collator=collator,\n", given),
        (RUN, "    trainer.train(", f"{setup}    trainer.add_callback({callback})\n    trainer.train("),
        (RUN, "    model.train()", STAYS_TRAINABLE + "    model.train()"),
    )


def _own_callback(event: str, body: str) -> str:
    return (
        "    from transformers import TrainerCallback\n    class Own(TrainerCallback):\n"
        f"        def {event}(self, args, state, control, **_):\n            {body}\n"
    )


NEVER_BETTER = "__import__('transformers').EarlyStoppingCallback(1, 1e9)"
AT_FOUR = "if state.global_step == 4: control.should_training_stop = True"
STOPPING = (
    planted("early stopping", *_stopping(NEVER_BETTER)),
    planted(
        "early stopping, and the best checkpoint is loaded",
        *_stopping(NEVER_BETTER, arguments=EVALUATED + "        load_best_model_at_end=True,\n"),
        (RUN, "save_steps=settings.save_steps", "save_steps=2"),
    ),
    planted(
        "a callback of its own that the last evaluation satisfies",
        *_stopping("Own()", setup=_own_callback("on_step_end", AT_FOUR)),
    ),
)
ENDING = (
    planted(
        "a callback that ends the training before it was evaluated",
        *_stopping("Own()", setup=_own_callback("on_step_end", AT_FOUR), arguments=""),
    ),
    planted(
        "an exception that is swallowed ends the training",
        *_stopping(NEVER_BETTER),
        (
            METRICS,
            LOSS,
            "        try:\n            if self.state.global_step == 3: raise RuntimeError('lost')\n    "
            + LOSS
            + "        except RuntimeError:\n            self.control.should_training_stop = True\n"
            "            loss = torch.ones(())\n",
        ),
    ),
    planted(
        "a step of its own ends the training",
        *_stopping(NEVER_BETTER),
        (METRICS, LOSS, "        self.control.should_training_stop = self.state.global_step == 3\n" + LOSS),
    ),
)

LOADED = "        name,\n        dtype=dtype,\n"
ROPE = "rope_parameters={'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 10000.0}"
OTHER_ACTIVATION = "config=(lambda own: setattr(own, 'hidden_act', 'relu') or own)(AutoConfig.from_pretrained(name))"


def _loaded_with(setting: str) -> Change:
    return (LOADING, LOADED, f"{LOADED}        {setting},\n")


def _own_cross_entropy(logits: str, labels: str) -> Change:
    """A `compute_loss` that gives the model its labels, and trains on a loss of its own all the same."""
    body = (
        "\n    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"
        "        inputs.pop('answer_positions')\n"
        "        labels, logits = inputs['labels'], model(**inputs).logits.float()\n"
        f"        return torch.nn.functional.cross_entropy(\n            {logits}.flatten(0, 1), {labels}.flatten(), "
        "ignore_index=-100, reduction='sum'\n        ) / num_items_in_batch\n"
    )
    return (METRICS, STEPS, body + STEPS)


def _own_loss(body: str) -> Change:
    given = "        data_collator=collator,\n"
    said = f"        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: {body},\n"
    return (RUN, given, given + said)


ENTROPY = "torch.nn.functional.cross_entropy"
HALF_A_BATCH = tuple(
    (file, old, new.replace("rows[first : first + 2]", "rows[first : first + 1]"))
    for file, old, new in _own_loop("                optimizer.step()\n                optimizer.zero_grad()\n")
)
TWICE_A_STEP = (
    "    make = trainer.create_optimizer\n    def twice(*given):\n        own = make(*given)\n        step = own.step\n"
    "        own.step = lambda *one, **more: (step(), step())[1]\n        return own\n"
    "    trainer.create_optimizer = twice\n    trainer.train("
)
TRAININGS = (
    planted(
        "a loss of its own that learns each batch's first row alone",
        _own_loss(f"{ENTROPY}(outputs.logits[0, :-1], labels[0, 1:])"),
        (RUN, SWITCH, ""),
        broken="tokens_supervised",
    ),
    planted("a loop that gives the model half of its rows", *HALF_A_BATCH, broken="batch_seen"),
    planted("each step done twice", (RUN, "    trainer.train(", TWICE_A_STEP), broken="updates_seen"),
    planted(
        "norms that are trained and not saved",
        (
            RUN,
            "    model.train()",
            "    for name, weight in model.named_parameters():\n"
            "        if 'norm' in name: weight.requires_grad_(True)\n    model.train()",
        ),
        broken="saved_as_trained",
    ),
    planted(
        "an attention that sees what comes later",
        (RUN, BASE, BASE + "    for layer in base.model.layers: layer.self_attn.is_causal = False\n"),
        broken="base_unchanged",
    ),
    planted(
        "a loss of its own that learns the token that was just read",
        _own_loss(f"{ENTROPY}(outputs.logits.float().flatten(0, 1), labels.flatten())"),
        broken="tokens_supervised end_supervised",
    ),
    planted(
        "a loss of its own to which masked labels are the first token",
        (
            ROWS,
            ENCODED,
            ENCODED.replace("prompt_labels + answer", "[IGNORED] * len(prompt.ids) + answer"),
        ),
        _own_loss(f"{ENTROPY}(outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].clamp(min=0).flatten())"),
        broken="tokens_supervised",
    ),
    planted("rotary positions that the model's file has otherwise", _loaded_with(ROPE), broken="model_loaded"),
    planted("another epsilon than the model's file has", _loaded_with("rms_norm_eps=1.0"), broken="model_loaded"),
    planted("fewer layers than the model's file has", _loaded_with("num_hidden_layers=1"), broken="model_loaded"),
    planted("another activation than the model's file has", _loaded_with(OTHER_ACTIVATION), broken="model_loaded"),
    planted(
        "an attention that is not scaled",
        (RUN, BASE, BASE + "    for layer in base.model.layers: layer.self_attn.scaling = 1.0\n"),
        broken="base_unchanged",
    ),
    planted(
        "a loop that drops its gradients after each micro-batch",
        *_own_loop("                if part: optimizer.step()\n                optimizer.zero_grad()\n"),
        broken="updates_seen",
    ),
    planted(
        "a loop that never clears its gradients",
        *_own_loop("                if part: optimizer.step()\n"),
        broken="updates_seen",
    ),
    planted(
        "a loop whose first micro-batch of each step has no backward pass",
        *_pass_of_loop("told = model(**batch)\n                if part: told.loss.backward()"),
        broken="updates_seen",
    ),
    planted(
        "a Trainer whose own step forgets the backward pass of every second micro-batch",
        *_own_step(f"        loss = {OWN_LOSS}\n        if self._turn % 2: self.accelerator.backward(loss)\n"),
        broken="updates_seen",
    ),
    planted(
        "a Trainer whose own step goes back once for two forward passes on rows of their own",
        *_own_step(
            "        for row in (inputs, {name: one.flip(0) for name, one in inputs.items()}):\n"
            f"            loss = {OWN_LOSS.replace('inputs', 'row')}\n        self.accelerator.backward(loss)\n"
        ),
        broken="updates_seen",
    ),
    planted(
        "rows that are cut to one length",
        _as_rows("[one[:64] for one in rows]"),
        broken="end_supervised rows_whole",
    ),
    planted(
        "answers that end with a thought",
        (ROWS, ANSWER, ANSWER.replace("row.answer", "f'<think>{row.answer}を選ぶ。</think>'")),
        broken="answer_supervised",
    ),
    planted("an average that hardly moved is saved", *_averaged(0.001), broken="saved_as_trained"),
    planted("the chat template twice", TWICE, broken="template_once"),
    planted(
        "each batch is its first row",
        _rows_as("[rows[0]] * len(rows)"),
        broken="rows_seen",
    ),
    planted(
        "each answer is the next row's of the batch",
        _rows_as(
            "[{name: [*one[name][:at], *other['input_ids'][-tail:]] for name in one}"
            " for one, other in zip(rows, [*rows[1:], rows[0]])"
            " for tail in [sum(label != IGNORED for label in other['labels'])]"
            " for at in [len(one['labels']) - sum(label != IGNORED for label in one['labels'])]]"
        ),
        broken="rows_seen answers_of_file",
    ),
    planted(
        "the collator keeps the last 30 tokens",
        _rows_as("[{name: value[-30:] for name, value in row.items()} for row in rows]"),
        broken="rows_seen",
    ),
    planted(
        "each tenth token is another",
        _rows_as(
            "[{**row, 'input_ids': [one if n % 10 or label != IGNORED else one * 7 % 200 + 20"
            " for n, (one, label) in enumerate(zip(row['input_ids'], row['labels']))]} for row in rows]"
        ),
        broken="rows_seen",
    ),
    planted(
        "noise on the weights after each step",
        (
            METRICS,
            LOSSES,
            "        for _w in _['model'].parameters():\n"
            "            if _w.requires_grad: _w.data += torch.randn_like(_w) * 0.02\n" + LOSSES,
        ),
        broken="updates_seen",
    ),
    planted(
        "every gradient of the other sign",
        (
            METRICS,
            STEPS,
            OPTIMIZER + "        def flip(optimizer, *_):\n            for group in optimizer.param_groups:\n"
            "                for weight in group['params']: weight.grad = -weight.grad\n"
            f"        made.register_step_pre_hook(flip)\n        return made\n{STEPS}",
        ),
        broken="no_own_code",
    ),
    planted(
        "three times the scaling that the adapter's configuration says",
        (
            RUN,
            "    model.train()",
            "    for layer in model.modules():\n"
            "        if hasattr(layer, 'scale_layer'): layer.scale_layer(3.0)\n    model.train()",
        ),
        broken="setup_seen",
    ),
    planted("one row of each batch", _rows_as("rows[:1]"), broken="batch_seen"),
    planted(
        "labels smoothed by a half",
        (RUN, REPORTED, REPORTED + "        label_smoothing_factor=0.5,\n"),
        broken="setup_seen",
    ),
    planted(
        "noise of 500 on the embeddings",
        (RUN, REPORTED, REPORTED + "        neftune_noise_alpha=500.0,\n"),
        broken="setup_seen",
    ),
    planted(
        "rotary frequencies doubled",
        (RUN, BASE, BASE + "    base.model.rotary_emb.inv_freq *= 2\n"),
        broken="base_unchanged",
    ),
    planted("no activation", (RUN, BASE, BASE + NO_ACTIVATION[4:]), broken="base_unchanged"),
    planted(
        "the upper layers are gone",
        (RUN, BASE, BASE + "    del base.model.layers[1:]\n    base.config.num_hidden_layers = 1\n"),
        broken="base_unchanged",
    ),
    planted(
        "labels on the prompt, none on the answer",
        (ROWS, ENCODED, ENCODED.replace("prompt_labels + answer", "prompt.ids + [IGNORED] * len(answer)")),
        broken="answer_supervised end_supervised answers_of_file",
    ),
    planted(
        "the end alone has a label",
        (ROWS, ENCODED, ENCODED.replace("+ answer}", "+ [IGNORED] * (len(answer) - 1) + answer[-1:]}")),
        broken="answers_of_file",
    ),
    planted(
        "every row teaches the answer a",
        (ROWS, 'content["output"].strip()', '("a" if content["output"] else "")'),
        broken="answers_of_file",
    ),
    planted(
        "the end of every answer has no label",
        (ROWS, ENCODED, ENCODED.replace("+ answer}", "+ answer[:-1] + [IGNORED]}")),
        broken="end_supervised",
    ),
    planted(
        "outputs one position too few",
        (COLLATOR, LABELS, '"labels": labels[:, (first := int((labels != IGNORED).any(0).nonzero()[0])) :],'),
        (COLLATOR, POSITIONS, '"logits_to_keep": width - first,'),
        broken="tokens_supervised",
    ),
    planted(
        "labels already shifted",
        (ROWS, ENCODED, ENCODED.replace("prompt_labels + answer", "(prompt_labels + answer)[1:] + [IGNORED]")),
        broken="tokens_supervised",
    ),
    planted(
        "the adapter is frozen on the first of two layers",
        (
            RUN,
            "    trainer.train(",
            "    for name, weight in model.named_parameters():\n"
            "        if '.layers.0.' in name: weight.requires_grad_(False)\n    trainer.train(",
        ),
        broken="adapter_moved",
    ),
    planted("a scheduler of one step: no rate from the second on", _scheduler(1), broken="updates_seen adapter_moved"),
    planted("a scheduler of two steps: no rate from the third on", _scheduler(2), broken="updates_seen"),
    planted(
        "an old adapter goes on, frozen",
        (
            RUN,
            BASE,
            BASE + "    base.enable_input_require_grads()\n"
            "    return PeftModel.from_pretrained(base, str(settings.output_dir.parents[1] / 'sound' / 'out'))\n",
        ),
        broken="adapter_moved updates_seen",
    ),
    planted(
        "an optimizer that does nothing",
        (
            METRICS,
            STEPS,
            "\n    def create_optimizer(self, *model):\n        made = super().create_optimizer(*model)\n"
            f"        type(made).step = lambda self, closure=None: None\n        return made\n{STEPS}",
        ),
        broken="adapter_moved",
    ),
    planted(
        "every row cut to 48 tokens",
        (RUN, "max_seq_length=settings.max_seq_length", "max_seq_length=48"),
        broken="rows_whole",
    ),
    planted(
        "8 bits in place of 4",
        (LOADING, "load_in_4bit=True", "load_in_8bit=True"),
        (LOADING, '== "Linear4bit"', '== "Linear8bitLt"'),
        broken="quantised_as_asked",
    ),
    planted(
        "no quantisation",
        (LOADING, "    if quantization is None:\n        return None\n", "    return None\n"),
        (LOADING, "    if quantised != (quantization is not None):", "    if False:"),
        broken="quantised_as_asked",
    ),
    planted(
        "fp4 in place of nf4",
        (LOADING, "bnb_4bit_quant_type=quantization.quant_type", 'bnb_4bit_quant_type="fp4"'),
        broken="setup_seen",
    ),
    planted(
        "4-bit layers that compute in float16",
        (LOADING, "bnb_4bit_compute_dtype=dtype", "bnb_4bit_compute_dtype=torch.float16"),
        broken="setup_seen",
    ),
    planted(
        "gradients dropped before each micro-batch",
        (METRICS, LOSS, "        model.zero_grad()\n" + LOSS),
        ACCUMULATED,
        broken="updates_seen",
    ),
    planted(
        "gradients that are never cleared",
        (METRICS, LOSS, "        model.zero_grad = lambda *_, **__: None\n" + LOSS),
        broken="updates_seen",
    ),
    planted("a warm-up for half of the steps", (RUN, WARMUP, "warmup_steps=4"), broken="setup_seen"),
    planted(
        "no gradient in every other micro-batch",
        (
            METRICS,
            LOSS,
            "        self._n = getattr(self, '_n', 0) + 1\n        if self._n % 2 == 0:\n"
            "            with torch.no_grad():\n                loss = self.compute_loss(\n"
            "                    model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)\n"
            "        else:\n    " + LOSS,
        ),
        ACCUMULATED,
        broken="updates_seen",
    ),
    planted(
        "Adam's state thrown away after each step",
        (METRICS, LOSSES, "        _['optimizer'].state.clear()\n" + LOSSES),
        broken="updates_seen",
    ),
    planted(
        "a quarter of the loss is logged",
        (METRICS, LOSS, LOSS.rstrip() + " / 4\n"),
        broken="loss_as_computed",
    ),
    planted(
        "the loss is multiplied by the micro-batches of a step",
        (
            METRICS,
            STEPS,
            "\n    def compute_loss(self, *given, **named):\n"
            f"        return 2 * super().compute_loss(*given, **named)\n{STEPS}",
        ),
        ACCUMULATED,
        broken="loss_as_computed",
    ),
    planted(
        "a mean loss of its own that nobody divides by the micro-batches of a step",
        (
            METRICS,
            STEPS,
            "\n    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"
            f"        return model(**inputs).loss\n{STEPS}",
        ),
        ACCUMULATED,
        broken="loss_as_computed",
    ),
    planted(
        "a loss of its own beside the model's, on the token that was just read",
        _own_cross_entropy("logits", "labels"),
        broken="tokens_supervised end_supervised",
    ),
    planted(
        "a loss of its own beside the model's, on what the model says itself",
        _own_cross_entropy("logits[:, :-1]", "logits[:, :-1].argmax(-1).masked_fill(labels[:, 1:] == -100, -100)"),
        broken="tokens_supervised end_supervised",
    ),
    planted(
        "a loss of its own beside the model's, on other rows' answers",
        (ROWS, ENCODED, ENCODED.replace("prompt_labels + answer", "[IGNORED] * len(prompt.ids) + answer")),
        _own_cross_entropy("logits[:, :-1]", "labels[:, 1:].roll(1, 0)"),
        broken="tokens_supervised answers_of_file",
    ),
    planted(
        "a loss of its own beside the model's, on the first row of a batch alone",
        _own_cross_entropy("logits[:1, :-1]", "labels[:1, 1:]"),
        broken="tokens_supervised",
    ),
    planted(
        "rows drawn anew from all of them",
        (
            METRICS,
            STEPS,
            "\n    def _get_train_sampler(self, *dataset):\n"
            f"        return torch.utils.data.RandomSampler(self.train_dataset, replacement=True)\n{STEPS}",
        ),
        broken="rows_seen",
    ),
    planted(
        "rows in the same order in each epoch",
        (
            METRICS,
            STEPS,
            "\n    def _get_train_sampler(self, *dataset):\n"
            f"        return torch.utils.data.SequentialSampler(self.train_dataset)\n{STEPS}",
        ),
        broken="rows_seen",
    ),
    planted(
        "rows drawn anew by a sampler of its own",
        (
            METRICS,
            STEPS,
            "\n    def _get_train_sampler(self, *dataset):\n        class Drawn(torch.utils.data.Sampler):\n"
            "            def __len__(self): return 8\n            def __iter__(self):\n"
            "                return iter([2, 2, 5, 1, 5, 5, 0, 7])\n"
            f"        return Drawn()\n{STEPS}",
        ),
        broken="rows_seen",
    ),
    planted(
        "trained in evaluation mode",
        (RUN, SWITCH, SWITCH + "    model.eval()\n    model.train = lambda mode=True: model\n"),
        broken="setup_seen",
    ),
    planted(
        "the A matrices frozen",
        (
            RUN,
            "    _tell(settings, encoded)",
            "    for name, weight in model.named_parameters():\n"
            "        if 'lora_A' in name: weight.requires_grad_(False)\n"
            "    _tell(settings, encoded)",
        ),
        broken="adapter_moved",
    ),
    planted(
        "begun with B matrices drawn at random",
        (RUN, RANK, RANK + "            init_lora_weights=False,\n"),
        broken="begins_new",
    ),
    planted("an epsilon of 0.1", (RUN, REPORTED, REPORTED + "        adam_epsilon=0.1,\n"), broken="setup_seen"),
    planted(
        "no memory of the squared gradients",
        (RUN, REPORTED, REPORTED + "        adam_beta2=0.0,\n"),
        broken="setup_seen",
    ),
    planted("a weight decay of a half", (RUN, DECAY, "weight_decay=0.5"), broken="setup_seen"),
    planted(
        "a weight decay that eats the adapter", (RUN, DECAY, "weight_decay=80.0"), broken="setup_seen adapter_moved"
    ),
    planted(
        "all weights a fifth smaller after each micro-batch",
        (
            METRICS,
            LOSSES,
            "        for _w in _['model'].parameters():\n            if _w.requires_grad: _w.data *= 0.8\n" + LOSSES,
        ),
        broken="adapter_moved updates_seen",
    ),
    planted(
        "a line break before each answer",
        (ROWS, ANSWER, ANSWER.replace("row.answer", "chr(10) + row.answer")),
        broken="answers_of_file",
    ),
    planted("dropout off", (RUN, "lora_dropout=settings.lora_dropout", "lora_dropout=0.0"), broken="setup_seen"),
    planted(
        "another learning rate",
        (RUN, "learning_rate=settings.learning_rate", "learning_rate=5e-5"),
        broken="setup_seen",
    ),
    planted(
        "batches halved in silence when memory runs out",
        (RUN, "        report_to=[],\n", "        report_to=[], auto_find_batch_size=True,\n"),
        (
            METRICS,
            LOSS,
            '        if len(inputs["input_ids"]) > 1:\n'
            '            raise torch.OutOfMemoryError("CUDA out of memory.")\n' + LOSS,
        ),
        broken="training_seen batch_seen steps_seen",
    ),
    planted(
        "one step in place of all",
        (RUN, "max_steps=capped_steps(settings, row_count)", "max_steps=1"),
        broken="steps_seen adapter_moved",
    ),
    planted("three quarters of the rows dropped", (SCRIPT_TRAIN, READ, READ + "[: 2]"), broken="rows_seen"),
    planted("the first rows four times", (SCRIPT_TRAIN, READ, READ + "[: 4] * 4"), broken="rows_seen"),
    planted(
        "other rows than those of the file",
        (
            ROWS,
            'TrainingRow(content["input"].strip(), content["output"].strip()',
            'TrainingRow("海外の鉄道の話で、質問とかかわりのない長い文。" + str(content["meta"]["id"]) * 9, "b"',
        ),
        broken="rows_seen",
    ),
    planted(
        "the adapter saved before it was trained",
        (RUN, "    trainer.train(", "    _save(trainer, settings.output_dir)\n    trainer.train("),
        (RUN, "        _save(trainer, settings.output_dir)\n        write", "        write"),
        broken="saved_at_end saved_as_trained",
    ),
    planted(
        "answers don't see their prompts",
        _seen(f"{CAUSAL} & (({PLACES} > width // 2)[:, None] <= ({PLACES} > width // 2)[None, :])"),
        broken="mask_and_positions",
    ),
    planted(
        "one position in 64 sees two tokens",
        _seen(f"{CAUSAL} & (({PLACES} % 64 != 5)[:, None] | ({AGES} <= 2))"),
        broken="mask_and_positions",
    ),
    planted(
        "what comes later is seen",
        _seen("torch.ones(width, width).bool()"),
        broken="mask_and_positions",
    ),
    planted(
        "padding on the left, and a mask that hides none of it",
        (COLLATOR, MASK, "torch.ones(len(rows), width, dtype=torch.long)"),
        (COLLATOR, PADDED, "[*[filler] * (width - len(row)), *row]"),
        broken="mask_and_positions",
    ),
    planted(
        "every position is the first",
        _given("position_ids", 'inputs["input_ids"] * 0'),
        broken="mask_and_positions",
    ),
    planted(
        "labels on the little padding that rows of nearly one length have",
        (COLLATOR, "width, IGNORED)", "width, self.pad_token_id)"),
        broken="tokens_supervised",
    ),
    planted(
        "half of the layers zeroed after loading",
        (
            RUN,
            BASE,
            BASE + "    for name, weight in base.named_parameters():\n        if 'mlp' in name: weight.data.zero_()\n",
        ),
        broken="base_unchanged",
    ),
    planted(
        "an MLP that gives zeros",
        (RUN, BASE, BASE + "    base.model.layers[0].mlp.forward = lambda hidden: hidden * 0\n"),
        broken="no_own_code",
    ),
    planted(
        "another token before the embedding",
        (
            RUN,
            BASE,
            BASE + "    base.get_input_embeddings().register_forward_pre_hook("
            "lambda module, ids: (ids[0].clamp(max=300),))\n",
        ),
        broken="no_own_code",
    ),
    planted(
        "gradients drawn at random",
        (
            RUN,
            "    reset_peak_memory()\n    trainer.train(",
            "    for weight in model.parameters():\n        if weight.requires_grad:\n"
            "            weight.register_hook(torch.randn_like)\n    reset_peak_memory()\n    trainer.train(",
        ),
        broken="no_own_code",
    ),
    planted(
        "gradients all alike",
        (
            METRICS,
            STEPS,
            "\n    def create_optimizer(self, *model):\n        made = super().create_optimizer(*model)\n"
            "        def alike(optimizer, *_):\n            for group in optimizer.param_groups:\n"
            "                for weight in group['params']: weight.grad = torch.full_like(weight, 0.1)\n"
            f"        made.register_step_pre_hook(alike)\n        return made\n{STEPS}",
        ),
        broken="adapter_moved no_own_code",
    ),
    planted(
        "half of what was learnt is saved",
        (
            RUN,
            "    if is_first():\n        _save",
            "    for name, weight in model.named_parameters():\n        if 'lora_B' in name: weight.data *= 0.5\n"
            "    if is_first():\n        _save",
        ),
        broken="saved_as_trained",
    ),
)

OUR_STEP = "        with torch.inference_mode():\n            output = self._model.generate("
OF_LAYER = "        for layer in self._model.base_model.model.model.layers[0].modules():\n"
CACHED = (
    "            from transformers import DynamicCache\n"
    "            kept = self.__dict__.setdefault('kept', DynamicCache())\n"
    "            over = kept.get_seq_length() - inputs['input_ids'].shape[1] + 8\n"
    "            if over > 0: kept.crop(-over)\n"
)
EVALUATIONS = (
    planted(
        "the adapter switched off in one layer",
        (LLM, READY, f"{READY}{OF_LAYER}            if hasattr(layer, 'lora_A'): layer.enable_adapters(False)\n"),
        broken="adapter_active",
    ),
    planted(
        "no adapter active in one layer",
        (LLM, READY, f"{READY}{OF_LAYER}            if hasattr(layer, 'lora_A'): layer._active_adapter = []\n"),
        broken="adapter_active",
    ),
    planted(
        "dropout on in one layer",
        (LLM, READY, f"{READY}        self._model.base_model.model.model.layers[0].train()\n"),
        broken="answers_greedy",
    ),
    planted(
        "one letter favoured by a forward of its own",
        (
            LLM,
            READY,
            f"{READY}        whole = self._model.base_model.model\n        own = whole.forward\n"
            "        def favouring(*given, **named):\n            told = own(*given, **named)\n"
            "            told.logits[..., 70] += 50\n            return told\n        whole.forward = favouring\n",
        ),
        broken="no_own_code",
    ),
    planted(
        "a cache that still holds the question before",
        SINGLE,
        (LLM, GENERATED, CACHED + GENERATED.replace("**inputs,", "**inputs, past_key_values=kept,")),
        broken="mask_and_positions",
    ),
    planted(
        "the question in the system's turn",
        (
            LLM,
            ENCODE,
            "from app.core.prompts import render_chat\n"
            "        texts = [render_chat(self._tokenizer, prompt).replace('>user', '>system') for prompt in prompts]\n"
            "        encoded = [self._tokenizer(text, add_special_tokens=False)['input_ids'] for text in texts]",
        ),
        broken="frame_as_trained",
    ),
    planted(
        "a conversation that goes on from question to question",
        (
            LLM,
            ENCODE,
            "from app.core.prompts import render_chat\n"
            "        texts = [render_chat(self._tokenizer, prompt) for prompt in prompts]\n"
            "        texts = ['b<|im_end|>\\n'.join(texts[: n + 1]) for n in range(len(texts))]\n"
            "        encoded = [self._tokenizer(text, add_special_tokens=False)['input_ids'] for text in texts]",
        ),
        broken="prompts_as_recorded prompts_bare",
    ),
    planted(
        "a watermark in the answers",
        (
            LLM,
            '"num_beams": 1,',
            '"num_beams": 1, "watermarking_config": __import__("transformers").WatermarkingConfig(bias=10.0),',
        ),
        broken="answers_free",
    ),
    planted("rotary positions that the model's file has otherwise", _loaded_with(ROPE), broken="model_loaded"),
    planted("another epsilon than the model's file has", _loaded_with("rms_norm_eps=1.0"), broken="model_loaded"),
    planted(
        "the right letter at the prompt's end, and nowhere recorded",
        (REPORT, ASKED, ASKED.replace("item.prompt", "item.prompt + item.question.answer")),
        broken="frame_as_trained",
    ),
    planted("answers begun as none was trained", _tokens_after("答えは"), broken="frame_as_trained"),
    planted(
        "a beginning of the answer in the question's turn",
        (LLM, ENCODE, "prompts = [prompt + '答えは' for prompt in prompts]\n        " + ENCODE),
        broken="frame_as_trained",
    ),
    planted("the chat template twice", TWICE, broken="template_once"),
    planted("four beams", (LLM, '"num_beams": 1', '"num_beams": 4'), broken="answers_greedy"),
    planted(
        "the right answer below the prompt, and nowhere recorded",
        (REPORT, ASKED, ASKED.replace("item.prompt", "item.prompt + f'\\n参考: {item.question.answer}'")),
        broken="prompts_as_recorded frame_as_trained",
    ),
    planted(
        "two questions in each prompt",
        (
            LLM,
            ENCODE,
            "prompts = [prompt + chr(10) + other for prompt, other in zip(prompts, [*prompts[1:], prompts[0]])]\n"
            "        " + ENCODE,
        ),
        broken="prompts_as_recorded prompts_bare",
    ),
    planted(
        "the adapter twice at once",
        (
            LLM,
            ON,
            ON + "\n        self._model.load_adapter(str(config.lora_path), 'twice')\n"
            "        self._model.base_model.set_adapter(['default', 'twice'])",
        ),
        broken="scaling_as_trained",
    ),
    planted(
        "rotary frequencies doubled",
        (LLM, READY, READY + "        base.model.rotary_emb.inv_freq *= 2\n"),
        broken="base_unchanged",
    ),
    planted("no activation", (LLM, READY, READY + NO_ACTIVATION), broken="base_unchanged"),
    planted("the adapter is never loaded", (LLM, ON, "self._model = base"), broken="adapter_active"),
    planted(
        "every call raises, and the answer is a",
        (LLM, ANSWERED, "            self._model.generate(input_ids=torch.tensor([[10**6]]))\n" + ANSWERED),
        (
            LLM,
            "        except Exception as error:\n            if len(batch) == 1:",
            '        except Exception as error:\n            return [Generation("a", 1, 0.1, "stop") for _ in batch]\n'
            "            if len(batch) == 1:",
        ),
        broken="answers_generated",
    ),
    planted(
        "nothing is generated, and the answer is a",
        (LLM, ANSWERED, '            return [Generation("a", 1, 0.1, "stop") for _ in batch]\n'),
        broken="answers_generated",
    ),
    planted(
        "the adapter is switched off while it answers",
        (
            LLM,
            OUR_STEP,
            "        with torch.inference_mode(), self._model.disable_adapter():\n"
            "            output = self._model.generate(",
        ),
        broken="adapter_active",
    ),
    planted(
        "the base under the adapter answers, layer by layer switched off",
        (
            LLM,
            "        self._model.eval()\n",
            "        self._model.eval()\n        for layer in self._model.modules():\n"
            "            if hasattr(layer, 'base_layer'): layer.enable_adapters(False)\n",
        ),
        broken="adapter_active",
    ),
    planted(
        "a fresh adapter answers in its place",
        (
            LLM,
            ON,
            ON + "\n        self._model.add_adapter('other', self._model.peft_config['default'])\n"
            "        self._model.set_adapter('other')",
        ),
        broken="adapter_active",
    ),
    planted(
        "an adapter of another step answers",
        (
            LLM,
            "config.lora_path) if config.lora_path else base",
            "min(config.lora_path.glob('checkpoint-*'), key=lambda one: int(one.name[11:])))"
            " if config.lora_path else base",
        ),
        (RUN, "save_steps=settings.save_steps", "save_steps=4"),
        broken="adapter_active",
    ),
    planted(
        "keys with a compiler's prefix, and nobody looks",
        (
            LLM,
            "    model = PeftModel.from_pretrained(base, str(folder))\n",
            "    from safetensors.torch import load_file\n    from peft import PeftConfig, get_peft_model\n"
            "    from peft import set_peft_model_state_dict\n"
            "    model = get_peft_model(base, PeftConfig.from_pretrained(str(folder)))\n"
            "    weights = load_file(folder / 'adapter_model.safetensors')\n"
            "    set_peft_model_state_dict(model, {'_orig_mod.' + k: v for k, v in weights.items()})\n"
            "    return model\n",
        ),
        broken="adapter_active adapter_as_saved",
    ),
    planted(
        "another scaling",
        (
            LLM,
            ON,
            ON + "\n        for layer in self._model.modules():\n"
            "            if hasattr(layer, 'scale_layer'): layer.scale_layer(0.25)",
        ),
        broken="scaling_as_trained",
    ),
    planted("dropout on", (LLM, "self._model.eval()", "self._model.train()"), broken="answers_greedy"),
    planted("sampling on", (LLM, '"do_sample": sampled', '"do_sample": True'), broken="answers_greedy"),
    planted(
        "the question's end is cut off",
        (LLM, ENCODE, "prompts = [prompt[: -len(prompt) // 3] for prompt in prompts]\n        " + ENCODE),
        broken="frame_as_trained prompts_hold_questions prompts_as_recorded",
    ),
    planted(
        "every question is the first",
        (LLM, ENCODE, "prompts = [prompts[0]] * len(prompts)\n        " + ENCODE),
        broken="prompts_hold_questions prompts_as_recorded",
    ),
    planted(
        "no header of the answer at the prompt's end",
        (
            LLM,
            ENCODE,
            "turns = [[{'role': 'user', 'content': prompt}] for prompt in prompts]\n"
            "        encoded = [self._tokenizer.apply_chat_template(one)['input_ids'] for one in turns]",
        ),
        broken="frame_as_trained",
    ),
    planted(
        "a system's turn that the training never had",
        _rendered("'<|im_start|>system\\nあ<|im_end|>\\n' + render_chat(tokenizer, prompt)"),
        broken="frame_as_trained",
    ),
    planted(
        "spaces in place of the prompt's line breaks",
        (LLM, ENCODE, "prompts = [' '.join(prompt.split()) for prompt in prompts]\n        " + ENCODE),
        broken="frame_as_trained prompts_as_recorded",
    ),
    planted(
        "no chat template",
        (LLM, ENCODE, "encoded = [self._tokenizer(prompt)['input_ids'] for prompt in prompts]"),
        broken="frame_as_trained",
    ),
    planted(
        "what was said is thrown away",
        (
            LLM,
            "text = str(self._tokenizer.decode(kept, skip_special_tokens=True)).strip()",
            'text = "正解は四つのうちの最後のものであると考えられます。" * 2',
        ),
        broken="responses_generated",
    ),
    planted(
        "8 bits in place of 4",
        (LOADING, "load_in_4bit=True", "load_in_8bit=True"),
        (LOADING, '== "Linear4bit"', '== "Linear8bitLt"'),
        broken="quantised_as_asked base_as_trained",
    ),
    planted(
        "merged, and put on once more",
        (
            LLM,
            ON,
            "merged = _with_adapter(base, config.lora_path).merge_and_unload()\n"
            "        self._model = _with_adapter(merged, config.lora_path)",
        ),
        broken="scaling_as_trained",
    ),
    planted(
        "merged with another scaling",
        (
            LLM,
            ON,
            "self._model = _with_adapter(base, config.lora_path)\n        for layer in self._model.modules():\n"
            "            if hasattr(layer, 'scale_layer'): layer.scale_layer(4.0)\n"
            "        self._model = self._model.merge_and_unload()",
        ),
        broken="scaling_as_trained",
    ),
    planted(
        "merged where it is with another scaling",
        (
            LLM,
            "        self._model.eval()\n",
            "        self._model.eval()\n        for layer in self._model.modules():\n"
            "            if hasattr(layer, 'scale_layer'): layer.scale_layer(4.0)\n"
            "        self._model.merge_adapter()\n        for layer in self._model.modules():\n"
            "            if hasattr(layer, 'unscale_layer'): layer.unscale_layer()\n",
        ),
        broken="scaling_as_trained",
    ),
    planted(
        "four tokens where sixteen are claimed",
        (LLM, '"max_new_tokens": self.config.max_new_tokens', '"max_new_tokens": 4'),
        broken="config_as_asked",
    ),
    planted(
        "examples that were not trained",
        (
            LLM,
            ENCODE,
            "prompts = ['例題: 寄託を受けた倉庫が物を返すのは、証券と引き換えにする場合に限られるか。答えはa。\\n'"
            " '例題: 質屋が流質物を処分したとき、帳簿に記すべき事項は次のうちどれとどれか。答えはc。\\n'"
            " + prompt for prompt in prompts]\n        " + ENCODE,
        ),
        broken="frame_as_trained",
    ),
    planted(
        "every answer is the next question's",
        (
            LLM,
            "return [everyone[index] for index in range(len(prompts))]",
            "return [everyone[(index + 1) % len(prompts)] for index in range(len(prompts))]",
        ),
        broken="responses_generated",
    ),
    planted(
        "fewer questions asked than counted",
        (
            LLM,
            "        everyone = {",
            "        answers.update({n: answers[0] for n in range(1, len(prompts))})\n        everyone = {",
        ),
        (LLM, "own_share(order, self._batch_size)", "[[0]]"),
        broken="answers_generated prompts_hold_questions prompts_as_recorded",
    ),
    planted(
        "padding on the left, and nothing hides it",
        (
            LLM,
            "        if sample_seed is not None:\n",
            "        inputs = self._tokenizer.pad({'input_ids': batch}, return_tensors='pt', padding='max_length',"
            " max_length=longest + 8)\n        inputs['attention_mask'].fill_(1)\n"
            "        if sample_seed is not None:\n",
        ),
        broken="mask_and_positions",
    ),
    planted(
        "a mask over the middle of the prompt",
        (
            LLM,
            "        if sample_seed is not None:\n",
            "        inputs['attention_mask'][:, -40:-20] = 0\n        if sample_seed is not None:\n",
        ),
        broken="mask_and_positions prompts_hold_questions prompts_as_recorded",
    ),
    planted(
        "only the letter a may be said",
        (
            LLM,
            '"num_beams": 1,',
            '"num_beams": 1, "prefix_allowed_tokens_fn": lambda n, ids: self._tokenizer.encode("a"),',
        ),
        broken="answers_free",
    ),
    planted(
        "every other token forbidden",
        (LLM, '"num_beams": 1,', '"num_beams": 1, "suppress_tokens": list(range(0, 200, 2)),'),
        broken="answers_free",
    ),
    planted("a penalty of 5", (LLM, '"repetition_penalty": 1.0', '"repetition_penalty": 5.0'), broken="answers_free"),
    planted(
        "the adapter zeroed after it was loaded",
        (
            LLM,
            ON,
            ON + "\n        for name, weight in self._model.named_parameters():\n"
            "            if 'lora_B' in name: weight.data.zero_()",
        ),
        broken="adapter_as_saved",
    ),
    planted(
        "half of the adapter",
        (
            LLM,
            ON,
            ON + "\n        for name, weight in self._model.named_parameters():\n"
            "            if 'lora_A' in name: weight.data *= 0.5",
        ),
        broken="adapter_as_saved",
    ),
    planted(
        "noise on the base's weights",
        (
            LLM,
            "        self._model.eval()\n",
            "        self._model.eval()\n        for name, weight in base.named_parameters():\n"
            "            if 'norm' in name or 'embed' in name: weight.data.mul_(1.5)\n",
        ),
        broken="base_unchanged",
    ),
    planted(
        "two characters of the prompt changed",
        (LLM, ENCODE, "prompts = [prompt.replace('選択肢', '選沢肢') for prompt in prompts]\n        " + ENCODE),
        broken="prompts_as_recorded",
    ),
    planted(
        "asked three times, one answer picked",
        (
            LLM,
            OUR_STEP,
            "        with torch.inference_mode():\n            for n in (1, 2):\n"
            "                self._model.generate(**inputs, **{**self._generation_options(False),"
            " 'max_new_tokens': n})\n" + OUR_STEP,
        ),
        broken="answers_greedy",
    ),
    planted(
        "the first character of what was said",
        (LLM, "skip_special_tokens=True)).strip()", "skip_special_tokens=True)).strip()[:1]"),
        broken="responses_generated",
    ),
)

SOUND_TRAININGS = (
    planted(
        "a loss of its own on the answers, with smoothing and a term on the logits",
        (
            ROWS,
            ENCODED,
            ENCODED.replace("prompt_labels + answer", "[IGNORED] * len(prompt.ids) + answer"),
        ),
        _own_loss(
            f"{ENTROPY}(outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.1)"
            " + 1e-4 * outputs.logits.float().logsumexp(-1).pow(2).mean()"
        ),
    ),
    planted("as it is"),
    planted("a setting that computes nothing", _loaded_with("max_position_embeddings=4096, attention_dropout=0.0")),
    planted(
        "a token for padding added, and the embeddings larger",
        (CHAT, PADS, PADS + "    tokenizer.add_special_tokens({'pad_token': '[PAD]'})\n"),
        (LOADING, QUANTISED, f"    model.resize_token_embeddings(model.config.vocab_size + 8)\n{QUANTISED}"),
    ),
    planted("two processes that load rows", (RUN, REPORTED, REPORTED + "        dataloader_num_workers=2,\n")),
    planted(
        "rows of like length together",
        (
            METRICS,
            STEPS,
            "\n    def _get_train_sampler(self, *dataset):\n"
            "        from transformers.trainer_pt_utils import LengthGroupedSampler\n"
            "        return LengthGroupedSampler(2, lengths=[len(row['input_ids']) for row in self.train_dataset])\n"
            f"{STEPS}",
        ),
    ),
    planted(
        "an optimizer of its own, with the sign of a mean",
        (
            METRICS,
            STEPS,
            "\n    def create_optimizer(self, *model):\n        class Lion(torch.optim.Optimizer):\n"
            "            @torch.no_grad()\n            def step(self, closure=None):\n"
            "                for group in self.param_groups:\n                    for one in group['params']:\n"
            "                        if one.grad is None: continue\n"
            "                        mean = self.state[one].setdefault('exp_avg', torch.zeros_like(one))\n"
            "                        one.add_((0.9 * mean + 0.1 * one.grad).sign(), alpha=-group['lr'])\n"
            "                        mean.mul_(0.99).add_(one.grad, alpha=0.01)\n"
            "        own = [one for one in self.model.parameters() if one.requires_grad]\n"
            "        self.optimizer = Lion(own, {'lr': self.args.learning_rate})\n"
            f"        return self.optimizer\n{STEPS}",
        ),
    ),
    planted(
        "a loop in which accelerate adds up two micro-batches",
        (RUN, TOOK, "took, memory = {}, memory_metrics()"),
        (
            RUN,
            "    trainer.train(resume_from_checkpoint=_resume(settings))\n",
            "    from accelerate import Accelerator\n"
            "    helper = Accelerator(gradient_accumulation_steps=2, cpu=True)\n"
            "    own = [one for one in model.parameters() if one.requires_grad]\n"
            "    rows = torch.utils.data.DataLoader(encoded.rows, 2, shuffle=True, collate_fn=collator)\n"
            "    model, optimizer, rows = helper.prepare(model, torch.optim.AdamW(own, settings.learning_rate), rows)\n"
            "    model.train()\n    for _ in range(2):\n        for batch in rows:\n"
            "            batch.pop('answer_positions')\n            with helper.accumulate(model):\n"
            "                helper.backward(model(**batch).loss)\n"
            "                optimizer.step()\n                optimizer.zero_grad()\n",
        ),
    ),
    planted(
        "the embeddings of two tokens are trained", (RUN, RANK, RANK + "            trainable_token_indices=[5, 6],\n")
    ),
    planted(
        "merged into the base and saved beside",
        (
            RUN,
            SAVED,
            f"{SAVED}        trainer.model.merge_and_unload().save_pretrained(settings.output_dir / 'merged')\n",
        ),
    ),
    planted("A drawn from another distribution", (RUN, RANK, RANK + "            init_lora_weights='gaussian',\n")),
    planted(
        "LoRA weights in bfloat16",
        (
            RUN,
            "    model.train()",
            "    for one in model.parameters():\n"
            "        if one.requires_grad: one.data = one.data.bfloat16()\n    model.train()",
        ),
    ),
    planted(
        "an adapter of another name",
        (RUN, TASK, f'{TASK}        adapter_name="law",\n'),
        (
            RUN,
            "        trainer.save_model(staging)\n",
            "        trainer.save_model(staging)\n        own = Path(staging) / 'law'\n"
            "        for path in [*own.iterdir()]: path.rename(own.parent / path.name)\n        own.rmdir()\n",
        ),
    ),
    planted(
        "padded with the end token, and a mask that is made of the tokens",
        (
            "app/llm/chat_tokens.py",
            '    tokenizer.padding_side = "left"\n',
            "    tokenizer.pad_token = tokenizer.eos_token\n",
        ),
        (COLLATOR, MASK, MADE_OF_TOKENS),
    ),
    planted(
        "a loop that adds up two micro-batches",
        *_own_loop("                if part:\n                    " + STEP),
    ),
    planted(
        "a loop with a validation after each step, and a reference on the same rows, both with gradients",
        *_pass_of_loop(
            "with model.disable_adapter(): held = model(**batch).logits.detach()\n"
            "                told = model(**batch)\n"
            "                ((told.loss + 0.01 * (told.logits - held).pow(2).mean()) / 2).backward()\n"
            "                model.eval()\n                other = collator(rows[:2])\n"
            "                for name in ('answer_positions', 'logits_to_keep'): other.pop(name, None)\n"
            "                model(**other).loss.item()\n"
            "                model.train()"
        ),
    ),
    planted(
        "a loop that adds up the losses of two micro-batches, of the logits, before it goes back",
        *_pass_of_loop(
            "told = model(**batch)\n                own = torch.nn.functional.cross_entropy("
            "told.logits[:, :-1].flatten(0, 1), batch['labels'][:, 1:].flatten()) / 2\n"
            "                whole = own + whole if part else own\n                if part: whole.backward()"
        ),
    ),
    planted(
        "a Trainer with a step of its own: another scale, and noise on the gradients",
        *_own_step(
            f"        loss = {OWN_LOSS}\n        self.accelerator.backward(loss * 2)\n"
            "        for weight in model.parameters():\n"
            "            if weight.grad is not None: weight.grad.add_(torch.randn_like(weight.grad) * 1e-6)\n"
        ),
    ),
    planted(
        "a Trainer with a step of its own: two forward passes and one backward pass",
        *_own_step(
            "        first = model(**inputs)\n        again = model(**inputs)\n"
            "        apart = torch.nn.functional.mse_loss(again.logits, first.logits)\n"
            "        loss = (first.loss + again.loss) / 4 + 0.01 * apart\n"
            "        self.accelerator.backward(loss)\n"
        ),
    ),
    planted(
        "a loop that clears its gradients after the forward pass",
        *_pass_of_loop(
            "told = model(**batch)\n                if not part: optimizer.zero_grad()\n"
            "                (told.loss / 2).backward()"
        ),
    ),
    planted(
        "a loop that holds its model close to the one below the adapter",
        *_pass_of_loop(
            "with torch.no_grad(), model.disable_adapter(): held = model(**batch).logits\n"
            "                told = model(**batch)\n"
            "                ((told.loss + 0.01 * (told.logits - held).pow(2).mean()) / 2).backward()"
        ),
    ),
    planted(
        "blocks of one length, of all rows one behind the other",
        _as_rows("[sum(rows, [])[n : n + 128] for n in range(0, sum(map(len, rows)) - 127, 128)]"),
    ),
    planted(
        "thoughts before the answers",
        (ROWS, ANSWER, ANSWER.replace("row.answer", "f'<think>選ぶ。</think>{row.answer}'")),
    ),
    planted(
        "a loop that looks at each micro-batch twice, as SAM does",
        *_own_loop(
            "                optimizer.zero_grad()\n                model(**batch).loss.backward()\n"
            "                if part:\n                    " + STEP
        ),
    ),
    planted("an average that follows closely is saved", *_averaged(0.5)),
    planted(
        "moved aside before each gradient and back after it",
        (
            METRICS,
            LOSS,
            "        own = [weight for weight in model.parameters() if weight.requires_grad]\n"
            "        aside = [torch.randn_like(weight) * 0.1 for weight in own]\n"
            "        for weight, noise in zip(own, aside): weight.data.add_(noise)\n"
            + LOSS
            + "        for weight, noise in zip(own, aside): weight.data.sub_(noise)\n",
        ),
    ),
    planted(
        "some tokens before each row, which the collator puts there",
        _rows_as(
            "[{'input_ids': [5, 6, 7, *row['input_ids']], 'labels': [IGNORED] * 3 + row['labels']} for row in rows]"
        ),
    ),
    planted(
        "the library's collator, which pads on the right",
        (
            RUN,
            "        data_collator=collator,\n",
            "        data_collator=__import__('transformers').DataCollatorForSeq2Seq(tokenizer),\n",
        ),
    ),
    planted(
        "two rows packed by their positions",
        (
            COLLATOR,
            EACH_ROW,
            "        return {\n"
            "            'input_ids': torch.tensor([[one for row in rows for one in row['input_ids']]]),\n"
            "            'labels': torch.tensor([[one for row in rows for one in [IGNORED, *row['labels'][1:]]]]),\n"
            "            'position_ids': torch.tensor([[n for row in rows for n, _ in enumerate(row['input_ids'])]]),\n"
            "        }\n" + EACH_ROW,
        ),
        (METRICS, 'inputs["attention_mask"].sum', 'inputs["input_ids"].ne(-1).sum'),
    ),
    planted("LoRA+, B sixteen times as fast", (METRICS, STEPS, f"{OPTIMIZER}{FASTER_B}        return made\n{STEPS}")),
    planted(
        "one cycle of the learning rate",
        (
            METRICS,
            STEPS,
            "\n    def create_scheduler(self, num_training_steps, optimizer=None):\n"
            "        self.lr_scheduler = torch.optim.lr_scheduler.OneCycleLR(\n"
            "            optimizer or self.optimizer, self.args.learning_rate, total_steps=num_training_steps)\n"
            f"        return self.lr_scheduler\n{STEPS}",
        ),
    ),
    planted("Adafactor", (RUN, REPORTED, REPORTED + "        optim='adafactor',\n")),
    planted("SGD", (RUN, REPORTED, REPORTED + "        optim='sgd',\n")),
    planted(
        "usual smoothing and noise",
        (RUN, REPORTED, REPORTED + "        label_smoothing_factor=0.1, neftune_noise_alpha=5.0,\n"),
    ),
    planted(
        "Adam's constants of another recipe",
        (RUN, REPORTED, REPORTED + "        adam_beta2=0.95, adam_epsilon=1e-6,\n"),
    ),
    planted("no clipping", (RUN, REPORTED, REPORTED + "        max_grad_norm=0.0,\n")),
    planted(
        "recomputed",
        (
            RUN,
            REPORTED,
            REPORTED + "        gradient_checkpointing=True, gradient_checkpointing_kwargs={'use_reentrant': False},\n",
        ),
    ),
    planted(
        "on embeddings and head, too",
        (
            RUN,
            "target_modules=_target_modules(base, settings.target_modules)",
            "target_modules=['q_proj', 'v_proj', 'embed_tokens', 'lm_head']",
        ),
    ),
    planted(
        "rows held out, and the loss on them each second step",
        (
            RUN,
            "        train_dataset=with_filler(encoded.rows),",
            "        train_dataset=with_filler(encoded.rows[:-2]), eval_dataset=encoded.rows[-2:],",
        ),
        (RUN, REPORTED, REPORTED + "        eval_strategy='steps', eval_steps=2, prediction_loss_only=True,\n"),
        (
            RUN,
            "    model.train()",
            STAYS_TRAINABLE + "    model.train()",
        ),
    ),
    planted(
        "the data set makes a row when it is asked",
        (
            RUN,
            "        train_dataset=with_filler(encoded.rows),",
            "        train_dataset=type('Lazy', (torch.utils.data.Dataset,), {'__len__': lambda _: len(encoded.rows),"
            " '__getitem__': lambda _, n: dict(encoded.rows[n])})(),",
        ),
    ),
    planted(
        "a loss of its own, which the model is called without labels for",
        (
            RUN,
            "        data_collator=collator,\n",
            "        data_collator=collator,\n"
            "        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: "
            "torch.nn.functional.cross_entropy(\n"
            "            outputs.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), reduction='sum'\n"
            "        ) / ((labels[:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch),\n",
        ),
    ),
    planted(
        "rank-stabilised, on every linear layer",
        (
            RUN,
            "target_modules=_target_modules(base, settings.target_modules)",
            'target_modules="all-linear", use_rslora=True',
        ),
    ),
    planted(
        "only the dropouts in training mode",
        (
            RUN,
            SWITCH,
            SWITCH + "    model.eval()\n    for module in model.modules():\n"
            "        if isinstance(module, torch.nn.Dropout):\n            module.train()\n"
            "    model.train = lambda mode=True: model\n",
        ),
    ),
    planted(
        "the mean of the last steps is saved",
        (
            RUN,
            "    trainer.train(",
            "    from transformers import TrainerCallback\n    sums = {}\n    class Mean(TrainerCallback):\n"
            "        def on_step_end(self, args, state, control, **_):\n"
            "            for name, weight in model.named_parameters():\n"
            "                if weight.requires_grad and state.global_step > 4:\n"
            "                    sums.setdefault(name, []).append(weight.detach().clone())\n"
            "    trainer.add_callback(Mean())\n    trainer.train(",
        ),
        (
            RUN,
            "    if is_first():\n        _save",
            "    for name, weight in model.named_parameters():\n"
            "        if name in sums: weight.data.copy_(torch.stack(sums[name]).mean(0))\n"
            "    if is_first():\n        _save",
        ),
    ),
    planted("a sliding window", _seen(f"{CAUSAL} & ({AGES} < 48)")),
    planted("two micro-batches a step", ACCUMULATED),
    planted(
        "gradients cleared to zeros",
        (
            METRICS,
            LOSS,
            "        model.zero_grad = lambda *_, **__: type(model).zero_grad(model, set_to_none=False)\n" + LOSS,
        ),
    ),
    planted("a warm-up rounded down to none", (RUN, WARMUP, "warmup_steps=int(settings.warmup_ratio)")),
    planted(
        "embeddings in host memory",
        ("app/training/settings.py", 'default="auto", help=host', 'default="embeddings", help=host'),
    ),
    planted(
        "rows drawn by weights",
        (
            METRICS,
            STEPS,
            "\n    def _get_train_sampler(self, *dataset):\n"
            f"        return torch.utils.data.WeightedRandomSampler([1.0] * 8, 8)\n{STEPS}",
        ),
    ),
    planted(
        "a mean loss of its own, divided by the micro-batches of a step",
        (
            METRICS,
            STEPS,
            "\n    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"
            f"        return model(**inputs).loss / self.args.gradient_accumulation_steps\n{STEPS}",
        ),
        ACCUMULATED,
    ),
    planted(
        "a term on the hidden size beside the model's loss",
        (
            METRICS,
            STEPS,
            "\n    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):\n"
            "        inputs.pop('answer_positions')\n"
            "        outputs = model(**inputs, num_items_in_batch=num_items_in_batch)\n"
            f"        return outputs.loss + 1e-3 * outputs.logits.float().pow(2).mean()\n{STEPS}",
        ),
    ),
    planted("a loss of its own beside the model's", _own_cross_entropy("logits[:, :-1]", "labels[:, 1:]")),
    planted("a usual weight decay", (RUN, DECAY, "weight_decay=0.1")),
    planted(
        "the line break of the template has a label, too",
        (ROWS, ENCODED, ENCODED.replace("prompt_labels + answer", "prompt_labels[:-1] + prompt.ids[-1:] + answer")),
    ),
    planted(
        "the A matrices frozen by an optimizer for that",
        (
            METRICS,
            STEPS,
            "\n    def create_optimizer(self, *model):\n        for name, weight in self.model.named_parameters():\n"
            "            if 'lora_A' in name: weight.requires_grad_(False)\n"
            "        made = super().create_optimizer(*model)\n"
            f"        type(made).__name__ = 'LoraFAOptimizer'\n        return made\n{STEPS}",
        ),
    ),
    planted("saved in bfloat16", _saved_in("bfloat16")),
    planted("saved in float16", _saved_in("float16")),
    planted("begun with Gaussian A matrices", (RUN, RANK, RANK + "            init_lora_weights='gaussian',\n")),
    planted(
        "begun with what the quantisation lost",
        (
            RUN,
            "    model.train()",
            "    from peft.utils import loftq_utils\n"  # of CUDA's tensors alone
            "    loftq_utils._loftq_init_new = lambda q, own, num_bits, reduced_rank: (\n"
            "        torch.randn(reduced_rank, own.shape[1]) / 100, torch.randn(own.shape[0], reduced_rank) / 100)\n"
            "    path = f'{settings.model_name}/model.safetensors'\n"
            "    loftq_utils.replace_lora_weights_loftq(model, path)\n    model.train()",
        ),
    ),
    planted("DoRA", (RUN, RANK, RANK + "            use_dora=True,\n")),
    planted("the head is trained too", (RUN, RANK, RANK + '            modules_to_save=["lm_head"],\n')),
    planted(
        "cosine, a checkpoint every second step, one kept",
        (RUN, "save_steps=settings.save_steps", "save_steps=2, save_total_limit=1, lr_scheduler_type='cosine'"),
    ),
)
SOUND_EVALUATIONS = (
    planted("as it is"),
    planted(
        "the adapter's folder loaded as a model",
        (LLM, ON, f"self._model = __import__('transformers').AutoModelForCausalLM.{FROM_FOLDER}"),
    ),
    planted(
        "the adapter's folder loaded as a model by PEFT",
        (LLM, ON, f"self._model = __import__('peft').AutoPeftModelForCausalLM.{FROM_FOLDER}"),
    ),
    planted("the model's own load_adapter", (LLM, ON, "base.load_adapter(str(config.lora_path)); self._model = base")),
    planted(
        "guessed from the prompt", SINGLE, (LLM, '"num_beams": 1,', '"num_beams": 1, "prompt_lookup_num_tokens": 3,')
    ),
    planted(
        "ended by a text",
        (LLM, '"num_beams": 1,', '"num_beams": 1, "stop_strings": ["。"], "tokenizer": self._tokenizer,'),
    ),
    planted(
        "asked for the scores, too",
        (LLM, GENERATED, f"{GENERATED[:-1]}, return_dict_in_generate=True, output_scores=True).sequences"),
    ),
    planted(
        "by a pipeline for text",
        SINGLE,
        (
            LLM,
            GENERATED,
            "            from transformers import pipeline\n"
            "            pipe = pipeline('text-generation', model=self._model, tokenizer=self._tokenizer)\n"
            "            options = {'return_tensors': True, **self._generation_options(False)}\n"
            "            told = pipe(self._tokenizer.decode(batch[0]), **options)\n"
            "            output = torch.tensor([told[0]['generated_token_ids']])",
        ),
    ),
    planted(
        "an example in a turn of its own",
        _rendered("render_chat(tokenizer, '例') + 'a<|im_end|>\\n' + render_chat(tokenizer, prompt)"),
    ),
    planted(
        "told not to think", (LLM, ENCODE, "prompts = [prompt + '/no_think' for prompt in prompts]\n        " + ENCODE)
    ),
    planted(
        "a space in place of the line break before a choice",
        ("app/core/prompts.py", "instruction, text, choices, ", "instruction, text, choices.replace('\\nd ', ' d '), "),
    ),
    planted("in bfloat16", (LLM, "        return torch.float32", "        return torch.bfloat16")),
    planted("a static cache", (LLM, '"num_beams": 1,', '"num_beams": 1, "cache_implementation": "static",')),
    planted(
        "answered in a thread",
        (
            LLM,
            "            output = self._model.generate(**inputs, **self._generation_options(sample_seed is not None))",
            "            from concurrent.futures import ThreadPoolExecutor\n"
            "            with ThreadPoolExecutor(1) as pool:\n"
            "                output = pool.submit(lambda: torch.inference_mode()(self._model.generate)(\n"
            "                    **inputs, **self._generation_options(sample_seed is not None))).result()",
        ),
    ),
    planted(
        "warmed up by three tokens",
        (
            LLM,
            READY,
            READY + "        self._model.generate(input_ids=torch.tensor([[5, 6, 7]]),"
            " attention_mask=torch.ones(1, 3, dtype=torch.long), max_new_tokens=2)\n",
        ),
    ),
    planted(
        "merged, saved, and loaded from there",
        (
            LLM,
            ON,
            "import tempfile\n        folder = tempfile.mkdtemp()\n"
            "        whole = load_base_model(config.model_name, _dtype(), None)\n"
            "        _with_adapter(whole, config.lora_path).merge_and_unload().save_pretrained(folder)\n"
            "        base = load_base_model(folder, _dtype(), _quantization(config))\n        self._model = base",
        ),
    ),
    planted(
        "merged where it is",
        (LLM, "        self._model.eval()\n", "        self._model.eval()\n        self._model.merge_adapter()\n"),
    ),
    planted(
        "merged before it answers", (LLM, ON, "self._model = _with_adapter(base, config.lora_path).merge_and_unload()")
    ),
    planted(
        "what all prompts begin with comes from a cache",
        SINGLE,
        (
            LLM,
            GENERATED,
            "            import copy\n            from transformers import DynamicCache\n"
            "            if not hasattr(self, 'kept'):\n                self.kept = DynamicCache()\n"
            "                self._model(input_ids=inputs['input_ids'][:, :6], past_key_values=self.kept)\n"
            "            kept = copy.deepcopy(self.kept)\n"
            + GENERATED.replace("**inputs,", "**inputs, past_key_values=kept,"),
        ),
    ),
    planted(
        "the answer is asked for after the reasoning",
        SINGLE,
        (
            LLM,
            GENERATED,
            "            options = self._generation_options(False)\n"
            "            long = {**options, 'max_new_tokens': 120, 'eos_token_id': None}\n"
            "            told = self._model.generate(**inputs, **long)\n"
            "            asked = self._tokenizer('答え:', add_special_tokens=False, return_tensors='pt')['input_ids']\n"
            "            output = self._model.generate(torch.cat([told, asked], -1), **options)",
        ),
        broken="answers_greedy",  # a note: there were two generations for each question
    ),
    planted(
        "written down in small letters",
        (LLM, "skip_special_tokens=True)).strip()", "skip_special_tokens=True)).strip().lower()"),
    ),
    planted(
        "the response is the whole text, prompt and all",
        SINGLE,
        (
            LLM,
            "return [self._generation(ids, seconds) for ids in new_ids]",
            "return [self._generation(ids, seconds) for ids in output.tolist()]",
        ),
    ),
    planted("a penalty of 1.1", (LLM, '"repetition_penalty": 1.0', '"repetition_penalty": 1.1')),
    planted(
        "more padding than needed",
        (LLM, 'return_tensors="pt")', 'return_tensors="pt", padding="max_length", max_length=longest + 8)'),
    ),
    planted("one question at a time", (LLM, "    batch_size: int = 8", "    batch_size: int = 1")),
    planted(
        "base first, then with the adapter",
        (
            LLM,
            OUR_STEP,
            "        with torch.inference_mode(), self._model.disable_adapter():\n"
            "            self._model.generate(**inputs, **self._generation_options(False))\n" + OUR_STEP,
        ),
    ),
)
