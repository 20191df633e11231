"""The product at the size it exists for, on a real GPU, in one command of a few minutes.

    python -m benchmarks.gpu                             # LLaDA-V's 8B shape on the first GPU
    python -m benchmarks.gpu --shape tiny --device cpu   # the same parts, small: to try the command

`__main__` starts the parts one after the other, each as a process of its own with a time limit.
A part writes every figure as soon as it is known (`record`), so a run that is cut off keeps what
it has. `report` makes the page. `wheels` carries the few packages that a bare machine lacks.
"""
