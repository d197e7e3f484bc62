"""A training, by the Trainer or by a loop of one's own: how it begins, its first batches, its steps, how it ends."""

from __future__ import annotations

import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from . import batches, facts, models, patches, tokens, weights

_FIRST_BATCHES = 8
_LEAST_AGE = 4  # steps; from there on the optimizer's own count of them is looked at
_MOST_STATES = 8
_FIRST_GAPS = 4  # between steps
_FIRST_CALLS = 64  # of the model, whose backward passes are looked for
# a hook that failed counts no more: what it counted is left out
_COUNTED_BY = {
    "steps": ("optimizer_steps", "rateless_steps"), "optimizer's age": ("optimizer_age",), "backward": ("calls",),
    "model's loss": ("calls",), "batches": ("calls", "forwards", "bare_forwards"),
    "Module._wrapped_call_impl": ("calls", "forwards", "bare_forwards"),
}  # fmt: skip
_MOST_RATES = 500
_MOST_KEPT = 2048  # steps, some numbers each
_ROUNDING = 1e-5  # of a norm, as where a program adds something and takes it off again


class _Training:
    """One training from its beginning to its end; nothing of it is kept alive."""

    def __init__(self, source: str, model: Any, state: Any = None) -> None:
        self.source = source
        self.model = weakref.ref(models.unwrapped(model))
        self.state = None if state is None else weakref.ref(state)
        self.began, self.hook_seconds = time.time(), facts.hook_seconds()
        self.steps_before, self.rateless_before = _Steps.done, _Steps.rateless
        self.due: int | None = None
        self.is_packed = False
        self.has_row_texts = False
        self.row_hashes: frozenset[str] | None = None  # of all of the data set's rows
        self.batches = 0
        self.last_step = 0
        self.epoch: float | None = None
        self.moved: dict[str, Any] = {}
        self.forwards = self.bare_forwards = 0  # with a gradient, and without one in spite of labels
        self.given: Any = None  # a weak reference to the last call's tokens, and whether it had a gradient
        self.rates: list[float] = []  # of a loop's steps, which logs none
        self.left: list[Any] = []  # sizes of gradients that a loop's first backward pass after a step finds
        self.labels: Any = None  # of the micro-batch that the Trainer works on
        self.has_own_loss = False  # the Trainer's `compute_loss` is the program's own
        self.between: list[tuple[Any, Any]] = []  # sizes of some matrices after a step, and before the next one
        self.after_step: Any = None
        self.after_steps: deque[Any] = deque(maxlen=_MOST_KEPT)  # the same after a loop's last steps
        self.since_last: float | None = None  # their size at a save over that
        self.losses: list[tuple[int, Any]] = []  # what the Trainer's own `training_step` gave, by steps done
        self.open: list[dict[str, Any]] = []  # batches whose labels the gradient of the logits may show to be others
        self.own_loss: Any = None  # what the model gave for this micro-batch, and whether it was told how many tokens
        self.own_losses: list[Any] = []  # beside each of `losses`
        self.calls: list[_Call] = []
        self.evaluations = 0
        self.stopped_by: list[str] | None = None  # callbacks, where one of them ended the training before its last step
        self.start = weights.snapshot(models.unwrapped(model))


class _Call:
    """A call of the model with a gradient, and whether a backward pass came back to what it gave.

    Calls on the same rows before one step are one: one of them may be a reference.
    """

    def __init__(self, model: Any, ids: Any, step: int) -> None:
        self.step, self.in_training_mode, self.is_learnt = step, bool(model.training), False
        self.ids = None if ids is None else weakref.ref(ids)

    @facts.guarded("backward")
    def learnt(self, gradient: object) -> None:
        if not self.is_learnt:
            self.is_learnt = True
            if not in_progress(of_trainer=True):
                _learnt()


class _Steps:
    """Real calls of an optimizer's `step`."""

    done = 0
    rateless = 0  # of these, with a learning rate of zero
    backwards = 0  # since the last of these, through losses of a loop's first batches
    has_optimizer = False
    optimizer: Any = None  # a weak reference to the last one that stepped
    own_hooks: dict[str, int] = {}  # noqa: RUF012 - before its steps, by its class
    in_a_row = 0  # steps of it
    age: tuple[int, list[Any]] | None = None  # of these, and what it says itself how many there were


