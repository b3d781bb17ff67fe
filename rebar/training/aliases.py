"""Translate the flags of other ResNet-50 training scripts to Rebar's.

:data:`ALIASES` has one entry per flag, and ``--help`` lists them.
"""

import os
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebar.cli import note, warn
from rebar.config import ConfigError, given_value, parse_bool

RECIPES = "rn50_configs"
REPOSITORY_RECIPES = Path(__file__).resolve().parents[2] / RECIPES


@dataclass(frozen=True)
class Alias:
    """Flags of other scripts, and their translation.

    - flags: one or more names, separated by spaces. In YAML files they are keys: ``grad_clip_norm`` in any section.
    - translation: Rebar's flags, separated by spaces, in which ``{}`` is replaced by the value; empty for no effect.
    - metavar: the value's name in the help; empty for a boolean flag, which takes an optional true or false.
    - note: an explanation for the help; for a flag without effect, the reason.
    - off: the translation if a boolean flag is false.
    - secret: the environment variable to set to the value. An option would be logged.
    """

    flags: str
    translation: str = ""
    metavar: str = ""
    note: str = ""
    off: str = ""
    secret: str = ""

    @property
    def names(self) -> list[str]:
        """The flags, one per name."""
        return self.flags.split()


def _switch(flags: str, option: str) -> Alias:
    return Alias(flags, f"{option}=true", off=f"{option}=false")


