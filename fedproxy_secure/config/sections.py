"""The base class of all sections of the settings, and marks that say which fields parties share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

Ratio = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Scalar = str | int | float | bool


@dataclass(frozen=True)
class Mark:
    """A property of a field, put into its annotation: `keys: Annotated[str | None, OWN]`."""

    meaning: str


OWN = Mark("local to one party: not part of what the parties agree on, and in no adversary's view")
NO_EFFECT = Mark("does not influence results: paths, recording, numbers of processes")
LATER = Mark("added later: not in the digest while it has its default, so that earlier results stay valid")
SWEEP = Mark("says which cells a sweep has and what is done with them; does not influence any one of them")


class Section(BaseModel):
    """A section of the settings: its values are checked and do not change, unknown keys are refused."""

    # inf and nan pass `gt` or are in no range at all, and no step after the settings can use them
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # `true` would be read as 1
        assert info.field_name is not None
        kinds = _kinds_in(cls.model_fields[info.field_name].annotation)
        if kinds & {int, float} and bool not in kinds:
            for one in value if isinstance(value, list | tuple) else [value]:
                if isinstance(one, bool):
                    raise PydanticCustomError("truth_value", "must be a number, not true or false")
        return value

    def changed(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced, checked like any other."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})

    def without(self, *marks: Mark, said_only: bool = False) -> dict[str, Any]:
        """Return plain JSON values of all fields but those with one of `marks`.

        Sections that are fields are treated alike, at any depth; those in a tuple, such as `data.clients`,
        keep all of their fields.

        Args:
            said_only: leave out the fields marked `LATER`, too, that have their default.
        """
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            unsaid = said_only and LATER in field.metadata and value == field.default
            if unsaid or any(mark in field.metadata for mark in marks):
                del values[name]
            elif isinstance(value, Section):
                values[name] = value.without(*marks, said_only=said_only)
        return values


def _kinds_in(annotation: Any) -> set[Any]:
    """Return the types that an annotation names at any depth."""
    return {annotation}.union(
        *(_kinds_in(a) for a in get_args(annotation) if not isinstance(a, str | Mark))
    )


def check_all_differ(section: Section, *names: str) -> None:
    """Raise `ValueError` if a list of a section has a value twice; ratios are compared to six digits.

    Two cells of a sweep with the same name would write into one folder.
    """
    for name in names:
        values = [f"{v:g}" if isinstance(v, float) else str(v) for v in getattr(section, name)]
        if len(set(values)) != len(values):
            raise ValueError(f"{name}=[{', '.join(values)}]: must all differ")


def cohort_size(clients: int, participation: float) -> int:
    """Return how many of `clients` a round asks: their share `participation`, rounded, at least one."""
    return max(1, round(participation * clients))
