"""Scripts that measure; a package of its own name, since an installed one of that name would be found instead."""
