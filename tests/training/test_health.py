"""Trouble is told, once, and only where it is."""

from rebar.training.health import HealthWatch


def test_divergence_is_told_once() -> None:
    said: list[str] = []
    watch = HealthWatch(said.append)
    for step, loss in enumerate([2.3, 4.0, 2.0, 4.7, 9.0]):
        watch.on_loss(loss, step, lr=0.5)
    (message,) = said
    assert "from 2.3 to 4.7 at step 3" in message
    assert "now 0.5" in message


def test_starving_gets_advice_that_fits() -> None:
    for workers, expected in ((2, "--num-workers, now 2"), (8, "all cores decode already")):
        said: list[str] = []
        watch = HealthWatch(said.append)
        watch.on_epoch(1, 0.9, workers, cores=8)  # cold
        watch.on_epoch(2, 0.1, workers, cores=8)
        assert said == []
        watch.on_epoch(3, 0.5, workers, cores=8)
        watch.on_epoch(4, 0.5, workers, cores=8)
        assert len(said) == 1
        assert expected in said[0]
