"""Every stage as a task: what it reads, what its key depends on, which stage function it calls. No maths here.

The functions called `run_...` are what an executor calls, in whatever process: (workbench, checkpoint slot, advance, inputs) -> payload.
"""
