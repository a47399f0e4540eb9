"""The rows of the table, and what is expected of every cell: that it works, or what it raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.torch_support import derivatives, distributed, modes, state, tracing
from tests.torch_support.cells import Cell
from tests.torch_support.subjects import BACKENDS, SUBJECTS

EVERY = tuple(subject.name for subject in SUBJECTS)
ONE = ("program",)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that names the transform: its class, a pattern of its text, and what helps."""

    error: str
    says: str
    mend: str


@dataclass(frozen=True, slots=True)
class Transform:
    """One row.

    ``name``: as users call it; ``check``: raises unless the cell works; ``pair``: whether it runs
    in two processes; ``quick``: networks whose cells run in `make test`, the others are left to
    `make test-all`; ``refused``: backends (or "backend subject") of cells that raise, and what.
    """

    name: str
    check: Callable[[Cell], None]
    pair: bool = False
    quick: tuple[str, ...] = EVERY
    refused: Mapping[str, Refusal] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.check.__name__

    def is_slow(self, cell: Cell) -> bool:
        return cell.subject.name not in self.quick

    def refusal(self, cell: Cell) -> Refusal | None:
        """What the cell raises; None where it works."""
        own = f"{cell.backend} {cell.subject.name}"
        return self.refused.get(own, self.refused.get(cell.backend))


SECOND_BY = (
    "compile the function that takes the derivatives (`torch.func.grad` inside, the row above), or "
    "take them of the module itself"
)
NO_SECOND = Refusal(
    "GradientError",
    "torch.compile runs this network as an operator, which has no second",
    SECOND_BY,
)
TORCHS_NO_SECOND = Refusal(
    "RuntimeError",
    "torch.compile .* does not currently support double backward",
    f"torch's own, since compiled aten code holds nothing of ours: {SECOND_BY}",
)
CHANGED = Refusal(
    "ChangedInPlace", "changed in place after the forward pass", "change a copy: `tensor.clone()`"
)

