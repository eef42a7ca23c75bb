"""Prediction of instances in volumes: affinity maps block by block, then objects of them.

The maps lie in a hidden folder beside the output until the objects are there, or, with
predict.probabilities, beside the output for good, as `OUTPUT_prob_OFFSET`. Both steps are those of
`volume_prediction` and `postprocess`, so that memory is that of a block and blocks do not matter.
An interrupted prediction is gone on with by the same call; `OUTPUT.json` says that it is complete.
"""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from emseg_jax import config_io, postprocess, volume_prediction
from emseg_jax.block_job import plan_job
from emseg_jax.data import recognise
from emseg_jax.errors import ConfigError
from emseg_jax.postprocess import affinities
from emseg_jax.predict import Predictor

__all__ = ['predict_instances']

LOGGER = logging.getLogger(__name__)


def predict_instances(
  predictor: Predictor,
  source: str | Path,
  output: Path,
  *,
  part: tuple[int, int] = (0, 1),
  should_stop: Callable[[], bool] | None = None,
) -> list[Path]:
  """Segments a volume into instances, uint32, with their table `OUTPUT.csv`.

  Args:
    predictor: a loaded predictor of affinities.
    source: what `volumes.open_volume` reads.
    output: file or folder to write.
    part: as in `volume_prediction.predict_volume`.
    should_stop: asked between batches of tiles, and between blocks.

  Returns:
    The paths written, instances first; none while other parts are missing.

  Raises:
    ConfigError, DataError, DeviceError, Interrupted, OutputError: as `predict_volume` and
      `postprocess`.
  """
  config = predictor.config
  affinities.check_options(config.postprocess)
  place, dataset = recognise.split_dataset(str(output))
  hidden = Path(place).with_name(f'.{Path(place).name}.affinities')
  kept = config.predict.probabilities is not None
  named = output if kept else hidden / 'map.zarr'
  job = plan_job(predictor, source, named)
  if not job.as_is:
    raise ConfigError(
      f'{source}: is resampled to data.voxel_size={config.data.voxel_size}, but offsets are in '
      'voxels; bring it to that size first'
    )
  target = postprocess.Output(job.given, output, numbered=True)
  target.check_type()
  record = _record(job.record, config.task.offset_names, config.postprocess.model_dump(mode='json'))
  maps = [path for _, path, _ in job.targets]
  there = [target.path, *(maps if kept else ())]
  record_path = target.path.with_name(f'{target.path.name}.json')
  if _is_complete(record_path, record) and all(path.exists() for path in there):
    LOGGER.info('%s: is complete, 0 blocks to predict', target.path)
    return there
  if not all(path.exists() for path in maps):
    target.check()  # now, not after hours; with all maps, `postprocess` knows how far it was
  if not volume_prediction.predict_volume(
    predictor, source, named, part=part, should_stop=should_stop
  ):
    return []
  where = str(target.path) if dataset is None else f'{target.path}:{dataset}'
  found = dict(zip(config.task.offsets, maps, strict=True))
  result = postprocess.postprocess(
    source, where, config.postprocess, maps=affinities.nearest_of(found), should_stop=should_stop
  )
  config_io.write_text(record_path, json.dumps(record, indent=2) + '\n')
  shutil.rmtree(hidden, ignore_errors=True)
  LOGGER.info('%d objects, %s', result.count, result.table)
  return there


def _record(job: dict[str, Any], names: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
  """All that decides what the output is, as JSON holds it."""
  return json.loads(json.dumps({**job, 'offsets': names, 'postprocess': options}))


def _is_complete(path: Path, record: dict[str, Any]) -> bool:
  try:
    return json.loads(path.read_text(encoding='utf-8')) == record
  except (OSError, ValueError):
    return False
