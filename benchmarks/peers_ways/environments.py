"""An environment of its own for each peer, made where it is missing: torch first, so that the peer cannot change it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
OURS = ("hyperlens", "plain", "naive")
"""What runs in the environment of this process."""
PACKAGES: dict[str, tuple[str, ...]] = {
    "transformer_lens": ("transformer-lens",),
    "nnsight": ("nnsight", "accelerate"),
    "nnterp": ("nnterp", "nnsight<0.8"),
    "tuned_lens": ("tuned-lens==0.2.0",),
}
"""What is installed for each. nnterp does not import with the nnsight that it would be given; version 0.7 works."""
PEERS = (*OURS, *PACKAGES)
TITLES = {"hyperlens": "HyperLens", "plain": "plain loop", "naive": "naive HyperLens", "transformer_lens": "TransformerLens"}
TITLES |= {"nnsight": "nnsight", "nnterp": "nnterp", "tuned_lens": "tuned-lens"}
IMPORTS = {
    "hyperlens": ("import hyperlens", "from hyperlens import load_model, trace"),
    "plain": ("from transformers import AutoModelForCausalLM", "from transformers import LlamaForCausalLM"),
    "transformer_lens": ("from transformer_lens.model_bridge import TransformerBridge",),
    "nnsight": ("from nnsight import TransformersModel",),
    "nnterp": ("from nnterp import StandardizedTransformer",),
    "tuned_lens": ("from tuned_lens.nn.lenses import LogitLens",),
}
"""What one writes to begin. The name of our package alone imports next to nothing, so it is shown beside."""


def find_python(peer: str, folder: Path) -> str:
    """The interpreter of a peer's environment, which is made where it is missing. Raises CalledProcessError."""
    if peer in OURS:
        return sys.executable
    python = folder / peer / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", f"import {peer}"], capture_output=True).returncode:
        print(f"making the environment {python.parent.parent}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / peer)], check=True, stdout=sys.stderr)
        for wanted in ((TORCH,), (*PACKAGES[peer], TORCH)):
            command = [str(python), "-m", "pip", "install", "--quiet", *wanted]
            subprocess.run(command, check=True, stdout=sys.stderr)
    return str(python)
