"""Train an ImageNet classifier from .beton files on one GPU, several GPUs or the CPU.

    python write_dataset.py --split train && python write_dataset.py --split val      # once
    python train_imagenet.py --config-file rn50_configs/g5_1gpu.yaml
    torchrun --nproc_per_node=4 train_imagenet.py --config-file rn50_configs/g5_4gpu.yaml

The same command resumes an interrupted run. `--help-all` lists all options, and `--print-config` prints the resolved
configuration. The default recipe is ffcv-imagenet's: SGD with momentum, a learning rate that rises and decays linearly,
label smoothing, BlurPool, progressive resizing. docs/training.md describes the other techniques.

:func:`train_steps` is the recipe; change it freely. The rest of the file is the epoch loop.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from rebar.cli import run_command, start_script

start_script(__name__, "rebar-train", "rebar.training.command_line:parse_command_line")  # importing torch takes seconds

import torch

from rebar.augment.policy import build_regularizer
from rebar.loading import Batch
from rebar.optim.optimizers import clip_gradients, perturbed_weights, set_learning_rate
from rebar.optim.schedules import build_schedule
from rebar.training.banner import print_banner, print_epoch
from rebar.training.evaluation import print_evaluation, validate_epoch
from rebar.training.execution import autocast, seed_step, split_microbatches
from rebar.training.launch import launch, run_context
from rebar.training.losses import build_criterion
from rebar.training.publish import finish
from rebar.training.run import Run
from rebar.training.trial import run_trial


def main(argv: Sequence[str]) -> None:
    """Parse the command line, join the other ranks, open the data, build the model and optimizer, and train."""
    launch(argv, train)


def train(run: Run) -> None:
    """Train for the configured number of epochs, or evaluate, dry-run or find a learning rate if so configured."""
    config, state, control = run.config, run.state, run.control
    if config.training.eval_only:
        print_evaluation(run)
        return
    if config.training.dry_run or config.training.find_lr:
        print_banner(run)
        run_trial(run, train_steps)
        return

    with run_context(run):  # locks the run folder, opens the log, handles signals
        print_banner(run)
        while state.epoch < config.training.epochs and not control.is_over:
            metrics = train_one_epoch(run)
            if config.logging.log_level > 0 or control.is_over or state.epoch + 1 == config.training.epochs:
                metrics |= validate_epoch(run)
            run.log_epoch(metrics)
            if not run.epoch_is_complete:  # a limit such as --max-steps ended it early
                run.save_checkpoint()
                break
            state.end_epoch()
            run.save_checkpoint()  # written on another thread while the next epoch runs
            run.write_status("running")
            print_epoch(run)
            control.check_target(metrics, target_top1=config.training.target_top1)
        run.wait_until_saved()
        finish(run)


def train_one_epoch(run: Run) -> dict[str, float]:
    """Train on the remaining batches of the current epoch. Return its metrics by their names in the log."""
    config, state = run.config, run.state
    learning_rate = build_schedule(
        config.lr,
        state.schedule,
        steps_per_epoch=run.steps_per_epoch,
        global_batch=state.global_batch,
        frozen_lr=config.checkpoint.freeze_lr,
        last_lr=state.lr,
    )
    first_step = run.step
    batches = run.train_batches()
    losses = run.announce_first_step(train_steps(run, batches, learning_rate, first_step))
    for step, loss in enumerate(losses, start=first_step):
        state.meter.end_step()
        if step % config.logging.log_every == 0:
            run.log_step(step, loss.item())  # .item() is the loop's only CPU-GPU sync
        if run.after_step():  # saves a checkpoint if one is due; raises Interrupted after a signal
            break
    return run.epoch_metrics()


def train_steps(
    run: Run, batches: Iterable[Batch], learning_rate: Callable[[int], float], first_step: int = 0
) -> Iterator[torch.Tensor]:
    """Train on each batch and yield its mean loss before the step, on the device, without a CPU-GPU sync.

    Batches are uint8 images ``[n, height, width, 3]`` and int64 labels ``[n]``. ``learning_rate`` maps a step, counted
    from the start of the run, to its learning rate. --dry-run and --find-lr use this loop too.
    """
    config, state, world = run.config, run.state, run.world
    model, optimizer, scaler, seed = run.model, state.optimizer, state.scaler, config.training.seed
    criterion = build_criterion(config.loss, label_smoothing=config.training.label_smoothing)
    regularizer = build_regularizer(config.regularization, num_classes=state.num_classes, seed=seed, rank=world.rank)
    device_batches = run.normalizer(augment=regularizer.augment).each(batches, first_step)

    model.train()
    for step, (images, labels) in enumerate(device_batches, start=first_step):
        state.lr = learning_rate(step)
        set_learning_rate(optimizer, state.lr)
        images, targets = regularizer.mix(images, labels, step)  # MixUp, CutMix, random erasing

        seed_step(seed, step, world.rank)  # makes dropout and stochastic depth reproducible when resuming
        optimizer.zero_grad(set_to_none=True)
        batch_loss = torch.zeros((), device=world.device)
        for micro in split_microbatches(model, images, targets, labels, count=config.execution.accumulate):
            with autocast(state.precision, world.device):
                logits = model(micro.images)
                loss = criterion(logits, micro.targets)
            scaler.scale(loss * micro.weight).backward()
            batch_loss += loss.detach() * micro.weight
            state.meter.add(loss, logits, micro.labels)

        if config.optimizer.sam_is_due(step):  # SAM: use the gradient at the perturbed weights instead
            with perturbed_weights(model.parameters(), config.optimizer.sam_rho):
                seed_step(seed, step, world.rank)
                optimizer.zero_grad(set_to_none=True)
                for micro in split_microbatches(model, images, targets, labels, count=config.execution.accumulate):
                    with autocast(state.precision, world.device):
                        loss = criterion(model(micro.images), micro.targets)
                    scaler.scale(loss * micro.weight).backward()

        clip_gradients(model, optimizer, scaler, config.optimizer.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if state.average:
            state.average.after_step(state.model, step)  # EMA or SWA
        yield batch_loss


def command() -> None:
    """Run as the console command ``rebar-train``."""
    run_command(main)


if __name__ == "__main__":
    command()
