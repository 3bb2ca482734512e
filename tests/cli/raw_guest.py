# SPDX-License-Identifier: Apache-2.0
"""Guests of a few bytes of machine code in a PVH ELF file, as tests/kvm/raw_guest.h has them for C++.

They start in 32-bit protected mode without paging (the PVH boot protocol, Xen docs/misc/pvh.pandoc).
"""

import os
import struct
import tempfile

ENTRY = 0x100000
SERIAL_DATA = 0x3F8
SERIAL_STATUS = 0x3FD
POWER_PORT = 0x600  # guest/probe_abi.h: kPowerPort, kPowerOff
POWER_OFF = 1


def dx(port):
    return b"\xba" + struct.pack("<I", port)  # mov $port, %edx


def power_off():
    return dx(POWER_PORT) + b"\xb8" + struct.pack("<I", POWER_OFF) + b"\xef"  # mov $off, %eax; out %eax, %dx


def loop(body):
    """body for ever."""
    return body + b"\xe9" + struct.pack("<i", -len(body) - 5)  # jmp body


def echo(last=b"q"):
    """Sends back each byte it receives, and switches itself off after `last`."""
    wait = dx(SERIAL_STATUS) + b"\xec\xa8\x01"  # in %dx, %al; test $1, %al
    wait += b"\x74" + struct.pack("<b", -len(wait) - 2)  # jz wait
    send = dx(SERIAL_DATA) + b"\xec\xee\x3c" + last  # in; out; cmp $last, %al
    off = power_off()
    return loop(wait + send + b"\x75" + struct.pack("<b", len(off)) + off)  # jne: past power_off


def count():
    """Sends 0, 1, 2, ... 255, 0, ... as fast as it can."""
    return b"\x31\xc0" + dx(SERIAL_DATA) + loop(b"\xee\xfe\xc0")  # xor %eax, %eax; out %al, %dx; inc %al


def beat(delay=100):
    """Sends "00000001\\n", "00000002\\n", ... `delay` turns of a loop apart, and writes to 32 pages in turn."""
    digit = b"\xc1\xc3\x04\x88\xd8\x24\x0f\x04\x30"  # rol $4, %ebx; mov %bl, %al; and $15, %al; add $'0', %al
    digit += b"\x3c\x39\x76\x02\x04\x27\xee\x4e"  # cmp $'9', %al; jbe +2; add $39, %al; out %al, %dx; dec %esi
    line = b"\x43" + dx(SERIAL_DATA) + b"\xbe\x08\0\0\0"  # inc %ebx; mov $8, %esi
    line += digit + b"\x75" + struct.pack("<b", -len(digit) - 2) + b"\xb0\n\xee"  # jnz digit; the line's end
    line += b"\x89\xd8\x83\xe0\x1f\xc1\xe0\x0c\x89\x98" + struct.pack("<I", 0x200000)  # to page %ebx % 32
    line += b"\xb9" + struct.pack("<I", delay) + b"\x49\x75\xfd"  # mov $delay, %ecx; dec %ecx; jnz -3
    return b"\x31\xdb" + loop(line)  # xor %ebx, %ebx


def keyboard_to_serial():
    """Sends on each byte the keyboard gives."""
    wait = dx(0x64) + b"\xec\xa8\x01"  # in %dx, %al; test $1, %al
    wait += b"\x74" + struct.pack("<b", -len(wait) - 2)  # jz wait
    return loop(wait + dx(0x60) + b"\xec" + dx(SERIAL_DATA) + b"\xee")


def reset_when_told():
    """Waits for a byte from the serial port, then resets the machine by the keyboard controller."""
    wait = dx(SERIAL_STATUS) + b"\xec\xa8\x01"
    wait += b"\x74" + struct.pack("<b", -len(wait) - 2)
    return wait + dx(0x64) + b"\xb0\xfe\xee" + loop(b"")


def say(text):
    """Sends `text`."""
    return b"".join(dx(SERIAL_DATA) + b"\xb0" + bytes([byte]) + b"\xee" for byte in text)


