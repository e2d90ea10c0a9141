//! Memory that the guest sees and that another process can take away. KVM_RUN fails then (EFAULT), and KVM does not say
//! where: whoever gave the memory to the guest has to look for what is missing.

/// All such memory of a machine.
pub trait ForeignMemory: Send + Sync {
    /// Looks for memory that is out of reach and takes it away from the guest, together with the rest of the device that
    /// it belongs to. Whether there was any. `again`: the last look found none, and yet accesses fail still.
    fn withdraw_unreachable(&self, again: bool) -> bool;
}

/// Looks of one vCPU in a row that found nothing.
#[derive(Debug, Default)]
pub(super) struct VainLooks(u8);

impl VainLooks {
    /// After that many the fault is taken to be in memory that nobody can give back.
    const LIMIT: u8 = 2;

    /// KVM_RUN has failed: whether the vCPU can go on.
    pub(super) fn look(&mut self, memory: &dyn ForeignMemory) -> bool {
        let found = memory.withdraw_unreachable(self.0 > 0);
        self.0 = if found { 0 } else { self.0 + 1 };
        self.0 < Self::LIMIT
    }

    /// The vCPU got on.
    pub(super) fn forget(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Results of the looks to come, and arguments of the past ones.
    struct Looks(Mutex<(Vec<bool>, Vec<bool>)>);

    impl ForeignMemory for Looks {
        fn withdraw_unreachable(&self, again: bool) -> bool {
            let mut looks = self.0.lock().unwrap();
            looks.1.push(again);
            looks.0.remove(0)
        }
    }

    #[test]
    fn two_looks_in_a_row_that_find_nothing_are_the_end() {
        let memory = Looks(Mutex::new((vec![false, true, false, false], Vec::new())));
        let mut looks = VainLooks::default();
        assert!(looks.look(&memory), "it may have come back");
        assert!(looks.look(&memory), "a device was withdrawn");
        assert!(looks.look(&memory));
        assert!(!looks.look(&memory));
        assert_eq!(memory.0.lock().unwrap().1, [false, true, false, true]);
    }

    #[test]
    fn a_vcpu_that_got_on_starts_anew() {
        let memory = Looks(Mutex::new((vec![false, false], Vec::new())));
        let mut looks = VainLooks::default();
        assert!(looks.look(&memory));
        looks.forget();
        assert!(looks.look(&memory));
    }
}
