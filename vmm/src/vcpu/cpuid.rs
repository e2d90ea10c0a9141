//! A vCPU's answers to CPUID: all that this host's KVM supports, with the leaves that differ from one vCPU to the next or
//! describe how they are arranged: one socket, one thread per core. The clock rates are told too, so that the guest has nothing
//! to calibrate. (Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E.)

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use vmm_sys_util::errno;

use crate::machine::vm::{VmError, call};

/// KVM's local APIC timer counts at 1 GHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf with the hypervisor's own clock rates, as other hypervisors have it (in VMware's numbering).
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
const HYPERVISOR_BASE: u32 = 0x4000_0000;

/// Level types of the extended topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

const CMP_LEGACY: u32 = 1 << 1;
const HTT: u32 = 1 << 28;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Virtualization by the processor: Intel's (leaf 1, ECX), and AMD's (leaf 0x8000_0001, ECX), whose details have a leaf of their own.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;
const SVM_LEAF: u32 = 0x8000_000A;

/// Physical address bits of a processor that doesn't say (Intel SDM volume 3A, section 4.1.4).
const DEFAULT_PHYSICAL_BITS: u8 = 36;

/// Properties that the vCPUs of a guest share.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// vCPUs, at least one.
    pub cpus: u8,
    /// Rate of the time-stamp counter in kHz.
    pub tsc_khz: u32,
    /// Whether the local APIC timer has TSC-deadline mode; KVM does not say it in CPUID.
    pub tsc_deadline: bool,
    /// Whether the guest may run guests of its own, if the host's KVM lets it. That is much of KVM's code in the guest's reach.
    pub nested: bool,
}

impl Topology {
    /// The answers of the vCPU with the APIC id `id`, on a host that supports `supported`.
    ///
    /// # Errors
    /// If the result has more leaves than KVM takes.
    pub fn cpuid(&self, supported: &CpuId, id: u8) -> Result<CpuId, VmError> {
        let mut leaves = Leaves(supported.as_slice().to_vec());
        let (highest, intel) = match leaves.get(0) {
            Some(leaf) => (leaf.eax, leaf.ebx == u32::from_le_bytes(*b"Genu")),
            None => (0, false),
        };
        self.features(&mut leaves, id);
        self.extended_topology(&mut leaves, highest, id);
        if intel {
            self.intel_caches(&mut leaves);
            self.intel_clocks(&mut leaves, highest);
        } else {
            self.amd_topology(&mut leaves, id);
        }
        self.hypervisor_clocks(&mut leaves);
        if !self.nested {
            no_virtualization(&mut leaves);
        }
        let too_many = |_| call("KVM_SET_CPUID2")(errno::Error::new(nix::libc::E2BIG));
        CpuId::from_entries(&leaves.0).map_err(too_many)
    }

    /// Bits of an APIC id that number the cores.
    fn core_bits(&self) -> u32 {
        u32::from(self.cpus).next_power_of_two().trailing_zeros()
    }

    fn features(&self, leaves: &mut Leaves, id: u8) {
        for leaf in leaves.all(1) {
            leaf.ebx = leaf.ebx & 0xFFFF | (1 << self.core_bits()) << 16 | u32::from(id) << 24;
            leaf.ecx |= HYPERVISOR;
            if self.tsc_deadline {
                leaf.ecx |= TSC_DEADLINE;
            }
            leaf.edx = with(leaf.edx, HTT, self.cpus > 1);
        }
    }

    fn extended_topology(&self, leaves: &mut Leaves, highest: u32, id: u8) {
        for function in [0xB, 0x1F] {
            leaves.remove(function);
            if highest < function {
                continue;
            }
            let levels = [
                (0, 1, LEVEL_THREAD),
                (self.core_bits(), u32::from(self.cpus), LEVEL_CORE),
                (0, 0, 0 /* no more levels */),
            ];
            for (index, (eax, ebx, kind)) in (0..).zip(levels) {
                let (ecx, edx) = (index | kind << 8, u32::from(id));
                leaves.add_indexed(function, index, [eax, ebx, ecx, edx]);
            }
        }
        // AMD's newer topology leaf would contradict the older ones, which say all there is to say.
        leaves.remove(0x8000_0026);
    }

