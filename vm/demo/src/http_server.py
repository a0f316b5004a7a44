# SPDX-License-Identifier: MIT OR Apache-2.0
"""Runs Python's single-threaded HTTP server on the listening socket at its standard input."""

import http.server
import socket

server = http.server.HTTPServer(
    ("", 0), http.server.SimpleHTTPRequestHandler, bind_and_activate=False
)
server.socket.close()
server.socket = socket.socket(fileno=0)
server.serve_forever()
