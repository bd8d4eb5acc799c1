"""Settings of sweeps: what `compare` and `matrix` run, and which attacks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from fedproxy_secure.config.kinds import COMPRESSIONS, FUSION_RULES, METHODS, PROTECTIONS
from fedproxy_secure.config.pipeline import AdapterKind
from fedproxy_secure.config.sections import NO_EFFECT, SWEEP, Ratio, Scalar, Section, check_all_differ


class CompareConfig(Section):
    """The runs of `compare`: methods x remove ratios x seeds.

    `against` names the methods that every other method is paired with, seed by seed, where the comparison
    has them.
    """

    # without `exact_...`: where nothing is healed, methods on exact copies repeat the others
    methods: Annotated[tuple[str, ...], SWEEP] = (
        *("zero_shot", "zero_shot_proxy", "centralised_llm", "centralised_proxy", "local_only"),
        *("fedavg_llm", "fedavg_llm_lr", "fedot", "fedot_equal_bytes"),
        *("fedproxy_fedavg", "fedproxy_fedavg_lr", "fedproxy_fedadam", "fedproxy_fedprox"),
        *("fedproxy_ties", "fedproxy_h_ties", "fedproxy_h_ties_pcr"),
        *("masked_fedavg", "masked_fedavg_lr", "masked_h_ties_coordinate", "masked_h_ties_block"),
    )
    remove_ratios: Annotated[tuple[Ratio, ...], SWEEP] = (0.25, 0.5)
    against: Annotated[tuple[str, ...], NO_EFFECT] = (
        "fedot_equal_bytes_lr",
        "fedot_equal_bytes",
        "fedproxy_h_ties",
    )
    jobs: Annotated[int, Field(ge=0), NO_EFFECT] = 0  # processes; 0: one per core; 1: in this process
    server_learning_rate: Annotated[float, Field(gt=0)] = 2.0  # of methods that end in `_lr`
    fedadam_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    prox_mu: Annotated[float, Field(ge=0)] = 0.01
    pcr_lambda: Annotated[float, Field(ge=0)] = 1e-5  # the paper's

    @field_validator("methods", "against")
    @classmethod
    def _methods_are_known(cls, methods: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for method in methods:
            METHODS.check(method, setting=f"compare.{info.field_name}")
        return methods

    @model_validator(mode="after")
    def _nothing_comes_twice(self) -> CompareConfig:
        check_all_differ(self, "methods", "remove_ratios", "against")
        return self


def _in_name(options: Mapping[str, Scalar]) -> str:
    """Return the part of a folder's name that tells options apart: `_bits4`."""
    return "".join(f"_{key}{value}" for key, value in sorted(options.items()))


def _check_in_name(options: Mapping[str, Scalar]) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_.-]*", _in_name(options)):
        raise ValueError(
            f"options={dict(options)}: are part of folder names; must consist of letters, digits, '.', '_' "
            "and '-'"
        )


class SweptProtection(Section):
    """One protection of a matrix: a scheme, with differential privacy at some epsilon or without it.

    `options` are the scheme's options, in place of `protect.options`; they become part of the cells' names,
    as `recipe` does.

    Settings that train well without differential privacy often train badly with it. `settings` therefore
    holds, by section, settings that replace the matrix's in the cells of this protection. The report shows
    them in the cells' title; in folder names `recipe` stands for them.
    """

    scheme: str
    options: Mapping[str, Scalar] | None = None  # None: `protect.options`, if that is their scheme
    epsilon: Annotated[float, Field(gt=0)] | None = None
    unit: Literal["record", "client"] = "record"  # what differential privacy hides
    recipe: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_]+$")] = None
    settings: Mapping[
        Literal["adapter", "local", "federate", "fusion", "privacy"], Mapping[str, Scalar]
    ] = {}

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, scheme: str) -> str:
        PROTECTIONS.check(scheme, setting="matrix.protections.scheme")
        return scheme

    @model_validator(mode="after")
    def _settings_have_a_name(self) -> SweptProtection:
        if bool(self.settings) != (self.recipe is not None):
            raise ValueError(
                "settings, recipe: must be given together; `recipe` names these settings in folders and "
                "tables"
            )
        return self

    @model_validator(mode="after")
    def _options_are_of_a_folders_name(self) -> SweptProtection:
        _check_in_name(self.options or {})
        return self

    @property
    def name(self) -> str:
        """The protection's part of a cell's name: `masking`, `masking_dp8`, `masking_dp8_small`."""
        recipe = "" if self.recipe is None else f"_{self.recipe}"
        scheme = self.scheme + _in_name(self.options or {})
        if self.epsilon is None:
            return f"{scheme}{recipe}"
        return f"{scheme}{'_client' * (self.unit == 'client')}_dp{self.epsilon:g}{recipe}"

    def __str__(self) -> str:
        return self.name


