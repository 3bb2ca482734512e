#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: loads the modules of its devices, says what machine it finds itself on, and gives a
# shell on the console. The power button ends the guest as an installed system would.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko" || echo "guest: module $module: not loaded"
done
ip link set lo up
hostname guest
acpid -d >/dev/null 2>&1 & # reads /dev/input/event*; in the foreground it needs no log
echo 1 >/proc/sys/kernel/printk # what the kernel has to say is read with dmesg; a panic is said all the same
clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo "GUEST-UP cpus=$(grep -c ^processor /proc/cpuinfo) clock=$clock kernel=$(uname -r)"
# Real programs, dynamically linked, are on the first disk where there is one.
if grep -q lab.programs /proc/cmdline; then
  mkdir /programs
  mount -t ext4 -o ro /dev/vda /programs
  for place in usr lib lib64; do ln -s "/programs/$place" "/$place"; done
  export PATH="$PATH:/usr/bin"
fi
export PS1='guest# ' TERM=dumb

if grep -q lab.driven /proc/cmdline; then
  # Commands come from a scenario: each is answered by its exit status, and nothing is echoed.
  stty -echo -F /dev/ttyS0
  echo GUEST-READY
  while read -r line; do
    eval "$line"
    echo "@@$?@@"
  done </dev/ttyS0
fi
export PS1='guest# ' TERM=dumb
while :; do setsid cttyhack sh; done
