"""One site's REST API. This process never imports torch."""
