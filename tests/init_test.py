"""The names that the package itself has: quick to import, stable, not hidden by modules."""

import inspect
import subprocess
import sys

import pytest

import emseg_jax

QUICK = """
import sys, time
began = time.perf_counter()
import emseg_jax
print(time.perf_counter() - began, 'jax' in sys.modules, 'numpy' in sys.modules)
"""


def test_importing_the_package_is_quick_and_starts_nothing():
  said = subprocess.check_output([sys.executable, '-c', QUICK], text=True).split()
  assert float(said[0]) < 1.0
  assert said[1:] == ['False', 'False']


@pytest.mark.parametrize('name', emseg_jax.__all__)
def test_every_name_is_a_documented_callable_and_stays_one(name):
  import emseg_jax.main  # imports most modules, which become attributes of the package

  assert emseg_jax.main
  found = getattr(emseg_jax, name)
  assert callable(found)
  assert inspect.getdoc(found)
  if inspect.isfunction(found):
    assert found.__annotations__.keys() == {*inspect.signature(found).parameters, 'return'}


def test_another_name_is_unknown():
  with pytest.raises(AttributeError, match="has no attribute 'tarin'"):
    _ = emseg_jax.tarin
