#!/bin/sh
# Writes docker/.env and docker/secrets/, each secret a random one that only you can read. What is there already stays.
#   docker/make_secrets.sh                 everything; MLflow asks for no login
#   docker/make_secrets.sh --mlflow-login  and MLflow asks for one: user admin, password in docker/secrets/mlflow_admin_password.txt
set -eu
umask 077
cd "$(dirname "$0")"

case "${1:-}" in
  '') login= ;;
  --mlflow-login) login=yes ;;
  *) echo "usage: make_secrets.sh [--mlflow-login]" >&2; exit 2 ;;
esac

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
# keep FILE: takes standard input as its content, unless the file has one. No line's end: some readers would take it for a part of the secret.
keep() { if [ -s "secrets/$1" ]; then cat > /dev/null; else cat > "secrets/$1"; fi; }

# The images have one user, who reads the files under their number here. Root's files are given to number 1000: no container runs as root.
uid=$(id -u) gid=$(id -g)
[ "$uid" = 0 ] && uid=1000 gid=1000

mkdir -p secrets data
random 32 | keep ray_token.txt
random 24 | keep postgres_password.txt
random 24 | keep grafana_admin_password.txt
random 32 | keep mlflow_flask_key.txt
if [ -n "$login" ]; then random 12 | keep mlflow_admin_password.txt; else printf '' | keep mlflow_admin_password.txt; fi
if [ ! -s secrets/garage.env ]; then
  key=GK$(random 12) secret=$(random 32)
  printf 'GARAGE_RPC_SECRET=%s\nGARAGE_DEFAULT_ACCESS_KEY=%s\nGARAGE_DEFAULT_SECRET_KEY=%s\n' "$(random 32)" "$key" "$secret" > secrets/garage.env
  printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" > secrets/s3_credentials.txt
fi
chmod 600 secrets/*
chmod 755 data
if [ "$(id -u)" = 0 ]; then chown -R "$uid:$gid" secrets; fi

if [ ! -e .env ]; then
  sed -e "s/^PCL_RAY_UID=.*/PCL_RAY_UID=$uid/" -e "s/^PCL_RAY_GID=.*/PCL_RAY_GID=$gid/" .env.example > .env
  chmod 644 .env
fi
echo "secrets: $(ls secrets | tr '\n' ' ')"
