"""Read and write image files by format; sizes are bounded before memory is taken, and no header may name another file."""
