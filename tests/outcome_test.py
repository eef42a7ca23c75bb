"""stdout holds the result and nothing else, as a text or as one JSON document."""

import json
from pathlib import Path

import numpy as np
import pytest

from emseg_jax import outcome
from emseg_jax.errors import DataError


def test_json_is_what_the_standard_knows():
  value = {
    'path': Path('a/b'), 3: (1, 2.5, None, True), 'numpy': np.float32(0.5),
    'array': np.array([[1, 2]]), 'bad': [float('nan'), np.inf, -np.inf],
  }  # fmt: skip
  assert json.loads(outcome.to_json(value)) == {
    'path': 'a/b', '3': [1, 2.5, None, True], 'numpy': 0.5, 'array': [[1, 2]],
    'bad': [None, None, None],
  }  # fmt: skip


def test_people_get_the_text_and_scripts_the_record(capsys):
  found = outcome.Outcome({'a': 1}, 'one')
  found.show(as_json=False)
  assert capsys.readouterr().out == 'one\n'
  found.show(as_json=True)
  assert json.loads(capsys.readouterr().out) == {'a': 1}
  outcome.Outcome({'a': 1}).show(as_json=False)
  assert capsys.readouterr().out == ''


def test_a_bad_result_is_shown_before_it_is_an_error(capsys):
  found = outcome.Outcome({'ok': False}, 'bad', DataError('not ready'))
  for as_json in (False, True):
    with pytest.raises(DataError, match='not ready'):
      found.show(as_json=as_json)
    assert capsys.readouterr().out
