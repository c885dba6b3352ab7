"""Image files by their format: headers and pixels, each bounded before memory is taken. No header names a file elsewhere."""
