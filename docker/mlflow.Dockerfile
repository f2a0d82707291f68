# The MLflow server, with what PostgreSQL and S3 need. Build from the root of the repository:
#   docker build --file docker/mlflow.Dockerfile --tag pcl-ray-mlflow:0.1.0 .
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:${PATH}
WORKDIR /src
COPY requirements.lock docker/requirements-mlflow.txt ./
RUN python -m venv /opt/venv \
    && pip install --requirement requirements-mlflow.txt --constraint requirements.lock \
    && pip check

FROM ${PYTHON_IMAGE}
ARG APP_UID=1000
ARG APP_GID=1000
RUN groupadd --non-unique --gid "${APP_GID}" mlflow \
    && useradd --non-unique --uid "${APP_UID}" --gid "${APP_GID}" --create-home mlflow \
    && install --directory --owner "${APP_UID}" --group "${APP_GID}" /mlartifacts
COPY --from=build /opt/venv /opt/venv
COPY --chmod=755 docker/mlflow_entrypoint.py docker/health.py /usr/local/bin/
ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    MLFLOW_DISABLE_TELEMETRY=true \
    DO_NOT_TRACK=true \
    GIT_PYTHON_REFRESH=quiet
USER ${APP_UID}:${APP_GID}
WORKDIR /home/mlflow
ENTRYPOINT ["python", "/usr/local/bin/mlflow_entrypoint.py"]
CMD ["mlflow", "server", "--host", "0.0.0.0", "--port", "5000", "--workers", "1", "--artifacts-destination", "/mlartifacts"]
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=4 \
    CMD ["python", "/usr/local/bin/health.py", "http://127.0.0.1:5000/health"]
