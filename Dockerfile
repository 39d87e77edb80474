# CPU:  docker build -t xcit_mm .
#       docker run xcit_mm demo
#       docker run xcit_mm test
# GPU:  docker build -t xcit_mm --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#       docker run --gpus all --shm-size 8g -v "$PWD/data:/xcit_mm/data" -v "$PWD/work_dirs:/xcit_mm/work_dirs" xcit_mm demo
# Any base with Debian's or Ubuntu's packages and Python 3.10 to 3.12 will do.
ARG BASE=ubuntu:24.04
FROM ${BASE}

# Unpinned, for any base. gcc and the headers are for Triton and torch.compile, which compile at run time.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-venv python3-dev gcc g++ git libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /xcit_mm
COPY . .
RUN python3 tools/quickstart.py install && rm -rf /root/.cache/pip
ENV PATH=/xcit_mm/.venv/bin:$PATH

ENTRYPOINT ["python3", "tools/quickstart.py"]
CMD ["demo"]
