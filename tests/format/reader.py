#!/usr/bin/env python3
"""Lists a queue by docs/format.md alone: reader.py QUEUE.DB SPOOL. A line of JSON for each activity, the oldest first."""

import hashlib
import json
import os
import re
import sqlite3
import sys

VERSION = 5
STATES = {0: "waiting", 1: "held"}


def key_of(stored):
    return stored if isinstance(stored, str) else "b3:" + stored.hex()


class Queue:
    def __init__(self, path, spool):
        self.database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self.database.row_factory = sqlite3.Row
        (version,) = self.database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise SystemExit(f"{path} has version {version}, and this reader knows {VERSION}")
        (name,) = self.database.execute("SELECT database FROM meta").fetchone()
        self.folder = os.path.join(spool, name)

    def message(self, row):
        """The row that has the message, and its bytes."""
        if row["message"]:
            row = self.database.execute("SELECT * FROM message WHERE id = ?", [row["message"]]).fetchone()
        if not row["in_file"]:
            return row, row["body"]
        with open(os.path.join(self.folder, f"{row['id']}.eml"), "rb") as file:
            return row, file.read()

    def activity(self, row, holder, raw):
        activity = json.loads(row["activity"])
        if holder["text"] is not None:
            cut = json.loads(holder["text"])
            text = raw[cut["offset"] : cut["offset"] + cut["length"]].decode()
            text = re.sub("\r+\n", "\n", text).replace("\r", "\n")
            activity["text"] = re.sub("[\x00-\x08\x0b-\x1f\x7f]", "", text)
        return activity

    def entry(self, row, state, leased):
        holder, raw = self.message(row)
        activity = self.activity(row, holder, raw)
        return {
            "id": row["id"],
            "key": key_of(row["key"]),
            "tenant": row["tenant"],
            "state": "in-flight" if row["id"] in leased else state,
            "attempts": row["attempts"],
            "accepted_at": row["accepted_at"],
            "subject": activity["subject"],
            "text": activity.get("text"),
            "files": len(json.loads(holder["cuts"])),
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }

    def entries(self):
        leased = {item for (item,) in self.database.execute("SELECT item FROM lease")}
        for row in self.database.execute("SELECT * FROM item ORDER BY id"):
            yield self.entry(row, STATES[row["state"]], leased)
        for row in self.database.execute("SELECT * FROM kept ORDER BY id"):
            yield self.entry(row, "delivered", ())


if __name__ == "__main__":
    for entry in Queue(*sys.argv[1:3]).entries():
        print(json.dumps(entry, ensure_ascii=False))
