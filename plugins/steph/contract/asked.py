"""What a run can ask of a described pipeline: a profile's settings, as far as its programs take them. Pure.

A setting is *passed* where the description's words hold its placeholder; *fixed* where the program has it inside and
the description says its value; else *unsaid*: nobody asks for it, and nothing is held against it.
"""

from __future__ import annotations

from steph.base.messages import say
from steph.contract.description import Description, DescriptionError, Evaluate, Train
from steph.contract.placeholders import names_in
from steph.plan.settings import MAX_PARAMETERS, Models, Profile, Rung
from steph.record.settings import MAX_SAMPLES, EvalSettings, TrainSettings

MUST_BE_SAID = (
    "batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lora_r",
    "lora_alpha",
    "max_seq_length",
    "num_epochs",
)
_PRECISIONS = ("bf16", "fp16")


def passed(section: Train | Evaluate, template: str | None = None) -> frozenset[str]:
    """The placeholders that a section's words hold, its conditions' included; `template`: the text of its config."""
    when = {name for name in type(section.when).model_fields if getattr(section.when, name)}
    names = {*names_in(words_of(section, template)), *(when & {"use_4bit", "target_modules", "max_steps"})}
    if when & {*_PRECISIONS, "fp32"}:
        names.add("mixed_precision")
    if when & {"adapter"}:
        names.add("adapter")
    return frozenset(names)


def words_of(section: Train | Evaluate, template: str | None = None) -> tuple[str, ...]:
    """All words of a section's commands, its conditions and environment; `template`: the text of its config."""
    commands = (section.command or (), section.extra, *section.before, *section.after)
    conditions = (getattr(section.when, name) for name in type(section.when).model_fields)
    words = (word for several in (*commands, *conditions) for word in several)
    return (*words, *section.env.values(), section.cwd, template or "")


def unsaid_settings(description: Description, template: str | None = None) -> frozenset[str]:
    """The training settings that are neither passed nor fixed."""
    said = {*passed(description.train, template), *description.train.fixed.given}
    return frozenset(TrainSettings.model_fields.keys() - said - {"launcher", "num_processes"})


def applied(profile: Profile, description: Description, template: str | None = None) -> Profile:
    """The profile as this pipeline can be asked for it; raises DescriptionError.

    Fixed values take the place of the profile's, rungs lose what can't be turned, and the description's own models are
    the candidates. What is neither passed nor fixed is not asked for: 4-bit, half precision and LoRA's targets.
    """
    train = description.train
    can_pass = passed(train, template)
    _require_said(description, can_pass)
    unsaid = unsaid_settings(description, template)
    fixed = train.fixed.given
    nothing: dict[str, object] = {"use_4bit": False, "mixed_precision": None, "target_modules": ()}
    changes = {**{name: value for name, value in nothing.items() if name in unsaid}, **fixed}
    ladder = tuple(rung for step in profile.ladder if (rung := _possible(step, can_pass)) is not None)
    models = profile.model
    if not models.twin:  # a tiny one stands for whatever a project is made for
        models = own_models(models, description)
    return profile.changed(
        train=profile.train.changed(**changes),
        evaluate=_evaluation(profile.evaluate, description),
        ladder=ladder,
        model=models,
    )


def own_models(models: Models, description: Description) -> Models:
    """The candidates that fit this project: its own, whatever their size.

    Rows that are texts hold one family's chat template: where no candidates are named, there is no substitute.
    """
    own = description.model.candidates
    if own:
        wide = {"min_parameters": 0, "max_parameters": MAX_PARAMETERS}
        return models.changed(candidates=own, preferred=min(models.preferred, len(own)), **wide)
    if description.train.rows.format == "text":
        return models.changed(candidates=models.candidates[:1], preferred=1)
    return models


def _require_said(description: Description, can_pass: frozenset[str]) -> None:
    fixed = description.train.fixed.given
    both = sorted(can_pass & fixed.keys())
    if both:
        raise DescriptionError(say("description.fixed_and_passed", name=both[0]))
    lacking = [name for name in MUST_BE_SAID if name not in can_pass and name not in fixed]
    if "num_epochs" in lacking and {"max_steps"} & {*can_pass, *fixed}:
        lacking.remove("num_epochs")
    if lacking:
        inside = ", ".join(f"{name} = …" for name in lacking)
        names = [f"{{{name}}}" for name in lacking]
        raise DescriptionError(say("description.unsaid", names=names, inside=inside))


def _possible(step: Rung, can_pass: frozenset[str]) -> Rung | None:
    """What a rung can turn; None where that is nothing."""
    changes = {name: value for name, value in step.model_dump(exclude_none=True).items() if name in can_pass}
    return Rung(**changes) if changes else None


def _evaluation(asked: EvalSettings, description: Description) -> EvalSettings:
    """The evaluation's settings; 4-bit is asked for where its words can say so."""
    evaluate = description.evaluate
    if evaluate.none is not None:
        return asked
    can_pass = passed(evaluate)
    fixed = evaluate.fixed.given
    if "samples" not in can_pass and "samples" not in fixed:
        raise DescriptionError(say("description.no_samples", most=MAX_SAMPLES))
    in_4bit = asked.load_in_4bit and bool({"use_4bit", "load_in_4bit"} & can_pass)
    return asked.changed(**{"load_in_4bit": in_4bit, **fixed})
