# SPDX-License-Identifier: Apache-2.0
"""What a guest is kept busy with while it is stopped, and what has to be true of it afterwards."""

import re

# Verified by checksum; each pass writes the whole disk in random order and reads it back.
FIO = ("fio --name=verify --filename=/dev/vd{letter} --rw=randwrite --bs=4k --size={mb}M --ioengine=libaio "
       "--iodepth=16 --direct=1 --verify=crc32c --verify_fatal=1 --do_verify=1 --randseed={seed} --group_reporting")
# Rows that add up to a known sum, in transactions.
SQL = ("pragma journal_mode=wal; create table if not exists t(a integer primary key, b integer); "
       "begin; with recursive n(x) as (select 1 union all select x+1 from n where x<2000) "
       "insert into t(b) select x from n; commit; "
       "select 'rows ' || (count(*) % 2000) || ' sum ' || (sum(b) - count(*)/2000*2001000) from t; "
       "pragma integrity_check;")

# Passes over both disks, one after another: a line in one file for each, and the words of one that failed in another.
PASSES = (": >/tmp/passes; (while [ ! -e /tmp/enough ]; do {fio} >/tmp/fio 2>&1 & sqlite3 /data/db \"{sql}\" >/tmp/sql 2>&1; "
          "sql=$?; wait $!; [ $?$sql = 00 ] && grep -q 'rows 0 sum 0' /tmp/sql && grep -q ^ok /tmp/sql || "
          "{{ cat /tmp/fio /tmp/sql >/tmp/bad; break; }}; echo >>/tmp/passes; done) & passes_job=$!")
ONE_MORE = ("n=$(wc -l </tmp/passes); while [ $(wc -l </tmp/passes) = $n ] && [ ! -e /tmp/bad ]; do sleep 0.1; done; "
            "[ ! -e /tmp/bad ]")


class Load:
    """CONTEXT: a guest with the programs, a raw disk `vdb`, and a disk with an ext4 file system `vdc`."""

    def __init__(self, guest, checks):
        self.guest, self.checks = guest, checks
        self.passes = 0

    def start(self):
        """Clocks and timers on all vCPUs, and a file system."""
        self.checks.equal("the file system can be used", self.guest.shell(
            "mkdir -p /data && mount -t ext4 /dev/vdc /data")[0], 0)
        self.guest.shell("(clock_check 86400 >/tmp/clock 2>&1; echo ended >>/tmp/clock) & clock_job=$!")

    def one_pass(self, megabytes, limit_s):
        """Writes and reads the raw disk, and runs transactions, at the same time."""
        self.passes += 1
        fio = FIO.format(letter="b", mb=megabytes, seed=self.passes)
        status, said = self.guest.shell(
            f"{fio} >/tmp/fio 2>&1 & fio=$!; sqlite3 /data/db \"{SQL}\" >/tmp/sql 2>&1; sql=$?; wait $fio; "
            "fio=$?; cat /tmp/sql; [ $fio = 0 ] || cat /tmp/fio; echo fio=$fio sql=$sql; [ $fio$sql = 00 ]", limit_s)
        good = status == 0 and "rows 0 sum 0" in said and "\nok" in said
        if not good:
            self.checks.fail(f"pass {self.passes}: all is read as it was written", said[-1500:])
        return good

    def keep_passing(self, megabytes):
        """The same again and again in the background, until `passed()`."""
        self.guest.shell(PASSES.format(fio=FIO.format(letter="b", mb=megabytes, seed="$(wc -l </tmp/passes)"), sql=SQL))

    def one_more(self, what, limit_s):
        """Waits until another of those passes has come to its end, as it is to."""
        self.checks.that(what, self.guest.shell(ONE_MORE, limit_s)[0] == 0, self.guest.shell("cat /tmp/bad 2>/dev/null")[1][-1500:])

    def passed(self, limit_s):
        """Ends them."""
        self.guest.shell("touch /tmp/enough; wait $passes_job", limit_s)
        bad = self.guest.shell("cat /tmp/bad 2>/dev/null")[1]
        # A console that was attached anew shows an empty line of its own.
        self.checks.equal("no pass read what was not written", bad.strip()[-1500:], "")
        self.passes += int(self.guest.shell("wc -l </tmp/passes")[1])

    def finish(self):
        """Ends the load. What the guest noticed is checked here."""
        self.guest.shell("killall clock_check; wait $clock_job; sync")
        said = self.guest.shell("cat /tmp/clock")[1]
        found = re.search(r"CLOCK cpus=(\d+) reads=(\d+) backwards=(\d+) worst_ns=(\d+) timers=(\d+) early=(\d+)", said)
        self.checks.that("the clock check came to its end", found, said)
        if found:
            self.checks.equal("the clock never goes back between CPUs", int(found[3]), 0)
            self.checks.that("timers fire", int(found[5]) > 0, said)
            self.checks.equal("no timer fires too early", int(found[6]), 0)
        self.checks.that(f"{self.passes} passes over the disks: all is read as it was written", self.passes > 0)
        self.checks.equal("the file system is let go", self.guest.shell("umount /data")[0], 0)


def requests_of_disk(guest, name):
    """The block requests the guest's driver has completed, where nobody writes and flushes in one.

    Reads, writes and discards. A flush by itself is among the writes: the kernel counts it there, and once more among
    the flushes (Documentation/admin-guide/iostats.rst, field 16; `blk_flush_restore_request` lets it be counted).
    """
    words = guest.shell(f"cat /sys/block/{name}/stat")[1].split()
    return sum(int(words[at]) for at in (0, 4, 11) if at < len(words))
