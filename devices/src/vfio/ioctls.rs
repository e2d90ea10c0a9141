//! The ioctls of `<linux/vfio.h>` that are used here. VFIO numbers them all without a direction or a size.

use libc::{c_char, c_int};
use nix::request_code_none;
use outrigger_protocol::wire;
use vfio_bindings::bindings::vfio as spec;

macro_rules! request {
    ($offset:literal) => {
        request_code_none!(spec::VFIO_TYPE, spec::VFIO_BASE + $offset)
    };
}

nix::ioctl_none_bad!(api_version, request!(0));
nix::ioctl_write_int_bad!(check_extension, request!(1));
nix::ioctl_write_int_bad!(set_iommu, request!(2));
nix::ioctl_read_bad!(group_status, request!(3), spec::vfio_group_status);
nix::ioctl_write_ptr_bad!(set_container, request!(4), c_int);
nix::ioctl_none_bad!(unset_container, request!(5));
nix::ioctl_write_ptr_bad!(device_fd, request!(6), c_char);
// The structures of vfio-user are VFIO's.
nix::ioctl_read_bad!(device_info, request!(7), wire::DeviceInfo);
nix::ioctl_read_bad!(region_info, request!(8), wire::RegionInfo);
nix::ioctl_read_bad!(irq_info, request!(9), wire::IrqInfo);
nix::ioctl_write_ptr_bad!(set_irqs, request!(10), wire::IrqSet);
nix::ioctl_none_bad!(reset, request!(11));
nix::ioctl_read_bad!(iommu_info, request!(12), spec::vfio_iommu_type1_info);
nix::ioctl_write_ptr_bad!(map_dma, request!(13), spec::vfio_iommu_type1_dma_map);
nix::ioctl_read_bad!(unmap_dma, request!(14), spec::vfio_iommu_type1_dma_unmap);

/// A structure for an ioctl that may answer with more than it: it says in its first word how many bytes it takes.
///
/// The bytes that it answered are returned; 64 KiB are the most.
///
/// # Safety
/// `call` writes to no more bytes than the first word says.
pub(super) unsafe fn answer(structure: &[u8], call: impl Fn(*mut u8) -> nix::Result<c_int>) -> nix::Result<Vec<u8>> {
    const MOST: usize = 64 << 10;
    let mut room = structure.len();
    loop {
        // Of words, so that it is aligned.
        let mut words = vec![0u64; room.div_ceil(8)];
        let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut words[..]);
        bytes[..structure.len()].copy_from_slice(structure);
        bytes[..4].copy_from_slice(&u32::try_from(room).unwrap_or(u32::MAX).to_ne_bytes());
        call(bytes.as_mut_ptr())?;
        let needed = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if needed <= room || needed > MOST {
            return Ok(bytes[..room].to_vec());
        }
        room = needed;
    }
}
