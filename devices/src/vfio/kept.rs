//! The files that hold a function's state, as a successor of the process gets them: as long as they are open, the function is not
//! reset, its memory stays mapped for it, and its interrupts go to the guest.
//!
//! The descriptors come from the predecessor, by way of the VMM, so what they are is found out first, in a way that cannot wait
//! for anybody. The function is opened once more by its name, through the group, which nothing resets while it is open
//! elsewhere: so it is the right one, whatever a predecessor has sent.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use outrigger_protocol::foreign::ForeignFd;

use super::OpenError;
use super::container::{self, Container};
use super::group::Group;
use crate::inherited::character_device;

/// The files that a successor gets, in this order: the group, its container, the open function.
const FILES: usize = 3;

/// A predecessor's.
#[derive(Debug)]
pub(super) struct Adopted {
    pub(super) group: Arc<Group>,
    pub(super) container: Container,
    /// Keeps the function open until it is open once more.
    pub(super) function: ForeignFd,
}

impl Adopted {
    /// Checks the files that a predecessor had of the function in IOMMU group `group`.
    pub(super) fn new(kept: Vec<OwnedFd>, group: u32) -> Result<Self, OpenError> {
        let other = |what| OpenError::Kept { what };
        let Ok([group_file, container, function]) = <[OwnedFd; FILES]>::try_from(kept) else {
            return Err(other("not a group, a container and a device"));
        };
        let function = ForeignFd::from(function);
        if !is_same_device(&group_file, &Path::new("/dev/vfio").join(group.to_string())) {
            return Err(other("the first file is not its group's"));
        }
        if !is_same_device(&container, Path::new(container::PATH)) {
            return Err(other("the second file is not a container"));
        }
        if function.lend_vfio_device().is_none() {
            return Err(other("the third file is not a device's"));
        }
        let group = Arc::new(Group::adopt(group_file));
        let container = Container::adopt(container, &group)?;
        Ok(Self { group, container, function })
    }
}

fn is_same_device(file: &OwnedFd, node: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::metadata(node).map(|node| (libc::major(node.rdev()), libc::minor(node.rdev())));
    found.is_ok_and(|number| character_device(file) == Some(number))
}

/// The files for a successor of this process.
pub(super) fn keep(group: &Group, container: &Container, function: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let Some(container) = container.keep()? else { return Err(Errno::EOPNOTSUPP.into()) };
    Ok(vec![group.file().try_clone_to_owned()?, container, function.try_clone_to_owned()?])
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A hijacked predecessor may have sent anything.
    #[test]
    fn files_of_anything_else_are_not_taken() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        for count in [0, 1, 2, 3, 4] {
            let kept = (0..count).map(|_| null()).collect();
            assert!(matches!(Adopted::new(kept, 1), Err(OpenError::Kept { .. })), "{count}");
        }
    }
}
