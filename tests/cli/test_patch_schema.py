# SPDX-License-Identifier: Apache-2.0
"""The published schema of patch files, the documentation's examples, and the reader agree."""

import copy
import json
import os
import re
import unittest

import vm_case

try:
    import jsonschema
except ImportError:
    jsonschema = None

DOCS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "docs")
PAGES = ["reference/patch-format.md", "tutorial/first-patch.md"]
WHOLE = {
    "format": 1, "name": "all-of-it", "version": "1", "description": "every field", "target": {"banner": "Linux version 6.1"},
    "depends": ["a"], "conflicts": ["b"], "replaces": ["c"],
    "writes": [
        {"at": "gva:0x1000@cr3=0x2000", "kind": "data", "expect": "00FF", "mask": "0f 0f", "bytes": "0102", "note": "n"},
        {"at": "gva:0x1000@3", "kind": "data", "expect": "00", "operation": {"op": "add", "size": 1, "value": "0x1"}},
        {"at": "gpa:0x1000", "kind": "data", "operation": {"op": "cas", "size": 8, "from": 0, "to": 18446744073709551615}},
        {"at": "gva:0x1010@kernel", "kind": "code", "expect": "90", "bytes": "c3",
         "function": {"at": "gva:0x1000@kernel", "size": 32}}],
    "require": [{"at": "sym:jiffies@1", "size": 8, "is": "gt", "value": 1}],
    "ensure": [{"at": "sym:a+0x10", "size": 1, "is": "mask", "mask": 3, "value": 1}],
}


def examples():
    """(where, document) of each patch file in the documentation."""
    for page in PAGES:
        with open(os.path.join(DOCS, page), encoding="utf-8") as file:
            for number, text in enumerate(re.findall(r"^```json\n(.*?)^```", file.read(), re.M | re.S), 1):
                yield f"{page}, example {number}", json.loads(text)


def wrong():
    """(what, document) of files that both must refuse."""
    def changed(what, *path, to=None):
        document = copy.deepcopy(WHOLE)
        place = document
        for step in path[:-1]:
            place = place[step]
        if to is None:
            del place[path[-1]]
        else:
            place[path[-1]] = to
        return what, document

    for field in ("format", "name", "version", "target", "writes"):
        yield changed(f"no {field}", field)
    yield changed("another format", "format", to=2)
    yield changed("an unknown field", "more", to=1)
    yield changed("a name with a space", "name", to="a b")
    yield changed("a control character", "description", to="a\nb")
    yield changed("two targets", "target", to={"any": True, "banner": "x"})
    yield changed("a target that is not so", "target", to={"any": False})
    yield changed("a name twice", "depends", to=["a", "a"])
    yield changed("no writes", "writes", to=[])
    yield changed("a bare address", "writes", 0, "at", to="0x1000")
    yield changed("another kind", "writes", 0, "kind", to="text")
    yield changed("half a byte", "writes", 0, "expect", to="0")
    yield changed("a byte cut in two", "writes", 0, "expect", to="0 0ff")
    yield changed("no expect", "writes", 0, "expect")
    yield changed("no bytes", "writes", 0, "bytes")
    yield changed("bytes and an operation", "writes", 1, "bytes", to="00")
    yield changed("an expect beside cas", "writes", 2, "expect", to="0000000000000000")
    yield changed("an unknown operation", "writes", 1, "operation", "op", to="sub")
    yield changed("nine bytes", "writes", 1, "operation", "size", to=9)
    yield changed("a negative number", "writes", 1, "operation", "value", to=-1)
    yield changed("a number that is too large", "writes", 2, "operation", "to", to=18446744073709551616)
    yield changed("a function around data", "writes", 0, "function", to={"at": "gva:0x1000@cr3=0x2000", "size": 32})
    yield changed("an unknown comparison", "require", 0, "is", to="like")
    yield changed("a mask for gt", "require", 0, "mask", to=1)
    yield changed("no mask for mask", "ensure", 0, "mask")


class PatchSchema(vm_case.CommandCase):
    def verdict_of_reader(self, document):
        """Empty where the file is read: then only the VM is missing."""
        path = os.path.join(self.runtime, "patch.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(document, file)
        done = self.stopvisor("patch", "check", "nobody", path)
        self.assertIn(done.returncode, (1, 2), done.stderr)
        return done.stderr if done.returncode == 2 else ""

    def test_the_reader_takes_the_examples(self):
        found = [*examples(), ("all fields", WHOLE)]
        self.assertGreaterEqual(len(found), 4)
        for where, document in found:
            self.assertEqual(self.verdict_of_reader(document), "", where)

    def test_the_reader_refuses_what_is_wrong(self):
        for what, document in wrong():
            self.assertIn("manifest", self.verdict_of_reader(document), what)

    @unittest.skipIf(jsonschema is None, "no python3-jsonschema here")
    def test_the_schema_agrees(self):
        with open(os.path.join(DOCS, "reference", "patch.schema.json"), encoding="utf-8") as file:
            schema = json.load(file)
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema)
        for where, document in [*examples(), ("all fields", WHOLE)]:
            self.assertEqual([error.message for error in validator.iter_errors(document)], [], where)
        for what, document in wrong():
            self.assertFalse(validator.is_valid(document), what)


if __name__ == "__main__":
    vm_case.main()
