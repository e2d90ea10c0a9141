//! The virtual machine as KVM knows it: /dev/kvm opened with errors that tell a user what to do, the capabilities that
//! Outrigger relies on checked by name, and a VM with KVM's own interrupt controllers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::errno;

use crate::machine::layout;

const DEVICE: &str = "/dev/kvm";
/// The only version of KVM's interface there has ever been since 2007.
const API_VERSION: i32 = 12;

/// A virtual machine that cannot be made. All of these but [`VmError::Vcpus`] mean that the host lacks something.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// There is no such device file.
    #[error(
        "{} does not exist: this machine offers no hardware virtualization (see whether the firmware or the cloud provider \
         can switch it on), or the kvm_intel or kvm_amd module is not loaded",
        path.display()
    )]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// The user may not open it.
    #[error("no permission to open {}: add this user to the group kvm and log in again, or run as root", path.display())]
    Permission {
        /// The device file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something other than KVM has the processor's virtualization.
    #[error("KVM is busy: another hypervisor (VirtualBox, VMware) uses this processor's virtualization; stop it first")]
    Busy {
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It cannot be opened for another reason.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It is not KVM.
    #[error("{} does not speak KVM's interface, version {API_VERSION} (it says {version})", path.display())]
    NotKvm {
        /// The device file.
        path: PathBuf,
        /// The version that it says.
        version: i32,
    },
    /// The kernel's KVM is too old or built without something.
    #[error("this host's KVM lacks {name} ({why}); a newer kernel may have it")]
    Capability {
        /// The capability.
        name: &'static str,
        /// Outrigger's use for it.
        why: &'static str,
    },
    /// More vCPUs than this host's KVM allows.
    #[error("{wanted} CPUs, but this host's KVM allows {allowed}")]
    Vcpus {
        /// How many were asked for.
        wanted: usize,
        /// How many there may be.
        allowed: usize,
    },
    /// A KVM call failed.
    #[error("KVM call {call} failed")]
    Call {
        /// The ioctl.
        call: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// Capabilities that KVM must have, and their uses.
const REQUIRED: [(Cap, &str, &str); 15] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "guest memory"),
    (Cap::DestroyMemoryRegionWorks, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS", "moving BARs"),
    (Cap::JoinMemoryRegionsWorks, "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS", "moving BARs"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM", "read-only BAR regions"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR", "start-up of the processor"),
    (Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "start-up of the processor"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP", "interrupt controllers"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING", "MSI"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI", "MSI"),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "interrupts from device processes"),
    (Cap::IrqfdResample, "KVM_CAP_IRQFD_RESAMPLE", "level-triggered interrupts from device processes"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "doorbells of device processes"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID", "processor features"),
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ", "telling the guest its clock rate"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT", "stopping vCPUs"),
];

/// A virtual machine. Shared by everyone who maps memory, routes interrupts or runs vCPUs; KVM frees it when the last of them is
/// gone.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
}

impl Vm {
    /// Make a VM without memory, with KVM's interrupt controllers and no PIT, that can hold `vcpus` vCPUs.
    ///
    /// # Errors
    /// See [`VmError`]; each one says what the user can do.
    pub fn new(vcpus: usize) -> Result<Arc<Self>, VmError> {
        Self::open(Path::new(DEVICE), vcpus)
    }

    fn open(path: &Path, vcpus: usize) -> Result<Arc<Self>, VmError> {
        let kvm = open_device(path)?;
        for (capability, name, why) in REQUIRED {
            if !kvm.check_extension(capability) {
                return Err(VmError::Capability { name, why });
            }
        }
        // The number of APIC ids counts too: an APIC id is the vCPU's number.
        let allowed = kvm.get_max_vcpus().min(kvm.get_max_vcpu_id());
        if vcpus > allowed {
            return Err(VmError::Vcpus { wanted: vcpus, allowed });
        }
        let fd = create_vm(&kvm)?;
        // Both must be set before the first vCPU exists, the identity map first.
        fd.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(layout::KVM_TSS).map_err(call("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        Ok(Arc::new(Self { kvm, fd }))
    }

    /// The VM's file, for interrupts (`register_irqfd`, `set_gsi_routing`), doorbells (`register_ioevent`) and memory.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Adds KVM's PIT, the only timer of a guest that uses no local APIC. Not every guest gets it: taking it away waits for
    /// all of KVM's readers, 34 ms on the test bed, and while it is there KVM uses no AVIC.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn add_pit(&self) -> Result<(), VmError> {
        // KVM answers the speaker's port, by which guests measure time.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))
    }

    /// How many memory slots there may be at once.
    #[must_use]
    pub fn max_memslots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }

    /// Whether KVM has `capability`.
    #[must_use]
    pub fn has(&self, capability: Cap) -> bool {
        self.fd.check_extension(capability)
    }

    /// Processor features that this host can give to a guest.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn supported_cpuid(&self) -> Result<CpuId, VmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))
    }

    /// A new vCPU with the APIC id `id`.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn create_vcpu(&self, id: u8) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(u64::from(id)).map_err(call("KVM_CREATE_VCPU"))
    }
}

