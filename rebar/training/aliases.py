"""The flags of other ResNet-50 training scripts that are accepted, and what they mean in Rebar.

:data:`ALIASES` has one entry per flag, and ``--help-all`` lists them. :mod:`rebar.training.translation` uses the table.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECIPES = "rn50_configs"


@dataclass(frozen=True)
class Alias:
    """Flags of other scripts, and their translation.

    - flags: one or more names, separated by spaces. In YAML files they are keys: ``grad_clip_norm`` in any section.
    - translation: Rebar's flags, separated by spaces, in which ``{}`` is replaced by the value; empty for no effect.
    - metavar: the value's name in the help; empty for a boolean flag, which takes an optional true or false.
    - note: an explanation for the help; for a flag without effect, the reason.
    - off: the translation if a boolean flag is false.
    - secret: the environment variable to set to the value. An option would be logged.
    - weak: the options of the translation take precedence if they are given as well.
    - many: several values may follow; they are joined by commas.
    """

    flags: str
    translation: str = ""
    metavar: str = ""
    note: str = ""
    off: str = ""
    secret: str = ""
    weak: bool = False
    many: bool = False

    @property
    def names(self) -> list[str]:
        """The flags, one per name."""
        return self.flags.split()


def _switch(flags: str, option: str) -> Alias:
    return Alias(flags, f"{option}=true", off=f"{option}=false")


AMP = "--amp"
AUTO_PRECISION, FULL_PRECISION = "--training.precision=auto", "--training.precision=32"
ALIASES = (
    Alias("--batch-size -b", "--training.batch_size={}", "N", "per rank"),
    Alias("--global-train-batch-size --train-batch-size", "--training.global_batch_size={}", "N", "all ranks"),
    Alias("--model", "--model.arch={}", "NAME"),
    Alias(
        "--data-dir --data-root --data-path --imagenet-path",
        "--data.train_dataset={} --data.val_dataset={}",
        "FOLDER",
        "with train.beton and val.beton, or images",
    ),
    Alias("--dataset", metavar="NAME", note="the data comes from --data-dir or $WRITE_DIR"),
    Alias("--streaming --prefetch", note="the loader always streams and prefetches"),
    Alias("--prefetch-factor", metavar="N", note="the loader always streams and prefetches"),
    Alias("--workers -j", "--data.num_workers={}", "N"),
    Alias("--scheduler --sched --lr-scheduler", "--lr.lr_schedule_type={}", "NAME"),
    Alias("--lr-warmup-epochs", "--lr.warmup_epochs={}", "N"),
    Alias("--lr-warmup-method", metavar="NAME", note="warmup is linear"),
    Alias("--lr-warmup-decay", "--lr.warmup_factor={}", "F"),
    Alias("--lr-min", "--lr.min_lr={}", "LR"),
    Alias("--lr-step-size", "--lr.step_length={}", "N"),
    Alias("--lr-gamma", "--lr.step_ratio={}", "F"),
    Alias("--iterations", "--training.max_steps={}", "N"),
    Alias("--opt", "--training.optimizer={}", "NAME"),
    Alias("--wd", "--training.weight_decay={}", "F"),
    Alias("--norm-weight-decay", metavar="F", note="normalization layers have no weight decay"),
    Alias("--grad-clip-norm --gradient-clip-val --clip-grad --clip-grad-norm", "--optimizer.clip_norm={}", "NORM"),
    Alias(
        "--gradient-accumulation-steps --gradient-accumulation --grad-accum-steps --accumulate-grad-batches",
        "--execution.accumulate={}",
        "N",
        "divides the batch of --batch-size",
    ),
    Alias("--amp-dtype", "--training.precision={}", "NAME"),
    Alias(AMP, AUTO_PRECISION, note="no effect on a recipe with fp16 or bf16", off=FULL_PRECISION),
    Alias("--no-amp", FULL_PRECISION, off=AUTO_PRECISION),
    Alias(
        "--use-label-smoothing",
        "--training.label_smoothing=0.1",
        note="other values: --label-smoothing",
        off="--training.label_smoothing=0",
    ),
    Alias("--smoothing", "--training.label_smoothing={}", "F"),
    Alias("--mixup", "--regularization.mixup_alpha={}", "ALPHA"),
    Alias("--cutmix", "--regularization.cutmix_alpha={}", "ALPHA"),
    Alias("--random-erase --reprob", "--regularization.random_erasing={}", "P"),
    Alias("--drop-path", "--regularization.stochastic_depth={}", "P"),
    Alias("--ra-sampler", "--regularization.repeated_augmentation=3", off="--regularization.repeated_augmentation=1"),
    Alias("--ra-reps", "--regularization.repeated_augmentation={}", "N"),
    Alias("--bce-loss", "--loss.loss_type=bce", off="--loss.loss_type=cross_entropy"),
    Alias("--train-crop-size --img-size", "--resolution.min_res={} --resolution.max_res={}", "PX"),
    Alias("--val-crop-size", "--validation.resolution={}", "PX"),
    Alias(
        "--resolution",
        "--resolution.min_res={} --resolution.max_res={} --validation.resolution={}",
        "PX",
        "those that are not given",
        weak=True,
    ),
    _switch("--model-ema", "--averaging.use_ema"),
    _switch("--use-channels-last", "--execution.channels_last"),
    _switch("--grad-checkpointing", "--execution.gradient_checkpointing"),
    _switch("--torchcompile", "--execution.compile_model"),
    _switch("--sync-batchnorm", "--execution.sync_bn"),
    _switch("--lr-finder", "--training.find_lr"),
    _switch("--test-only", "--training.eval_only"),
    Alias("--print-freq --log-interval", "--logging.log_every={}", "N"),
    Alias("--out-dir --output --output-dir", "--logging.folder={}", "FOLDER", "with --experiment-name: its parent"),
    Alias("--wandb-tags", "--logging.wandb_tags={}", "TAG...", many=True),
    Alias("--experiment-name", f"--logging.folder={Path('runs') / '{}'}", "NAME"),
    Alias("--config", "--config-file={}", "FILE"),
    Alias(
        "--config-name",
        f"--config-file={RECIPES}/{{}}.yaml",
        "NAME",
        "with --config FILE: the configuration NAME in that file",
    ),
    Alias(
        "--hf-token", metavar="TOKEN", note="other users can see command lines; prefer the variable", secret="HF_TOKEN"
    ),
    Alias("--multi-gpu --ddp --ddp-enabled", note="torchrun --nproc_per_node=GPUS starts one process per GPU"),
    Alias("--device", metavar="NAME", note="a GPU is used if there is one; CUDA_VISIBLE_DEVICES selects it"),
    Alias("--num-gpus --gpus", metavar="N", note="torchrun --nproc_per_node=GPUS starts one process per GPU"),
)
EVALUATE_ALIASES = (
    Alias("--data-dir --data-root --data-path --imagenet-path", "--evaluate.data={}", "FOLDER"),
    Alias("--workers -j", "--evaluate.num_workers={}", "N"),
    Alias("--model", "--evaluate.arch={}", "NAME"),
    Alias("-b", "--evaluate.batch_size={}", "N"),
)
"""The flags of other scripts that ``evaluate.py`` accepts."""
SAME_NAME = (
    *("--epochs", "--lr", "--max-lr", "--augmentation", "--data-subset", "--stats-file", "--use-hf"),
    *("--use-mixup", "--use-cutmix", "--use-randaugment", "--use-ema", "--use-swa", "--use-blurpool"),
    *("--compile-model", "--channels-last", "--sync-bn", "--resume", "--dry-run", "--find-lr", "--show-progress"),
    *("--wandb", "--wandb-project", "--wandb-name", "--hf-repo"),
)
"""Flags that other scripts have under the same name."""
FLAG_HINTS = {
    **dict.fromkeys(("--aa", "--auto-augment"), "use --use-randaugment or --use-trivialaugment"),
    "--checkpoint-hist": "use --keep-every",
    "--model-ema-decay": "use --ema-half-life, in steps",
    "--remode": "use --random-erasing",
    "--val-resize-size": "use --crop-ratio, the crop size divided by the resize size",
    "--warmup-lr": "use --warmup-factor, a fraction of the peak",
}
"""Flags of other scripts that cannot be translated, and what to use instead."""
RECIPE_NAMES = {
    "12xl_ddp": "g4dn_4gpu",
    "colab": "validation_run",
    "dev": "troubleshoot_subset",
    "resnet_strikes_back": "rsb_a2",
    "single_gpu_full": "g5_1gpu",
    "validation": "validation_run",
}
"""Names of configurations in other projects, without ``aws_g4dn_`` and ``_config``, and the recipe nearest to each."""
NOT_IN_YAML = {"--config", "--config-name", "--experiment-name", "--hf-token"}


def format_table(aliases: Sequence[Alias] = ALIASES, same_name: Sequence[str] = SAME_NAME) -> str:
    """Return the aliases as the table that ``--help-all`` prints, with the flags that have the same name."""
    lines = []
    for alias in aliases:
        shown = f"{alias.secret}={alias.metavar}" if alias.secret else alias.translation.replace("{}", alias.metavar)
        remark = f" ({alias.note})" if alias.note and shown else alias.note and f"no effect: {alias.note}"
        flags = f"  {', '.join(alias.names)} {alias.metavar}".rstrip()
        if len(flags) > 27:
            lines.append(flags)
            flags = ""
        lines.append(f"{flags:<28}{shown}{remark}")
    same = textwrap.wrap(
        f"same name: {' '.join(same_name)}",
        width=110,
        initial_indent="  ",
        subsequent_indent="    ",
        break_on_hyphens=False,
    )
    return "\n".join([*lines, *same] if same_name else lines)
