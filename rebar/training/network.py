"""The network of a run: the model, its first weights, and what is done to it, in the order that this needs."""

from torch import nn

from rebar.cli import warn
from rebar.models.resnets import build_model, to_device
from rebar.models.stochastic_depth import apply_stochastic_depth
from rebar.training.config import TrainConfig
from rebar.training.distributed import World
from rebar.training.execution import apply_execution
from rebar.training.losses import init_bce_bias


def build_network(config: TrainConfig, *, num_classes: int, world: World) -> nn.Module:
    """The bare network on this process's device; the same weights in every process with one seed.

    Its state_dict is that of the plain model, whatever is switched on. Raises RebarError for an unknown
    architecture.
    """
    model = build_model(
        config.model.arch,
        num_classes=num_classes,
        use_blurpool=config.training.use_blurpool,
        pretrained=config.model.pretrained,
        zero_init_residual=config.model.zero_init_residual,
        initialization=config.model.initialization,
    )
    if config.loss.loss_type == "bce" and not config.model.pretrained:
        init_bce_bias(model, num_classes)
    model = apply_execution(model, config.execution, world)
    depth = config.regularization.stochastic_depth
    if depth > 0 and apply_stochastic_depth(model, depth) == 0:
        warn(f"regularization.stochastic_depth has no effect: {config.model.arch} has no residual blocks to skip")
    return to_device(model, world.device, channels_last=config.execution.channels_last)
