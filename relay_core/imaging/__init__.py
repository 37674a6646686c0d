"""Medical images in and out: files, studies, geometry, measurements. Imports no torch."""
