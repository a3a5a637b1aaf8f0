"""The surroundings of every test; set before Ray, torch or the hub are imported, and inherited by child processes."""

import os
from importlib.util import find_spec

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if find_spec("vllm"):  # which needs torchvision; our own tests keep transformers from looking for it
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
