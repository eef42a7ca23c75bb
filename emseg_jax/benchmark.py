"""How fast a configuration trains and predicts on the devices at hand.

Batches are random numbers that lie on the device already, so reading data is not part of it;
augmentation is. Rates are over whole steps, compilation excluded. Several processes measure
together, each with its rows of the batch.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from emseg_jax import (
  augment,
  collectives,
  experiment,
  flops,
  losses,
  memory,
  processes,
  sharding,
  train_step,
)
from emseg_jax.config import Config
from emseg_jax.train_state import parameter_count

__all__ = ['Result', 'benchmark', 'format_text']

# Long enough to average over, short enough to wait for.
LEAST_STEPS = 3
LEAST_SECONDS = 5.0
MOST_STEPS = 200


@dataclasses.dataclass(frozen=True)
class Timing:
  """Attributes:
  compile_seconds: of one program, tracing included; short if it came from the compilation cache.
  steps: that were timed, after one to warm up.
  steps_per_second: over all of them.
  images_per_second: or volumes.
  tflops: achieved, in 10^12 operations per second over all devices.
  memory_gb: that the program needs on each device, in 10^9 bytes, as XLA planned it, if it says.
  device_gflops: 10^9 operations of one step of the compiled program on each device, as XLA counts
    them (the body of a loop once), if it does. N devices that share the work of one do 1/N each;
    what is more is done twice.
  device_gbytes: 10^9 bytes that such a step reads and writes there, likewise.
  traffic: what it sends between devices, by kind.
  """

  compile_seconds: float
  steps: int
  steps_per_second: float
  images_per_second: float
  tflops: float
  memory_gb: float | None
  device_gflops: float | None
  device_gbytes: float | None
  traffic: dict[str, collectives.Traffic]


@dataclasses.dataclass(frozen=True)
class Result:
  """Attributes:
  network, parameters, patch, batch_size, dtype: what was measured.
  devices: number and kind.
  forward_gflops: 10^9 operations of the forward pass of one patch. A training step counts as
    three of them per patch, whatever the gradient really takes.
  train, predict: the two programs.
  peak_gb: the most that the device says was ever in use, 10^9 bytes; None where it does not.
  """

  network: str
  parameters: int
  patch: tuple[int, ...]
  batch_size: int
  dtype: str
  devices: str
  forward_gflops: float
  train: Timing
  predict: Timing
  peak_gb: float | None

  def to_json(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


def benchmark(config: Config) -> Result:
  """Compiles and times the training step and the prediction of one batch of patches.

  Raises:
    ConfigError, DeviceError: the configuration does not fit the network or the devices.
  """
  experiment.validate_network(config)
  setup = experiment.set_up(config, batch_size=config.train.batch_size)
  state = setup.initial_state()
  variables = train_step.predict_variables(state)
  batch = sharding.put_batch(_random_batch(config), setup.mesh)
  inside = (slice(None), *(slice(p) for p in config.data.patch))
  split = sharding.batch_sharding(setup.mesh)
  image = jax.jit(lambda x: x[inside], out_shardings=split)(batch['image'])
  parameters = parameter_count(state.params)

  one = jax.ShapeDtypeStruct((1, *image.shape[1:]), image.dtype)
  forward = flops.count(lambda v, x: setup.model.apply(v, x, train=False), variables, one)

  predict_step = train_step.make_predict_step(setup.model, independent=config.task.independent)
  predict, predict_seconds = _timed(lambda: jax.jit(predict_step).lower(variables, image).compile())
  predict_rate = _rate(lambda: predict(variables, image))
  step_fn = train_step.make_train_step(
    setup.model,
    setup.optimizer,
    setup.schedule,
    config,
    setup.mesh,
    class_counts=experiment.equal_counts(config.task),
  )
  step, step_seconds = _timed(
    lambda: train_step.compile_train_step(step_fn, state, batch, setup.mesh)
  )

  def advance() -> Any:
    nonlocal state
    state, metrics = step(state, batch)
    return metrics

  train_rate = _rate(advance)
  size = config.train.batch_size
  return Result(
    network=config.model.name,
    parameters=parameters,
    patch=tuple(config.data.patch),
    batch_size=size,
    dtype=str(setup.model.dtype.name),
    devices=f'{setup.mesh.size} x {jax.devices()[0].device_kind}',
    forward_gflops=forward / 1e9,
    train=_timing(step, step_seconds, train_rate, size, 3 * forward),
    predict=_timing(predict, predict_seconds, predict_rate, size, forward),
    peak_gb=_peak_gb(),
  )


def _random_batch(config: Config) -> dict[str, np.ndarray]:
  """The rows of this process that the data pipeline would deliver, of random numbers."""
  rng = np.random.default_rng(config.train.seed)
  patch = config.data.patch
  size = augment.read_size(config.augment, patch)
  shape = (config.train.batch_size // jax.process_count(), *size)
  return {
    'image': rng.normal(size=(*shape, config.data.input_channels)).astype(np.float32),
    'label': rng.integers(len(config.task.values), size=shape, dtype=np.int32),
    'weight': np.ones(shape, np.float32),
    'index': np.arange(shape[0], dtype=np.int32),
    'valid': np.tile(np.array(size, np.int32), (shape[0], 1)),
    **{name: rng.random(shape, np.float32) for name in losses.host_targets(config.loss)},
  }


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
  start = time.perf_counter()
  result = work()
  return result, time.perf_counter() - start


def _rate(step: Callable[[], Any]) -> tuple[int, float]:
  """(steps, seconds) of repeated calls that wait for their results, after some to warm up."""

  def run(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      jax.block_until_ready(step())
    return time.perf_counter() - start

  run(1)
  each = run(LEAST_STEPS) / LEAST_STEPS
  steps = min(max(math.ceil(LEAST_SECONDS / each), LEAST_STEPS), MOST_STEPS)
  steps = processes.agreed(steps)
  return steps, run(steps)


def _timing(
  compiled: Any, compile_seconds: float, rate: tuple[int, float], size: int, operations: float
) -> Timing:
  steps, seconds = rate
  needed = memory.step_bytes(compiled)
  cost = compiled.cost_analysis() or {}
  operations_there, bytes_there = cost.get('flops'), cost.get('bytes accessed')
  return Timing(
    compile_seconds=compile_seconds,
    steps=steps,
    steps_per_second=steps / seconds,
    images_per_second=steps * size / seconds,
    tflops=operations * size * steps / seconds / 1e12,
    memory_gb=None if needed is None else needed / 1e9,
    device_gflops=None if operations_there is None else operations_there / 1e9,
    device_gbytes=None if bytes_there is None else bytes_there / 1e9,
    traffic=collectives.traffic(compiled.as_text()),
  )


def _peak_gb() -> float | None:
  statistics = jax.local_devices()[0].memory_stats() or {}
  peak = statistics.get('peak_bytes_in_use')
  return None if peak is None else peak / 1e9


def format_text(result: Result) -> str:
  """A few lines for a terminal."""
  patch = ' x '.join(map(str, result.patch))
  lines = [
    f'{result.network}: {result.parameters:,} parameters, {result.batch_size} patches of {patch} '
    f'per step, {result.dtype}, {result.devices}',
    f'forward pass of one patch: {result.forward_gflops:,.1f} GFLOP (a training step counts as 3)',
    f'{"":8} {"compile s":>10} {"steps/s":>10} {"images/s":>10} {"TFLOP/s":>10} {"memory GB":>10}',
  ]
  for name, timing in (('train', result.train), ('predict', result.predict)):
    lines.append(
      f'{name:8} {timing.compile_seconds:10.1f} {timing.steps_per_second:10.3g} '
      f'{timing.images_per_second:10.3g} {timing.tflops:10.3g} {timing.memory_gb or math.nan:10.3g}'
    )
  if None not in (result.train.device_gflops, result.train.device_gbytes):
    lines.append(
      f'train: {result.train.device_gflops:,.3g} GFLOP and {result.train.device_gbytes:,.3g} GB '
      'read and written per device and step'
    )
  for kind, (count, megabytes) in result.train.traffic.items():
    lines.append(f'train: {count} x {kind}, {megabytes:,.1f} MB per device and step')
  if result.peak_gb is not None:
    lines.append(f'most memory in use on one device: {result.peak_gb:.3g} GB')
  return '\n'.join(lines)
