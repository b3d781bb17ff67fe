"""How a step is carried out changes neither names nor results."""

import pytest
import torch
from torch import nn

from rebar.errors import RebarError
from rebar.training.distributed import World
from rebar.training.execution import ExecutionConfig, allow_tf32, apply_execution, compile_for
from rebar.training.resolution import ResolutionConfig, resolution_at


class Compilations:
    """A backend of torch.compile that runs the graph as it is, and counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: object) -> object:
        self.count += 1
        return graph.forward


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Compilations:
    counter, compile_model = Compilations(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_model(model, backend=counter, **options))
    return counter


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def sizes(config: ResolutionConfig, epochs: int) -> list[int]:
    return [resolution_at(epoch, config) for epoch in range(epochs)]


def test_growing_by_4_pixels_compiles_once(compilations: Compilations) -> None:
    resolutions = sizes(ResolutionConfig(min_res=88, max_res=176, start_ramp=2, end_ramp=30, round_to=4), 36)
    assert len(set(resolutions)) == 23
    plain = model()
    compiled = compile_for(plain, set(resolutions), enabled=True)
    for resolution in resolutions:
        x = torch.randn(2, 3, resolution, resolution).contiguous(memory_format=torch.channels_last)
        assert torch.equal(compiled.eval()(x), plain(x))
    assert compilations.count == 1


def test_a_few_sizes_get_a_program_each(compilations: Compilations) -> None:
    compiled = compile_for(model(), {32, 40}, enabled=True)
    for resolution in (32, 40, 40, 32):
        compiled(torch.randn(2, 3, resolution, resolution))
    assert compilations.count == 2


def test_not_enabled_is_the_model_itself() -> None:
    plain = model()
    assert compile_for(plain, {32}, enabled=False) is plain


def test_a_compiled_model_saves_the_plain_names() -> None:
    plain = model()
    compile_for(plain, {32}, enabled=True)
    assert plain.state_dict().keys() == model().state_dict().keys()


def test_what_has_no_effect_is_told(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    apply_execution(model(), ExecutionConfig(sync_bn=True, gradient_checkpointing=True), world)
    err = capsys.readouterr().err
    assert "execution.sync_bn has no effect on a CPU" in err
    assert "execution.gradient_checkpointing has no effect" in err
    with pytest.raises(RebarError, match="choose one"):
        ExecutionConfig(compile_model=True, gradient_checkpointing=True)


def test_batchnorm_is_synchronised_over_gpus() -> None:
    world = World(rank=0, size=2, device=torch.device("cuda", 0))  # converting needs no GPU
    converted = apply_execution(model(), ExecutionConfig(sync_bn=True), world)
    assert isinstance(converted[1], nn.SyncBatchNorm)
    assert converted.state_dict().keys() == model().state_dict().keys()


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32(allowed: bool) -> None:
    allow_tf32(allowed)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