SECTIONS: Mapping[str, tuple[Transform, ...]] = {
    "Derivatives": (
        Transform("`backward()`", derivatives.backward),
        Transform("gradcheck, batched", derivatives.finite_differences),
        Transform("gradgradcheck, batched", derivatives.second_finite_differences),
        Transform("double backward (`create_graph=True`)", derivatives.double_backward),
        Transform("batched gradients (`is_grads_batched`)", derivatives.batched_gradients),
        Transform("forward mode (dual numbers)", derivatives.forward_mode),
        Transform("gradcheck of forward mode, batched", derivatives.forward_finite_differences),
        Transform("gradgradcheck, forward over reverse", derivatives.forward_over_reverse),
        Transform("frozen parameters", modes.frozen_parameters),
        Transform("anomaly detection", modes.anomaly_detection),
    ),
    "torch.func": (
        Transform("`grad`", derivatives.func_grad),
        Transform("`vjp`", derivatives.func_vjp),
        Transform("`jvp`", derivatives.func_jvp),
        Transform("`linearize`", derivatives.func_linearize, quick=ONE),
        Transform("`jacrev`", derivatives.jacrev),
        Transform("`jacfwd`", derivatives.jacfwd),
        Transform("`hessian`", derivatives.hessian),
        Transform("gradients of each sample", derivatives.per_sample_gradients),
        Transform("`vmap`", derivatives.vmap),
        Transform("`vmap` in chunks", derivatives.vmap_in_chunks, quick=ONE),
        Transform("`vmap` over parameters (ensembles)", derivatives.ensemble),
        Transform("backward through `vmap`", derivatives.backward_through_vmap),
    ),
    "Compilers and exports": (
        Transform(
            "`torch.compile(fullgraph=True)`, training, once for four batches", tracing.compile_once
        ),
        Transform("the same with TorchInductor", tracing.compile_with_inductor, quick=()),
        Transform("`torch.compile` in evaluation", tracing.compile_evaluation, quick=ONE),
        Transform("`torch.compile` of `torch.func.grad`", tracing.compiled_grad, quick=ONE),
        Transform("`torch.compile` of `torch.func.jvp`", tracing.compiled_jvp, quick=ONE),
        Transform("`torch.compile` of `torch.func.vmap`", tracing.compiled_vmap, quick=ONE),
        Transform("`torch.func.jvp` of a compiled module", tracing.jvp_of_compiled, quick=ONE),
        Transform(
            "second derivatives inside of what is compiled",
            tracing.compiled_second_derivatives,
            quick=ONE,
        ),
        Transform(
            "double backward of a compiled module",
            tracing.double_backward_of_compiled,
            quick=ONE,
            refused={"torch": TORCHS_NO_SECOND, "numpy": NO_SECOND, "triton": NO_SECOND},
        ),
        Transform("`torch.export`, saved and loaded", tracing.export),
        Transform("ONNX, in onnxruntime", tracing.onnx, quick=()),
        Transform("`torch.jit.trace`", tracing.jit_trace),
        Transform("`make_fx`", tracing.fx_tracing),
        Transform("fake tensors", tracing.fake_tensors),
        Transform("`FlopCounterMode`", tracing.counted_flops),
    ),
    "Precision and memory": (
        Transform("autocast to bfloat16", modes.autocast_bfloat16),
        Transform("autocast to float16", modes.autocast_float16),
        Transform("autocast leaves float64 alone", modes.autocast_leaves_float64),
        Transform("autocast under `torch.compile`", modes.autocast_compiled, quick=ONE),
        Transform("`torch.utils.checkpoint`", modes.checkpoint),
        Transform("selective checkpointing", modes.selective_checkpoint),
        Transform("checkpointing under autocast", modes.checkpoint_autocast),
        Transform("hooks on saved tensors", tracing.saved_for_offloading),
        Transform("`no_grad`, `inference_mode`", modes.no_gradients),
        Transform("evaluation, parameters changing", modes.evaluation),
        Transform(
            "changes in place before backward",
            modes.changes_in_place,
            refused=dict.fromkeys(BACKENDS, CHANGED),
        ),
        Transform(
            "outputs changed in place",
            modes.outputs_in_place,
            refused={"torch scan": CHANGED},
        ),
        Transform("deterministic algorithms", modes.deterministic_algorithms),
        Transform("strided inputs", modes.strided_inputs),
        Transform("strided parameters", modes.strided_parameters),
        Transform("strided and expanded cotangents", modes.strided_cotangents),
        Transform("`channels_last`", modes.channels_last),
        Transform("an empty batch", modes.empty_batch),
    ),
    "State": (
        Transform("meta device", state.meta_device),
        Transform("deferred initialisation (`to_empty`)", state.deferred_initialisation),
        Transform("`load_state_dict(assign=True)` on meta", state.assigned_state),
        Transform("`state_dict`, strict", state.state_dict),
        Transform("`deepcopy`", state.deepcopy),
        Transform("pickle", state.pickled),
        Transform("`torch.save` of a module", state.saved_whole),
        Transform("`AveragedModel`", state.averaged_model),
        Transform("fork", state.fork),
        Transform("spawn", state.spawn, quick=()),
        Transform("other precision after a call", state.other_dtypes),
        Transform("swapped parameters", state.swapped_tensors),
        Transform("optimizers, foreach", state.foreach_optimizers, quick=ONE),
        Transform("optimizers, fused", state.fused_optimizers, quick=ONE),
        Transform("scaled and clipped gradients", state.clipped_gradients),
        Transform("`parametrize`", state.parametrized),
        Transform("`weight_norm`", state.weight_norm),
        Transform("`torch.nn.utils.prune`", state.pruned),
        Transform("hooks", modes.hooks),
        Transform("hooks that change values", modes.hooks_that_change),
        Transform("profiler ranges by tensor names", modes.profiler_ranges),
    ),
    "Two processes (gloo)": (
        Transform("DDP", distributed.ddp, pair=True),
        Transform("DDP, compiled", distributed.ddp_compiled, pair=True, quick=ONE),
        Transform("FSDP2", distributed.fsdp, pair=True),
        Transform("FSDP2 in evaluation", distributed.fsdp_evaluation, pair=True),
        Transform("FSDP2, compiled", distributed.fsdp_compiled, pair=True, quick=ONE),
        Transform("FSDP2, mixed precision", distributed.fsdp_mixed_precision, pair=True),
        Transform("DTensor, batch split", distributed.dtensor, pair=True),
        Transform("DTensor, replicated", distributed.dtensor_replicated, pair=True),
    ),
}

TRANSFORMS = {one.key: one for rows in SECTIONS.values() for one in rows}
CELLS = tuple(Cell(subject, backend) for backend in BACKENDS for subject in SUBJECTS)


def names(*, pair: bool, slow: bool) -> list[str]:
    """The names of cells, "transform-subject-backend"."""
    rows = [transform for transform in TRANSFORMS.values() if transform.pair == pair]
    pairs = [(transform, cell) for transform in rows for cell in CELLS]
    return [f"{row.key}-{cell}" for row, cell in pairs if row.is_slow(cell) == slow]


def cell_named(name: str) -> tuple[Transform, Cell]:
    key, subject, backend = name.split("-")
    cell = next(c for c in CELLS if (c.subject.name, c.backend) == (subject, backend))
    return TRANSFORMS[key], cell
