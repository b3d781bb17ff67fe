"""The training step on a GPU: same results as on the CPU, no synchronization, memory formats, OOM advice."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.models.modifications import BlurPoolConv2d
from rebar.optim.averaging import update_bn
from rebar.training.checkpoint import HostMemory
from rebar.training.error_hints import error_hints
from rebar.training.evaluation import evaluate
from rebar.training.metrics import memory_metrics
from tests.training.steps import ALL_RECIPES, RECIPES, Training, random_batch, weights_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
STEPS = 4


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Disable TF32 and use deterministic algorithms; restore the settings afterwards."""
    allowed = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield
    torch.cuda.set_sync_debug_mode("default")
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = allowed


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp32_losses_and_weights_on_gpu_equal_cpu(recipe: str) -> None:
    on_cpu, on_gpu = (Training(device, *RECIPES[recipe]) for device in ("cpu", "cuda"))
    assert torch.equal(weights_of(on_cpu.state.model), weights_of(on_gpu.state.model))
    before = weights_of(on_cpu.state.model)
    assert on_gpu.losses(STEPS) == pytest.approx(on_cpu.losses(STEPS), rel=2e-3)
    expected, result = (weights_of(training.state.evaluated_model) for training in (on_cpu, on_gpu))
    moved = (expected - before).norm()
    assert moved > 0
    # LAMB normalizes each gradient element by its own magnitude. In the first steps, rounding noise in tiny gradients
    # therefore changes the direction of the update.
    assert (result - expected).norm() < (0.2 if recipe == "lamb" else 0.02) * moved


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_losses_are_close_to_fp32(precision: str) -> None:
    half, exact = Training("cuda", f"--training.precision={precision}"), Training("cuda")
    assert half.losses(STEPS) == pytest.approx(exact.losses(STEPS), rel=0.03)
    assert all(parameter.dtype == torch.float32 for parameter in half.state.model.parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "sgdw", "lamb", "lars"])
