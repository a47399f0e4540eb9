"""Every error a user can meet: what is wrong, where it is, and how to mend it."""

from __future__ import annotations


class TncError(ValueError):
    """Base of all errors of tncompiler.

    ``what`` is one sentence; ``where`` names the network, expression or file; ``fix`` says how to
    mend it. The three are kept as attributes and printed on a line each.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        lines = [what]
        if where:
            lines.append(f"  in {where}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))
        self.what, self.where, self.fix = what, where, fix

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[TncError], what: str, where: str | None, fix: str | None) -> TncError:
    return kind(what, where=where, fix=fix)


class SizeClash(TncError):
    """One index or axis would have two sizes."""


class PositionError(SizeClash):
    """Positions do not lie in the index they are taken from."""


class UnknownIndex(TncError):
    """An index is named that no operand has."""


class NoCommonIndex(UnknownIndex):
    """Two operands of `@` share no index."""


class IndexMismatch(UnknownIndex):
    """No operand of a sum or map has all indices of the others."""


class UnknownOutputIndex(UnknownIndex):
    """An output index is named that no operand has."""


class RepeatedIndex(TncError):
    """An index stands twice where it may stand once."""


class RepeatedOutputIndex(RepeatedIndex):
    """An output names one index twice."""


class NameClash(TncError):
    """Two different leaves, or a leaf and the module, want one name."""


class BadName(TncError):
    """A name is not what names of its kind must look like."""


class ReservedName(BadName):
    """A name that Python keeps for itself: a keyword, or one that starts with two underscores."""


class BadSize(TncError):
    """A size is negative, not an integer, or not a size expression."""


class UnboundSize(TncError):
    """A size is still a symbol where a number is needed."""


class SizeEquationError(TncError):
    """The sizes of a split, merge or window do not work out."""


class WindowError(SizeEquationError):
    """A window does not fit, or its stride, dilation or padding is none."""


class EquationError(TncError):
    """An einsum equation cannot be read."""


class GraphError(TncError):
    """A networkx graph is not one that describes a tensor network."""


class ArgumentError(TncError, TypeError):
    """A call has the wrong number, names or kinds of arguments."""


class ArgumentCountError(ArgumentError):
    """A call has too many or too few arguments."""


class ShapeError(TncError):
    """An array has another shape than its leaf was declared with."""


class ArraySizeClash(SizeClash, ShapeError):
    """An axis of an array has another size than the index it stands for."""


class EmptyReduction(TncError):
    """A max or min is taken over an index of size 0, where it has no value."""


class DTypeError(TncError, TypeError):
    """An array or operation has a dtype that does not fit."""


class UnsupportedDType(DTypeError):
    """A dtype that tncompiler does not compute with."""


class DeviceError(TncError):
    """Arrays live on devices that do not go together."""


class GradientError(TncError):
    """A derivative is asked for that does not exist or is not unique."""


class ChangedInPlace(GradientError, RuntimeError):
    """A backward pass needs a tensor that was written to after the forward pass."""


class FormatError(TncError):
    """Shapes, ranks or weights do not fit a format."""


class RankError(FormatError):
    """A bond would have a size that it cannot have."""


class BudgetError(FormatError):
    """No rank of a format meets a budget of parameters."""


class UnsupportedModule(ArgumentError):
    """A module of a kind that no layer can take the place of."""


class TeacherError(ArgumentError):
    """A teacher does not match the model that is to learn from it."""


class DivergedError(TncError):
    """A loss is no longer a finite number; the model holds its last good state."""


class ScanError(TncError):
    """The cell of a scan does not fit its states or inputs, or leaks what is inside it."""


class StateMismatch(ScanError, ShapeError):
    """A cell gives a state back with other indices, or in another container, than it got it."""


class PlanError(TncError):
    """Plan options or a plan do not fit."""


class StaleValues(TncError):
    """What is kept of parameters no longer holds: they were written to unseen (TNC_DEBUG only)."""


class BackendError(TncError):
    """A backend or framework is unknown, missing, or cannot do what is asked."""


class NoConfiguration(BackendError):
    """No configuration of a kernel runs on this GPU without spilling; ``where`` is the kernel."""


class FileFormatError(TncError):
    """A JSON text or file is not what this version of tncompiler writes."""


class InvalidProgram(TncError):
    """A program breaks a rule of the IR. A pass that yields one has a bug."""


class GroupError(TncError):
    """Something went wrong on a rank, or between ranks; every rank of the group raises it."""


class RankMismatch(GroupError):
    """Ranks were given different networks, shapes or options."""


class RankLost(GroupError):
    """Nothing is heard of a rank any more."""


class NotFinite(TncError):
    """A slice has NaN in it."""
