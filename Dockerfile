# On the CPU:
#     docker build -t sod .
#     docker run --rm -p 7860:7860 -v sod-cache:/cache sod
# On an NVIDIA GPU (cu126, cu130 and cu132 are the CUDA versions that this torch is built for):
#     docker build -t sod:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#     docker run --rm --gpus all -p 7860:7860 -v sod-cache:/cache sod:cuda
FROM python:3.11-slim

LABEL org.opencontainers.image.title="Suppression or Deletion" \
      org.opencontainers.image.description="Shows live whether an unlearned class was deleted or only suppressed" \
      org.opencontainers.image.licenses="MIT"

# Hugging Face Spaces run a container as user 1000. A new volume takes over the owner of the folder it is mounted on;
# a folder of the host (-v /some/folder:/cache) does not: it must be writable for user 1000.
RUN useradd --create-home --uid 1000 user \
    && install --directory --owner=user --group=user /cache
WORKDIR /home/user/app

# Packages first, so that a change to the app installs none of them again.
COPY requirements.txt ./

# The CPU wheels are a tenth of the size of PyPI's, which carry CUDA. torch and torchvision come from this index and
# from nowhere else: beside PyPI as one index of two, an index that cannot be reached would mean PyPI's wheels, unasked.
# What they need comes with the rest, from PyPI.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" --constraint requirements.txt torch torchvision \
    && pip install --no-cache-dir --requirement requirements.txt

# The app, what changes least first. Files keep the modes of the checkout, which may let only their owner read them.
COPY --chown=user:user LICENSE ./
COPY --chown=user:user assets ./assets
COPY --chown=user:user app.py ./
COPY --chown=user:user sod_core ./sod_core

# Downloaded packs and what was made out of them outlive the container. Visitors' images do not: they are in /tmp.
ENV HOME=/home/user \
    HF_HOME=/cache/huggingface \
    GRADIO_SERVER_NAME=0.0.0.0 \
    GRADIO_SERVER_PORT=7860 \
    PYTHONUNBUFFERED=1
VOLUME /cache
EXPOSE 7860

# By number: only then can Kubernetes see that it is not root.
USER 1000

# Python as process 1 ignores SIGTERM, so that `docker stop` would wait ten seconds and kill it.
STOPSIGNAL SIGINT

# slim has no curl. No proxy: Docker may hand the container one, and 127.0.0.1 cannot be reached through it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['GRADIO_SERVER_PORT'], timeout=8)"]

CMD ["python", "app.py"]
