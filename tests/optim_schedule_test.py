"""Learning-rate schedules against their formulas, numbers by hand, and PyTorch's."""

import jax.numpy as jnp
import numpy as np
import pytest

from emseg_jax import optim
from emseg_jax.config import Optim


def rates(options, times, *, steps=100):
  schedule = optim.make_schedule(options, steps=steps)
  return [float(schedule(jnp.asarray(t, jnp.int32))) for t in times]


def test_poly_follows_its_formula():
  options = Optim(learning_rate=0.01, power=0.9)
  times = (0, 1, 17, 20_000, 39_000, 40_000, 50_000)
  expected = [0.01 * (1 - min(t / 40_000, 1)) ** 0.9 for t in times]
  assert rates(options, times, steps=40_000) == pytest.approx(expected, rel=1e-5)
  assert expected[3] == pytest.approx(0.01 * 0.535887, rel=1e-6)  # 0.5^0.9 = 0.535887


def test_poly_and_cosine_end_on_their_floor():
  # 0.1 + 0.9 (1 - t/100)^2; 0.1 + 0.45 (1 + cos(pi t/100)), the cosine of 60 degrees being 1/2
  options = Optim(learning_rate=1.0, floor=0.1, power=2.0)
  assert rates(options, (0, 50, 90, 100, 120)) == pytest.approx([1.0, 0.325, 0.109, 0.1, 0.1])
  options = Optim(learning_rate=1.0, floor=0.1, schedule='cosine')
  expected = [1.0, 0.775, 0.55, 0.1, 0.1]
  assert rates(options, (0, 40, 60, 120, 130), steps=120) == pytest.approx(expected)


def test_time_decays_as_the_optimisers_of_keras_2_do():
  # lr / (1 + decay * iterations), iterations = updates done before; SegET's Golgi: 2e-3 and 1e-5
  options = Optim(learning_rate=2e-3, schedule='time', decay_factor=1e-5)
  expected = [2e-3, 2e-3 / 1.00245, 2e-3 / 2, 2e-3 / 4]
  assert rates(options, (0, 245, 100_000, 300_000)) == pytest.approx(expected, rel=1e-6)
  options = Optim(learning_rate=1.0, schedule='time', decay_factor=0.5, floor=0.45)
  assert rates(options, (0, 1, 2, 3, 9)) == pytest.approx([1, 2 / 3, 1 / 2, 0.45, 0.45])


def test_step_decays_every_so_many_updates_or_at_given_ones():
  options = Optim(learning_rate=1e-4, schedule='step', decay_every=15, decay_factor=0.9)
  expected = [1e-4, 1e-4, 0.9e-4, 0.9e-4, 0.81e-4, 0.9**6 * 1e-4]
  assert rates(options, (0, 14, 15, 29, 30, 99)) == pytest.approx(expected, rel=1e-6)
  options = Optim(learning_rate=0.05, schedule='step', decay_at=(2000, 3000), floor=1e-3)
  expected = [0.05, 0.05, 0.005, 0.005, 1e-3, 1e-3]  # the floor instead of 5e-4
  assert rates(options, (0, 1999, 2000, 2999, 3000, 9999)) == pytest.approx(expected, rel=1e-6)


def test_warm_up_rises_linearly_from_zero_and_poly_starts_behind_it():
  options = Optim(learning_rate=0.2, power=0.9, warmup_steps=4)
  # 0.2 t/4, then 0.2 (1 - (t - 4)/20)^0.9 with T = 24 - 4
  expected = [0.0, 0.05, 0.15, 0.2, 0.2 * 0.5**0.9, 0]
  assert rates(options, (0, 1, 3, 4, 14, 24), steps=24) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({'schedule': 'constant'}, [0.3, 0.3, 0.3]),
    ({'schedule': 'cosine'}, [0.3, 0.15, 0.0]),
    ({'schedule': 'time', 'decay_factor': 0.25}, [0.3, 0.3 / 2, 0.3 / 3]),
    ({'schedule': 'step', 'decay_every': 4}, [0.3, 0.03, 0.003]),
    ({'schedule': 'step', 'decay_at': (3, 9)}, [0.3, 0.03, 0.03]),
  ],
)
def test_every_schedule_counts_from_the_end_of_the_warm_up(options, expected):
  options = Optim(learning_rate=0.3, warmup_steps=2, **options)
  # T = 10 - 2 = 8: times 0, 4 and 8 behind the warm-up
  assert rates(options, (0, 1, 2, 6, 10), steps=10) == pytest.approx(
    [0.0, 0.15, *expected], abs=1e-7
  )


def test_lengths_are_in_updates_not_in_batches():
  options = Optim(learning_rate=1.0, power=1.0, accumulate=4)
  # 43 batches are 10 updates, so that the fifth one has 1 - 5/10
  assert rates(options, (0, 5, 10), steps=43) == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parity
@pytest.mark.parametrize(
  ('options', 'name', 'arguments'),
  [
    ({'power': 0.9}, 'PolynomialLR', {'total_iters': 30, 'power': 0.9}),
    ({'schedule': 'cosine', 'floor': 0.01}, 'CosineAnnealingLR', {'T_max': 30, 'eta_min': 0.01}),
    (
      {'schedule': 'step', 'decay_every': 7, 'decay_factor': 0.9},
      'StepLR',
      {'step_size': 7, 'gamma': 0.9},
    ),
    (
      {'schedule': 'step', 'decay_at': (5, 20), 'decay_factor': 0.2},
      'MultiStepLR',
      {'milestones': [5, 20], 'gamma': 0.2},
    ),
  ],
)
def test_schedules_are_those_of_pytorch(options, name, arguments):
  torch = pytest.importorskip('torch')
  optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
  scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
  expected = []
  for _ in range(31):
    expected.append(scheduler.get_last_lr()[0])
    optimizer.step()
    scheduler.step()
  found = rates(Optim(learning_rate=0.1, **options), range(31), steps=30)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