class SweptFusion(Section):
    """One fusion rule of a matrix, its options, and how finely it works under a secure sum.

    `options` are the rule's options, in place of `fusion.options`; they become part of the cells' names.
    """

    rule: str
    options: Mapping[str, Scalar] | None = None  # None: `fusion.options`, if that is their rule
    granularity: Literal["block", "coordinate"] = "block"

    @field_validator("rule")
    @classmethod
    def _rule_is_known(cls, rule: str) -> str:
        FUSION_RULES.check(rule, setting="matrix.fusions.rule")
        return rule

    @model_validator(mode="after")
    def _options_are_of_a_folders_name(self) -> SweptFusion:
        _check_in_name(self.options or {})
        return self

    @property
    def name(self) -> str:
        """The fusion's part of a cell's name: `h_ties`, `h_ties_coordinate`."""
        options = _in_name(self.options or {})
        return self.rule + options + "_coordinate" * (self.granularity == "coordinate")

    def __str__(self) -> str:
        return self.name


class SweptCompression(Section):
    """One compression of a matrix, with the options it reads."""

    kind: str
    options: Mapping[str, Scalar] = {}

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        COMPRESSIONS.check(kind, setting="matrix.compressions.kind")
        return kind

    @model_validator(mode="after")
    def _name_is_one_of_a_folder(self) -> SweptCompression:
        _check_in_name(self.options)
        return self

    @property
    def name(self) -> str:
        """The compression's part of a cell's name: `drop_blocks`, `quantised_bits4`."""
        return self.kind + _in_name(self.options)

    def __str__(self) -> str:
        return self.name


class AttacksConfig(Section):
    """The attacks that measure a run: those of a suite, from the view of each threat model named.

    `seconds` limits one attack from one view, including its controls. With `suite: none` no attack runs.
    """

    suite: Literal["none", "smoke", "standard", "full"] = "smoke"
    views: tuple[str, ...] = ("server", "client")
    seconds: Annotated[float, Field(gt=0)] = 120.0

    @model_validator(mode="after")
    def _nothing_comes_twice(self) -> AttacksConfig:
        check_all_differ(self, "views")
        return self


class MatrixConfig(Section):
    """The sweep of `matrix`: protection x compression x remove ratio x fusion x adapter, for every seed.

    Every cell is run, then attacked as the section `attacks` says.
    """

    protections: tuple[SweptProtection, ...] = (
        SweptProtection(scheme="unsafe_plaintext"),
        SweptProtection(scheme="masking"),
        SweptProtection(scheme="masking", epsilon=8.0),
    )
    compressions: tuple[SweptCompression, ...] = ()  # none: that of the section `compress`
    remove_ratios: tuple[Ratio, ...] = (0.25, 0.5)
    fusions: tuple[SweptFusion, ...] = (SweptFusion(rule="fedavg"),)
    adapters: tuple[AdapterKind, ...] = ("lora",)
    jobs: Annotated[int, Field(ge=0), NO_EFFECT] = 0  # processes; 0: one per core; 1: in this process

    @model_validator(mode="after")
    def _nothing_comes_twice(self) -> MatrixConfig:
        check_all_differ(self, "protections", "compressions", "remove_ratios", "fusions", "adapters")
        return self