    /// Which vCPUs share which cache (leaf 4), and how many cores the package has.
    fn intel_caches(&self, leaves: &mut Leaves) {
        let package = (1 << self.core_bits()) - 1;
        for leaf in leaves.all(4) {
            let (kind, level) = (leaf.eax & 0x1F, leaf.eax >> 5 & 7);
            if kind == 0 {
                continue;
            }
            let sharing = if level < 3 { 0 } else { package };
            leaf.eax = leaf.eax & 0x3FFF | sharing << 14 | package << 26;
        }
    }

    /// TSC and crystal (leaf 0x15), processor and bus (leaf 0x16). Guests take the crystal's rate for the APIC timer's.
    fn intel_clocks(&self, leaves: &mut Leaves, highest: u32) {
        if highest >= 0x15 {
            leaves.remove(0x15);
            leaves.add(0x15, [APIC_BUS_KHZ, self.tsc_khz, APIC_BUS_KHZ * 1000, 0]);
        }
        if highest >= 0x16 {
            let mhz = self.tsc_khz / 1000;
            leaves.remove(0x16);
            leaves.add(0x16, [mhz, mhz, APIC_BUS_KHZ / 1000, 0]);
        }
    }

    fn amd_topology(&self, leaves: &mut Leaves, id: u8) {
        let last_core = u32::from(self.cpus) - 1;
        for leaf in leaves.all(0x8000_0001) {
            leaf.ecx = with(leaf.ecx, CMP_LEGACY, self.cpus > 1);
        }
        for leaf in leaves.all(0x8000_0008) {
            leaf.ecx = leaf.ecx & !0xF0FF | self.core_bits() << 12 | last_core;
        }
        for leaf in leaves.all(0x8000_001D) {
            let level = leaf.eax >> 5 & 7;
            let sharing = if level < 3 { 0 } else { last_core };
            leaf.eax = leaf.eax & !(0xFFF << 14) | sharing << 14;
        }
        for leaf in leaves.all(0x8000_001E) {
            // Extended APIC id; core number, one thread; node 0, the only one.
            (leaf.eax, leaf.ebx, leaf.ecx) = (u32::from(id), u32::from(id), 0);
        }
    }

    fn hypervisor_clocks(&self, leaves: &mut Leaves) {
        let mut any = false;
        for leaf in leaves.all(HYPERVISOR_BASE) {
            leaf.eax = leaf.eax.max(HYPERVISOR_TIMING);
            any = true;
        }
        if any {
            leaves.remove(HYPERVISOR_TIMING);
            leaves.add(HYPERVISOR_TIMING, [self.tsc_khz, APIC_BUS_KHZ, 0, 0]);
        }
    }
}

/// A processor that runs no guests.
fn no_virtualization(leaves: &mut Leaves) {
    leaves.all(1).for_each(|leaf| leaf.ecx &= !VMX);
    leaves.all(0x8000_0001).for_each(|leaf| leaf.ecx &= !SVM);
    // Reserved, all zeros, where there is no SVM.
    leaves.remove(SVM_LEAF);
}

/// Width of a physical address on this host's processors, as a guest sees it.
#[must_use]
pub fn physical_bits(supported: &CpuId) -> u8 {
    let leaf = supported.as_slice().iter().find(|leaf| leaf.function == 0x8000_0008);
    leaf.map_or(DEFAULT_PHYSICAL_BITS, |leaf| leaf.eax.to_le_bytes()[0])
}

fn with(value: u32, bits: u32, set: bool) -> u32 {
    if set { value | bits } else { value & !bits }
}

struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    fn get(&self, function: u32) -> Option<&kvm_cpuid_entry2> {
        self.0.iter().find(|leaf| leaf.function == function)
    }

    fn all(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |leaf| leaf.function == function)
    }

    fn remove(&mut self, function: u32) {
        self.0.retain(|leaf| leaf.function != function);
    }

    fn add(&mut self, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.0.push(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() });
    }

    fn add_indexed(&mut self, function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        self.0.push(kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn indexed(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax, ..Default::default() }
    }

    fn intel() -> CpuId {
        CpuId::from_entries(&[
            leaf(0, [0x16, u32::from_le_bytes(*b"Genu"), 0, 0]),
            leaf(1, [0x806F8, 0x1F10_0800, 1 << 21 | 1 << 5, 0]),
            indexed(4, 0, 0x7C01_C121), // level 1 data, as the host shares it
            indexed(4, 3, 0x7C03_C163), // level 3
            indexed(4, 4, 0),
            indexed(0xB, 0, 0),
            leaf(0x4000_0000, [0x4000_0001, 0, 0, 0]),
            leaf(0x8000_0008, [0x2E34, 0, 0, 0]),
        ])
        .unwrap()
    }

    fn amd() -> CpuId {
        CpuId::from_entries(&[
            leaf(0, [0xD, u32::from_le_bytes(*b"Auth"), 0, 0]),
            leaf(1, [0x80_0F12, 0, 1 << 21, 0]),
            leaf(0x8000_0001, [0, 0, 1 << 22 | 1 << 2, 0]),
            leaf(0x8000_0008, [0x3028, 0, 0x7007, 0]),
            leaf(0x8000_000A, [1, 8, 0, 0xFF]),
            indexed(0x8000_001D, 0, 0x4121),
            indexed(0x8000_001D, 3, 0xC163),
            leaf(0x8000_001E, [9, 9, 9, 0]),
            leaf(0x4000_0000, [0x4000_0001, 0, 0, 0]),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        let found = cpuid.as_slice().iter().find(|leaf| leaf.function == function && leaf.index == index)?;
        Some([found.eax, found.ebx, found.ecx, found.edx])
    }

    const FOUR: Topology = Topology { cpus: 4, tsc_khz: 2_400_000, tsc_deadline: true, nested: false };

    #[test]
    fn each_vcpu_has_its_own_apic_id_and_sees_its_siblings() {
        let cpuid = FOUR.cpuid(&intel(), 3).unwrap();
        let [_, ebx, ecx, edx] = find(&cpuid, 1, 0).unwrap();
        assert_eq!(ebx, 0x0304_0800);
        assert_eq!(ecx, 1 << 31 | 1 << 24 | 1 << 21);
        assert_eq!(edx, 1 << 28);
        assert_eq!(find(&cpuid, 0xB, 0), Some([0, 1, 0x100, 3]));
        assert_eq!(find(&cpuid, 0xB, 1), Some([2, 4, 0x201, 3]));
        assert_eq!(find(&cpuid, 0xB, 2), Some([0, 0, 2, 3]));
        assert_eq!(find(&cpuid, 0x1F, 0), None, "beyond the highest leaf");
    }

    #[test]
    fn a_single_vcpu_is_not_multithreaded() {
        let cpuid = Topology { cpus: 1, tsc_deadline: false, ..FOUR }.cpuid(&intel(), 0).unwrap();
        let [_, ebx, ecx, edx] = find(&cpuid, 1, 0).unwrap();
        assert_eq!((ebx, ecx, edx), (0x0001_0800, 1 << 31 | 1 << 21, 0));
        assert_eq!(find(&cpuid, 0xB, 1), Some([0, 1, 0x201, 0]));
    }

    #[test]
    fn a_number_of_vcpus_that_is_no_power_of_two_rounds_up_the_id_space() {
        let cpuid = Topology { cpus: 5, ..FOUR }.cpuid(&intel(), 4).unwrap();
        assert_eq!(find(&cpuid, 1, 0).unwrap()[1], 0x0408_0800);
        assert_eq!(find(&cpuid, 0xB, 1), Some([3, 5, 0x201, 4]));
    }

    #[test]
    fn intel_cores_have_their_own_inner_caches_and_share_the_last() {
        let cpuid = FOUR.cpuid(&intel(), 0).unwrap();
        assert_eq!(find(&cpuid, 4, 0).unwrap()[0], 3 << 26 | 0x121);
        assert_eq!(find(&cpuid, 4, 3).unwrap()[0], 3 << 26 | 3 << 14 | 0x163);
        assert_eq!(find(&cpuid, 4, 4).unwrap()[0], 0, "the end of the list");
    }

    #[test]
    fn amd_cores_are_counted_in_amds_leaves() {
        let cpuid = FOUR.cpuid(&amd(), 2).unwrap();
        assert_eq!(find(&cpuid, 0x8000_0001, 0).unwrap()[2], 1 << 22 | 1 << 1);
        assert_eq!(find(&cpuid, 0x8000_0008, 0).unwrap()[2], 2 << 12 | 3);
        assert_eq!(find(&cpuid, 0x8000_001D, 0).unwrap()[0], 0x121);
        assert_eq!(find(&cpuid, 0x8000_001D, 3).unwrap()[0], 3 << 14 | 0x163);
        assert_eq!(find(&cpuid, 0x8000_001E, 0), Some([2, 2, 0, 0]));
        assert_eq!(find(&cpuid, 0x15, 0), None);
    }

    #[test]
    fn a_guest_runs_no_guests_unless_it_may() {
        for (nested, [vmx, svm]) in [(false, [0, 0]), (true, [1 << 5, 1 << 2])] {
            let topology = Topology { nested, ..FOUR };
            let (intel, amd) = (topology.cpuid(&intel(), 0).unwrap(), topology.cpuid(&amd(), 0).unwrap());
            assert_eq!(find(&intel, 1, 0).unwrap()[2] & 1 << 5, vmx);
            assert_eq!(find(&amd, 0x8000_0001, 0).unwrap()[2] & 1 << 2, svm);
            assert_eq!(find(&amd, 0x8000_000A, 0).is_some(), nested);
        }
    }

    #[test]
    fn clock_rates_are_told() {
        let cpuid = FOUR.cpuid(&intel(), 0).unwrap();
        let [denominator, numerator, crystal, _] = find(&cpuid, 0x15, 0).unwrap();
        assert_eq!(u64::from(crystal) * u64::from(numerator) / u64::from(denominator), 2_400_000_000);
        assert_eq!(find(&cpuid, 0x16, 0), Some([2400, 2400, 1000, 0]));
        for cpuid in [cpuid, FOUR.cpuid(&amd(), 0).unwrap()] {
            assert_eq!(find(&cpuid, 0x4000_0000, 0).unwrap()[0], 0x4000_0010);
            assert_eq!(find(&cpuid, 0x4000_0010, 0), Some([2_400_000, 1_000_000, 0, 0]));
        }
    }

    #[test]
    fn address_width_comes_from_the_host() {
        assert_eq!(physical_bits(&intel()), 52);
        assert_eq!(physical_bits(&amd()), 40);
        assert_eq!(physical_bits(&CpuId::from_entries(&[]).unwrap()), 36);
    }

    #[test]
    fn this_hosts_leaves_are_accepted_by_its_kvm() {
        let vm = crate::machine::vm::Vm::new(2).unwrap();
        let vcpu = super::super::Vcpu::new(&vm, 1).unwrap();
        let topology = Topology { cpus: 2, tsc_khz: vcpu.tsc_khz().unwrap(), tsc_deadline: true, nested: true };
        vcpu.configure(&topology.cpuid(&vm.supported_cpuid().unwrap(), 1).unwrap()).unwrap();
    }
}
