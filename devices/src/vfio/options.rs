//! The text of `--vfio`.

use std::os::fd::RawFd;

use outrigger_process::options::{OptionError, Options};

use super::address::Address;

/// The program's part of `--help`.
pub const HELP: &str = "\
Keys of --vfio:
  host=ADDRESS   the PCI function, as 0000:01:00.0; host= can be left out where it comes first
  iommu=auto     how memory is mapped for it: iommufd (Linux 6.6; iommu=iommufd), the legacy container
                 (iommu=container), or iommufd where both the kernel and the device have it (default);
                 a process that is killed is succeeded by the container only
  fd=N           descriptor N is the device's file or its group's, opened by somebody who may:
                 /dev/vfio/devices/vfioN serves one client, /dev/vfio/N one after the other
  iommufd=N      descriptor N is /dev/iommu, opened by somebody who may
  dma=shared     memory is shared with this process, which maps it for the device (default); dma=vmm: the
                 client does, and this process has none of it (iommufd; outrigger run --vfio)

Examples:
  outrigger vfio list                 (the same as outrigger-vfio list)
  outrigger vfio bind 0000:01:00.0
  outrigger-vfio --vfio 0000:01:00.0 --socket /run/nvme.sock
  outrigger run --kernel vmlinuz --device socket=/run/nvme.sock
  outrigger vfio unbind 0000:01:00.0

The client must share its memory: a physical device reaches it by itself, through the host's IOMMU.

Log level: RUST_LOG=error|warn|info|debug (default warn), on standard error.
Exit status: 0 when told to end or the client of --fd left, 1 when that client broke the protocol or
vfio-pci does not take a device, 2 for bad usage or a device that cannot be had, 3 when the host
lacks something (a permission, an IOMMU, a module).";

const HOST: &str = "host";
const IOMMU: &str = "iommu";
const FD: &str = "fd";
const IOMMUFD: &str = "iommufd";
const DMA: &str = "dma";
const KEYS: &[&str] = &[HOST, IOMMU, FD, IOMMUFD, DMA];

/// How memory is mapped for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum IommuChoice {
    #[default]
    Auto,
    Iommufd,
    Container,
}

/// All of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) address: Address,
    pub(super) iommu: IommuChoice,
    /// The device's file, or its group's, opened by somebody else.
    pub(super) fd: Option<RawFd>,
    /// `/dev/iommu`, opened by somebody else.
    pub(super) iommufd: Option<RawFd>,
    /// The client maps memory for the device.
    pub(super) by_client: bool,
}

impl Settings {
    /// The option by which there is no other way than iommufd.
    pub(super) fn asks_for_iommufd(&self) -> &'static str {
        if self.by_client { "dma=vmm" } else { "iommu=iommufd" }
    }
}

pub(super) fn parse(argument: &str) -> Result<Settings, OptionError> {
    let options = Options::parse(argument, KEYS, Some(HOST))?;
    let address = options.required(HOST, "ADDRESS")?.parse().map_err(|problem| OptionError::value(HOST, problem))?;
    let iommu = options.parsed(IOMMU, |text| match text {
        "auto" => Ok(IommuChoice::Auto),
        "iommufd" => Ok(IommuChoice::Iommufd),
        "container" => Ok(IommuChoice::Container),
        _ => Err(format!("must be auto, iommufd or container, not '{text}'")),
    })?;
    let number = |text: &str| {
        text.parse::<RawFd>().ok().filter(|fd| *fd > 2).ok_or("must be the number of a descriptor above 2")
    };
    let fd = options.parsed(FD, number)?;
    let iommufd = options.parsed(IOMMUFD, number)?;
    let by_client = options.parsed(DMA, |text| match text {
        "shared" => Ok(false),
        "vmm" => Ok(true),
        _ => Err(format!("must be shared or vmm, as hardware reaches memory by itself, not '{text}'")),
    })?;
    let by_client = by_client.unwrap_or(false);
    if by_client && iommu == Some(IommuChoice::Container) {
        return Err(OptionError::value(DMA, "vmm takes iommufd, which iommu=container excludes"));
    }
    if by_client && iommufd.is_some() {
        return Err(OptionError::value(IOMMUFD, "is of no use with dma=vmm: the client has its own"));
    }
    let needs_iommufd = by_client || iommufd.is_some();
    let iommu = match iommu {
        None | Some(IommuChoice::Auto) if needs_iommufd => IommuChoice::Iommufd,
        choice => choice.unwrap_or_default(),
    };
    if iommufd.is_some() && iommu == IommuChoice::Container {
        return Err(OptionError::value(IOMMUFD, "is of no use with iommu=container"));
    }
    Ok(Settings { address, iommu, fd, iommufd, by_client })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_comes_with_its_key_or_without() {
        for text in ["0000:01:00.0", "host=0000:01:00.0", "01:00.0", "iommu=auto,host=01:00.0"] {
            let settings = parse(text).unwrap();
            assert_eq!(settings.address.to_string(), "0000:01:00.0");
            assert_eq!((settings.iommu, settings.fd, settings.iommufd), (IommuChoice::Auto, None, None));
        }
    }

    #[test]
    fn the_way_to_the_device_is_chosen() {
        let iommu = |text| parse(text).unwrap().iommu;
        assert_eq!(iommu("01:00.0,iommu=iommufd"), IommuChoice::Iommufd);
        assert_eq!(iommu("01:00.0,iommu=container"), IommuChoice::Container);
        assert_eq!(iommu("01:00.0,iommufd=4"), IommuChoice::Iommufd);
        for text in ["01:00.0,dma=vmm", "01:00.0,iommu=auto,dma=vmm", "01:00.0,iommu=iommufd,dma=vmm"] {
            let settings = parse(text).unwrap();
            assert_eq!((settings.iommu, settings.by_client), (IommuChoice::Iommufd, true));
        }
        assert!(!parse("01:00.0,dma=shared").unwrap().by_client);
        let settings = parse("01:00.0,fd=3,iommufd=4").unwrap();
        assert_eq!((settings.fd, settings.iommufd), (Some(3), Some(4)));
    }

    #[test]
    fn mistakes_are_named() {
        let problem = |text| parse(text).unwrap_err().to_string();
        assert_eq!(problem(""), "is empty");
        assert_eq!(
            problem("nvme0"),
            "host: must be the address of a PCI function, as 0000:01:00.0 (outrigger vfio list shows them)"
        );
        assert_eq!(problem("01:00.0,colour=red"), "unknown key 'colour'; it takes host, iommu, fd, iommufd and dma");
        assert_eq!(problem("01:00.0,iommu=none"), "iommu: must be auto, iommufd or container, not 'none'");
        assert_eq!(problem("01:00.0,iommufd=4,iommu=container"), "iommufd: is of no use with iommu=container");
        let container = "dma: vmm takes iommufd, which iommu=container excludes";
        assert_eq!(problem("01:00.0,dma=vmm,iommu=container"), container);
        assert_eq!(
            problem("01:00.0,dma=messages"),
            "dma: must be shared or vmm, as hardware reaches memory by itself, not 'messages'"
        );
        assert_eq!(problem("01:00.0,dma=vmm,iommufd=4"), "iommufd: is of no use with dma=vmm: the client has its own");
        for fd in ["-1", "2", "x"] {
            let text = format!("01:00.0,fd={fd}");
            assert_eq!(parse(&text).unwrap_err().to_string(), "fd: must be the number of a descriptor above 2");
        }
        assert_eq!(problem("01:00.0,host=02:00.0"), "key 'host' is given twice");
    }
}