def test_step_with_fp16_overflow_changes_no_weight(optimizer: str) -> None:
    training = Training("cuda", "--training.precision=fp16", f"--training.optimizer={optimizer}")
    scaler = training.state.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**40})
    before = [parameter.detach().clone() for parameter in training.state.model.parameters()]
    training.step(0)
    after = list(training.state.model.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert scaler.get_scale() == 2.0**39
    for number in range(1, 40):
        training.step(number)
    assert scaler.get_scale() < 2.0**30
    assert not torch.equal(before[0], after[0])
    assert bool(torch.isfinite(weights_of(training.state.model)).all())


def test_checkpoint_restores_loss_scale_and_state() -> None:
    first = Training("cuda", "--training.precision=fp16", "--averaging.use_ema=1", "--averaging.ema_update_every=1")
    first.state.scaler.load_state_dict({**first.state.scaler.state_dict(), "scale": 2.0**20})
    first.losses(3)
    content = HostMemory().copy(first.state.checkpoint_content({}, first.world))
    second = Training("cuda", "--training.precision=fp16", "--averaging.use_ema=1", "--averaging.ema_update_every=1")
    second.state.model.load_state_dict(content["model"])
    second.state.optimizer.load_state_dict(content["optimizer"])
    second.state.scaler.load_state_dict(content["scaler"])
    assert second.state.average is not None
    second.state.average.load_state_dict(content["average"])
    assert second.state.scaler.get_scale() == first.state.scaler.get_scale()
    assert torch.equal(first.step(3), second.step(3))
    assert torch.equal(weights_of(first.state.evaluated_model), weights_of(second.state.evaluated_model))


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_train_steps_never_synchronizes_with_the_gpu(recipe: str) -> None:
    training = Training("cuda", *ALL_RECIPES[recipe])
    steps = training.steps([random_batch(number) for number in range(2 + STEPS)])
    for _ in range(2):  # allocates, and creates the optimizer's state
        next(steps)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    for _ in steps:
        training.state.meter.end_step()
    torch.cuda.set_sync_debug_mode("default")
    loss, _ = training.state.meter.averages(training.world)
    assert 0 < loss < 100


@pytest.mark.parametrize("use_blurpool", [False, True])
def test_channels_last_is_kept_in_forward_and_backward(use_blurpool: bool) -> None:
    training = Training("cuda", "--training.precision=bf16", f"--training.use_blurpool={int(use_blurpool)}")
    wrong: list[str] = []
    convolutions = 0

    def check(name: str, tensor: torch.Tensor) -> None:
        if tensor.ndim == 4 and not tensor.is_contiguous(memory_format=torch.channels_last):
            wrong.append(f"{name}: {tuple(tensor.shape)} with strides {tensor.stride()}")

    def watch(name: str, output: torch.Tensor) -> None:
        check(name, output)
        output.register_hook(lambda gradient: check(f"gradient of {name}", gradient))

    for name, module in training.state.model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            convolutions += isinstance(module, nn.Conv2d)
            module.register_forward_hook(lambda _, inputs, output, name=name: watch(name, output))
    training.losses(2)
    assert convolutions == 21
    for name, parameter in training.state.model.named_parameters():
        check(name, parameter)
        assert parameter.grad is not None
        check(f"gradient of {name}", parameter.grad)
        check(f"momentum of {name}", training.state.optimizer.state[parameter]["momentum_buffer"])
    assert not wrong


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kernel_size", "padding"), [(1, 0), (3, 1)])
def test_blurpool_on_gpu_equals_cpu(precision: torch.dtype, kernel_size: int, padding: int) -> None:
    torch.manual_seed(0)
    layer = BlurPoolConv2d.wrap(nn.Conv2d(64, 32, kernel_size, stride=2, padding=padding, bias=False))
    x = torch.randn(4, 64, 15, 14)
    expected = layer(x)
    layer = layer.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = x.to("cuda", precision, memory_format=torch.channels_last)
    with torch.autocast("cuda", precision, enabled=precision != torch.float32):
        result = layer(x).cpu().float()
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    assert (result - expected).norm() < tolerance * expected.norm()


def test_gradient_checkpointing_uses_less_memory() -> None:
    peaks = []
    for wanted in (0, 1):
        training = Training("cuda", f"--execution.gradient_checkpointing={wanted}", arch="resnet50")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training.step(0, resolution=128, size=32)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del training
    assert peaks[1] < 0.6 * peaks[0]


def test_gpu_out_of_memory_error_contains_advice() -> None:
    training = Training("cuda", arch="resnet50")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        with pytest.raises(RebarError) as error, error_hints(batch_size=256, precision="32"):
            training.step(0, resolution=224, size=256)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    message = str(error.value)
    for advice in ("--accumulate 2", "bf16", "--gradient-checkpointing", "--training.batch_size 128"):
        assert advice in message
    assert torch.isfinite(training.step(1)).item()  # training still works with a smaller batch


def test_evaluate_on_gpu_equals_cpu() -> None:
    results = {}
    for device in ("cpu", "cuda"):
        training = Training(device)
        batches = [random_batch(number, size=size) for number, size in enumerate((16, 0, 7, 1))]
        results[device] = evaluate(
            training.state.model,
            training.run.normalizer().each(batches),
            world=training.world,
            precision="32",
            flip_tta=True,
            confusion_classes=10,
        )
    on_cpu, on_gpu = results["cpu"], results["cuda"]
    assert on_gpu.num_samples == on_cpu.num_samples == 24
    assert on_gpu.loss == pytest.approx(on_cpu.loss, rel=1e-4)
    assert (on_gpu.top1, on_gpu.top5, on_gpu.top1_tta) == (on_cpu.top1, on_cpu.top5, on_cpu.top1_tta)
    assert on_gpu.confusion is not None
    assert (on_gpu.confusion == on_cpu.confusion).all()


def test_update_bn_on_gpu_equals_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        training = Training(device)
        batches = training.run.normalizer().each([random_batch(number) for number in range(3)])
        update_bn(training.state.model, batches, count=3)
        results.append(weights_of(training.state.model))
    assert torch.allclose(results[0], results[1], atol=1e-3, rtol=1e-3)


def test_stochastic_depth_is_reproducible() -> None:
    losses = []
    for _ in range(2):
        training = Training("cuda", "--regularization.stochastic_depth=0.5")
        losses.append(training.losses(3))
    assert losses[0] == losses[1]


def test_nvml_reports_utilization_and_memory() -> None:
    training = Training("cuda")
    training.losses(1)
    metrics = memory_metrics(training.world)
    assert 0 < metrics["memory/gpu_peak_gb"] < 10
    assert 0 <= metrics["gpu/utilization"] <= 1


def test_ddp_with_nccl_and_sync_batchnorm_on_one_rank_equals_plain_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    plain = Training("cuda")
    expected = plain.losses(3)
    device = torch.device("cuda", 0)
    torch.distributed.init_process_group(
        "nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1, device_id=device
    )
    try:
        training = Training("cuda")
        training.state.model = nn.SyncBatchNorm.convert_sync_batchnorm(training.state.model)
        model = nn.parallel.DistributedDataParallel(training.state.model, device_ids=[0], gradient_as_bucket_view=True)
        training.run.model = model
        assert training.losses(3) == pytest.approx(expected, rel=1e-4)
    finally:
        torch.distributed.destroy_process_group()
