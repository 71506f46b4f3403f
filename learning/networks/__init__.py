"""Built-in networks, each an `nn.Sequential` of named units, and the user's own by import path."""

from learning.networks.build import NetworkSettings, build_network
from learning.networks.common import ACTIVATIONS, Activation
from learning.networks.custom import CustomSettings
from learning.networks.gpt import GPTSettings
from learning.networks.mlp import MLPSettings
from learning.networks.resnet import BottleneckBlock, ResidualBlock, ResNetSettings
from learning.networks.vgg import VGG8bSettings
from learning.networks.vit import ViTSettings

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BottleneckBlock",
    "CustomSettings",
    "GPTSettings",
    "MLPSettings",
    "NetworkSettings",
    "ResNetSettings",
    "ResidualBlock",
    "VGG8bSettings",
    "ViTSettings",
    "build_network",
]
