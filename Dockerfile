# docker build -t amd-plugin . && docker run --rm -v "$PWD/runs:/data/runs" amd-plugin train modes2d
# For GPUs: docker build --build-arg TORCH=https://download.pytorch.org/whl/cu130 -t amd-plugin . && docker run --gpus all ...
FROM python:3.11-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY amd_plugin amd_plugin
COPY recipes recipes
RUN pip install --index-url "$TORCH" --constraint constraints.txt --extra-index-url https://pypi.org/simple torch \
    && pip install --constraint constraints.txt .
WORKDIR /data
ENV AMD_PLUGIN_CACHE=/data/cache
ENTRYPOINT ["amd-plugin"]
