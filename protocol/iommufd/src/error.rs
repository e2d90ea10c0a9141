//! Why a device gets no address space, or memory no place in it.

use std::ops::RangeInclusive;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

/// A step on the way to an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Binding the device to an iommufd.
    Bind,
    /// Making an address space there.
    Alloc,
    /// Attaching the device to it.
    Attach,
    /// Asking which addresses there are.
    Ranges,
}

/// A device without an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.words())]
pub struct BindError {
    /// The step that failed.
    pub step: Step,
    /// Why.
    pub errno: Errno,
}

impl BindError {
    /// Whether another process has the device.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.step == Step::Bind && matches!(self.errno, Errno::EINVAL | Errno::EBUSY)
    }

    fn words(&self) -> String {
        match self.is_in_use() {
            true => "in use by another process".to_owned(),
            false => format!("{}: {}", self.step.name(), self.errno.desc()),
        }
    }
}

impl Step {
    pub(crate) fn failed(self) -> impl Fn(Errno) -> BindError {
        move |errno| BindError { step: self, errno }
    }

    /// The kernel's name of it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bind => "VFIO_DEVICE_BIND_IOMMUFD",
            Self::Alloc => "IOMMU_IOAS_ALLOC",
            Self::Attach => "VFIO_DEVICE_ATTACH_IOMMUFD_PT",
            Self::Ranges => "IOMMU_IOAS_IOVA_RANGES",
        }
    }
}

/// Memory that a device cannot be given, in one line that says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Addresses that the IOMMU does not have, or reserves.
    #[error("memory at {first:#x}-{last:#x} cannot be reached by the device: the host's IOMMU has {usable}")]
    Unusable {
        /// The first address.
        first: u64,
        /// The last one.
        last: u64,
        /// The ranges that there are.
        usable: String,
    },
    /// It cannot be locked.
    #[error("{0}")]
    NoMemory(String),
    /// The kernel refuses.
    #[error("memory at {first:#x}-{last:#x} cannot be mapped for the device: {}", errno.desc())]
    Kernel {
        /// The first address.
        first: u64,
        /// The last one.
        last: u64,
        /// Why.
        errno: Errno,
    },
}

impl MapError {
    /// Checks that a range lies in one of those that can be mapped.
    ///
    /// # Errors
    /// It does not.
    pub fn check_usable(usable: &[RangeInclusive<u64>], first: u64, last: u64) -> Result<(), Self> {
        if usable.iter().any(|range| range.contains(&first) && range.contains(&last)) {
            return Ok(());
        }
        let usable: Vec<_> = usable.iter().map(|range| format!("{:#x}-{:#x}", range.start(), range.end())).collect();
        Err(Self::Unusable { first, last, usable: usable.join(", ") })
    }

    /// The meaning of the kernel's answer, where `needed` bytes are to be locked in all.
    #[must_use]
    pub fn of(errno: Errno, first: u64, last: u64, needed: u64) -> Self {
        match errno {
            Errno::ENOMEM => Self::NoMemory(no_memory(needed)),
            errno => Self::Kernel { first, last, errno },
        }
    }

    /// The errno for a client.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Unusable { .. } => Errno::EINVAL,
            Self::NoMemory(_) => Errno::ENOMEM,
            Self::Kernel { errno, .. } => *errno,
        }
    }
}

/// Why the kernel cannot pin `needed` bytes, and what to do.
fn no_memory(needed: u64) -> String {
    let kib = |bytes: u64| bytes.div_ceil(1024);
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((limit, _)) if limit != RLIM_INFINITY && limit < needed => format!(
            "the limit on locked memory is {} KiB, and the client's memory needs {} KiB: ulimit -l {1}, or LimitMEMLOCK= of systemd",
            kib(limit),
            kib(needed)
        ),
        _ => format!("the host has no memory left to keep {} KiB of the client's for the device", kib(needed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_in_one_that_can_be_mapped() {
        let usable = [0..=0xfedf_ffff, 0xfef0_0000..=0xffff_ffff_ffff];
        for (first, last) in [(0, 0xfff), (0xfedf_f000, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)] {
            assert_eq!(MapError::check_usable(&usable, first, last), Ok(()));
        }
        for (first, last) in [(0xfedf_f000, 0xfee0_0fff), (0xfee0_0000, 0xfee0_0fff), (0, 0xfef0_0000), (0, u64::MAX)] {
            let error = MapError::check_usable(&usable, first, last).expect_err("it is not usable");
            assert!(error.to_string().ends_with("the host's IOMMU has 0x0-0xfedfffff, 0xfef00000-0xffffffffffff"));
            assert_eq!(error.errno(), Errno::EINVAL);
        }
        assert!(MapError::check_usable(&[], 0, 0).is_err());
    }
}