class _Now:
    """The training in progress, the last step of the one before, and what may be a loop's first batches."""

    training: _Training | None = None
    last_step: int | None = None
    waiting: list[dict[str, Any]] = []  # noqa: RUF012 - one process, one of these
    waiting_model: Any = None
    waiting_start: dict[str, Any] | None = None
    waiting_since = 0.0
    unlabelled: dict[str, Any] | None = None  # the last of these, where the loss is the loop's own
    calls: list[_Call] = []  # noqa: RUF012 - before the training, likewise
    call: _Call | None = None  # the one that is made now
    loader: Any = None  # that was last asked for rows, before a training


def hook_optimizers(module: ModuleType) -> None:
    """Count real steps, by torch's own points for it; the first one of a loop says that a training began."""
    from . import splice

    facts.never_compile(*splice.CALLED, _step_done)
    module.register_optimizer_step_pre_hook(_step_comes)
    module.register_optimizer_step_post_hook(_step_done)
    splice.first(module.Optimizer.__init__, _made)


def hook_loaders(module: ModuleType) -> None:
    """The loader whose rows a loop asks for last before its first step."""
    from . import splice

    splice.first(module.DataLoader.__iter__, _loader_asked)


def _loader_asked(given: dict[str, Any]) -> None:
    """Kept until the first step, as an iterator alone keeps no loader."""
    if _Steps.has_optimizer and _Now.training is None:
        _Now.loader = given["self"]


def _loop_rows() -> dict[str, Any]:
    """The rows of that loader, where they lie there as tokens."""
    loader, _Now.loader = _Now.loader, None
    seen = tokens.described_rows(getattr(loader, "dataset", None))
    return {**seen, "sampler": _sampler(loader)} if seen["row_hashes"] else {"rows": None}


def _made(given: object) -> None:
    _Steps.has_optimizer = True
    _forget_waiting()


def hook_trainer(module: ModuleType) -> None:
    """Hook the library's own step of a micro-batch: its loss, whatever a program makes of it afterwards."""
    from . import splice

    splice.around(module.Trainer.training_step, before=_given, after=_gave)


def _given(given: dict[str, Any]) -> None:
    """Keep the labels of the micro-batch: with a `compute_loss_func` the model itself is called without them."""
    if _Now.training is not None:
        inputs: Any = given.get("inputs")
        _Now.training.own_loss = None
        _Now.training.labels = inputs.get("labels") if hasattr(inputs, "get") else None
        _Now.training.has_own_loss = patches.is_own(getattr(given.get("self"), "compute_loss", None))


def _gave(token: object, loss: Any) -> None:
    training = _Now.training
    if training is None or len(training.losses) >= _FIRST_BATCHES:
        return
    copy = _copied(loss)
    if copy is not None:
        training.losses.append((_step_of(training), copy))
        own = training.own_loss
        training.own_losses.append(own if own and own[0] is not None else None)


def _copied(loss: Any) -> Any:
    """A loss on the CPU, or on its way there; None where it is no number, or can't be read now."""
    torch: Any = sys.modules["torch"]
    if type(loss) is not torch.Tensor or loss.numel() != 1 or loss.is_meta:
        return None
    if not loss.is_cuda:
        return loss.detach().clone()
    return None if torch.cuda.is_current_stream_capturing() else loss.detach().to("cpu", non_blocking=True)


def model_gave(loss: Any, logits: Any) -> None:
    """The loss that the model itself gave in the call that `received` asked it for; a loop may use its logits alone."""
    training = _Now.training
    call, _Now.call = _Now.call, None
    for one in (loss, logits):  # what is learnt from may be either
        if call is not None and one is not None and one.requires_grad:
            one.register_hook(call.learnt)
    if training is not None and training.own_loss is not None:
        copy = _copied(loss)
        training.own_loss = None if copy is None else (copy, training.own_loss[1])


def _learnt() -> None:
    _Steps.backwards += 1
    training = _Now.training
    if training is not None and _Steps.backwards == 1 and len(training.left) < _FIRST_GAPS:
        found = batches.gradient(training.model())
        if found is not None:
            training.left.append(found)


