"""The help of one mode: on one screen, with flags and fields that there are."""

import re

import pytest
import support

from emseg_jax import main, mode_help, modes
from emseg_jax.config import Config

SCREEN = 30, 100  # lines, columns


def test_every_mode_has_help():
  assert set(mode_help.MODES) == set(modes.MODES)


@pytest.mark.parametrize('mode', modes.MODES)
def test_the_help_of_a_mode_fits_a_screen_and_says_what_exists(mode, capsys):
  assert support.run_main(f'--mode={mode}', '--help') == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) <= SCREEN[0]
  assert max(map(len, lines)) <= SCREEN[1]
  assert lines[0].startswith(f'  {mode} ')
  about = mode_help.MODES[mode]
  assert set(about.sections) <= set(Config.model_fields)
  listed = re.findall(r'^  --([a-z_]+)', '\n'.join(lines), re.MULTILINE)
  assert listed == [*about.flags, 'quiet', 'json', *(['config'] if about.sections else [])]
  assert set(modes.NEEDED.get(mode, ())) <= set(about.flags)
  for example in about.examples:
    values, _, runs = main._parse(['emseg_jax', *example.split()])
    assert values.mode == mode
    modes.check_needed(values, runs)


@pytest.mark.parametrize(
  'arguments', [('--help', '--mode', 'check'), ('-mode=check', '-h'), ('--help', '--mode=check')]
)
def test_the_mode_is_understood_however_it_is_given(arguments, capsys):
  assert support.run_main(*arguments) == 0
  assert capsys.readouterr().out == mode_help.text('check') + '\n'


@pytest.mark.parametrize('more', ['--mode=chekc', '--helpfull'])
def test_all_modes_are_explained_where_it_is_not_one(more, capsys):
  assert support.run_main('--help', '--config=tiny', more) == 0
  assert all(f'\n  {mode} ' in capsys.readouterr().out for mode in [*modes.MODES][:1])
