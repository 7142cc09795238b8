"""Runs under Ray that meet random faults: of workers, of the command, of Ray itself, of nodes, stores and checkpoints.

The command imports `tests.ray_chaos.worker` (`--import`), by which workers meet their faults at the very step, and slow
their steps down, so that there is something to disturb. What must be done from outside, such as killing a node, is
done by `tests.ray_chaos.commands` once a worker says that the step has come.
"""
