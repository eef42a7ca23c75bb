"""The table of `--mode=check`: one column per split."""

from collections.abc import Sequence

from emseg_jax.check.summary import SplitSummary

__all__ = ['format_table', 'table_rows']


def table_rows(summaries: Sequence[SplitSummary], *, most_values: int) -> list[list[str]]:
  """Cells of the table, first the row of split names; at most `most_values` label values."""
  values = sorted({v for s in summaries for v in s.label_values})
  rows = [
    ('', [s.split for s in summaries]),
    ('sections', [_sections(s) for s in summaries]),
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
  if any(s.label_fit is not None for s in summaries):
    rows.append(('label fit (0 to 1)', [_fit(s) for s in summaries]))
    rows.append(('best shift (y x)', [_shift(s) for s in summaries]))
  return [[title, *map(str, texts)] for title, texts in rows]


def format_table(summaries: Sequence[SplitSummary], *, most_values: int) -> list[str]:
  """Lines of the table as plain text."""
  cells = table_rows(summaries, most_values=most_values)
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return ['  '.join(map(str.ljust, row, widths)).rstrip() for row in cells]


def _sections(summary: SplitSummary) -> str:
  whole = summary.read == summary.sections
  return str(summary.read) if whole else f'{summary.sections} ({summary.read} read)'


def _share(share: float | None) -> str:
  return f'{share:.2%}' if share else '-'


def _span(low: int, high: int) -> str:
  return str(low) if low == high else f'{low}..{high}'


def _voxel(size: tuple[float | None, ...] | None) -> str:
  return ' x '.join('?' if s is None else f'{s:g}' for s in size) if size else 'unknown'


def _fit(summary: SplitSummary) -> str:
  return '-' if summary.label_fit is None else f'{summary.label_fit:.3f}'


def _shift(summary: SplitSummary) -> str:
  return '-' if summary.best_shift is None else '{}, {}'.format(*summary.best_shift)
