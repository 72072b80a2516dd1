"""Convolutions where this package's kernels, or products of bfloat16 values, are faster than what torch does in float32.

Shapes: N images, I input and O output channels, H height, W width.
"""

import torch
from torch import nn

from ray_ltdd.kernels import ops, serving


class Convolution(nn.Conv2d):
    """nn.Conv2d whose operands torch multiplies as bfloat16 values where `serving.bfloat16_products` is in force, if it has 16 channels in or more.

    The map that comes in and the one that goes out are float32. AlexNet's second convolution (64 to 192 channels, 5x5, 16x16 pixels, batch 25),
    forward and backward on one core with AVX512-BF16: 52 ms against 93 in float32.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolved map, [N, O, H, W]."""
        if not (serving.suit(input, smallest=1) and serving.products_are_bfloat16() and self.in_channels >= serving.BLOCK):
            return super().forward(input)
        out_NOHW = self._conv_forward(input.bfloat16(), self.weight.bfloat16(), None).float()
        return out_NOHW if self.bias is None else out_NOHW + self.bias[:, None, None]


class Conv3x3(Convolution):
    """A convolution of stride 1 and padding 1: in float32 on a CPU by Winograd's minimal filtering, elsewhere by torch.

    ConvNet-3's second convolution (128 channels, 16x16 pixels, batch 128), forward and backward on 2 cores with AVX2: 82 ms against torch's 264.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolved map, [N, O, H, W]."""
        channels = self.in_channels, self.out_channels
        if serving.suit(input) and serving.suit_channels(*channels) and not serving.weights_outweigh(input, *channels):
            return ops.conv3x3(input, self.weight, self.bias)
        return super().forward(input)


def use_own_kernels(module: nn.Module) -> None:
    """Replace every convolution inside `module` by `Conv3x3` where it has stride 1 and padding 1, else by `Convolution`; the weights stay its own."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            # on no device, where drawing initial weights does not move the random generator that later layers draw theirs from
            with torch.device("meta"):
                own = _like(child)
            own.weight, own.bias = child.weight, child.bias
            setattr(module, name, own)
        else:
            use_own_kernels(child)


def _like(conv: nn.Conv2d) -> Convolution:
    bias = conv.bias is not None
    square = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    if square and conv.groups == 1 and conv.padding_mode == "zeros":
        return Conv3x3(conv.in_channels, conv.out_channels, bias)
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, bias, conv.padding_mode)
    return Convolution(conv.in_channels, conv.out_channels, *form)  # type: ignore[arg-type]
