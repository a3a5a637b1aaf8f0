"""Lets torchvision be imported beside a CPU build of torch, which cannot load torchvision's compiled part.

torchvision describes two of its compiled operators to torch when it is imported, so they are declared just before. vLLM
uses only the parts of torchvision that are written in Python. `make vllm-env` copies this file into the environment,
where every Python process imports it when it starts.
"""

import sys
from importlib.abc import MetaPathFinder


class OperatorDeclarer(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "FRAGMENT")  # it ends with the last reference to it
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


declarer = OperatorDeclarer()
sys.meta_path.insert(0, declarer)
