"""How many steps a checkpoint's training has, so that one whose solver alone is ready is told from a finished one.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("checkpoints", sa.Column("steps", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("checkpoints", "steps")
