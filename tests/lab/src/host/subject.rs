//! The VMMs under comparison: how each is started with the same guest.
//!
//! Each gets one vCPU, 256 MiB, one disk backed by a raw file on tmpfs and one tap. Peers get what their documentation recommends
//! for speed: io_uring, an I/O thread, modern virtio, offloads.

use std::process::Command;

/// The kernel of all of them.
pub const KERNEL: &str = "/boot/vmlinux";
/// The initramfs of all of them.
pub const INITRD: &str = "/boot/initramfs";
/// The disk's file.
pub const DISK: &str = "/tmp/disk";
/// The tap.
pub const TAP: &str = "lab0";
/// Guest RAM in bytes.
pub const RAM: u64 = 256 << 20;
/// Where a storage daemon listens.
pub const SOCKET: &str = "/tmp/disk.sock";

/// One VMM, or a variant of it.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// As in the report.
    pub name: &'static str,
    /// Which part of the loads it does, an eighth for the slow.
    pub part: usize,
    /// A process that has to run before; it is ready when it listens on its socket.
    pub server: Option<fn() -> Command>,
    /// The VMM; the guest's console is its standard output.
    pub vmm: fn(&str) -> Command,
}

/// All of them.
pub const SUBJECTS: &[Subject] = &[
    Subject {
        name: "outrigger",
        part: 1,
        server: None,
        vmm: |cmdline| outrigger(1, "--disk path=/tmp/disk --net tap=lab0", cmdline),
    },
    Subject {
        name: "outrigger-messages",
        part: 8,
        server: None,
        vmm: |cmdline| outrigger(1, "--disk path=/tmp/disk,dma=messages --net tap=lab0,dma=messages", cmdline),
    },
    Subject { name: "qemu-q35", part: 1, server: None, vmm: |cmdline| qemu("q35", IN_PROCESS_DISK, cmdline) },
    Subject {
        name: "qemu-microvm",
        part: 1,
        server: None,
        vmm: |cmdline| qemu("microvm,pcie=on,rtc=off", IN_PROCESS_DISK, cmdline),
    },
    Subject {
        name: "qemu-vhost-user",
        part: 1,
        server: Some(storage_daemon),
        vmm: |cmdline| qemu("q35,memory-backend=ram", VHOST_USER_DISK, cmdline),
    },
];

impl Subject {
    /// By its name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SUBJECTS.iter().find(|subject| subject.name == name)
    }
}

fn command(program: &str, arguments: &str) -> Command {
    let mut command = Command::new(program);
    command.args(arguments.split_whitespace());
    command
}

/// Outrigger with so many processors and these devices.
pub fn outrigger(cpus: usize, devices: &str, cmdline: &str) -> Command {
    let arguments = format!(
        "run --kernel {KERNEL} --initrd {INITRD} --cpus {cpus} --memory 256M {devices} --console stdio --cmdline"
    );
    let mut command = command("outrigger", &arguments);
    command.arg(cmdline);
    command
}

const IN_PROCESS_DISK: &str = "-object iothread,id=io -drive if=none,id=disk,file=/tmp/disk,format=raw,aio=io_uring \
    -device virtio-blk-pci,drive=disk,iothread=io,num-queues=1,disable-legacy=on";

const VHOST_USER_DISK: &str = "-object memory-backend-memfd,id=ram,size=256M,share=on -chardev socket,id=disk,path=/tmp/disk.sock \
    -device vhost-user-blk-pci,chardev=disk,num-queues=1,disable-legacy=on";

fn qemu(machine: &str, disk: &str, cmdline: &str) -> Command {
    let arguments = format!(
        "-machine {machine} -accel kvm -cpu host -smp 1 -m 256 -nodefaults -no-user-config -display none -no-reboot -serial stdio \
         -kernel {KERNEL} -initrd {INITRD} {disk} -netdev tap,id=net,ifname={TAP},script=no,downscript=no,vhost=off \
         -device virtio-net-pci,netdev=net,disable-legacy=on,romfile= -append"
    );
    let mut command = command("qemu-system-x86_64", &arguments);
    command.arg(cmdline);
    command
}

fn storage_daemon() -> Command {
    let export = "type=vhost-user-blk,id=export,addr.type=unix,addr.path=/tmp/disk.sock,node-name=disk,writable=on,num-queues=1,iothread=io";
    command(
        "qemu-storage-daemon",
        &format!(
            "--object iothread,id=io --blockdev driver=file,node-name=disk,filename={DISK},aio=io_uring --export {export}"
        ),
    )
}
