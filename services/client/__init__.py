"""What speaks to a running site over its REST API."""
