"""What of a recipe is on, in a few words for the banner."""

from pathlib import Path

from rebar.training.config import TrainConfig
from rebar.training.schedule import peak_lr


def recipe_in_words(config: TrainConfig, *, global_batch: int, precision: str, gpus: int) -> str:
    """Such as '16 epochs, 160 to 192 px, sgd, cyclic lr 1.7, weight decay 0.0001, label smoothing 0.1, BlurPool, bf16'.

    ``precision`` is the resolved one; ``gpus`` how many processes train on one, 0 on a CPU.
    """
    training, resolution, execution = config.training, config.resolution, config.execution
    regularization, averaging = config.regularization, config.averaging
    held, peak = config.checkpoint.freeze_lr, peak_lr(config.lr, global_batch=global_batch)
    momentum = "Nesterov's momentum" if config.optimizer.nesterov and training.optimizer in ("sgd", "sgdw") else ""
    rises = held is None and config.lr.lr_schedule_type not in ("cyclic", "onecycle")
    ramps = resolution.max_res > resolution.min_res
    parts = {
        f"{training.epochs} epochs": True,
        f"{resolution.min_res} to {resolution.max_res} px": ramps,
        f"{resolution.min_res} px": not ramps,
        f"{training.optimizer}, {config.lr.lr_schedule_type} lr {peak:g}": held is None,
        f"lr held at {held or 'the last one'}": held is not None,
        f"warm-up of {config.lr.warmup_epochs:g} epochs": rises and config.lr.warmup_epochs > 0,
        momentum: momentum and training.momentum > 0,
        f"weight decay {training.weight_decay:g}": training.weight_decay > 0,
        f"label smoothing {training.label_smoothing:g}": training.label_smoothing > 0,
        f"gradients clipped at {config.optimizer.clip_norm:g}": config.optimizer.clip_norm > 0,
        "BlurPool": training.use_blurpool,
        "BCE": config.loss.loss_type == "bce",
        f"{regularization.augmentation} augmentation": regularization.augmentation != "basic",
        f"{regularization.repeated_augmentation} crops a picture": regularization.repeated_augmentation > 1,
        "MixUp": regularization.use_mixup,
        "CutMix": regularization.use_cutmix,
        "RandAugment": regularization.use_randaugment,
        "TrivialAugment": regularization.use_trivialaugment,
        f"colour jitter {regularization.color_jitter:g}": regularization.color_jitter > 0,
        f"hue jitter {regularization.color_jitter_hue:g}": regularization.color_jitter_hue > 0,
        f"random erasing {regularization.random_erasing:g}": regularization.random_erasing > 0,
        f"stochastic depth {regularization.stochastic_depth:g}": regularization.stochastic_depth > 0,
        f"SAM {config.optimizer.sam_rho:g}": config.optimizer.sam_rho > 0,
        "EMA": averaging.use_ema,
        "SWA": averaging.use_swa,
        f"{execution.accumulate} pieces a batch": execution.accumulate > 1,
        {"32": "32 bit"}.get(precision, precision): True,
        "gradient checkpointing": execution.gradient_checkpointing,
        "SyncBatchNorm": execution.sync_bn and gpus > 1,
        "torch.compile": execution.compile_model,
        f"channel statistics of {Path(config.data.stats_file).name}": config.data.stats_file != "",
        "torchvision's weights": config.model.pretrained,
        "zero-init residual": config.model.zero_init_residual and not config.model.pretrained,
        f"at most {training.max_steps} steps": training.max_steps > 0,
        f"at most {training.budget_hours:g} hours": training.budget_hours > 0,
        f"until top-1 {training.target_top1:g}": training.target_top1 > 0,
    }
    return ", ".join(words for words, is_on in parts.items() if is_on)