def model_predicted(logits: Any) -> None:
    """The logits of a loop's batch that has no labels: what is learnt from them shows in their gradient."""
    batch, _Now.unlabelled = _Now.unlabelled, None
    if batch is not None:
        batches.label_by_gradient(batch, logits)


def hook_callbacks(module: ModuleType) -> None:
    """Every Trainer has this callback, which leaves these events to its base: methods that do nothing."""
    from . import splice

    cls = module.DefaultFlowCallback
    tokens.load()
    for name, own in (("on_train_begin", _begins), ("on_log", _logs), ("on_train_end", _ends)):
        if name in vars(cls):
            raise RuntimeError(f"DefaultFlowCallback has its own {name}")
        setattr(cls, name, own)
    splice.around(module.CallbackHandler.call_event, before=_event_comes, after=_event_went)


def in_progress(*, of_trainer: bool = False) -> bool:
    """Whether a training is going on; `of_trainer`: one that a Trainer does."""
    return _Now.training is not None and (not of_trainer or _Now.training.source == "trainer")


def has_optimizer() -> bool:
    """Whether this process made an optimizer: without one nothing is trained."""
    return _Steps.has_optimizer


def step() -> int | None:
    """The step that the training in progress has done, or the last one did; None where there was none."""
    training = _Now.training
    if training is None:
        return _Now.last_step
    return _step_of(training)


def _step_of(training: _Training) -> int:
    state = training.state() if training.state else None
    if state is not None:
        training.last_step = int(state.global_step)
    elif training.state is None:
        training.last_step = _Steps.done - training.steps_before
    return training.last_step


def _begins(callback: object, args: Any, state: Any, control: object, **given: Any) -> None:
    _trainer_begins(args, state, given)


@facts.guarded("training begins")
def _trainer_begins(args: Any, state: Any, given: dict[str, Any]) -> None:
    if _Now.training is not None:
        # a training that another one follows did not end, unless it was a loop, whose end nothing tells
        _close(_Now.training, raised="begun again before its end" if _Now.training.source == "trainer" else None)
    _forget_waiting()
    model = given["model"]
    tokens.use(given.get("processing_class") or given.get("tokenizer"))
    training, _Now.loader = _Training("trainer", model, state), None
    _Now.training = training
    training.due, training.is_packed = int(state.max_steps), getattr(args, "packing", None) is True
    models.forget_files(model)
    trainer = _trainer()
    loader = given.get("train_dataloader")
    seen = tokens.described_rows(getattr(loader, "dataset", None))
    training.has_row_texts = seen.get("row_fingerprints") is not None
    hashes = seen.get("row_hashes")
    training.row_hashes = frozenset(hashes) if hashes and len(hashes) == seen.get("rows") else None
    facts.write(
        "training_begins", source="trainer", trainer=None if trainer is None else type(trainer).__name__,
        **_asked(args, state), **seen, **_optimizer(given.get("optimizer"), args),
        sampler=_sampler(loader), resumed=bool(state.global_step),
        **_model_at(training, model),
    )  # fmt: skip
    weights.trained(model)


def _model_at(training: _Training, model: Any) -> dict[str, Any]:
    """The model, and how many of its LoRA matrices are zero before the first step."""
    known = models.described(model)
    if known["lora"] is not None:
        known["lora"].update(weights.nonzero_pairs(training.start))
    return known


def _asked(args: Any, state: Any) -> dict[str, Any]:
    """The settings that the Trainer was given, or decided by itself."""
    cards = max(1, int(getattr(args, "n_gpu", 1) or 1))
    batch = getattr(state, "train_batch_size", None)
    schedule = getattr(args, "lr_scheduler_type", None)
    precision = "bf16" if getattr(args, "bf16", False) else "fp16" if getattr(args, "fp16", False) else "fp32"
    return {
        "batch_size": int(batch) // cards if batch else int(args.per_device_train_batch_size),
        "accumulation": int(args.gradient_accumulation_steps), "world_size": int(args.world_size) * cards,
        "steps_due": int(state.max_steps),
        "schedule": None if schedule is None else str(getattr(schedule, "value", schedule)),
        "warmup_steps": float(args.get_warmup_steps(int(state.max_steps))),
        "precision": precision,
        "packing": getattr(args, "packing", None),
        "label_smoothing": _number(getattr(args, "label_smoothing_factor", None) or 0.0),
        "embedding_noise": _number(getattr(args, "neftune_noise_alpha", None) or 0.0),
    }  # fmt: skip


