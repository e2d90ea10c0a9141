//! The two sides' capabilities in `VFIO_USER_VERSION` (specification: "VFIO_USER_VERSION", "Capabilities").
//!
//! Unknown keys are ignored, values of a wrong type are refused, and absent keys have the specification's default.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::journal::JournalFormat;
use crate::socket::MAX_FDS;

/// The protocol's major version; both sides must agree.
pub const MAJOR: u16 = 0;
/// The newest minor version that Outrigger speaks.
pub const MINOR: u16 = 1;
/// The longest capability text that is parsed, in bytes.
pub const MAX_JSON: usize = 4096;

/// The default of `max_data_xfer_size`, and the most that Outrigger announces, in bytes.
pub const DEFAULT_MAX_DATA_XFER_SIZE: u32 = 1 << 20;
/// However small a `max_data_xfer_size` is, messages that transfer no data have this much room, in bytes.
pub(crate) const MIN_ROOM: usize = 1 << 16;

/// The capabilities of one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Capabilities {
    /// How many descriptors the sender takes in one message. Default: 1.
    pub max_msg_fds: u64,
    /// The largest `count` of a data transfer the sender takes, in bytes. Default: 1 MiB.
    pub max_data_xfer_size: u64,
    /// How many DMA mappings may be valid at once. Default: 65,535.
    pub max_dma_maps: u64,
    /// Page sizes for DMA mappings, or'ed together. Default: 4 KiB only.
    pub pgsizes: u64,
    /// A second socket for the server's requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// Whether `VFIO_USER_REGION_WRITE_MULTI` is understood. Default: false.
    pub write_multiple: bool,
    /// Outrigger's own: whether the sender keeps a journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outrigger_journal: Option<JournalFormat>,
    /// Outrigger's own: whether the sender can tell KVM of a VFIO file, or has one to be told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outrigger_vfio: Option<VfioTie>,
    /// Outrigger's own: how far the sender, a server, has sealed itself. A client asks with an empty one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outrigger_sandbox: Option<SandboxReport>,
}

/// The `outrigger_sandbox` object: a server that has sent it has sealed itself before it knew anything of its client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxReport {
    /// The layers that its host does not permit, in words for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

impl SandboxReport {
    /// The most layers, and the most bytes of a name, that are believed.
    const MOST: usize = 32;
    const LONGEST: usize = 64;

    /// Whether it can be shown.
    pub(crate) fn is_valid(&self) -> bool {
        self.missing.len() <= Self::MOST && self.missing.iter().all(|layer| layer.len() <= Self::LONGEST)
    }
}

/// The `outrigger_vfio` object, which has no members yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VfioTie {}

/// The `twin_socket` object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TwinSocket {
    /// Whether the sender can use a second socket.
    pub supported: bool,
    /// In a reply: which descriptor of the message it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u64>,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            max_msg_fds: 1,
            max_data_xfer_size: u64::from(DEFAULT_MAX_DATA_XFER_SIZE),
            max_dma_maps: 65535,
            pgsizes: 4096,
            twin_socket: None,
            write_multiple: false,
            outrigger_journal: None,
            outrigger_vfio: None,
            outrigger_sandbox: None,
        }
    }
}

