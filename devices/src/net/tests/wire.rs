//! The host's end of a tap, and packets on it.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

#[path = "../../../tests/packet_socket/mod.rs"]
mod packet_socket;

/// An EtherType for experiments, which nothing on the host answers.
pub const ETHER_TYPE: u16 = 0x88b5;

/// A raw socket on the host's end of the tap.
pub struct Wire(OwnedFd);

impl Wire {
    pub fn new(tap: &str) -> Self {
        Self::for_protocol(tap, ETHER_TYPE)
    }

    /// One that sends IPv4 packets, a `virtio_net_hdr` before each, so that they can be larger than the MTU.
    pub fn for_large_packets(tap: &str) -> Self {
        const IPV4: u16 = 0x0800;
        let wire = Self::for_protocol(tap, IPV4);
        let on = 1i32;
        // SAFETY: reads an integer.
        let set = unsafe {
            libc::setsockopt(wire.0.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), 4)
        };
        assert_eq!(set, 0);
        wire
    }

    fn for_protocol(tap: &str, protocol: u16) -> Self {
        let fd = packet_socket::bound(tap, protocol, 0);
        let timeout = nix::sys::time::TimeVal::new(10, 0);
        nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &timeout).unwrap();
        Self(fd)
    }

    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.0, frame), Ok(frame.len()));
    }

    pub fn receive(&self) -> Vec<u8> {
        let mut frame = vec![0; 65536];
        let length = nix::unistd::read(&self.0, &mut frame).expect("a frame within 10 s");
        frame.truncate(length);
        frame
    }

    /// The next frame but `sent`, which a card that a successor relieved may have sent twice.
    pub fn receive_after(&self, sent: Option<&[u8]>) -> Vec<u8> {
        let first = self.receive();
        if sent == Some(&first) { self.receive() } else { first }
    }
}

pub fn frame(length: usize, fill: u8) -> Vec<u8> {
    let mut frame = vec![fill; length];
    frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9]);
    frame[12..14].copy_from_slice(&ETHER_TYPE.to_be_bytes());
    frame
}

/// A TCP segment over IPv4 that a driver with offloads gets whole.
pub fn large_frame(length: usize, fill: u8) -> Vec<u8> {
    let mut frame = frame(length, fill);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = u16::try_from(length - 14).unwrap().to_be_bytes();
    let mut header = [0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    let words = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame[14..34].copy_from_slice(&header);
    frame[34..54].fill(0);
    // Twenty bytes of header.
    frame[46] = 0x50;
    frame
}
