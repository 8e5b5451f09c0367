# SPDX-FileCopyrightText: The medloc_jax authors
# SPDX-License-Identifier: Apache-2.0
"""Servers on this machine that speak the protocols of s3:// and gs://.

Each is started once and lives as long as the tests: clients remember where they found it.
"""

import contextlib
import functools
import logging
import os
import socket
import socketserver
from unittest import mock

BUCKET = "bucket"


@contextlib.contextmanager
def s3():
    """Lets clients find s3://bucket; the variables hold for processes that are started, too."""
    with mock.patch.dict(os.environ, _s3()):
        _make_bucket()
        yield


@contextlib.contextmanager
def gs():
    """Lets clients find gs://bucket."""
    # Clients that do not wait for an answer break its pipe, and it would tell.
    quiet = mock.patch.object(socketserver.BaseServer, "handle_error")
    with mock.patch.dict(os.environ, _gs()), quiet:
        yield


STORES = {"s3": s3, "gs": gs}


@functools.cache
def _s3():
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@functools.cache
def _make_bucket():
    import s3fs

    s3fs.S3FileSystem(use_listings_cache=False).mkdir(BUCKET)


@functools.cache
def _gs():
    from gcp_storage_emulator import server as emulator

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server._api.daemon = True  # or Python waits for it at the end
    server.start()
    return {
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",  # gcsfs
        "TENSORSTORE_GCS_HTTP_URL": f"http://127.0.0.1:{port}",
        # Nobody is to look for a machine of Google's around this one.
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
