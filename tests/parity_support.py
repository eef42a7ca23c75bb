"""The libraries that networks are compared with."""

from unittest import mock

import pytest


def torch_libraries():
  """(torch, torchvision, timm); skips the test where one is missing."""
  torch = pytest.importorskip('torch')
  # torchvision cannot be imported if its compiled operators, which no network here uses, are built
  # for another PyTorch; registering them is what fails.
  with mock.patch.object(torch.library, 'register_fake', return_value=lambda f: f):
    return torch, pytest.importorskip('torchvision'), pytest.importorskip('timm')
