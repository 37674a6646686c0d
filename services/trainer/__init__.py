"""A site's workers: they claim jobs from the database and run the relay core in processes of their own."""
