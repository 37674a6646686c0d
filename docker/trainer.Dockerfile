# The worker: torch with the CUDA runtime that its wheels bring. For a machine without a GPU a smaller image comes from
#   docker/hashes.sh https://download.pytorch.org/whl/cpu
#   docker build --build-arg TORCH_HASHES=torch-cpu.txt --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu ...
# Every package is named by version and digest in docker/hashes/, which docker/hashes.sh writes; docker/pin.sh gives PYTHON's.
ARG PYTHON=python:3.11-slim-bookworm
FROM $PYTHON AS build
ARG TORCH_INDEX=
ARG TORCH_HASHES=torch.txt
WORKDIR /src
RUN python -m venv /opt/relay && python -m venv /opt/build
COPY docker/hashes docker/hashes
RUN /opt/relay/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r "docker/hashes/$TORCH_HASHES"
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r docker/hashes/build.txt \
    && /opt/relay/bin/pip install --no-cache-dir --require-hashes --only-binary :all: --no-deps -r docker/hashes/trainer.txt
COPY pyproject.toml README.md LICENSE ./
# With the compiled ops, if `make ops` has left them in relay_core/cuda/lib; without them the image runs torch's own.
COPY relay_core relay_core
COPY services services
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/relay/bin/pip install --no-cache-dir --no-index --no-deps /dist/*.whl \
    && /opt/relay/bin/pip check \
    && /opt/relay/bin/pip uninstall --yes --quiet pip

FROM $PYTHON
COPY --from=build /opt/relay /opt/relay
# The folder of backups is for the container `owner` alone, which runs from this image.
RUN mkdir -p /data /var/lib/relay/artifacts /var/lib/relay/work /var/lib/relay/heads \
    && mkdir -m 700 /var/lib/relay/keys /var/lib/relay/backups \
    && chown -R 10001:10001 /var/lib/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MPLCONFIGDIR=/tmp \
    RELAY_HOME=/var/lib/relay RELAY_DATA_ROOT=/data RELAY_KEYS=/var/lib/relay/keys RELAY_HEADS=/var/lib/relay/heads
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s --retries=3 CMD ["python", "-m", "services.trainer.health"]
CMD ["python", "-m", "services.trainer.worker"]