def _optimizer(optimizer: Any, args: Any) -> dict[str, Any]:
    """The optimizer's class, and the largest of what its groups of parameters have, which may not be the arguments.

    Groups may have rates of their own, as with LoRA+.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    groups = getattr(inner, "param_groups", ())
    # a cycle begins below its highest one
    rates = _numbers(group.get("max_lr", group.get("initial_lr", group.get("lr"))) for group in groups)
    decays, epsilons = (_numbers(group.get(name) for group in groups) for name in ("weight_decay", "eps"))
    betas = {tuple(_numbers(own)) for group in groups if isinstance(own := group.get("betas"), (list, tuple))}
    return {
        "optimizer": _name(inner), "learning_rate": max(rates, default=getattr(args, "learning_rate", None)),
        "learning_rates": sorted({*rates})[:8],
        "weight_decay": max(decays, default=getattr(args, "weight_decay", None)),
        "epsilon": max(epsilons, default=None), "betas": sorted(betas)[:8],
    }  # fmt: skip


def _numbers(values: Iterable[Any]) -> list[float]:
    return [float(value) for value in values if isinstance(value, (int, float))]


def _name(value: object) -> str | None:
    return None if value is None else getattr(value, "__name__", None) or type(value).__name__


def _sampler(loader: Any) -> dict[str, Any] | None:
    """The rows' sampler, and whether it may choose a row again before the others had their turn."""
    for holder in (getattr(loader, "batch_sampler", None), loader):
        while holder is not None and hasattr(holder, "batch_sampler") and holder is not loader:
            holder = holder.batch_sampler  # one that shares batches among processes
        own = getattr(holder, "sampler", None)
        if own is not None:
            return {"class": _name(own), "replacement": getattr(own, "replacement", None)}
    return None


def _trainer() -> Any:
    """The Trainer whose loop calls back; callbacks are not told which one it is."""
    frame = sys._getframe(2)
    while frame is not None:
        if "training_loop" in frame.f_code.co_name:
            owner = frame.f_locals.get("self")
            if hasattr(owner, "callback_handler"):
                return owner
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def _logs(callback: object, args: object, state: Any, control: object, **given: Any) -> None:
    _logged(state, given.get("logs") or {})


@facts.guarded("logged")
def _logged(state: Any, logs: dict[str, Any]) -> None:
    batches.write_ready()
    known = {key: number for key in ("loss", "grad_norm", "learning_rate", "epoch")
             if (number := _number(logs.get(key))) is not None}  # fmt: skip
    if _Now.training is not None:
        _Now.training.epoch = known.get("epoch", _Now.training.epoch)
    facts.write("logged", step=int(state.global_step), eval=any(key.startswith("eval_") for key in logs), **known)


def _event_comes(given: dict[str, Any]) -> dict[str, Any] | None:
    training = _Now.training
    if training is None or training.source != "trainer" or given["control"].should_training_stop:
        return None
    training.evaluations += given["event"] == "on_evaluate"
    return given


def _event_went(given: dict[str, Any] | None, control: Any) -> None:
    """A callback may end the training, as early stopping does; who writes to `control` elsewhere is no callback."""
    training = _Now.training
    if training is None or given is None or not control.should_training_stop:
        return
    if given["state"].global_step < given["state"].max_steps:
        training.stopped_by = sorted({type(one).__name__ for one in given["self"].callbacks if _may_stop(type(one))})


def _may_stop(callback: type) -> bool:
    """Whether its own code, and not the Trainer's usual course, speaks of the switch that ends a training."""
    if callback.__name__ == "DefaultFlowCallback":
        return False
    own = (value for cls in callback.__mro__ if cls.__name__ != "TrainerCallback" for value in vars(cls).values())
    return any("should_training_stop" in one.__code__.co_names for one in own if hasattr(one, "__code__"))


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    # on a GPU it would be waited for
    return float(value) if str(getattr(value, "device", "")) == "cpu" and value.numel() == 1 else None


