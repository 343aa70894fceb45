"""From a dataclass of options to a command that Typer can run."""

from __future__ import annotations

from enum import Enum
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from endauda_cli.completion import values
from endauda_cli.options import Option, options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from endauda_cli.commands.options import Told

T = TypeVar("T", bound="Told")


def command(kind: type[T], run: Callable[[T], None]) -> Callable[..., None]:
    """A function with a parameter per option of ``kind``, as Typer reads it; its help is ``run``'s docstring.

    Args:
        kind: a frozen dataclass of options.
        run: called with a value of it.
    """
    options, hints = options_of(kind), get_type_hints(kind)

    def called(ctx: typer.Context, **typed: Any) -> None:
        given = {name: options[name].value(value) for name, value in typed.items() if value is not None}
        run(kind(**given, context=ctx))

    parameters = [Parameter("ctx", Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for name, one in options.items():
        default = Parameter.empty if one.default is ... else one.default
        told: Any = Annotated[_typed(one, hints[name]), _of_typer(one)]
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=told))
    called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    called.__doc__ = run.__doc__
    return called


def _typed(one: Option, own: Any) -> Any:
    """The type of the typed value."""
    kind = one.typed
    if kind is None:
        kind = type(one.default) if isinstance(one.default, Enum) else str if one.parse else own
    return kind | None if one.default is None else kind


def _of_typer(one: Option) -> Any:
    more = dict(one.more)
    if one.complete is not None:
        more["autocompletion"] = getattr(values, one.complete)
    if not one.flags:
        return typer.Argument(help=one.help, **more)
    if one.default is None or "[default:" in one.help:
        more.setdefault("show_default", False)
    # Every option can come from ENDAUDA_<COMMAND>_<OPTION>; saying so at each would drown the help.
    return typer.Option(*one.flags, help=one.help, rich_help_panel=one.panel, show_envvar=False, **more)
