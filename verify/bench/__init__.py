"""Speed of routing kernels: own kernels, references and released libraries, measured side by side.

`compare_calls` of `.compare` measures two callables; the command `moeproof bench` measures whole suites of shapes.
Nothing here is imported by the rest of the harness.
"""
