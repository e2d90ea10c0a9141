//! A raw socket on the host's end of a tap. Needs root.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::libc;

/// One that sends and gets whole packets of one EtherType (host order); `flags` are further ones of socket(2).
pub fn bound(tap: &str, protocol: u16, flags: i32) -> OwnedFd {
    // SAFETY: plain system calls, on a socket that is owned from the start and a local address.
    unsafe {
        // Without a protocol, which comes with the interface: with one it would get the packets of every interface until then.
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags, 0);
        assert!(fd >= 0, "raw sockets need root");
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = 17;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = nix::net::if_::if_nametoindex(tap).unwrap().cast_signed();
        let size = u32::try_from(size_of_val(&address)).unwrap();
        assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size), 0);
        fd
    }
}
