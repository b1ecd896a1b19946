# Written for GPU users; neither built nor tested by this project. The host needs the NVIDIA driver and Container Toolkit.
#   docker build -t map-detection .
#   docker run --rm --gpus all --shm-size 8g -v DATASET:/app/data/nuscenes -v "$PWD/outputs:/app/outputs" \
#       -v "$HOME/.cache/huggingface:/weights" map-detection bash scripts/train_stage2.sh
FROM python:3.11-slim

WORKDIR /app
# PyTorch's wheels bring CUDA's libraries along, so a plain Python image is enough.
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY . .

ENV HF_HOME=/weights PYTHONUNBUFFERED=1
CMD ["bash", "scripts/train_stage2.sh", "--help"]
