# syntax=docker/dockerfile:1
# The server with everything that trials need. The same image works with and without GPUs: CUDA's libraries come
# with torch, the driver from the machine (NVIDIA Container Toolkit). See docs/containers.md.
#
# Pin the base by its digest: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=train,postgres
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN python -m venv /opt/rankwise
WORKDIR /source
COPY . .
# constraints.txt are the versions that the tests ran with.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/rankwise/bin/pip install --cache-dir /var/cache/pip -c constraints.txt ".[${EXTRAS}]"

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="rankwise" \
      org.opencontainers.image.description="Which fine-tuning configuration to run, from measurements" \
      org.opencontainers.image.licenses="Apache-2.0"
# torch.compile builds its kernels where it runs.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 rankwise \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/rankwise --shell /usr/sbin/nologin rankwise \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/rankwise /var/cache/rankwise \
    && install --directory /data
COPY --from=build /opt/rankwise /opt/rankwise
ENV PATH=/opt/rankwise/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RANKWISE_HOME=/var/lib/rankwise \
    HF_HOME=/var/cache/rankwise
USER 10001:10001
WORKDIR /data
VOLUME ["/var/lib/rankwise", "/var/cache/rankwise"]
EXPOSE 8321
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=4 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8321/readyz', timeout=4)"]
ENTRYPOINT ["rankwise"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8321", "--allow-root", "/data"]
