# The API process: no torch, no compiler. RUNTIME=gpu brings ONNX Runtime with CUDA and cuDNN, cpu the small one.
# Every package is named by version and digest in docker/hashes/, which docker/hashes.sh writes; docker/pin.sh gives PYTHON's.
ARG PYTHON=python:3.11-slim-bookworm
# What the site's page draws charts with, by the digests of docker/page/package-lock.json.
FROM $PYTHON AS page
WORKDIR /src
RUN apt-get update && apt-get install --yes --no-install-recommends npm
COPY docker/page/package.json docker/page/package-lock.json ./
RUN npm ci --omit=dev --ignore-scripts --no-audit --no-fund

FROM $PYTHON AS build
ARG RUNTIME=gpu
WORKDIR /src
RUN python -m venv /opt/relay && python -m venv /opt/build
COPY docker/hashes docker/hashes
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r docker/hashes/build.txt \
    && /opt/relay/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r "docker/hashes/api-$RUNTIME.txt"
COPY pyproject.toml README.md LICENSE ./
COPY relay_core relay_core
COPY services services
COPY --from=page /src/node_modules/uplot/dist/uPlot.esm.js /src/node_modules/uplot/dist/uPlot.min.css services/api/web/vendor/
COPY --from=page /src/node_modules/uplot/LICENSE services/api/web/vendor/uPlot.LICENSE
RUN /opt/build/bin/pip wheel --no-cache-dir --no-index --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/relay/bin/pip install --no-cache-dir --no-index --no-deps /dist/*.whl \
    && /opt/relay/bin/pip uninstall --yes --quiet pip

FROM $PYTHON
COPY --from=build /opt/relay /opt/relay
RUN mkdir -p /data /var/lib/relay/artifacts /var/lib/relay/inbox && chown -R 10001:10001 /var/lib/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    RELAY_HOME=/var/lib/relay RELAY_DATA_ROOT=/data RELAY_INBOX=/var/lib/relay/inbox RELAY_HOST=0.0.0.0 RELAY_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "services.api"]
