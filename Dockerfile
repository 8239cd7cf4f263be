# syntax=docker/dockerfile:1
# One image for all roles: docker run annheal serve coordinator|shard-node|compactor, or `up`.

ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/annheal
WORKDIR /src
# Dependencies change less often than the code: they get a layer of their own.
COPY pyproject.toml constraints.txt LICENSE ./
RUN mkdir annheal && touch annheal/__init__.py \
    && /opt/annheal/bin/pip install --quiet -c constraints.txt ".[text]" \
    && /opt/annheal/bin/pip uninstall --quiet --yes annheal
# annheal/ holds links to the four services beside it.
COPY annheal annheal
COPY coordinator coordinator
COPY shard_node shard_node
COPY compactor compactor
COPY cli cli
RUN rm -rf build && /opt/annheal/bin/pip install --quiet --no-deps . \
    && /opt/annheal/bin/pip uninstall --quiet --yes pip \
    && /opt/annheal/bin/python -m compileall -q /opt/annheal/lib
# Search kernels, for processors like that of the machine that builds the image. On others, servers
# compile them into ANNHEAL_KERNEL_CACHE when they start, and answer without them meanwhile.
RUN /opt/annheal/bin/annheal kernels build --cache /opt/annheal/share/annheal/kernels \
    && chmod -R a+rX,go-w /opt/annheal/share/annheal

FROM python:${PYTHON_VERSION}-slim AS runtime
LABEL org.opencontainers.image.title="annheal" \
    org.opencontainers.image.description="A distributed vector-search cluster that keeps its own indexes healthy" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.1.0"
RUN groupadd --gid 10001 annheal \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/annheal \
        --shell /usr/sbin/nologin annheal \
    && install -d -o 10001 -g 10001 -m 0750 /var/lib/annheal
COPY --from=build /opt/annheal /opt/annheal
ENV PATH=/opt/annheal/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ANNHEAL_DATA_DIR=/var/lib/annheal \
    ANNHEAL_KERNEL_CACHE=/tmp/annheal-kernels
USER 10001:10001
WORKDIR /var/lib/annheal
VOLUME /var/lib/annheal
# coordinator, shard node, compactor
EXPOSE 7700 7710 7720
# The roles drain on SIGTERM and exit by themselves.
STOPSIGNAL SIGTERM
ENTRYPOINT ["annheal"]
CMD ["--help"]
