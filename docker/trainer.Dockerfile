# The worker: torch with the CUDA runtime that its wheels bring. For a machine without a GPU a smaller image comes from
#   docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu ...
FROM python:3.11-slim-bookworm AS build
ARG TORCH_INDEX=
WORKDIR /src
RUN python -m venv /opt/relay
COPY constraints.txt ./
RUN /opt/relay/bin/pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE ./
# With the compiled ops, if `make ops` has left them in relay_core/cuda/lib; without them the image runs torch's own.
COPY relay_core relay_core
COPY services services
RUN /opt/relay/bin/pip install --no-cache-dir --constraint constraints.txt '.[trainer,cpu]' \
    && /opt/relay/bin/pip uninstall --yes --quiet pip

FROM python:3.11-slim-bookworm
COPY --from=build /opt/relay /opt/relay
RUN mkdir -p /data /var/lib/relay/artifacts /var/lib/relay/work && mkdir -m 700 /var/lib/relay/keys /var/lib/relay/backups \
    && chown -R 10001:10001 /var/lib/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    RELAY_HOME=/var/lib/relay RELAY_DATA_ROOT=/data
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["python", "-m", "services.trainer.health"]
CMD ["python", "-m", "services.trainer.worker"]
