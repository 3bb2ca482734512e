#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# What busybox's acpid runs when the power button is pressed.
echo "guest: power button: going down" >/dev/ttyS0
umount -a -r 2>/dev/null
poweroff -f
