"""Messages have one layout, whatever the tensor's own was."""

import pytest
import torch

from learning.messages import outgoing


@pytest.mark.parametrize("shape", [(2, 4, 1, 1), (2, 1, 3, 3), (1, 4, 3, 1), (), (0, 3)])
def test_strides_depend_on_the_shape_alone(shape):
    tensor = torch.randn(shape)
    if tensor.dim() == 4:
        tensor = tensor.to(memory_format=torch.channels_last)
    sent = outgoing(tensor.requires_grad_())
    assert torch.equal(sent, tensor)
    assert not sent.requires_grad
    assert sent.stride() == torch.empty(shape).stride()
