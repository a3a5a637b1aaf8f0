"""Checks what a job says under `media.steps`, and builds the steps."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError, WithJsonSchema

from pipeline.errors import JobError
from pipeline.registry import STEPS, format_suggestion, load_registered

StepArguments = dict[str, Any]


def parse_step(value: Any) -> dict[str, StepArguments]:
    """A name, or one name with its arguments -> {name: arguments}. ValueError where the step cannot be built."""
    if isinstance(value, str):
        value = {value: None}
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("a step is a name or one {name: {argument: value}}")
    ((name, arguments),) = value.items()
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of step {name!r} are written {{name: value}}")
    try:
        build_step(name, arguments)
    except JobError as error:
        raise ValueError(str(error)) from error
    return {str(name): arguments}


def build_step(name: str, arguments: StepArguments) -> Any:
    """A registered function as it is, or an instance of a registered class with these arguments."""
    registered = load_registered(STEPS, name, "step")
    parameters = signature(registered).parameters if isinstance(registered, type) else {}
    for argument in arguments:
        if argument not in parameters:
            hint = format_suggestion(str(argument), parameters)
            raise JobError(
                f"step {name!r} has no argument {argument!r}; it has: {', '.join(parameters) or 'none'}{hint}"
            )
    if not isinstance(registered, type):
        return registered
    try:
        return TypeAdapter(registered).validate_python(arguments)
    except ValidationError as error:
        problems = [".".join(map(str, (name, *e["loc"]))) + f": {_format_problem(e['msg'])}" for e in error.errors()]
        raise JobError("; ".join(problems)) from error


def _format_problem(message: str) -> str:
    message = message.removeprefix("Value error, ").replace("Input should be ", "must be ")
    return message[:1].lower() + message[1:]


def wrap_step(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


# What people may write, for editors.
STEP_NAMES = {"type": "string", "enum": [*STEPS]}
STEP_FORMS = {"anyOf": [STEP_NAMES, {"type": "object", "maxProperties": 1, "propertyNames": {"enum": [*STEPS]}}]}
STEP_LIST_FORMS = {"anyOf": [STEP_FORMS, {"type": "array", "items": STEP_FORMS}]}
StepSettings = Annotated[dict[str, StepArguments], BeforeValidator(parse_step)]
StepList = Annotated[tuple[StepSettings, ...], BeforeValidator(wrap_step), WithJsonSchema(STEP_LIST_FORMS)]