/// Text that is not what `VFIO_USER_VERSION` carries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CapabilitiesError {
    /// More than [`MAX_JSON`] bytes.
    #[error("{0} bytes of capabilities; at most {MAX_JSON} are read")]
    TooLong(usize),
    /// The terminating NUL is missing, or is not the last byte.
    #[error("capabilities are not one NUL-terminated text")]
    Unterminated,
    /// Not JSON, or a value of a wrong type.
    #[error("capabilities")]
    Json(#[source] serde_json::Error),
    /// Something other than an object, at this JSON pointer.
    #[error("capabilities: {0:?} is not an object")]
    NotAnObject(&'static str),
    /// A value with which no message could be exchanged.
    #[error("capability {name} is {value}")]
    Value {
        /// The key.
        name: &'static str,
        /// The value.
        value: u64,
    },
}

#[derive(Serialize, Deserialize)]
struct VersionData {
    #[serde(default)]
    capabilities: Capabilities,
}

impl Capabilities {
    /// Outrigger's capabilities, as client and as server.
    pub fn ours() -> Self {
        Self { max_msg_fds: MAX_FDS as u64, write_multiple: true, ..Self::default() }
    }

    /// Parses the version data of a message: empty, or NUL-terminated JSON.
    pub fn parse(data: &[u8]) -> Result<Self, CapabilitiesError> {
        if data.is_empty() {
            return Ok(Self::default());
        }
        if data.len() > MAX_JSON {
            return Err(CapabilitiesError::TooLong(data.len()));
        }
        let Some((0, text)) = data.split_last() else { return Err(CapabilitiesError::Unterminated) };
        let value: Value = serde_json::from_slice(text).map_err(CapabilitiesError::Json)?;
        // serde would also take a structure written as an array.
        const OBJECTS: [&str; 6] = [
            "",
            "/capabilities",
            "/capabilities/twin_socket",
            "/capabilities/outrigger_journal",
            "/capabilities/outrigger_vfio",
            "/capabilities/outrigger_sandbox",
        ];
        for path in OBJECTS {
            if value.pointer(path).is_some_and(|value| !value.is_object()) {
                return Err(CapabilitiesError::NotAnObject(path));
            }
        }
        let data: VersionData = serde_json::from_value(value).map_err(CapabilitiesError::Json)?;
        let capabilities = data.capabilities;
        for (name, value) in
            [("max_data_xfer_size", capabilities.max_data_xfer_size), ("pgsizes", capabilities.pgsizes)]
        {
            if value == 0 {
                return Err(CapabilitiesError::Value { name, value });
            }
        }
        Ok(capabilities)
    }

    /// The smallest page of a DMA mapping, in bytes: what its address and size are multiples of.
    pub fn page_size(&self) -> u64 {
        1 << self.pgsizes.trailing_zeros().min(63)
    }

    /// The version data for a message: NUL-terminated JSON.
    pub fn to_version_data(&self) -> Vec<u8> {
        let data = VersionData { capabilities: self.clone() };
        let mut json = serde_json::to_vec(&data).expect("numbers and booleans are always valid JSON");
        json.push(0);
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Capabilities, CapabilitiesError> {
        Capabilities::parse(format!("{text}\0").as_bytes())
    }

    #[test]
    fn malformed_text_is_refused() {
        assert!(matches!(Capabilities::parse(b"{}"), Err(CapabilitiesError::Unterminated)));
        assert!(matches!(Capabilities::parse(&[b' '; MAX_JSON + 1]), Err(CapabilitiesError::TooLong(_))));
        for text in ["", "{", "{}{}", "{\"capabilities\":{}}\0x"] {
            assert!(matches!(parse(text), Err(CapabilitiesError::Json(_))), "{text}");
        }
        for text in ["[]", "7", r#"{"capabilities":[]}"#, r#"{"capabilities":{"twin_socket":[]}}"#] {
            assert!(matches!(parse(text), Err(CapabilitiesError::NotAnObject(_))), "{text}");
        }
    }

    #[test]
    fn wrong_types_and_impossible_values_are_refused() {
        for text in [
            r#"{"capabilities":{"max_msg_fds":"8"}}"#,
            r#"{"capabilities":{"max_msg_fds":-1}}"#,
            r#"{"capabilities":{"max_data_xfer_size":1.5}}"#,
            r#"{"capabilities":{"max_dma_maps":null}}"#,
            r#"{"capabilities":{"pgsizes":"4096"}}"#,
            r#"{"capabilities":{"pgsizes":-4096}}"#,
            r#"{"capabilities":{"pgsizes":18446744073709551616}}"#,
            r#"{"capabilities":{"twin_socket":{"supported":1}}}"#,
            r#"{"capabilities":{"write_multiple":1}}"#,
            r#"{"capabilities":{"outrigger_sandbox":{"missing":[1]}}}"#,
        ] {
            assert!(matches!(parse(text), Err(CapabilitiesError::Json(_))), "{text}");
        }
        for key in ["max_data_xfer_size", "pgsizes"] {
            let zero = parse(&format!(r#"{{"capabilities":{{"{key}":0}}}}"#));
            assert!(matches!(zero, Err(CapabilitiesError::Value { name, value: 0 }) if name == key));
        }
    }

    #[test]
    fn what_is_absent_has_the_defaults_and_unknown_keys_are_ignored() {
        for text in ["{}", r#"{"capabilities":{}}"#, r#"{"capabilities":{"migration":{"pgsize":4096}},"x":1}"#] {
            assert_eq!(parse(text).unwrap(), Capabilities::default(), "{text}");
        }
        assert_eq!(Capabilities::parse(&[]).unwrap(), Capabilities::default());
    }

    #[test]
    fn the_smallest_page_size_is_what_mappings_are_aligned_to() {
        for (pgsizes, page_size) in [(1, 1), (4096, 4096), (0x4020_1000, 4096), (1 << 63, 1 << 63)] {
            assert_eq!(Capabilities { pgsizes, ..Capabilities::default() }.page_size(), page_size);
        }
    }

    #[test]
    fn a_report_that_is_too_long_to_show_is_not_valid() {
        let report = |layers: usize, bytes: usize| SandboxReport { missing: vec!["x".repeat(bytes); layers] };
        assert!(report(0, 0).is_valid() && report(32, 64).is_valid());
        assert!(!report(33, 1).is_valid() && !report(1, 65).is_valid());
    }

    #[test]
    fn ours_survive_the_round_trip() {
        let twin_socket = Some(TwinSocket { supported: true, fd_index: Some(0) });
        let capabilities = Capabilities { twin_socket, ..Capabilities::ours() };
        assert_eq!(Capabilities::parse(&capabilities.to_version_data()).unwrap(), capabilities);
    }
}
