# Images for the nodes of a cluster, and for a scan without one:
#
#   docker build --target cuda -t me/deepsweep:0.1.0-cuda .
#   docker build --target cpu  -t me/deepsweep:0.1.0 --build-arg CPU_TORCH_INDEX=URL .
#   docker run --rm --shm-size=2g -v /archive:/archive:ro -v /results:/results me/deepsweep:0.1.0 \
#       deepsweep scan /archive --out /results
#
# CPU_TORCH_INDEX is PyTorch's package index of CPU builds; without it the cpu image works too, but carries CUDA.
# Python's minor version is that of constraints.txt, and must be the submitting machine's where Ray Client is used.
ARG PYTHON=3.11.7

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim-bookworm AS base
# wget: KubeRay's probes call it. rsync: `ray up` copies files into the container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends rsync wget \
    && rm -rf /var/lib/apt/lists/*
# Number 1000 is that of the first user of most Linux machines, so that folders can be shared with the host.
RUN useradd --uid 1000 --create-home --shell /bin/bash deepsweep
# `ray up` looks for HOME among the image's variables.
ENV HOME=/home/deepsweep \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/deepsweep
COPY constraints.txt /opt/deepsweep/

# Into the system's Python: KubeRay starts Ray in a login shell, which resets PATH.
FROM base AS cpu
ARG CPU_TORCH_INDEX=
RUN if [ -n "$CPU_TORCH_INDEX" ]; then \
        python -m pip install -c /opt/deepsweep/constraints.txt --index-url "$CPU_TORCH_INDEX" torch; \
    fi
COPY --from=wheel /wheels /opt/deepsweep/
# Two packages own the folder cv2; the one that needs no libGL must be the last one installed.
RUN python -m pip install -c /opt/deepsweep/constraints.txt /opt/deepsweep/deepsweep-*.whl \
    && python -m pip install -c /opt/deepsweep/constraints.txt --force-reinstall --no-deps opencv-python-headless
USER 1000:1000
HEALTHCHECK --interval=30m --timeout=5m --start-period=5m --retries=2 CMD ["deepsweep", "doctor"]
CMD ["deepsweep", "--help"]

FROM base AS cuda
# torch of the package index brings CUDA's libraries along; the driver is the host's.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=wheel /wheels /opt/deepsweep/
RUN python -m pip install -c /opt/deepsweep/constraints.txt /opt/deepsweep/deepsweep-*.whl \
    && python -m pip install -c /opt/deepsweep/constraints.txt --force-reinstall --no-deps opencv-python-headless
USER 1000:1000
HEALTHCHECK --interval=30m --timeout=5m --start-period=5m --retries=2 CMD ["deepsweep", "doctor"]
CMD ["deepsweep", "--help"]
