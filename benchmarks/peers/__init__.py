"""Who is timed: name → where it is. To add a peer: a file here, and one line in PEERS.

Every entry is an object with the methods of `Peer` (base.py); it is loaded on use, and what cannot
be loaded is named with the reason.
"""

from __future__ import annotations

from importlib import import_module

from benchmarks.peers.base import Peer

OURS: dict[str, str] = {
    "tnc.einsum": "benchmarks.peers.ours:EINSUM",
    "tnc function": "benchmarks.peers.ours:FUNCTION",
    "tnc module": "benchmarks.peers.ours:AUTO",
    "tnc module numpy": "benchmarks.peers.ours:NUMPY",
    "tnc module torch": "benchmarks.peers.ours:TORCH",
}
PEERS: dict[str, str] = {
    "numpy.einsum": "benchmarks.peers.numpy_einsum:PEER",
    "opt_einsum numpy": "benchmarks.peers.opt_einsum:ON_NUMPY",
    "opt_einsum torch": "benchmarks.peers.opt_einsum:ON_TORCH",
    "cotengra numpy": "benchmarks.peers.cotengra:ON_NUMPY",
    "cotengra torch": "benchmarks.peers.cotengra:ON_TORCH",
    "torch.einsum": "benchmarks.peers.torch_einsum:PEER",
    "torch.compile": "benchmarks.peers.torch_compile:PEER",
    "tensorly-torch": "benchmarks.peers.tensorly_torch:FACTORIZED",
    "tensorly-torch dense": "benchmarks.peers.tensorly_torch:RECONSTRUCTED",
    "tensorkrowch": "benchmarks.peers.tensorkrowch:PEER",
    "tednet": "benchmarks.peers.tednet:PEER",
    "torchtt": "benchmarks.peers.torchtt:PEER",
    "torch conv sequence": "benchmarks.peers.convolution:SEQUENCE",
    "torch conv dense": "benchmarks.peers.convolution:RECONSTRUCTED",
    "reconstruct numpy": "benchmarks.peers.reconstruct:ON_NUMPY",
    "reconstruct torch": "benchmarks.peers.reconstruct:ON_TORCH",
    "dense layer": "benchmarks.peers.dense:PEER",
}
# Ours that the promises are about: on NumPy arrays forward, a torch module in training.
HEADLINE = {"forward": "tnc function", "step": "tnc module"}
RECONSTRUCTION = ("reconstruct numpy", "reconstruct torch")


def load_peer(name: str) -> Peer:
    """A peer by its name in OURS or PEERS."""
    module, _, attribute = {**OURS, **PEERS}[name].partition(":")
    peer: Peer = getattr(import_module(module), attribute)
    return peer
