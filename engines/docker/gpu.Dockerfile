# condinst on an NVIDIA GPU, with the TensorRT of the base. In a clone of the repository:
#   docker build -f engines/docker/gpu.Dockerfile -t condinst:gpu .
# An engine belongs to its TensorRT and its GPU, so it is built by the image, on the machine:
#   docker run --rm --gpus all -v "$PWD/models:/models" --user "$(id -u)" condinst:gpu \
#       build /models/model.onnx -o /models/model.engine
#   docker run --rm --gpus all -p 8000:8000 -v "$PWD/models:/models:ro" condinst:gpu
FROM nvcr.io/nvidia/tensorrt:25.05-py3 AS build
WORKDIR /source
COPY . .
# TensorRT 10.10 and CUDA 12.9 are the base's; bindings of CUDA 13 may want a newer driver
RUN python3 -m venv --without-pip --system-site-packages /opt/condinst \
    && python3 -m pip --python /opt/condinst/bin/python install --no-cache-dir \
        ".[cuda,serve]" "onnx>=1.17" "cuda-bindings==12.9.*" \
    && /opt/condinst/bin/python -c "import tensorrt; print(tensorrt.__version__)"

FROM nvcr.io/nvidia/tensorrt:25.05-py3
COPY --from=build /opt/condinst /opt/condinst
ENV PATH=/opt/condinst/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["condinst"]
CMD ["serve", "/models/model.engine", "--host", "0.0.0.0"]
