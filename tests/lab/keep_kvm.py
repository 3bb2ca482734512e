# SPDX-License-Identifier: Apache-2.0
"""Keeps a VM that does nothing, with interrupt controllers and a vCPU that never runs, in the outer machine: goes to the
background, and stays as long as the machine.

With the first VM, and again after the last one, KVM has the kernel rewrite its own instructions (static keys, of
preemption notifiers in the scheduler and of disabled local APICs). Outer machines were seen to hang with all processors
at such an instruction, interrupts off; we take it that QEMU 7.2 goes on executing the breakpoint that stood there
meanwhile. So there is no first VM but this one.
"""

import fcntl
import os
import signal
import sys

KVM_CREATE_VM, KVM_CREATE_IRQCHIP, KVM_CREATE_VCPU = 0xAE01, 0xAE60, 0xAE41  # Linux, include/uapi/linux/kvm.h

done, tell = os.pipe()
if os.fork():
    os.close(tell)
    sys.exit(0 if os.read(done, 1) else 1)
vm = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), KVM_CREATE_VM, 0)
fcntl.ioctl(vm, KVM_CREATE_IRQCHIP, 0)
fcntl.ioctl(vm, KVM_CREATE_VCPU, 0)
os.write(tell, b"1")
signal.pause()
