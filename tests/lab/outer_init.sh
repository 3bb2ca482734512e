#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of the outer machine: shows it the host's files, read-only with a layer of memory over them, and
# runs the commands that come over the port "agent". A command is a line `ID COMMAND`; what it prints goes to
# WORK/ID.out, and when it has ended the answer is `ID STATUS`. Commands run side by side.
/bin/busybox mkdir -p /proc /sys /dev /host /over /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do
  insmod "/modules/$module.ko" || echo "lab: module $module: not loaded"
done
# No guest leaves off at the outer kernel's own instruction behind VMRUN. Where KVM hears of one that does, the emulator
# has taken the state of one for the other's: what the trace `mixed` keeps, tests/lab/run looks at; the main trace keeps
# the last exits of all guests, up to there (docs/adr/0013-the-lab.md).
tracing=/sys/kernel/tracing
mount -t tracefs trace $tracing
begin=$(sed -n 's/^\([0-9a-f]*\) . __svm_vcpu_run\t.*/0x\1/p' /proc/kallsyms)
mkdir $tracing/instances/mixed
exits=events/kvm/kvm_exit
printf 'guest_rip == 0x%x' "$((begin + $(cat /modules/behind-vmrun)))" >$tracing/instances/mixed/$exits/filter &&
  echo 1 >$tracing/instances/mixed/$exits/enable
printf 'traceoff if guest_rip == 0x%x' "$((begin + $(cat /modules/behind-vmrun)))" >$tracing/$exits/trigger
echo 1 >$tracing/$exits/enable

# Commands, and with them every vCPU, stay off the first processor: it is QEMU's `first_cpu`, in whose hflags2 each other
# processor writes, without a lock, when it loads the state of an FPU (QEMU, target/i386/tcg/fpu_helper.c, cpu_set_fpus).
# A VMRUN or #VMEXIT there at that moment has its NPT or GIF bit undone (docs/adr/0013-the-lab.md).
groups=/sys/fs/cgroup
mount -t cgroup2 groups $groups
echo +cpuset >$groups/cgroup.subtree_control
mkdir $groups/lab
echo "1-$(($(nproc) - 1))" >$groups/lab/cpuset.cpus
echo $$ >$groups/lab/cgroup.procs || echo "lab: commands may run on the first processor"

work=$(sed 's/.*lab\.work=\([^ ]*\).*/\1/' /proc/cmdline)

mount -t tmpfs -o size=90% over /over
mkdir -p /over/up /over/work
share=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o ro,cache=loose,$share host /host &&
  mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work lab /root || echo "lab: no files of the host"
mkdir -p "/root$work" && mount -t 9p -o $share work "/root$work"
for place in /proc /sys /dev; do mount --rbind $place /root$place; done
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs run /root/run
ip link set lo up
hostname lab

for name in /sys/class/virtio-ports/*; do
  ln -s "/dev/${name##*/}" "/dev/lab-$(cat "$name/name")"
done
exec <>/dev/lab-agent >&0
echo "up $(cut -d ' ' -f 1 /proc/uptime)"
while read -r id command; do
  [ "$id" = off ] && break
  # A session of its own for each: what it leaves behind can be ended with it.
  (
    setsid chroot /root /bin/sh -c "$command" </dev/null >"/root$work/$id.out" 2>&1
    echo "$id $?"
  ) &
done
poweroff -f
