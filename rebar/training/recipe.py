"""What of a recipe is on, in a few words for the banner."""

from rebar.training.config import TrainConfig


def recipe_in_words(config: TrainConfig) -> str:
    """Such as '16 epochs, 160 to 192 px, cyclic lr 1.7, weight decay 0.0001, label smoothing 0.1, BlurPool'."""
    training, resolution = config.training, config.resolution
    ramps = resolution.max_res > resolution.min_res
    parts = {
        f"{training.epochs} epochs": True,
        f"{resolution.min_res} to {resolution.max_res} px": ramps,
        f"{resolution.min_res} px": not ramps,
        f"{config.lr.lr_schedule_type} lr {config.lr.lr:g}": config.checkpoint.freeze_lr is None,
        f"lr held at {config.checkpoint.freeze_lr or 'the last one'}": config.checkpoint.freeze_lr is not None,
        f"weight decay {training.weight_decay:g}": training.weight_decay > 0,
        f"label smoothing {training.label_smoothing:g}": training.label_smoothing > 0,
        "BlurPool": training.use_blurpool,
        "torchvision's weights": config.model.pretrained,
        "zero-init residual": config.model.zero_init_residual,
        f"at most {training.max_steps} steps": training.max_steps > 0,
        f"at most {training.budget_hours:g} hours": training.budget_hours > 0,
        f"until top-1 {training.target_top1:g}": training.target_top1 > 0,
    }
    return ", ".join(words for words, is_on in parts.items() if is_on)
