"""Boxes in milliseconds: processes that are forked, not started.

The zygote has imported what a guest and a Python kernel need, scientific stack included. For
each box it forks:

    zygote ──► entrant ──► nursery ──┬─► guest
    (outer box)   joins the new box  └─► Python kernels, when the guest asks

Rules:
- The zygote is trusted and lives in an outer box that holds nothing of value and is read-only but
  for the homes. It has no thread, no event loop and no zmq context: a fork would break them.
- Whatever shows a difference between a forked kernel and a started one is a bug: same paths, same
  variables, same modules to be found. Two things remain shared by all boxes of a zygote: the
  layout of memory and the seed of `hash`.
- Between joining a box and giving up every right nothing is imported: the box could have
  brought the module.
"""
