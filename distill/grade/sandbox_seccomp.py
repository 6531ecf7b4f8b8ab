"""A system call filter for sandboxes, as the BPF program that the kernel takes.

Namespaces hide files, processes and the network. What they leave open is closed here: tracing,
keyrings, further namespaces, mounts, memory that no limit counts (memfd, System V), kernel
interfaces that a program has no use for, and sockets of any family but Unix and IP (a virtual
machine's vsock belongs to no network namespace).
"""

from __future__ import annotations

import functools
import logging
import struct

log = logging.getLogger(__name__)

LD, JEQ, JGE, JSET, RET = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
EPERM, EAFNOSUPPORT, ENOSYS = 1, 97, 38
NUMBER, ARCHITECTURE, FIRST = 0, 4, 16
"""Offsets in `struct seccomp_data` (linux/seccomp.h); FIRST is the low half of the argument."""

NEW_NAMESPACES = 0x7E020080
"""CLONE_NEW* flags of linux/sched.h."""

FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6."""

_X86_64 = (
    "ptrace 101 syslog 103 personality 135 pivot_root 155 acct 163 chroot 161 mount 165 "
    "umount2 166 swapon 167 swapoff 168 reboot 169 init_module 175 delete_module 176 quotactl 179 "
    "shmget 29 shmat 30 shmctl 31 semget 64 semop 65 semctl 66 msgget 68 msgsnd 69 msgrcv 70 "
    "msgctl 71 mq_open 240 mq_unlink 241 kexec_load 246 add_key 248 request_key 249 keyctl 250 "
    "unshare 272 perf_event_open 298 fanotify_init 300 name_to_handle_at 303 "
    "open_by_handle_at 304 setns 308 process_vm_readv 310 process_vm_writev 311 kcmp 312 "
    "finit_module 313 memfd_create 319 kexec_file_load 320 bpf 321 userfaultfd 323 "
    "io_uring_setup 425 io_uring_enter 426 io_uring_register 427 open_tree 428 move_mount 429 "
    "fsopen 430 fsconfig 431 fsmount 432 fspick 433 pidfd_getfd 438 mount_setattr 442 "
    "quotactl_fd 443 memfd_secret 447"
)
_AARCH64 = (
    "ptrace 117 syslog 116 personality 92 pivot_root 41 acct 89 chroot 51 mount 40 umount2 39 "
    "swapon 224 swapoff 225 reboot 142 init_module 105 delete_module 106 quotactl 60 "
    "shmget 194 shmat 196 shmctl 195 semget 190 semop 193 semctl 191 msgget 186 msgsnd 189 "
    "msgrcv 188 msgctl 187 mq_open 180 mq_unlink 181 kexec_load 104 add_key 217 request_key 218 "
    "keyctl 219 unshare 97 perf_event_open 241 fanotify_init 262 name_to_handle_at 264 "
    "open_by_handle_at 265 setns 268 process_vm_readv 270 process_vm_writev 271 kcmp 272 "
    "finit_module 273 memfd_create 279 kexec_file_load 294 bpf 280 userfaultfd 282 "
    "io_uring_setup 425 io_uring_enter 426 io_uring_register 427 open_tree 428 move_mount 429 "
    "fsopen 430 fsconfig 431 fsmount 432 fspick 433 pidfd_getfd 438 mount_setattr 442 "
    "quotactl_fd 443 memfd_secret 447"
)
_MACHINES = {
    # name of the machine: (audit architecture, refused calls, clone, clone3, socket, socketpair)
    "x86_64": (0xC000003E, _X86_64, 56, 435, 41, 53),
    "aarch64": (0xC00000B7, _AARCH64, 220, 435, 198, 199),
}
_X32 = 0x40000000


@functools.cache
def program_for(machine: str) -> bytes:
    """The filter for a machine (`os.uname().machine`); empty, and said, for one we do not know."""
    if machine not in _MACHINES:
        log.warning("no system call filter for %s: namespaces alone hold programs here", machine)
        return b""
    architecture, names, clone, clone3, socket, socketpair = _MACHINES[machine]
    refused = [int(number) for number in names.split()[1::2]]
    refuse = _op(RET, REFUSE | EPERM)
    code = [_op(LD, ARCHITECTURE), _op(JEQ, architecture, 1, 0), refuse, _op(LD, NUMBER)]
    code += [_op(JGE, _X32, 0, 1), refuse]
    for number in refused:
        code += [_op(JEQ, number, 0, 1), refuse]
    # clone3 keeps its flags in memory, where a filter cannot look: libraries then use clone.
    code += [_op(JEQ, clone3, 0, 1), _op(RET, REFUSE | ENOSYS)]
    code += [_op(JEQ, clone, 0, 4), _op(LD, FIRST), _op(JSET, NEW_NAMESPACES, 0, 1), refuse]
    code += [_op(RET, ALLOW)]
    for number in (socket, socketpair):
        code += [_op(JEQ, number, 0, len(FAMILIES) + 3), _op(LD, FIRST)]
        for place, family in enumerate(FAMILIES):
            code += [_op(JEQ, family, len(FAMILIES) - place, 0)]
        code += [_op(RET, REFUSE | EAFNOSUPPORT), _op(RET, ALLOW)]
    return b"".join([*code, _op(RET, ALLOW)])


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    # struct sock_filter of linux/filter.h
    return struct.pack("=HBBI", code, if_true, if_false, value)
