"""Independent references of every op: NumPy in float64, PyTorch, and Numba CUDA; they share no code."""
