# One image for every service; the command says which. BASE is pinned by digest where it is built for production:
#   docker build --build-arg BASE=python:3.11-slim@sha256:… .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/runtime.txt
RUN python -m venv /opt/postlane && \
    /opt/postlane/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt && \
    /opt/postlane/bin/pip install --no-cache-dir "hatchling>=1.25"
COPY pyproject.toml README.md ./
COPY libs libs
COPY services services
RUN /opt/postlane/bin/pip install --no-cache-dir --no-deps --no-build-isolation .

FROM ${BASE}
LABEL org.opencontainers.image.title="postlane" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home postlane && mkdir /data && chown postlane /data
COPY --from=build /opt/postlane /opt/postlane
ENV PATH=/opt/postlane/bin:$PATH PYTHONUNBUFFERED=1 POSTLANE_DATA_DIR=/data POSTLANE_HTTP_HOST=0.0.0.0
USER 10001
VOLUME /data
CMD ["postlane", "--help"]
