"""The options of the loss and of the execution of steps. Imports no torch, so that the command line is read at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from rebar.config import option
from rebar.errors import RebarError

Precision = Literal["auto", "32", "fp16", "bf16"]
PRECISION_SYNONYMS = {
    **dict.fromkeys(("16", "16-mixed", "amp_fp16", "float16"), "fp16"),
    **dict.fromkeys(("bf16-mixed", "amp_bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("32-true", "fp32", "float32"), "32"),
}
"""Names of precisions in Lightning, Composer and torch."""


@dataclass(frozen=True)
class ExecutionConfig:
    """Execution."""

    accumulate: int = option(
        1, help="micro-batches per batch: gradient accumulation, for less memory and the same step", minimum=1
    )
    gradient_checkpointing: bool = option(
        False, help="recompute residual blocks in the backward pass: half the activation memory"
    )
    channels_last: bool = option(True, help="channels_last memory format")
    tf32: bool = option(True, help="allow TF32 in 32-bit matrix products (NVIDIA A100 and later)")
    compile_model: bool = option(False, help="compile the model with torch.compile: slow start, faster steps")
    compile_backend: str = option("inductor", help="compile_model: torch.compile's backend")
    sync_bn: bool = option(False, help="SyncBatchNorm: statistics over the images of all GPUs")

    def __post_init__(self) -> None:
        if self.compile_model and self.gradient_checkpointing:
            raise RebarError(
                "execution: compile_model and gradient_checkpointing are both on. Choose one.", code="config-conflict"
            )

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        return {"compile_backend": ("compile_model", self.compile_model)}


@dataclass(frozen=True)
class LossConfig:
    """Loss."""

    loss_type: Literal["cross_entropy", "bce"] = option(
        "cross_entropy", help="bce: binary cross-entropy, summed over classes"
    )
    bce_threshold: float | None = option(
        None, help="bce: set mixed and smoothed targets above this value to 1, others to 0", minimum=0, maximum=1
    )

    def conditions(self) -> Mapping[str, tuple[str, bool]]:
        """Return, by option, the condition under which it has an effect, and whether that condition is met."""
        return {"bce_threshold": ("loss_type bce", self.loss_type == "bce")}
