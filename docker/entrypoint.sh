#!/bin/sh
# What every Ray container runs first. Where MLflow asks for a login, its password comes from a file: environments are printed, files are not.
set -eu
password=${MLFLOW_PASSWORD_FILE:-/run/secrets/mlflow_admin_password}
if [ -s "$password" ]; then
  MLFLOW_TRACKING_USERNAME=${MLFLOW_TRACKING_USERNAME:-admin}
  MLFLOW_TRACKING_PASSWORD=$(cat "$password")
  export MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
fi
token=${RAY_AUTH_TOKEN_PATH:-}
if [ -n "$token" ] && [ ! -r "$token" ]; then
  echo "entrypoint: user $(id -u) cannot read $token; run docker/make_secrets.sh as the user whose number is PCL_RAY_UID in docker/.env" >&2
  exit 2
fi
exec "$@"