def _ends(callback: object, args: object, state: Any, control: object, **given: Any) -> None:
    _trainer_ends()


@facts.guarded("training ends")
def _trainer_ends() -> None:
    if _Now.training is not None:
        _close(_Now.training, raised=None)


def _close(training: _Training, raised: str | None) -> None:
    _write_open()
    batches.write_ready(wait=True)
    model = training.model()
    if model is not None:
        training.moved = _became(training, model)
    _Now.last_step = _step_of(training)
    _Now.training = None
    state = training.state() if training.state else None
    told = {
        "source": training.source, "steps": _Now.last_step, "due": training.due, "raised": raised,
        "optimizer_steps": _Steps.done - training.steps_before, "seconds": round(time.time() - training.began, 3),
        "epoch": training.epoch if state is None else state.epoch,
        "hook_seconds": round(facts.hook_seconds() - training.hook_seconds, 6), **_told(training), **training.moved,
    }  # fmt: skip
    for hook, counts in _COUNTED_BY.items():
        if facts.are_off(hook):
            told = {name: one for name, one in told.items() if name not in counts}
    facts.write("training_ends", **told)


def _told(training: _Training) -> dict[str, Any]:
    """How often the model was called, the first losses by the steps done before, and the optimizer's own count."""
    losses: dict[int, list[float]] = {}
    for done, loss in training.losses:
        losses.setdefault(done, []).append(float(loss))
    age = _Steps.age
    return {
        "since_last": training.since_last,
        "rateless_steps": _Steps.rateless - training.rateless_before,
        "forwards": training.forwards, "bare_forwards": training.bare_forwards, "first_losses": losses,
        "own_losses": [[float(given), float(own[0]), own[1]]
                       for (_, given), own in zip(training.losses, training.own_losses) if own is not None],
        "evaluations": training.evaluations, "stopped_by": training.stopped_by, "gaps": len(training.between),
        "left_gradients": [*map(float, training.left)], "rates": training.rates,
        "calls": [[one.step, int(one.in_training_mode), int(one.is_learnt)] for one in training.calls],
        "touched_between": sum(not before.allclose(now, rtol=_ROUNDING, atol=0.0) for before, now in training.between),
        "optimizer_age": None if age is None or not age[1] else [age[0], max(map(float, age[1]))],
    }  # fmt: skip


def _became(training: _Training, model: Any) -> dict[str, Any]:
    """How the weights changed, and what code of the program's own was in the model."""
    own = patches.described(model)
    return {
        **weights.changes_since(training.start, model), "matrices": weights.adapter_numbers(model),
        "base": weights.base_changed(model), "own_code": own and {**own, "optimizer_hooks": _Steps.own_hooks},
    }  # fmt: skip


def _write_open() -> None:
    """The gradients of a step are there before it: whatever labels they show is known."""
    waiting, training = [], _Now.training
    if training is not None:
        waiting, training.open = training.open, []
    for batch in waiting:
        batches.write(batch)


@facts.guarded("steps")
def _step_comes(optimizer: Any, args: object, kwargs: object) -> None:
    if _is_compiling():
        return
    _write_open()
    batches.write_ready()
    _look_between()
    model = _Now.waiting_model() if _Now.waiting_model is not None else None
    if _Now.training is not None or not _Now.waiting or model is None:
        return
    training = _Now.training = _Training("loop", model)
    training.start = _Now.waiting_start or training.start
    training.began = _Now.waiting_since
    models.forget_files(model)
    waiting, _Now.waiting = _Now.waiting, []
    training.calls, _Now.calls = _Now.calls, []
    torch: Any = sys.modules["torch"]
    facts.write(
        "training_begins", at=training.began, source="loop", **_optimizer(optimizer, None), resumed=False,
        **_loop_rows(), precision="fp32" if not torch.is_autocast_enabled() else "bf16", world_size=_world_size(),
        **_model_at(training, model),
    )  # fmt: skip
    weights.trained(model)
    for batch in waiting:
        batches.write(batch)
    training.batches = len(waiting)


