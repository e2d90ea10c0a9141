//! One exit from the guest: an access to a device is carried out on its bus; anything else tells the thread what to do.

use std::io;

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run__bindgen_ty_1__bindgen_ty_13,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::counters::{ExitCounts, count};
use super::foreign_memory::VainLooks;
use super::report::crash;
use super::run::VcpuContext;
use crate::control::outcome::Outcome;

/// Run the guest until its next exit and serve that. `Some` if this vCPU cannot or shall not go on.
pub(super) fn serve_one(
    fd: &mut VcpuFd,
    context: &VcpuContext,
    exit_counts: &ExitCounts,
    looks: &mut VainLooks,
) -> Option<Outcome> {
    let VcpuContext { mmio, io, memory, .. } = context;
    let exit = fd.run();
    count(&exit_counts.all);
    if exit.is_ok() {
        looks.forget();
    }
    let what = match exit {
        Ok(VcpuExit::IoOut(port, data)) => {
            count(&exit_counts.io);
            let (start, length) = (data.as_ptr(), data.len());
            // SAFETY: `start` and `length` are those of the slice just given by `run`, which lies in the vCPU's mapping beyond
            // `kvm_run` and stays as it is until the next `run`.
            let data = unsafe { std::slice::from_raw_parts(start, length) };
            for value in data.chunks(io_size(fd)) {
                io.write(u64::from(port), value);
            }
            return None;
        }
        Ok(VcpuExit::IoIn(port, data)) => {
            count(&exit_counts.io);
            let (start, length) = (data.as_mut_ptr(), data.len());
            // SAFETY: as above; nobody else has a reference to that part of the mapping.
            let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
            for value in data.chunks_mut(io_size(fd)) {
                io.read(u64::from(port), value);
            }
            return None;
        }
        Ok(VcpuExit::MmioRead(address, data)) => {
            count(&exit_counts.mmio);
            mmio.read(address, data);
            return None;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            count(&exit_counts.mmio);
            mmio.write(address, data);
            return None;
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => return None,
        Err(error) if matches!(error.errno(), nix::libc::EINTR | nix::libc::EAGAIN) => return None,

        // Not necessarily the guest's fault: a device may have taken away what the guest sees of it.
        Err(error) if error.errno() == nix::libc::EFAULT && looks.look(memory.as_ref()) => return None,

        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => return Some(Outcome::PowerOff),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => return Some(Outcome::Reboot),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => "the guest told KVM that it crashed".to_owned(),
        Ok(VcpuExit::SystemEvent(kind, _)) => format!("KVM system event {kind}"),
        // On AMD processors the state is undefined by now, and KVM shows that of a reset instead (Linux, svm.c).
        Ok(VcpuExit::Shutdown) => "triple fault".to_owned(),
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            format!("the processor refused to enter the guest (hardware reason {reason:#x}, host CPU {cpu})")
        }
        Ok(VcpuExit::InternalError) => internal_error(fd),
        Ok(VcpuExit::MemoryFault { flags, gpa, size }) => {
            format!("memory fault at guest address {gpa:#x}, {size:#x} bytes, flags {flags:#x}")
        }
        // With KVM's own interrupt controllers, HLT waits inside KVM.
        Ok(exit) => format!("unexpected exit {exit:?}"),
        Err(error) => format!("KVM_RUN failed: {}", io::Error::from(error)),
    };
    Some(crash(fd, &what))
}

/// Bytes of each element of the string (of one, mostly) that the current port access transfers.
fn io_size(fd: &mut VcpuFd) -> usize {
    // SAFETY: the exit reason is KVM_EXIT_IO (the only callers), which says that `io` is the union's current field. Any bits are
    // a valid value of it.
    let size = unsafe { fd.get_kvm_run().__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

/// KVM's description of an internal error.
fn internal_error(fd: &mut VcpuFd) -> String {
    const NAMES: [&str; 5] = [
        "unknown",
        "an instruction that KVM cannot emulate",
        "simultaneous exceptions",
        "an unexpected event during delivery of another",
        "an unexpected exit reason",
    ];
    // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR (the only caller), which says that `internal` is the union's current
    // field. Any bits are a valid value of it.
    let error: kvm_run__bindgen_ty_1__bindgen_ty_13 = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let name = NAMES.get(error.suberror as usize).unwrap_or(&NAMES[0]);
    let data: Vec<_> = error.data.iter().take(error.ndata as usize).map(|word| format!("{word:#x}")).collect();
    format!("KVM internal error, suberror {} ({name}), data [{}]", error.suberror, data.join(", "))
}
