# SPDX-License-Identifier: Apache-2.0
"""The control socket itself: rights, curl, and clients that break the rules."""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import unittest

import vm_case
from vm_case import VmCase

BODY_LIMIT = 5 << 20


class ControlSocket(VmCase):
    def setUp(self):
        super().setUp()
        self.start()

    def raw(self, request):
        """Sends bytes, and returns all that comes back until the VM hangs up."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(vm_case.LIMIT_S)
            connection.connect(self.socket_path())
            try:
                connection.sendall(request)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it hung up early; its answer is still to be read
            answer = b""
            while True:
                piece = connection.recv(65536)
                if not piece:
                    return answer
                answer += piece

    def error_of(self, answer):
        """The HTTP status and the error of a raw answer."""
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), json.loads(body)["error"]

    def still_answers(self):
        self.assertEqual(self.connect().ask("GET", "/v1/status")[0], 200)

    def test_directory_socket_and_lock_are_ours_alone(self):
        self.assertEqual(stat.S_IMODE(os.stat(self.directory).st_mode), 0o700)
        for name in ("vm1.sock", "vm1.lock", "vm1.log"):
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.directory, name)).st_mode), 0o600, name)

    @unittest.skipUnless(shutil.which("curl"), "curl is not installed")
    def test_curl_can_use_every_kind_of_request(self):
        def curl(path, *options):
            return json.loads(subprocess.run(
                # Else it sends a large body after a second without the VM's word, and fails where that refuses it.
                ["curl", "-sS", "--expect100-timeout", str(vm_case.LIMIT_S),
                 "--unix-socket", self.socket_path(), f"http://stopvisor{path}", *options],
                check=True, capture_output=True, timeout=vm_case.LIMIT_S).stdout)

        self.assertEqual(curl("/v1/status")["name"], "vm1")
        self.assertEqual(curl("/v1/pause", "-X", "POST"), {"holds": 1})
        self.assertEqual(curl("/v1/pause", "-d", '{"timeout_ms": 1000}'), {"holds": 2})
        self.assertEqual(curl("/v1/peek", "-d", '{"address": "gpa:0x800000", "length": 4}')["bytes"], "00000000")
        body = os.path.join(self.runtime, "body")
        with open(body, "w", encoding="ascii") as file:
            json.dump({"writes": [{"address": "gpa:0x800000", "bytes": "ab" * (1 << 20)}]}, file)
        self.assertEqual(curl("/v1/poke", "--data-binary", f"@{body}")["bytes"], 1 << 20)  # asks for "100 Continue"
        os.truncate(body, BODY_LIMIT + 1)
        self.assertEqual(curl("/v1/poke", "--data-binary", f"@{body}")["error"]["status"], 2)

    def test_one_connection_serves_many_requests(self):
        connection = self.connect()
        for _ in range(50):
            self.assertEqual(connection.ask("POST", "/v1/pause"), (200, {"holds": 1}))
            self.assertEqual(connection.ask("POST", "/v1/resume"), (200, {"holds": 0}))

    def test_requests_sent_together_are_answered_in_order(self):
        request = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = self.raw(request + request + b"GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        self.assertEqual(re.findall(rb"HTTP/1.1 (\d+)", answer), [b"200", b"200", b"404"])

    def test_unknown_paths_and_methods_are_told_apart(self):
        connection = self.connect()
        for method, path, status in (("GET", "/", 404), ("GET", "/v1/nothing", 404), ("GET", "/v1/pause", 405),
                                     ("POST", "/v1/status", 405), ("PUT", "/v1/pause", 405),
                                     ("DELETE", "/v1/lease/", 404), ("DELETE", "/v1/lease/x", 404),
                                     ("DELETE", "/v1/lease/1/2", 404)):
            got, answer = connection.ask(method, path)
            self.assertEqual((got, answer["error"]["status"]), (status, 2), (method, path))

    def test_bodies_that_do_not_fit_are_refused_with_one_reason(self):
        connection = self.connect()
        for path, body in (
                ("/v1/pause", "{"), ("/v1/pause", "[]"), ("/v1/pause", "null"), ("/v1/pause", "{} {}"),
                ("/v1/pause", '{"timeout": 1}'), ("/v1/pause", '{"timeout_ms": "1"}'),
                ("/v1/pause", '{"timeout_ms": -1}'), ("/v1/pause", '{"timeout_ms": 1.5}'),
                ("/v1/pause", '{"timeout_ms": 99999999999999999999}'), ("/v1/resume", '{"all": true}'),
                ("/v1/lease", '{"max_ms": 0}'), ("/v1/shutdown", '{"now": 1}'),
                ("/v1/pause", b'{"\xff": 1}'), ("/v1/pause", "[" * 100000),
                ("/v1/peek", "{}"), ("/v1/peek", '{"address": "gpa:0x0"}'), ("/v1/peek", '{"length": 1}'),
                ("/v1/peek", '{"address": "0x0", "length": 1}'), ("/v1/peek", '{"address": 0, "length": 1}'),
                ("/v1/peek", '{"address": "gpa:0x0", "length": 0}'),
                ("/v1/peek", '{"address": "gpa:0x0", "length": 1048577}'),
                ("/v1/poke", "{}"), ("/v1/poke", '{"writes": []}'), ("/v1/poke", '{"writes": [1]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0"}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": "0"}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": "zz"}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": ""}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": "00", "expect": "0000"}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": "00", "more": 1}]}'),
                ("/v1/poke", '{"writes": [{"address": "gpa:0x0", "bytes": "00"}], "stop": "no"}')):
            status, answer = connection.ask("POST", path, body)
            self.assertEqual((status, answer["error"]["status"]), (400, 2), (path, body[:50]))
            self.assertEqual(len(answer["error"]["message"].splitlines()), 1)
        for query in ("cpu=x", "cpu=-1", "cpu=", "cpu=1", "nothing=1", "timeout_ms=1&timeout_ms=2"):
            self.assertEqual(connection.ask("GET", f"/v1/regs?{query}")[0], 400, query)
        self.assertEqual(self.status()["holds"], 0)

    def test_an_oversized_body_is_refused_and_the_vm_goes_on(self):
        status, error = self.error_of(self.raw(
            b"POST /v1/poke HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1) + b" " * (BODY_LIMIT + 1)))
        self.assertEqual((status, error["status"]), (413, 2))
        self.assertIn("larger than", error["reason"])
        self.still_answers()

    def test_a_body_nested_without_end_is_refused_and_the_vm_goes_on(self):
        connection = self.connect()
        deep = "[" * 500000 + "]" * 500000
        for body in ('{"writes":[{"x":' + deep + "}]}", deep, "[" * BODY_LIMIT, '{"x":' * 100000):
            status, answer = connection.ask("POST", "/v1/poke", body)
            self.assertEqual((status, answer["error"]["status"]), (400, 2))
            self.assertIn("nested deeper than 16 levels", answer["error"]["reason"])
        self.still_answers()

    def test_the_largest_poke_fits(self):
        size = (1 << 20) // 4096
        writes = [{"address": f"gpa:{0x800000 + at * size:#018x}", "bytes": "ab" * size, "expect": "00" * size}
                  for at in range(4096)]
        body = json.dumps({"writes": writes})
        self.assertGreater(len(body), 4 << 20)
        self.assertEqual(self.connect().ask("POST", "/v1/poke", body)[0], 200)

    def test_framing_that_cannot_be_trusted_is_refused(self):
        for head, expected in ((b"Transfer-Encoding: chunked", 411), (b"Content-Length: x", 400),
                               (b"Content-Length: -1", 400), (b"Content-Length: 1\r\nContent-Length: 2", 400),
                               (b"Content-Length: 99999999999999999999999", 413)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(vm_case.LIMIT_S)
                connection.connect(self.socket_path())
                connection.sendall(b"POST /v1/pause HTTP/1.1\r\n" + head + b"\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023: used in this round
            status, error = self.error_of(answer)
            self.assertEqual((status, error["status"]), (expected, 2), head)
        self.assertEqual(self.status()["holds"], 0)

    def test_heads_that_are_no_http_are_refused(self):
        for request, expected in ((b"hello\n\n", 400), (b"\r\n\r\n", 400), (b"GET\r\n\r\n", 400),
                                  (b"GET /v1/status HTTP/9\r\nConnection: close\r\n\r\n", 400),
                                  (b"\x00" * 20000, 431), (b"GET /" + b"a" * 20000, 431)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(vm_case.LIMIT_S)
                connection.connect(self.socket_path())
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda: connection.recv(65536), b""))  # noqa: B023: used in this round
            status, error = self.error_of(answer)
            self.assertEqual((status, error["status"]), (expected, 2), request[:20])
        self.still_answers()

    def test_a_client_that_leaves_in_the_middle_changes_nothing(self):
        for request in (b"P", b"POST /v1/pause HTTP/1.1\r\n", b"POST /v1/pause HTTP/1.1\r\nContent-Length: 2\r\n\r\n{"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(self.socket_path())
                connection.sendall(request)
        self.still_answers()
        self.assertEqual(self.status()["holds"], 0)

    def test_too_many_connections_are_turned_away_and_places_come_back(self):
        held = []
        for _ in range(128):
            held.append(self.connect())
            self.assertEqual(held[-1].ask("GET", "/v1/nothing")[0], 404)
        status, error = self.error_of(self.raw(b""))
        self.assertEqual((status, error["status"]), (503, 4))
        self.assertIn("too many connections", self.refused(4, "status", "vm1"))
        for connection in held:
            connection.close()
        self.eventually(lambda: self.stopvisor("status", "vm1").returncode == 0, "a place is free")

    def test_shutdown_answers_the_client_that_asked(self):
        self.assertEqual(self.connect().ask("POST", "/v1/shutdown", {"now": True}), (200, {"asked": "end"}))

    def test_the_stop_report_tells_the_last_stop(self):
        connection = self.connect()
        self.assertEqual(connection.ask("GET", "/v1/stop-report")[0], 409)
        connection.ask("GET", "/v1/regs")
        status, report = connection.ask("GET", "/v1/stop-report")
        self.assertEqual((status, report["end"], len(report["participants"])), (200, "completed", 2))
        one = report["participants"][0]
        self.assertTrue(one["kicked_ns"] <= one["held_ns"] <= one["released_ns"], one)
        self.assertEqual([type(one["lifted"]), type(report["lift_refused"])], [bool, bool])
        status = connection.ask("GET", "/v1/status")[1]
        self.assertIs(type(status["last_stop"]["lift_refused"]), bool)
        worker = report["participants"][1]
        self.assertEqual((worker["worker"], worker["activity"], "cpu" in worker), ("doorbell", None, False))
        self.assertEqual([(w["worker"], type(w["tid"]), type(w["jobs"])) for w in status["workers"]], [("doorbell", int, int)])


if __name__ == "__main__":
    vm_case.main()
