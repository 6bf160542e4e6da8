# condinst on a CPU, with the versions the tests run with. In a clone of the repository:
#   docker build -f engines/docker/cpu.Dockerfile -t condinst .
#   docker run --rm -p 8000:8000 -v "$PWD/model.onnx:/models/model.onnx:ro" condinst
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
# for OpenVINO: --build-arg EXTRAS=cpu,openvino,serve
ARG EXTRAS=cpu,serve
RUN python -m venv /opt/condinst \
    && /opt/condinst/bin/pip install --no-cache-dir -c requirements-dev.txt ".[$EXTRAS]"

FROM python:3.11-slim-bookworm
COPY --from=build /opt/condinst /opt/condinst
ENV PATH=/opt/condinst/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["condinst"]
CMD ["serve", "/models/model.onnx", "--host", "0.0.0.0"]
