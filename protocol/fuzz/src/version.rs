//! How a connection begins.

use crate::input::Input;

/// In the first byte of an input: the device is behind VFIO, and both sides say so.
pub const VFIO: u8 = 16;

/// The payload of the first message, by a byte of the input. `None`: the steps that follow bring it, or do not.
pub fn payload(input: &mut Input<'_>, twin: &str) -> Option<Vec<u8>> {
    let how: u8 = input.number();
    let json = match how % 8 {
        0 => r#""max_msg_fds":64,"write_multiple":true"#.to_string(),
        1 => format!(r#""max_msg_fds":64,"write_multiple":true,"twin_socket":{twin}"#),
        2 => r#""max_msg_fds":1,"max_data_xfer_size":4096"#.to_string(),
        3 => format!(r#""max_msg_fds":8,"max_data_xfer_size":1,"max_dma_maps":3,"twin_socket":{twin}"#),
        4 => return Some(version(format!("{}\0", String::from_utf8_lossy(input.bytes(512))).as_bytes())),
        5 => return Some(input.bytes(4200).to_vec()),
        6 => r#""max_msg_fds":0"#.to_string(),
        _ => return None,
    };
    let journal = if how & 8 != 0 { r#","outrigger_journal":{}"# } else { "" };
    let vfio = if how & VFIO != 0 { r#","outrigger_vfio":{}"# } else { "" };
    Some(version(format!("{{\"capabilities\":{{{json}{journal}{vfio}}}}}\0").as_bytes()))
}

fn version(json: &[u8]) -> Vec<u8> {
    [&[0, 0, 1, 0], json].concat()
}
