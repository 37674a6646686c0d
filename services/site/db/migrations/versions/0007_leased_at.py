"""When a lease was written, so that one of a clock that ran ahead is told from one that holds.

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("leased_at", sa.Double(), nullable=True))
    op.add_column("device_leases", sa.Column("leased_at", sa.Double(), nullable=True))


def downgrade() -> None:
    op.drop_column("device_leases", "leased_at")
    op.drop_column("jobs", "leased_at")
