# The API process: no torch, no compiler. RUNTIME=gpu brings ONNX Runtime with CUDA and cuDNN, cpu the small one.
FROM python:3.11-slim-bookworm AS build
ARG RUNTIME=gpu
WORKDIR /src
RUN python -m venv /opt/relay
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY relay_core relay_core
COPY services services
RUN /opt/relay/bin/pip install --no-cache-dir --constraint constraints.txt ".[api,$RUNTIME]" \
    && /opt/relay/bin/pip uninstall --yes --quiet pip

FROM python:3.11-slim-bookworm
COPY --from=build /opt/relay /opt/relay
RUN mkdir -p /data /var/lib/relay/artifacts /var/lib/relay/inbox && chown -R 10001:10001 /var/lib/relay
ENV PATH=/opt/relay/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    RELAY_HOME=/var/lib/relay RELAY_DATA_ROOT=/data RELAY_HOST=0.0.0.0 RELAY_PORT=8000
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["python", "-m", "services.api"]
