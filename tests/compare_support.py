"""Work directories of finished runs by hand; main_test shows that real ones look the same."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emseg_jax import config_io
from emseg_jax.config import Config
from emseg_jax.report import compare_rows

SMALL = {'conv_blocks': 1, 'lstm_blocks': 0, 'filters': 4, 'kernel_sizes': [3], 'dilations': [1]}
RESCRNET = {'name': 'rescrnet', 'options': SMALL}
CHENG = {'name': 'cheng2d', 'options': {'width': 0.125}}


def make_run(
  folder: Path,
  *,
  miou: float = 0.7,
  split: str = 'validation',
  records: Sequence[dict[str, Any]] = (),
  model: dict[str, Any] = RESCRNET,
  source: dict[str, Any] | None = None,
  **sections: Any,
) -> Path:
  """A finished run; `sections` are those of its configuration."""
  source = {'images': '/disk/em/isbi/train.tif', 'labels': '/disk/em/isbi/labels.tif'} | (
    source or {}
  )
  data = {'train': [source], 'patch': (16, 16)} | sections.pop('data', {})
  config = Config.model_validate({'model': model, 'data': data, **sections})
  evaluation = {
    'scores': {
      'accuracy': miou + 0.1,
      'miou': miou,
      'per_class': {'membrane': {'iou': miou - 0.2, 'share': 0.25}, 'vesicle': {'iou': None}},
    },
    'extras': {'soft': {'cross_entropy': 1 - miou}},
  }
  (folder / 'evaluation').mkdir(parents=True)
  (folder / 'config.json').write_text(config_io.to_json(config))
  (folder / 'evaluation' / f'{split}.json').write_text(json.dumps(evaluation))
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  return folder


def rows_of(*folders: Path) -> list[compare_rows.Row]:
  configs = [config_io.from_json(folder / 'config.json') for folder in folders]
  return compare_rows.collect(folders, configs)
