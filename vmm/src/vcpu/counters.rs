//! How often a vCPU left the guest, as KVM counts it, and how many of these exits came to the VMM (Linux
//! `Documentation/virt/kvm/api.rst`, 4.133 "KVM_GET_STATS_FD").

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::KVMIO;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;
use zerocopy::{FromBytes, IntoBytes};

ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);

/// More than any kernel has, so that a strange answer allocates little.
const MOST_STATISTICS: u32 = 1024;
const LONGEST_NAME: u32 = 256;

/// `struct kvm_stats_header`; the offsets are from the start of the file, in bytes.
#[repr(C)]
#[derive(FromBytes, IntoBytes)]
struct Header {
    flags: u32,
    name_size: u32,
    num_desc: u32,
    id_offset: u32,
    desc_offset: u32,
    data_offset: u32,
}

/// `struct kvm_stats_desc`, less the name behind it.
#[repr(C)]
#[derive(FromBytes, IntoBytes)]
struct Descriptor {
    flags: u32,
    exponent: i16,
    /// How many values.
    size: u16,
    /// From the start of the values, in bytes.
    offset: u32,
    bucket_size: u32,
}

/// Returns of `KVM_RUN` for one vCPU, counted by its thread.
#[derive(Debug, Default)]
pub(super) struct ExitCounts {
    pub(super) all: AtomicU64,
    pub(super) mmio: AtomicU64,
    pub(super) io: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where one vCPU's exits are counted; readable while the vCPU runs and after.
#[derive(Debug)]
pub struct ExitCounters {
    exit_counts: Arc<ExitCounts>,
    kvm: Option<KvmCounters>,
}

/// KVM's part.
#[derive(Debug)]
struct KvmCounters {
    file: File,
    /// Where the values of [`Exits`] are in the file.
    exits: [u64; 3],
    /// Where that of `ioregion_accesses` is, on a kernel that has it.
    ioregionfd: Option<u64>,
}

/// Exits of one vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// For any reason.
    pub all: u64,
    /// For a memory access.
    pub mmio: u64,
    /// For an I/O port access.
    pub io: u64,
}

impl ExitCounters {
    pub(super) fn new(vcpu: &VcpuFd, exit_counts: Arc<ExitCounts>) -> Self {
        let kvm = KvmCounters::open(vcpu).inspect_err(|error| log::info!("KVM's statistics: {error}"));
        Self { exit_counts, kvm: kvm.ok() }
    }

    /// Those from the guest to KVM, MMIO being what no device in KVM took. `None`: this kernel does not tell (it is older
    /// than Linux 5.14).
    #[must_use]
    pub fn to_kvm(&self) -> Option<Exits> {
        self.kvm.as_ref().and_then(|kvm| kvm.read().ok())
    }

    /// Accesses that KVM had a device process do, by ioregionfd. `None`: this kernel has no ioregionfd.
    #[must_use]
    pub fn by_ioregionfd(&self) -> Option<u64> {
        let kvm = self.kvm.as_ref()?;
        kvm.value(kvm.ioregionfd?).ok()
    }

    /// Those from KVM to the VMM.
    #[must_use]
    pub fn to_vmm(&self) -> Exits {
        let ExitCounts { all, mmio, io } = &*self.exit_counts;
        let [all, mmio, io] = [all, mmio, io].map(|counter| counter.load(Ordering::Relaxed));
        Exits { all, mmio, io }
    }
}

impl KvmCounters {
    fn open(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: this ioctl takes nothing and makes a descriptor.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // SAFETY: the descriptor was just made, and nobody else knows it.
        let file = unsafe { File::from_raw_fd(fd) };
        let mut header = Header { flags: 0, name_size: 0, num_desc: 0, id_offset: 0, desc_offset: 0, data_offset: 0 };
        file.read_exact_at(header.as_mut_bytes(), 0)?;
        let names = ["exits", "mmio_exits", "io_exits", "ioregion_accesses"];
        match find(&file, &header, names)? {
            [Some(all), Some(mmio), Some(io), ioregionfd] => Ok(Self { file, exits: [all, mmio, io], ioregionfd }),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn read(&self) -> io::Result<Exits> {
        let [all, mmio, io] = self.exits;
        Ok(Exits { all: self.value(all)?, mmio: self.value(mmio)?, io: self.value(io)? })
    }

    fn value(&self, place: u64) -> io::Result<u64> {
        let mut value = 0_u64;
        self.file.read_exact_at(value.as_mut_bytes(), place).map(|()| value)
    }
}

/// Where in the file the values of these names are.
fn find<const N: usize>(file: &File, header: &Header, names: [&str; N]) -> io::Result<[Option<u64>; N]> {
    let length = size_of::<Descriptor>() + header.name_size.min(LONGEST_NAME) as usize;
    let mut places = [None; N];
    for index in 0..header.num_desc.min(MOST_STATISTICS) {
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, u64::from(header.desc_offset) + u64::from(index) * length as u64)?;
        let Ok((descriptor, name)) = Descriptor::read_from_prefix(&bytes) else { continue };
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some(found) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            places[found] = Some(u64::from(header.data_offset) + u64::from(descriptor.offset));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::vm::Vm;

    #[test]
    fn a_vcpu_that_never_ran_has_no_exits() {
        let vcpu = Vm::new(1).unwrap().create_vcpu(0).unwrap();
        let counters = ExitCounters::new(&vcpu, Arc::default());
        assert_eq!((counters.to_kvm(), counters.to_vmm()), (Some(Exits::default()), Exits::default()));
    }
}
