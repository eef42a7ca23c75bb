"""A small synthetic work directory, its report, and a parser of the page."""

import html.parser
import json
import pathlib
from typing import Any

import numpy as np

from emseg_jax.config import Config
from emseg_jax.report import Case, write_report

CLASSES = ['membrane', 'interior', 'vesicle']
# Void elements of HTML: they have no end tag.
VOID = {'br', 'hr', 'img', 'input', 'link', 'meta', 'wbr'}
# Rows are labels: 150 membrane and 1850 interior pixels, no vesicle anywhere.
EVALUATION: dict[str, Any] = {
  'step': 1000,
  'split': 'validation',
  'classes': CLASSES,
  'confusion': [[100, 50, 0], [20, 1830, 0], [0, 0, 0]],
  'scores': {
    'accuracy': 0.9651,
    'miou': 0.7752,
    'mean_dice': 0.8653,
    'per_class': {
      'membrane': {
        'iou': 0.5882, 'dice': 0.7407, 'precision': 0.8333, 'recall': 0.6667, 'share': 0.0751,
      },
      'interior': {
        'iou': 0.9632, 'dice': 0.9812, 'precision': 0.9734, 'recall': 0.9892, 'share': 0.9249,
      },
      'vesicle': {'iou': None, 'dice': None, 'precision': None, 'recall': None, 'share': 0.0},
    },
  },
  'baselines': {
    'majority': {'class': 'interior', 'accuracy': 0.9248, 'miou': 0.4626},
    'threshold': {
      'threshold': 96.5, 'below': 'membrane', 'above': 'interior', 'accuracy': 0.9311,
      'miou': 0.5957,
    },
  },
  'images': [
    {'name': 'stack[019]', 'accuracy': 0.9771, 'miou': 0.8123},
    {'name': 'stack[018]', 'accuracy': 0.9431, 'miou': 0.7345},
  ],
  'intervals': {
    'images': 2,
    'accuracy': [0.9431, 0.9771],
    'miou': [0.7311, 0.8111],
    'mean_dice': [0.8222, 0.8999],
    'per_class': {
      'membrane': {
        'iou': [0.511, 0.622], 'dice': [0.7, 0.8], 'precision': [0.8, 0.9], 'recall': [0.61, 0.71],
      },
      'interior': {'iou': [0.944, 0.977]},  # as older versions wrote it
      'vesicle': {'iou': None, 'dice': None, 'precision': None, 'recall': None},
    },
  },
  # 1000 pixels at 0.58, half of them right; 1000 at 0.98, all right: 0.5 · 0.08 + 0.5 · 0.02.
  'calibration': {
    'ece': 0.05,
    'count': [*[0] * 8, 1000, *[0] * 5, 1000],
    'confidence': [*[None] * 8, 0.58, *[None] * 5, 0.98],
    'accuracy': [*[None] * 8, 0.5, *[None] * 5, 1.0],
  },
  'objects': {
    'ndim': 2,
    'voxel_size': [4.0, 4.0],
    'octaves': [6, 7],
    'per_class': {'interior': {'objects': [4, 0], 'found': [3, 0]}},
  },
  'extras': {
    'thresholds': {
      'per_class': {
        name: {
          'average_precision': 0.9, 'best_iou': iou, 'best_f1': 0.8, 'best_threshold': 0.25,
          'curve': {
            'threshold': [0.0, 0.25, 1.0],
            **{key: [0.4, iou, None] for key in ('precision', 'recall', 'f1', 'iou', 'miou')},
          },
        }
        for name, iou in (('membrane', 0.6111), ('interior', 0.9222))
      }
    }
  },
  'seconds': 12.3,
  'voxels': 2000,
}  # fmt: skip


class Page(html.parser.HTMLParser):
  """Checks that tags balance, and keeps elements and the visible text."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.elements: list[tuple[str, dict[str, str | None]]] = []
    self.words: list[str] = []
    self.feed(text)
    self.close()
    assert not self.open, f'never closed: {self.open}'

  def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    assert len({name for name, _ in attrs}) == len(attrs), f'repeated attribute in <{tag}>'
    self.elements.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
    self.elements.append((tag, dict(attrs)))

  def handle_endtag(self, tag: str) -> None:
    assert self.open, f'</{tag}> closes nothing'
    assert self.open[-1] == tag, f'</{tag}> while <{self.open[-1]}> is open'
    self.open.pop()

  def handle_data(self, data: str) -> None:
    if not {'style', 'script', 'svg'} & set(self.open):
      self.words.append(data)

  @property
  def text(self) -> str:
    return ' '.join(' '.join(self.words).split())

  def find(self, tag: str) -> list[dict[str, str | None]]:
    return [attributes for name, attributes in self.elements if name == tag]


def make_workdir(path: pathlib.Path) -> pathlib.Path:
  path.mkdir(parents=True)
  config = json.loads(Config(task={'classes': CLASSES}).model_dump_json())
  config['model'] |= {'name': 'pmcanet', 'options': {'width': 0.25}}
  (path / 'config.json').write_text(json.dumps(config))
  records = []
  for step in range(20, 1001, 20):
    loss = 2.0 / step**0.25
    records.append(
      {
        'step': step,
        'wall_time': 1.7e9 + step,  # 2023-11-14 22:13:20 UTC and on
        'train/loss': loss,
        'train/ce': loss / 4,
        'train/dice': loss / 4,
        'opt/learning_rate': 0.01 * (1 - step / 1000) ** 0.9,
        'norm/grads': 1.3,
        'perf/images_per_sec': 13.0,
        'perf/data_wait_frac': 0.02,
      }
    )
    if step % 500 == 0:
      scores = {'miou': 0.6 + step / 10000, 'accuracy': 0.9, 'mean_dice': 0.8}
      records.append(
        {
          'step': step,
          'wall_time': 1.7e9 + step,
          **{f'validation/{name}': value for name, value in scores.items()},
          'validation/iou/membrane': 0.5,
          'validation/iou/interior': 0.9,
          'validation/iou/vesicle': None,
        }
      )
  (path / 'metrics.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in records))
  write_evaluation(path, EVALUATION)
  return path


def write_evaluation(workdir: pathlib.Path, evaluation: dict[str, Any]) -> None:
  (workdir / 'evaluation').mkdir(exist_ok=True)
  (workdir / 'evaluation' / f'{evaluation["split"]}.json').write_text(json.dumps(evaluation))


def make_case(name: str = 'stack[018]', size: int = 48, seed: int = 0) -> Case:
  rng = np.random.default_rng(seed)
  label = (np.add.outer(np.arange(size), np.arange(size)) % 16 > 3).astype(np.int32)
  prediction = np.where(rng.random((size, size)) < 0.1, 1 - label, label)
  image = rng.integers(0, 255, (size, size), np.uint8)
  weight = np.ones((size, size), np.float32)
  return Case(name, 0.9, 0.7, image, label, weight, prediction)


def report(workdir: pathlib.Path, **arguments: Any) -> pathlib.Path:
  defaults = {
    'worst': [make_case('stack[018]')],
    'best': [make_case('stack[019]', seed=1)],
    'versions': {'emseg_jax': '0.1.0', 'jax': '0.10.2'},
    'colours': None,
    'command': 'python -m emseg_jax.main --mode=train',
  }
  return write_report(workdir, **{**defaults, **arguments})
