"""The table of `--mode=check`: one column per split, as plain text."""

from collections.abc import Sequence

from emseg_jax.survey import SplitSummary

__all__ = ['format_table']


def format_table(summaries: Sequence[SplitSummary], *, most_values: int) -> list[str]:
  """Lines of the table; at most `most_values` label values get a row of their own."""
  values = sorted({v for s in summaries for v in s.label_values})
  rows = [
    ('', [s.split for s in summaries]),
    ('sections', [s.sections for s in summaries]),
    ('files', [s.files for s in summaries]),
    ('size (y x)', [' x '.join(map(_span, s.smallest, s.largest)) for s in summaries]),
    ('type', [', '.join(s.dtypes) for s in summaries]),
    ('channels', [', '.join(map(str, s.channels)) for s in summaries]),
    ('voxel z y x (nm)', [' or '.join(map(_voxel, s.voxel_sizes_zyx)) for s in summaries]),
    ('min to max', [f'{s.low:g} to {s.high:g}' for s in summaries]),
    ('1 % to 99 %', [f'{s.percentiles[0]:g} to {s.percentiles[1]:g}' for s in summaries]),
    ('mean ± std', [f'{s.mean:.4g} ± {s.std:.3g}' for s in summaries]),
  ]
  for v in values[:most_values]:
    rows.append((f'label {v}', [_share(s.label_values.get(v)) for s in summaries]))
  if len(values) > most_values:
    rows.append(('label values', [len(s.label_values) for s in summaries]))
  for name in dict.fromkeys(name for s in summaries for name in s.class_shares):
    rows.append((f'class {name}', [_share(s.class_shares.get(name)) for s in summaries]))
  if values:
    rows.append(('ignored', [f'{s.ignored_share:.2%}' for s in summaries]))
    rows.append(('one-class labels', [s.one_class_sections for s in summaries]))
  cells = [[title, *map(str, texts)] for title, texts in rows]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ['  '.join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _share(share: float | None) -> str:
  return f'{share:.2%}' if share else '-'


def _span(low: int, high: int) -> str:
  return str(low) if low == high else f'{low}..{high}'


def _voxel(size: tuple[float | None, ...] | None) -> str:
  return ' x '.join('?' if s is None else f'{s:g}' for s in size) if size else 'unknown'
