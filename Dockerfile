# emseg_jax in a container, as a user without rights.
#
#   docker build --tag emseg_jax .                                  # CPU
#   docker build --tag emseg_jax:cuda --build-arg EXTRAS=cuda13 .   # NVIDIA GPUs
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/work" emseg_jax \
#       --config=auto:FOLDER --workdir=runs/mine                    # with CUDA also: --gpus=all
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

# Comma-separated extras of pyproject.toml, such as cuda13, cuda12 or nifti.
ARG EXTRAS=""
WORKDIR /src
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY emseg_jax emseg_jax
COPY configs configs
RUN python -m venv /opt/emseg \
 && /opt/emseg/bin/pip install --no-cache-dir ".${EXTRAS:+[${EXTRAS}]}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/emseg /opt/emseg
# Caches and the home of any user that --user names.
RUN useradd --create-home --uid 1000 emseg \
 && install --directory --mode=1777 /work /cache
ENV PATH=/opt/emseg/bin:$PATH \
    HOME=/cache \
    MPLCONFIGDIR=/cache/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["python", "-m", "emseg_jax.main"]
CMD ["--help"]
