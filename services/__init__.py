"""The processes of one site: what surrounds `relay_core`, which never imports from here."""
