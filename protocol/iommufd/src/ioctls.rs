//! The ioctls of `<linux/iommufd.h>` and `<linux/vfio.h>` that are used here, none of which carries a direction or a size.

use iommufd_bindings::iommufd as spec;
use nix::request_code_none;
use vfio_bindings::bindings::vfio;

macro_rules! iommufd {
    ($command:ident) => {
        request_code_none!(spec::IOMMUFD_TYPE, spec::$command)
    };
}

macro_rules! device {
    ($offset:literal) => {
        request_code_none!(vfio::VFIO_TYPE, vfio::VFIO_BASE + $offset)
    };
}

nix::ioctl_read_bad!(destroy, iommufd!(IOMMUFD_CMD_DESTROY), spec::iommu_destroy);
nix::ioctl_read_bad!(alloc, iommufd!(IOMMUFD_CMD_IOAS_ALLOC), spec::iommu_ioas_alloc);
nix::ioctl_read_bad!(iova_ranges, iommufd!(IOMMUFD_CMD_IOAS_IOVA_RANGES), spec::iommu_ioas_iova_ranges);
nix::ioctl_read_bad!(map, iommufd!(IOMMUFD_CMD_IOAS_MAP), spec::iommu_ioas_map);
nix::ioctl_read_bad!(map_file, iommufd!(IOMMUFD_CMD_IOAS_MAP_FILE), spec::iommu_ioas_map_file);
nix::ioctl_read_bad!(unmap, iommufd!(IOMMUFD_CMD_IOAS_UNMAP), spec::iommu_ioas_unmap);
nix::ioctl_read_bad!(bind, device!(18), vfio::vfio_device_bind_iommufd);
nix::ioctl_read_bad!(attach, device!(19), vfio::vfio_device_attach_iommufd_pt);
nix::ioctl_read_bad!(detach, device!(20), vfio::vfio_device_detach_iommufd_pt);
