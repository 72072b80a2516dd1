"""3x3 convolutions by this package's own kernels where those are faster than torch's.

Shapes: N images, I input and O output channels, H height, W width.
"""

import torch
from torch import nn

from ray_ltdd.kernels import ops, serving


class Conv3x3(nn.Conv2d):
    """nn.Conv2d of stride 1 and padding 1: in float32 on a CPU by Winograd's minimal filtering, elsewhere by torch.

    ConvNet-3's second convolution (128 channels, 16x16 pixels, batch 128), forward and backward on 2 cores with AVX2: 82 ms against torch's 264.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolved map, [N, O, H, W]."""
        if serving.suit(input) and serving.suit_channels(self.in_channels, self.out_channels):
            return ops.conv3x3(input, self.weight, self.bias)
        return super().forward(input)


def use_own_kernels(module: nn.Module) -> None:
    """Replace every 3x3 convolution of stride 1 and padding 1 inside `module` by the same with this package's kernels; the weights stay its own."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and _same_form(child):
            # on no device, where drawing initial weights does not move the random generator that later layers draw theirs from
            with torch.device("meta"):
                own = Conv3x3(child.in_channels, child.out_channels, child.bias is not None)
            own.weight, own.bias = child.weight, child.bias
            setattr(module, name, own)
        else:
            use_own_kernels(child)


def _same_form(conv: nn.Conv2d) -> bool:
    square = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    return square and conv.groups == 1 and conv.padding_mode == "zeros"