/// Turn a failed KVM call into an error that names it.
pub(crate) fn call(call: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |source| VmError::Call { call, source: source.into() }
}

fn open_device(path: &Path) -> Result<Kvm, VmError> {
    // `Kvm::new_with_path` takes the path as a C string and tells no more than errno; that is enough here.
    let c_path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| VmError::Missing { path: path.to_owned() })?;
    let kvm = Kvm::new_with_path(c_path).map_err(|error| open_error(path, error))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        version => Err(VmError::NotKvm { path: path.to_owned(), version }),
    }
}

/// The error for an unsuccessful open of /dev/kvm.
fn open_error(path: &Path, error: errno::Error) -> VmError {
    let (path, source) = (path.to_owned(), io::Error::from(error));
    match error.errno() {
        // Without a driver behind the device file, open says ENODEV or ENXIO.
        nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO => VmError::Missing { path },
        nix::libc::EACCES | nix::libc::EPERM => VmError::Permission { path, source },
        nix::libc::EBUSY => VmError::Busy { source },
        _ => VmError::Open { path, source },
    }
}

/// Create the VM; a signal may interrupt this (it waits for other users of KVM's lists), so that is tried again.
fn create_vm(kvm: &Kvm) -> Result<VmFd, VmError> {
    const TRIES: usize = 5;
    let mut tries = 0;
    loop {
        match kvm.create_vm() {
            Ok(fd) => return Ok(fd),
            Err(error) if error.errno() == nix::libc::EINTR && tries < TRIES => tries += 1,
            Err(error) if error.errno() == nix::libc::EBUSY => return Err(VmError::Busy { source: error.into() }),
            Err(error) => return Err(call("KVM_CREATE_VM")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_told_apart() {
        let error = Vm::open(Path::new("/nonexistent/kvm"), 1).unwrap_err();
        assert!(matches!(&error, VmError::Missing { .. }), "{error:?}");
        assert!(error.to_string().starts_with("/nonexistent/kvm does not exist"));
    }

    #[test]
    fn refusals_are_told_apart_by_what_the_system_answers() {
        let answer = |number| open_error(Path::new("/dev/kvm"), errno::Error::new(number));
        assert!(matches!(answer(nix::libc::EACCES), VmError::Permission { .. }));
        assert!(matches!(answer(nix::libc::EPERM), VmError::Permission { .. }));
        assert!(matches!(answer(nix::libc::ENODEV), VmError::Missing { .. }));
        assert!(matches!(answer(nix::libc::EBUSY), VmError::Busy { .. }));
        assert!(matches!(answer(nix::libc::EMFILE), VmError::Open { .. }));
    }

    #[test]
    fn a_file_that_is_not_kvm_is_told_apart() {
        let error = Vm::open(Path::new("/dev/null"), 1).unwrap_err();
        assert!(matches!(error, VmError::NotKvm { .. }), "{error:?}");
    }

    #[test]
    fn more_vcpus_than_kvm_allows_are_refused() {
        let error = Vm::new(1_000_000).unwrap_err();
        assert!(matches!(error, VmError::Vcpus { wanted: 1_000_000, .. }), "{error:?}");
    }

    #[test]
    fn a_vm_offers_slots_cpuid_and_vcpus() {
        let vm = Vm::new(2).unwrap();
        assert!(vm.max_memslots() >= 32);
        assert!(!vm.supported_cpuid().unwrap().as_slice().is_empty());
        vm.create_vcpu(0).unwrap();
        vm.create_vcpu(1).unwrap();
    }
}
