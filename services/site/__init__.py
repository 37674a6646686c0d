"""What one site's processes share: settings, the database, jobs, artifacts, dispatch, errors, audit, access."""
