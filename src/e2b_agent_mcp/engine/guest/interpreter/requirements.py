"""The distributions that a template must hold for contexts to work as E2B's do."""

KERNEL_REQUIREMENTS = (
    "ipykernel>=6.31,<8",
    "bash_kernel>=0.10,<1",
    "deno>=2.5,<3",
    "pyzmq>=26",
    "matplotlib-inline",
    "e2b-charts",
    "pip",
)
