#!/usr/bin/env python3
"""The entry point of the MLflow container: reads secrets from files, brings the database's tables up to date,
then runs the command that it was given.

Nothing secret is ever an argument of a process: the address of the store goes by MLFLOW_BACKEND_STORE_URI.

PGHOST, PGPORT, PGUSER, PGDATABASE   the database
PGPASSWORD_FILE                      its password
MLFLOW_ADMIN_PASSWORD_FILE           password of the user admin; missing or empty: no login
MLFLOW_FLASK_KEY_FILE                signs MLflow's forms where there is a login
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

_SHORTEST = 12  # MLflow refuses a shorter one, after a minute and in many lines


def secret(environment: Mapping[str, str], name: str) -> str:
    """The content of the file that this variable names; empty where there is none."""
    path = environment.get(name, "")
    try:
        return Path(path).read_text().strip() if path else ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        sys.exit(
            f"{name}: {path} cannot be read by user {os.getuid()} ({error.strerror}); see the secrets in"
            " docker/README.md"
        )


def store_uri(environment: Mapping[str, str]) -> str:
    """The address of the PostgreSQL database, with its password."""
    password = secret(environment, "PGPASSWORD_FILE")
    if not password:
        sys.exit(
            f"PGPASSWORD_FILE: {environment.get('PGPASSWORD_FILE', 'not set')}: no password of the database"
            " there; docker/make_secrets.sh writes it"
        )
    user = environment.get("PGUSER", "mlflow")
    host = environment.get("PGHOST", "postgres")
    port = environment.get("PGPORT", "5432")
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    return f"postgresql+psycopg2://{login}@{host}:{port}/{environment.get('PGDATABASE', 'mlflow')}"


def with_login(environment: dict[str, str], uri: str, password: str) -> None:
    """Sets what MLflow's login needs; its users lie in the same database."""
    if len(password) < _SHORTEST:
        sys.exit(
            f"MLFLOW_ADMIN_PASSWORD_FILE: the password has {len(password)} characters; MLflow wants"
            f" {_SHORTEST} or more"
        )
    key = secret(environment, "MLFLOW_FLASK_KEY_FILE")
    if not key:
        sys.exit("MLFLOW_FLASK_KEY_FILE: a login needs a key there; docker/make_secrets.sh writes it")
    handle, path = tempfile.mkstemp(suffix=".ini")  # readable by this user alone
    with os.fdopen(handle, "w") as file:
        escaped = uri.replace("%", "%%")  # the file's own sign for what is to be filled in
        file.write(f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {escaped}\nadmin_username = admin\n")
        file.write("authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n")
    environment.update(
        MLFLOW_AUTH_CONFIG_PATH=path, MLFLOW_AUTH_ADMIN_USERNAME="admin", MLFLOW_AUTH_ADMIN_PASSWORD=password
    )
    environment["MLFLOW_FLASK_SERVER_SECRET_KEY"] = key


def upgrade(uri: str) -> None:
    """`mlflow db upgrade`, which also makes the tables of an empty database; in this process, since its
    address must not be an argument.
    """
    from mlflow.db import commands

    commands.main(args=["upgrade", uri], standalone_mode=False)


def main(command: list[str]) -> None:
    environment = dict(os.environ)
    if command[:2] == ["mlflow", "server"]:
        uri = store_uri(environment)
        environment["MLFLOW_BACKEND_STORE_URI"] = uri
        password = secret(environment, "MLFLOW_ADMIN_PASSWORD_FILE")
        if password:
            with_login(environment, uri, password)
            command = [*command, "--app-name", "basic-auth"]
        upgrade(uri)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit("usage: mlflow_entrypoint.py mlflow server …"))