def _world_size() -> int:
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    return int(distributed.get_world_size()) if distributed and distributed.is_initialized() else 1


def _is_compiling() -> bool:
    torch: Any = sys.modules["torch"]
    return bool(torch.compiler.is_compiling())


def _step_done(optimizer: object, args: object, kwargs: object) -> None:
    _Steps.done += 1
    _Steps.backwards = 0
    rates = [group.get("lr") for group in getattr(optimizer, "param_groups", ())]
    # a tensor may be on a GPU, which would be waited for
    known = _numbers(rates)
    _Steps.rateless += bool(rates) and len(known) == len(rates) and not any(known)
    training = _Now.training
    if training is not None and training.source == "loop" and known and len(training.rates) < _MOST_RATES:
        training.rates.append(max(known))
    _look_at(optimizer)


@facts.guarded("optimizer's age")
def _look_at(optimizer: Any) -> None:
    """How many steps an optimizer says that it has done, after 4, 8, 16 ... of them."""
    if _Steps.optimizer is None or _Steps.optimizer() is not optimizer:
        _Steps.optimizer, _Steps.in_a_row, _Steps.age = weakref.ref(optimizer), 0, None
        hooks = sum(map(patches.is_own, getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()))
        _Steps.own_hooks = {type(optimizer).__name__: hooks} if hooks else {}
    _Steps.in_a_row += 1
    training = _Now.training
    if training is not None and len(training.between) < _FIRST_GAPS and not _is_compiling():
        training.after_step = batches.sizes(training.model())
    if training is not None and training.source == "loop" and not _is_compiling():
        training.after_steps.append(batches.sizes(training.model(), stays=True))
    count = _Steps.in_a_row
    if count < _LEAST_AGE or count & (count - 1) or _is_compiling():
        return
    torch: Any = sys.modules["torch"]
    states = list(getattr(optimizer, "state", {}).values())[:_MOST_STATES]
    ages = [state["step"] for state in states if isinstance(state, dict) and "step" in state]
    _Steps.age = count, [one.detach().clone() if isinstance(one, torch.Tensor) else one for one in ages]


@facts.guarded("between steps")
def _look_between() -> None:
    """Before a step: nothing but the optimizer changes what it trains."""
    training = _Now.training
    if training is not None and training.after_step is not None:
        now, before = batches.sizes(training.model()), training.after_step
        training.after_step = None
        if now is not None and len(now) == len(before):
            training.between.append((before, now))


@facts.guarded("batches")
def received(model: Any, arguments: dict[str, Any]) -> bool:
    """The model was given a batch to train on; before a loop's first step it may be the first one, or a probe.

    Returns whether what it gives is wanted: the loss of the first micro-batches, and a loop's logits where the model is
    given no labels.
    """
    training = _Now.training
    if training is not None:
        is_trainer = training.source == "trainer"
        # a step of the program's own may never give the Trainer's
        is_first = training.forwards < _FIRST_CALLS and len(training.losses) < _FIRST_BATCHES
        is_wanted = is_first if is_trainer else training.batches < _FIRST_BATCHES
        # of a loop's later steps the first call, too: what its backward pass finds is what the step before has left
        is_wanted |= not is_trainer and not _Steps.backwards and len(training.left) < _FIRST_GAPS
        _count_call(training, arguments, is_bare=False)
        is_counted = arguments.get("num_items_in_batch") is not None
        training.own_loss = (None, is_counted) if is_trainer and is_wanted else None
        is_wanted |= _watched(training.calls, model, arguments, _step_of(training), training.model())
        is_told = arguments.get("labels") is not None
        is_own_loss = training.labels is not None and (training.has_own_loss or not is_told)
        if is_own_loss and not is_told:
            arguments = {**arguments, "labels": training.labels}
        if training.batches < _FIRST_BATCHES:
            batch = batches.taken(
                model, arguments, with_texts=not training.has_row_texts, is_first=not training.batches,
                step=_step_of(training), is_packed=training.is_packed, known=training.row_hashes,
            )  # fmt: skip
            if batch is not None:
                training.batches += 1
                batch["backwards"] = None if is_trainer else _Steps.backwards
                if is_own_loss:
                    _Now.unlabelled = batch
                    training.open.append(batch)
                else:
                    batches.write(batch)
        return is_wanted
    model = models.unwrapped(model)
    known = _Now.waiting_model() if _Now.waiting_model is not None else None
    if known is not model:
        _forget_waiting()
        _Now.waiting_model = weakref.ref(model)
        _Now.waiting_start = weights.snapshot(model)
    if not _Now.waiting:
        _Now.waiting_since = time.time()
    is_watched = _watched(_Now.calls, model, arguments, 0, model)
    if len(_Now.waiting) < _FIRST_BATCHES:
        batch = batches.taken(model, arguments, with_texts=True, is_first=not _Now.waiting, step=0)
        if batch is not None:
            batch["backwards"] = _Steps.backwards
            _Now.waiting.append(batch)
            _Now.unlabelled = None if "labels" in batch["tensors"] else batch
            return True
    return is_watched


