"""Checks of a machine, or of a cluster and the run that is to go there, before training.

| file | checks |
|---|---|
| here | what is installed and which devices there are |
| nodes | every node answers |
| versions | and has the same versions |
| memory | the object store of each node, and the shared memory under it |
| devices | PyTorch sees the GPUs that Ray counts |
| clocks | how far the nodes' clocks are apart |
| network | how fast messages go from node to node |
| storage | every node can write where checkpoints go |
| fit | the plan of a run finds room |

`examination.examine` does them all. Nothing is imported here: nodes import what they are asked.
"""