_AMP = "--amp"
AUTO_PRECISION, FULL_PRECISION = "--training.precision=auto", "--training.precision=32"
ALIASES = (
    Alias("--batch-size -b", "--training.batch_size={}", "N", "per rank"),
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
    Alias("--lr-warmup-method", metavar="NAME", note="warm-up is linear"),
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
    Alias(_AMP, AUTO_PRECISION, note="no effect on a recipe with fp16 or bf16", off=FULL_PRECISION),
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
    _switch("--model-ema", "--averaging.use_ema"),
    _switch("--use-channels-last", "--execution.channels_last"),
    _switch("--grad-checkpointing", "--execution.gradient_checkpointing"),
    _switch("--torchcompile", "--execution.compile_model"),
    _switch("--sync-batchnorm", "--execution.sync_bn"),
    _switch("--lr-finder", "--training.find_lr"),
    _switch("--test-only", "--training.eval_only"),
    Alias("--print-freq --log-interval", "--logging.log_every={}", "N"),
    Alias("--out-dir --output --output-dir", "--logging.folder={}", "FOLDER", "with --experiment-name: its parent"),
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
    *("--wandb", "--wandb-project", "--wandb-name", "--wandb-tags", "--hf-repo"),
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


def translate(argv: Sequence[str], aliases: Sequence[Alias] = ALIASES) -> list[str]:
    """Translate a command line to Rebar's flags.

    Warns about flags without effect. Raises RebarError if a value is missing or invalid, or no recipes are found.
    """
    known = {name: alias for alias in aliases for name in alias.names}
    words, given, translated = list(argv), dict[str, str](), list[str]()
    switches = list[str]()  # before the other words, so that a value that is given takes precedence
    while words:
        word = words.pop(0)
        if attached := re.fullmatch(r"(-[bj])=?(\d+)", word):
            word = "=".join(attached.groups())
        flag, equals, value = word.partition("=")
        alias = known.get(flag.replace("_", "-"))
        if alias is None:
            translated.append(word)
            continue
        if not equals:
            value = _next_value(words, metavar=alias.metavar)
        if alias.metavar and not value:
            raise ConfigError(
                f"{flag}: the value is missing. Give {flag} {alias.metavar}.", code="config-invalid-value"
            )
        if alias.secret:
            _set_secret(alias.secret, value)
        elif alias.names[0] in ("--out-dir", "--experiment-name", "--config-name"):
            given[alias.names[0]] = value
        elif not alias.translation and alias.metavar:
            warn(f"{flag} has no effect: {alias.note}")
        elif alias.metavar:
            translated += [part.replace("{}", value) for part in alias.translation.split()]
        elif translation := _translate_boolean(alias, flag, value):
            switches.append(_AMP if translation == AUTO_PRECISION else translation)
    translated = switches + translated
    if "--config-name" in given:
        translated = _with_recipe(given.pop("--config-name"), translated)
    if given:
        folder = Path(given.get("--out-dir", "runs")) / given.get("--experiment-name", "")
        translated.append(f"--logging.folder={folder}")
    return _resolve_amp(translated) if _AMP in translated else translated


def translate_key(name: str, value: Any) -> dict[str, Any] | None:
    """Translate a key of a YAML file, such as ``grad_clip_norm``, to ``{"section.name": value}``.

    The result is None if the name is unknown. Warns about keys without effect.
    """
    flag = f"--{name.replace('_', '-')}"
    if value is None or flag in NOT_IN_YAML or not any(flag in alias.names for alias in ALIASES):
        return None
    text = str(value).lower() if isinstance(value, bool) else str(value)
    words = (word.removeprefix("--").partition("=") for word in translate([f"{flag}={text}"]))
    return {path: translated for path, _, translated in words}


def _next_value(words: list[str], *, metavar: str) -> str:
    """Remove and return the value that follows a flag; 'true' for a boolean flag without a value."""
    if words and (not words[0].startswith("-") or (metavar and re.match(r"-\.?\d", words[0]))):
        return words.pop(0)
    return "" if metavar else "true"


def _resolve_amp(words: Sequence[str]) -> list[str]:
    """Replace --amp with its translation, or remove it if another option already selects fp16 or bf16."""
    others = [word for word in words if word != _AMP]
    if given_value("training.precision", others) in ("fp16", "bf16"):
        return others
    return [AUTO_PRECISION if word == _AMP else word for word in words]


def _translate_boolean(alias: Alias, flag: str, value: str) -> str:
    """Translate a boolean flag. Warn and return "" if the flag has no effect."""
    on = parse_bool(value)
    if on is None:
        remark = f" ({alias.note})" if alias.note and alias.translation else ""
        message = f"{flag}: '{value}' is neither true nor false. Give true, false or no value{remark}."
        raise ConfigError(message, code="config-invalid-value")
    if not alias.translation:
        warn(f"{flag} has no effect: {alias.note}")
    return alias.translation if on else alias.off


def _with_recipe(name: str, words: Sequence[str]) -> list[str]:
    """Add the recipe that --config-name gives: the configuration NAME of the config file, if one is given as well."""
    flags = ("--config-file", "--config_file", "-C")
    values = [index + 1 for index, word in enumerate(words) if word in flags]
    values += [index for index, word in enumerate(words) if word.startswith(tuple(f"{flag}=" for flag in flags))]
    if not values:
        return [f"--config-file={_recipe(name)}", *words]
    return [f"{word}#{name}" if index == max(values) else word for index, word in enumerate(words)]


def _recipe(name: str) -> Path:
    """Return the path of a recipe in the repository, or in the working folder if there is none."""
    folders = [folder for folder in (REPOSITORY_RECIPES, Path(RECIPES)) if folder.is_dir()]
    if not folders:
        raise ConfigError(
            f"--config-name {name}: no folder {RECIPES} in {Path.cwd()} or next to the package. Run the command in a "
            "clone of the repository, or give --config FILE.",
            code="config-file-not-found",
        )
    files = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in folders]
    if (found := next((file for file in files if file.is_file()), None)) is not None:
        return found
    nearest = RECIPE_NAMES.get(name.removesuffix("_config").removeprefix("aws_g4dn_").removeprefix("aws_"))
    if nearest is None:
        return files[0]  # reported as missing, with similar names
    note(f"--config-name {name}: using {RECIPES}/{nearest}.yaml")
    return _recipe(nearest)


def _set_secret(variable: str, value: str) -> None:
    """Set an environment variable to a secret, and mask the secret in ``sys.argv``."""
    os.environ[variable] = value
    if value:
        sys.argv = [word.replace(value, "***") for word in sys.argv]


def format_table(aliases: Sequence[Alias] = ALIASES, same_name: Sequence[str] = SAME_NAME) -> str:
    """Return the aliases as the table that ``--help`` prints, with the flags that have the same name."""
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