def _watched(calls: list[_Call], model: Any, arguments: dict[str, Any], step: int, own: Any) -> bool:
    """Note a call of the model that is trained; whether its backward pass is looked for."""
    _Now.call, ids = None, arguments.get("input_ids")
    if len(calls) >= _FIRST_CALLS and calls[-1].step != step:
        return False
    if own is None or models.base_of(model) is not models.base_of(own):
        return False
    again = (one for one in reversed(calls) if one.step == step and one.ids is not None and one.ids() is ids)
    _Now.call = next(again, None) if ids is not None else None
    if _Now.call is None and len(calls) < _FIRST_CALLS:
        _Now.call = _Call(model, ids, step)
        calls.append(_Now.call)
    return _Now.call is not None


def without_gradient(model: Any, arguments: dict[str, Any]) -> None:
    """A model in training mode was called with labels, and nothing can be learnt from that call."""
    training = _Now.training
    if training is not None and model.training and arguments.get("labels") is not None:
        _count_call(training, arguments, is_bare=True)


def _count_call(training: _Training, arguments: dict[str, Any], *, is_bare: bool) -> None:
    """A call without a gradient, on the rows that are learnt from right before or after it, is a reference for them."""
    ids = arguments.get("input_ids")
    known, was_bare = training.given or (None, False)
    is_same = ids is not None and known is not None and known() is ids
    training.given = None if ids is None else (weakref.ref(ids), is_bare)
    training.forwards += not is_bare
    if is_same and is_bare != was_bare:
        training.bare_forwards -= was_bare
    else:
        training.bare_forwards += is_bare


def saved(model: Any) -> None:
    """A loop saves at its end; afterwards its model may be gone."""
    training = _Now.training
    if training is not None and training.source == "loop":
        own = training.model()
        if own is not None and models.base_of(own) is models.base_of(model):
            training.moved = _became(training, own)
            now = batches.sizes(own)
            steps = [
                one for one in training.after_steps if one is not None and now is not None and len(one) == len(now)
            ]
            if steps and bool((steps[-1] > 0).all()):
                kept = now / sys.modules["torch"].stack(steps).cpu()
                # the best step's weights may have been put back
                is_one = bool(((kept - 1).abs() <= _ROUNDING).all(-1).any())
                training.since_last = 1.0 if is_one else float(kept[-1].median())


@facts.forgets
def _forget() -> None:
    _Now.training, _Now.last_step, _Now.loader = None, None, None
    _Steps.done, _Steps.rateless, _Steps.optimizer, _Steps.age = 0, 0, None, None
    _forget_waiting()


@facts.guarded("optimizers")
def _forget_waiting() -> None:
    """An optimizer is made after the probes and before the training."""
    _Now.waiting, _Now.waiting_model, _Now.waiting_start, _Now.unlabelled = [], None, None, None
    _Now.calls, _Now.call = [], None
    _Steps.backwards = 0


@facts.at_end
def _at_end() -> dict[str, Any]:
    batches.write_ready(wait=True)
    training = _Now.training
    if training is not None:
        interrupted = facts.uncaught() or ("process ended" if training.source == "trainer" else None)
        _close(training, raised=interrupted)
    return {"optimizer_steps": _Steps.done}
