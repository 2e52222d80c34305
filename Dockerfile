# The image of eidproxy. Two stages: the first installs, the second holds the result and nothing to build with.
# Pin the base to a digest in your own build: --build-arg PYTHON_IMAGE=python:3.13-slim-trixie@sha256:…
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
# The lock comes first: a change of the program alone reuses the installed dependencies.
# Every file is checked against its hash, and no package may run a build script of its own.
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/eidproxy \
    && python -m pip --python /opt/eidproxy/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --only-binary :all: --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY eidproxy/ eidproxy/
# Built with the locked setuptools and without an index, so this step fetches nothing; then what built it goes.
RUN python -m pip --python /opt/eidproxy/bin/python install --no-cache-dir --disable-pip-version-check \
        --no-deps --no-index --no-build-isolation . \
    && python -m pip --python /opt/eidproxy/bin/python uninstall --yes setuptools wheel packaging

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="eidproxy" \
      org.opencontainers.image.description="A local-only sidecar proxy for self-hosted language models" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/eidproxy /opt/eidproxy
# Nothing is written at run time: start it with a read-only root and without a single capability.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8790
# SIGTERM drains: give the container more time than server.drain_seconds (60).
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/eidproxy/bin/python", "-Ic", "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('EIDPROXY_SERVER_PORT', '8790')), timeout=2); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["/opt/eidproxy/bin/eidproxy"]
CMD ["serve"]
