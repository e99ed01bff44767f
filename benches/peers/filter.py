"""A pymilter filter as one would write it: parses with Python's email package and posts at end of message."""
import email
import email.policy
import json
import sys
import urllib.request

import Milter

URL = sys.argv[2]


class Filter(Milter.Base):
    def envfrom(self, sender, *args):
        self.lines = []
        return Milter.CONTINUE

    def header(self, name, value):
        self.lines.append(f"{name}: {value}\n".encode(errors="surrogateescape"))
        return Milter.CONTINUE

    def eoh(self):
        self.lines.append(b"\n")
        return Milter.CONTINUE

    def body(self, piece):
        self.lines.append(piece)
        return Milter.CONTINUE

    def eom(self):
        message = email.message_from_bytes(b"".join(self.lines), policy=email.policy.default)
        text = message.get_body(("plain",))
        data = json.dumps({"subject": message["subject"], "text": text.get_content() if text else None}).encode()
        request = urllib.request.Request(URL, data, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).read()
        return Milter.DISCARD


Milter.factory = Filter
Milter.runmilter("peer", sys.argv[1], 60)