def poke(address, value):
    return b"\xc7\x05" + struct.pack("<II", address, value)  # movl $value, address


def write_msr(number, value):
    """A model-specific register of 64 bits, its upper half 0."""
    return b"\xb9" + struct.pack("<I", number) + b"\xb8" + struct.pack("<I", value) + b"\x31\xd2\x0f\x30"  # wrmsr


DISK_DATA, DISK_USED = 0x204000, 0x202000  # where the next two have what they write, and the queue's used ring


def _disk_ready(sector):
    """Code that makes the first disk ready to write 512 bytes from DISK_DATA, and its registers.

    Virtio over MMIO with a queue of 8 (virtio 1.2, 2.7, 4.2 and 5.2.6), of which entry 0 is the one request.
    """
    device, descriptors, available = 0xD0100000, 0x200000, 0x201000
    header, status = 0x203000, 0x205000
    code = poke(header, 1) + poke(header + 8, sector) + poke(status, 0xFF)
    for number, (place, length, flags) in enumerate(((header, 16, 1), (DISK_DATA, 512, 1), (status, 1, 2))):
        at = descriptors + 16 * number
        code += poke(at, place) + poke(at + 8, length) + poke(at + 12, flags | (number + 1) << 16)
    code += poke(device + 0x70, 3) + poke(device + 0x24, 1) + poke(device + 0x20, 1)  # VIRTIO_F_VERSION_1
    code += poke(device + 0x24, 0) + poke(device + 0x20, 1 << 9) + poke(device + 0x70, 11)  # and FLUSH
    code += poke(device + 0x38, 8) + poke(device + 0x80, descriptors) + poke(device + 0x90, available)
    code += poke(device + 0xA0, DISK_USED) + poke(device + 0x44, 1) + poke(device + 0x70, 15)
    return code, available, poke(device + 0x50, 0), status


def write_disk(sector):
    """Writes 512 bytes to the first disk, and sends 'k' where it says that it has done so, 'e' for an error."""
    code, available, notify, status = _disk_ready(sector)
    code += poke(available, 1 << 16) + notify  # one chain, the first descriptor's
    wait = b"\xa1" + struct.pack("<I", DISK_USED) + b"\xc1\xe8\x10"  # mov used, %eax; shr $16, %eax
    code += wait + b"\x74" + struct.pack("<b", -len(wait) - 2)  # jz wait
    code += b"\xa0" + struct.pack("<I", status) + b"\x84\xc0\xb0k\x74\x02\xb0e"  # 0: 'k', else: 'e'
    return code + dx(SERIAL_DATA) + b"\xee" + loop(b"")


def count_on_disk():
    """Writes 1, 2, 3, ... to the first sector of the first disk, one request after the other: the used ring has as many
    entries as the number on the disk says, whenever no request is half done."""
    code, available, notify, _ = _disk_ready(0)
    data = struct.pack("<I", DISK_DATA)
    again = b"\xff\x05" + data + b"\xa1" + data  # incl data; mov data, %eax
    again += b"\x66\xa3" + struct.pack("<I", available + 2) + notify  # mov %ax, available->idx
    wait = b"\xa1" + struct.pack("<I", DISK_USED) + b"\xc1\xe8\x10"
    wait += b"\x66\x3b\x05" + data  # cmp data, %ax
    return code + loop(again + wait + b"\x75" + struct.pack("<b", -len(wait) - 2))  # jne wait


def kernel(code):
    """The path of a new file to boot, which the caller removes."""
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", ENTRY)  # XEN_ELFNOTE_PHYS32_ENTRY
    at = 64 + 2 * 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, at, 0, ENTRY, len(code), len(code), 0x1000)
    named = struct.pack("<IIQQQQQQ", 4, 4, at + len(code), 0, 0, len(note), len(note), 4)
    file, path = tempfile.mkstemp(prefix="stopvisor-raw-")
    with os.fdopen(file, "wb") as out:
        out.write(header + load + named + code + note)
    return path
