"""The table of elementwise functions. To add one: a rule in a new file, and one line here.

A rule says what the function is (a float64 reference), how it is differentiated (forward and
reverse come from the same partials) and how each backend writes it.
"""

from __future__ import annotations

from importlib import import_module

from tncompiler.ir.errors import ArgumentError
from tncompiler.ir.functions.rule import Elementwise

FUNCTIONS: dict[str, str] = {
    "add": "arithmetic:ADD",
    "sub": "arithmetic:SUB",
    "div": "arithmetic:DIV",
    "neg": "arithmetic:NEG",
    "pow": "arithmetic:POW",
    "reciprocal": "arithmetic:RECIPROCAL",
    "scramble": "random:SCRAMBLE",
    "floordiv": "whole:FLOORDIV",
    "mod": "whole:MOD",
    "maximum": "arithmetic:MAXIMUM",
    "minimum": "arithmetic:MINIMUM",
    "exp": "transcendental:EXP",
    "log": "transcendental:LOG",
    "log1p": "transcendental:LOG1P",
    "expm1": "transcendental:EXPM1",
    "sqrt": "transcendental:SQRT",
    "rsqrt": "transcendental:RSQRT",
    "sin": "transcendental:SIN",
    "cos": "transcendental:COS",
    "tanh": "transcendental:TANH",
    "erf": "transcendental:ERF",
    "sigmoid": "activations:SIGMOID",
    "relu": "activations:RELU",
    "relu_gate": "activations:RELU_GATE",
    "gelu": "activations:GELU",
    "gelu_gate": "activations:GELU_GATE",
    "silu": "activations:SILU",
    "softplus": "activations:SOFTPLUS",
    "less": "comparisons:LESS",
    "less_equal": "comparisons:LESS_EQUAL",
    "greater": "comparisons:GREATER",
    "greater_equal": "comparisons:GREATER_EQUAL",
    "equal": "comparisons:EQUAL",
    "not_equal": "comparisons:NOT_EQUAL",
    "where": "comparisons:WHERE",
    "sign": "comparisons:SIGN",
    "abs": "complex_parts:ABS",
    "conj": "complex_parts:CONJ",
    "real": "complex_parts:REAL",
    "imag": "complex_parts:IMAG",
    "project": "complex_parts:PROJECT",
    "stop": "complex_parts:STOP",
    "unit_cotangent": "complex_parts:UNIT_COTANGENT",
    "power_of_two": "scales:POWER_OF_TWO",
    "exponent": "scales:EXPONENT",
    "shift_exponent": "scales:SHIFT_EXPONENT",
    "decimal_exponent": "scales:DECIMAL_EXPONENT",
}

_LOADED: dict[str, Elementwise] = {}


def add_function(rule: Elementwise) -> Elementwise:
    """The rule that is known by a rule's name: the rule itself, if its name is new."""
    return _LOADED.setdefault(rule.name, rule)


def is_function(name: str) -> bool:
    """Whether a function has the name: one of the table, or one that a user defined."""
    return name in FUNCTIONS or name in _LOADED


def function(name: str) -> Elementwise:
    """The rule of an elementwise function. Raises ArgumentError for an unknown name."""
    rule = _LOADED.get(name)
    if rule is None:
        if name not in FUNCTIONS:
            raise ArgumentError(
                f"there is no elementwise function {name!r}", fix=f"use one of {sorted(FUNCTIONS)}"
            )
        module, attribute = FUNCTIONS[name].split(":")
        rule = getattr(import_module(f"tncompiler.ir.functions.{module}"), attribute)
        _LOADED[name] = rule
    return rule
