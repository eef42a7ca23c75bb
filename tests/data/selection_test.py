"""Which sections a source uses: names, lists, random parts, slices, shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emseg_jax.config import Source
from emseg_jax.data import selection
from emseg_jax.errors import DataError

NAMES = ('cell_1', 'cell_2', 'tissue_1', 'tissue_2', 'tissue_3')


def select(names=NAMES, **options):
  return selection.select(names, Source(images='x', **options), path='DIR')


@pytest.mark.parametrize(
  ('patterns', 'expected'),
  [
    (('cell_*',), [0, 1]),
    (('*_1',), [0, 2]),
    (('tissue_?', 'cell_2'), [1, 2, 3, 4]),
    (('tissue_[13]',), [2, 4]),
    ((), [0, 1, 2, 3, 4]),
  ],
)
def test_patterns_choose_by_name(patterns, expected):
  assert select(include=patterns) == expected


def test_a_pattern_that_fits_nothing_is_named_with_what_there_is():
  with pytest.raises(DataError, match=r'DIR: include=Cell\* fits none .* cell_1 to tissue_3'):
    select(include=('cell_*', 'Cell*'))


def test_a_list_names_sections_line_by_line(tmp_path):
  file = tmp_path / 'train.txt'
  file.write_text('# by hand\ntissue_2\n\n cell_1 \n')
  assert select(listed=str(file)) == [0, 3]
  file.write_text('tissue_2\ntissue_9\n')
  with pytest.raises(DataError, match=r'train\.txt: tissue_9 is not one of the sections of DIR'):
    select(listed=str(file))
  with pytest.raises(DataError, match=r'none\.txt: cannot be read as a list'):
    select(listed=str(tmp_path / 'none.txt'))


@given(st.integers(2, 60), st.integers(0, 5), st.integers(1, 9))
def test_parts_of_one_seed_share_nothing_and_leave_nothing_out(count, seed, tenths):
  names = [f's{i}' for i in range(count)]
  cut = tenths / 10

  def part(bounds):
    try:
      return select(names, part=f'{bounds}@{seed}')
    except DataError:
      return []  # too few sections for such a small share

  first, second = part(f'0:{cut}'), part(f'{cut}:1')
  assert sorted(first + second) == list(range(count))
  assert len(first) == round(cut * count)


def test_another_seed_draws_another_part():
  names = [f's{i}' for i in range(40)]
  assert len({tuple(select(names, part=f'0:0.5@{seed}')) for seed in range(5)}) == 5


def test_everything_is_applied_in_order(tmp_path):
  file = tmp_path / 'list.txt'
  file.write_text('\n'.join(NAMES[1:]))
  options = {'include': ('*_[123]',), 'listed': str(file)}
  assert select(**options, slices='1:') == [2, 3, 4]
  assert select(**options, slices='1:', fraction=0.5) == [2, 3]


def test_what_leaves_nothing_is_said_with_its_options():
  with pytest.raises(DataError, match=r"include=\('cell_\*',\), slices=5: leaves none of its 5"):
    select(include=('cell_*',), slices='5:')


@pytest.mark.parametrize('part', ['0.8', '0:2@1', '0.5:0.2@1', '0:0.5', '.5:.5@1'])
def test_an_impossible_part_is_refused(part):
  with pytest.raises(ValueError, match='part'):
    Source(images='x', part=part)
