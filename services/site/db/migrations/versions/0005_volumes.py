"""What proves that the site's volumes are mounted, and since when stored files are not needed.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volumes",
        sa.Column("name", sa.String(length=20), nullable=False),
        sa.Column("site", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_volumes")),
    )
    op.create_table(
        "unneeded",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("let_go", sa.Boolean(), nullable=False),
        sa.Column("age", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_unneeded")),
    )


def downgrade() -> None:
    op.drop_table("unneeded")
    op.drop_table("volumes")
