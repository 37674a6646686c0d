"""The site's database: models, sessions, migrations."""

from services.site.db.engine import Database
from services.site.db.models import Base, new_id

__all__ = ["Base", "Database", "new_id"]
