//! The text of `--vfio`.

use outrigger_process::options::{OptionError, Options};

use super::address::Address;

/// What `--help` adds.
pub const HELP: &str = "\
Keys of --vfio:
  host=ADDRESS   the PCI function, as 0000:01:00.0; host= can be left out where it comes first

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
const KEYS: &[&str] = &[HOST];

pub(super) fn parse(argument: &str) -> Result<Address, OptionError> {
    let options = Options::parse(argument, KEYS, Some(HOST))?;
    options.required(HOST, "ADDRESS")?.parse().map_err(|problem| OptionError::value(HOST, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_comes_with_its_key_or_without() {
        for text in ["0000:01:00.0", "host=0000:01:00.0", "01:00.0"] {
            assert_eq!(parse(text).unwrap().to_string(), "0000:01:00.0");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let problem = |text| parse(text).unwrap_err().to_string();
        assert_eq!(problem(""), "is empty");
        assert_eq!(
            problem("nvme0"),
            "host: must be the address of a PCI function, as 0000:01:00.0 (outrigger vfio list shows them)"
        );
        assert_eq!(problem("01:00.0,iommu=auto"), "unknown key 'iommu'; it takes host");
        assert_eq!(problem("01:00.0,host=02:00.0"), "key 'host' is given twice");
    }
}
